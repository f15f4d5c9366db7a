// Cross-entropy of the output head, with its gradients while the logits of a few tokens are near the core.
#pragma once

#include "layer.h"

namespace {

constexpr int FEW = 48;            // tokens whose logits a thread holds
constexpr int64_t CHUNK = 40 * FEW;   // tokens whose logits' gradients exist at once

// Sum of -log p(label) over tokens; dhidden [tokens, dim] and dweight [vocabulary, dim] unless null.
inline double cross_entropy(const Bf16* hidden, const float* weight, const int64_t* labels, int64_t tokens, int dim, int vocabulary,
                            int threads, Bf16* dhidden, float* dweight) {
  Packed packed;
  const int64_t head = packed.add(weight, vocabulary, dim, false), head_t = dhidden ? packed.add(weight, vocabulary, dim, true) : 0;
  packed.make(threads);
  Buffer<Pair> dlogit_pairs(dweight ? CHUNK / 2 * vocabulary : 0), hidden_pairs(dweight ? CHUNK / 2 * dim : 0);
  if (dweight && !tokens) std::fill(dweight, dweight + static_cast<int64_t>(vocabulary) * dim, 0.0f);
  std::vector<double> losses((tokens + FEW - 1) / FEW, 0.0);
  for (int64_t begin = 0; begin < tokens; begin += CHUNK) {
    const int64_t end = std::min(tokens, begin + CHUNK);
#pragma omp parallel num_threads(threads)
    {
      Buffer<float> logits(static_cast<int64_t>(FEW) * vocabulary), states(static_cast<int64_t>(FEW) * dim);
      Buffer<Bf16> dlogits(static_cast<int64_t>(FEW) * vocabulary);
#pragma omp for schedule(dynamic)
      for (int64_t first = begin; first < end; first += FEW) {
        const int rows = static_cast<int>(std::min<int64_t>(FEW, end - first));
        product(Left::rows(hidden + first * dim, dim), packed[head], rows, vocabulary, dim / 2, logits, vocabulary);
        for (int row = 0; row < rows; row++) {
          float* from = logits + static_cast<int64_t>(row) * vocabulary;
          __m512 high = _mm512_loadu_ps(from);
          for (int i = LANES; i < vocabulary; i += LANES) high = _mm512_max_ps(high, _mm512_loadu_ps(from + i));
          const float most = _mm512_reduce_max_ps(high);
          const int64_t label = labels[first + row];
          const float chosen = from[label] - most;
          Vector all{};
          for (int i = 0; i < vocabulary; i += LANES) {
            const Vector weight = exponential(load(from + i) - most);
            all += weight;
            store(from + i, weight);
          }
          const float total = sum(all), inverse = 1.0f / total;
          losses[first / FEW] += std::log(static_cast<double>(total)) - chosen;
          from[label] -= total;
          Bf16* to = dlogits + static_cast<int64_t>(row) * vocabulary;
          for (int i = 0; i < vocabulary; i += LANES) store(to + i, load(from + i) * inverse);
        }
        if (dhidden) {
          product(Left::rows(dlogits, vocabulary), packed[head_t], rows, dim, vocabulary / 2, states, dim);
          round_row(states, rows * dim, dhidden + first * dim);
        }
        if (dweight) {
          stream_rows(dlogits, vocabulary, rows, vocabulary, dlogit_pairs + (first - begin) / 2 * vocabulary);
          stream_rows(hidden + first * dim, dim, rows, dim, hidden_pairs + (first - begin) / 2 * dim);
        }
      }
    }
    if (dweight) {
      WeightGradients products;
      products.add(dlogit_pairs, vocabulary, vocabulary, hidden_pairs, dim, dim, (end - begin + 1) / 2, dweight);
      products.make(threads, begin > 0);
    }
  }
  double total = 0;
  for (const double loss : losses) total += loss;
  return total;
}

}  // namespace
