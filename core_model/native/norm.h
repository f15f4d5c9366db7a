// RMSNorm over rows of states, for the norms that stand outside layers; and the norm of all gradients.
#pragma once

#include <utility>

#include "layer.h"

namespace {

template <class F, typename Number = typename F::Number>
void norm_forward(const Number* x, const float* weight, int64_t rows, int width, float eps, int threads, Number* y) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) normalise(x + row * width, weight, width, eps, y + row * width);
}

// dx [rows, width] and dweight [width], or null, from dy.
template <class F, typename Number = typename F::Number>
void norm_backward(const Number* x, const float* weight, int64_t rows, int width, float eps, int threads, const Number* dy, Number* dx,
                   float* dweight) {
  const int64_t tiles = (rows + TILE - 1) / TILE;
  NormGradient sums(tiles, width);
#pragma omp parallel num_threads(threads)
  {
    Buffer<float> grad(width);
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
      for (int64_t row = tile * TILE; row < std::min(rows, (tile + 1) * TILE); row++) {
        widen_row(dy + row * width, width, grad);
        normalise_backward(x + row * width, weight, width, eps, grad, sums.of(tile));
        round_row(grad, width, dx + row * width);
      }
    }
  }
  sums.total(dweight);
}

// Sum of the squares of several arrays of numbers, in one order whatever the number of threads.
inline double squares(const float* const* arrays, const int64_t* sizes, int many, int threads) {
  constexpr int64_t PART = 8192;
  std::vector<std::pair<const float*, int64_t>> parts;
  for (int i = 0; i < many; i++)
    for (int64_t at = 0; at < sizes[i]; at += PART) parts.push_back({arrays[i] + at, std::min(PART, sizes[i] - at)});
  std::vector<double> sums(parts.size());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (size_t part = 0; part < parts.size(); part++) {
    const auto [from, size] = parts[part];
    Vector squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES)
      for (int v = 0; v < 4; v++) squares[v] += load(from + i + v * LANES) * load(from + i + v * LANES);
    for (; i < size; i++) sums[part] += static_cast<double>(from[i]) * from[i];
    for (const Vector& one : squares) sums[part] += sum(one);
  }
  double total = 0;
  for (const double one : sums) total += one;
  return total;
}

}  // namespace
