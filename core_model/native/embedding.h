// The gradient of an embedding.
#pragma once

#include <cstdint>

#include <omp.h>

#include "vectors.h"

namespace {

// dweight [vocabulary, dim], of zeros: to each token's row its rows of dy [tokens, dim] are added, in their order.
inline void embedding_backward(const int64_t* ids, const float* dy, int64_t tokens, int dim, int threads, float* dweight) {
#pragma omp parallel num_threads(threads)
  {
    // A thread has some columns of all tokens: no two threads add to one number.
    const int64_t vectors = dim / LANES, thread = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = vectors * thread / count * LANES, end = vectors * (thread + 1) / count * LANES;
    for (int64_t token = 0; token < tokens; token++) {
      float* to = dweight + ids[token] * dim;
      const float* from = dy + token * dim;
      for (int64_t i = begin; i < end; i += LANES) store(to + i, load(to + i) + load(from + i));
    }
  }
}

}  // namespace
