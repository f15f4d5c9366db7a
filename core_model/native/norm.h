// RMSNorm over rows of states, for the norms that stand outside layers.
#pragma once

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

}  // namespace
