// The gradient of an embedding.
#pragma once

#include "layer.h"

namespace {

// dweight [vocabulary, dim]: of each token's row the sum of its rows of dy [tokens, dim], in their order.
template <class F, typename Number = typename F::Number>
void embedding_backward(const int64_t* ids, const Number* dy, int64_t tokens, int dim, int64_t vocabulary, int threads, float* dweight) {
  // A thread has some columns of all tokens: no two threads add to one number.
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int begin = 0; begin < dim; begin += PANEL) {
    const int end = std::min(dim, begin + PANEL);
    for (int64_t token = 0; token < vocabulary; token++) std::fill(dweight + token * dim + begin, dweight + token * dim + end, 0.0f);
    for (int64_t token = 0; token < tokens; token++) {
      float* to = dweight + ids[token] * dim;
      const Number* from = dy + token * dim;
      for (int i = begin; i < end; i += LANES) store(to + i, load(to + i) + load(from + i));
    }
  }
}

}  // namespace
