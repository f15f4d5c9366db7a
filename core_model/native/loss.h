// Cross-entropy of the output head, with its gradients while the logits of a few tokens are near the core.
#pragma once

#include "layer.h"

namespace {

constexpr int FEW = 48;            // tokens whose logits a thread holds
constexpr int64_t CHUNK = 40 * FEW;   // tokens whose logits' gradients exist at once

// Sum of -log p(label) over tokens; dhidden [tokens, dim] and dweight [vocabulary, dim] unless null.
template <class F, typename Number = typename F::Number>
double cross_entropy(const Number* hidden, const float* weight, const int64_t* labels, int64_t tokens, int dim, int vocabulary, int threads,
                     Number* dhidden, float* dweight) {
  Packed<F> packed;
  const int head = packed.add(weight, vocabulary, dim, false), head_t = dhidden ? packed.add(weight, vocabulary, dim, true) : 0;
  packed.make(threads);
  if (dweight && !tokens) std::fill(dweight, dweight + static_cast<int64_t>(vocabulary) * dim, 0.0f);
  std::vector<double> losses((tokens + FEW - 1) / FEW, 0.0);
  for (int64_t begin = 0; begin < tokens; begin += CHUNK) {
    const int64_t end = std::min(tokens, begin + CHUNK);
    Summed<F> dlogits(nullptr, end - begin, vocabulary, dweight), states(hidden + begin * dim, end - begin, dim, dweight);
#pragma omp parallel num_threads(threads)
    {
      Buffer<float> logits(static_cast<int64_t>(FEW) * vocabulary), dstates(static_cast<int64_t>(FEW) * dim);
      Buffer<Number> near(static_cast<int64_t>(FEW) * vocabulary);
#pragma omp for schedule(dynamic)
      for (int64_t first = begin; first < end; first += FEW) {
        const int rows = static_cast<int>(std::min<int64_t>(FEW, end - first));
        product<F>(Left<F>::rows(hidden + first * dim, dim), packed[head], rows, vocabulary, dim / F::STEP, logits, vocabulary);
        Number* const grads = dlogits.place(first - begin, near);
        for (int row = 0; row < rows; row++) {
          float* from = logits + static_cast<int64_t>(row) * vocabulary;
          Vector high = load(from);
          for (int i = LANES; i < vocabulary; i += LANES) high = larger(load(from + i), high);
          const float most = largest(high);
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
          Number* to = grads + static_cast<int64_t>(row) * vocabulary;
          for (int i = 0; i < vocabulary; i += LANES) store(to + i, load(from + i) * inverse);
        }
        if (dhidden) {
          product<F>(Left<F>::rows(grads, vocabulary), packed[head_t], rows, dim, vocabulary / F::STEP, dstates, dim);
          round_row(dstates, rows * dim, dhidden + first * dim);
        }
        dlogits.take(first - begin, rows, grads);
        states.take(first - begin, rows, hidden + first * dim);
      }
    }
    WeightGradients<F> products;
    products.add(dlogits, 0, vocabulary, states, 0, end - begin, dweight);
    products.make(threads, begin > 0);
  }
  double total = 0;
  for (const double loss : losses) total += loss;
  return total;
}

}  // namespace
