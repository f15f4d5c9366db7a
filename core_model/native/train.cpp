// What a training step calls, in one library: a decoder layer (decoder.h), the output head's cross-entropy (loss.h), the
// norms, embeddings and balance losses beside them, and the norm of the gradients. kind: of the states, 0 fp32, 1 bf16;
// weights and their gradients are fp32.
#include "balance.h"
#include "decoder.h"
#include "embedding.h"
#include "loss.h"
#include "norm.h"

extern "C" void trivium_layer_forward(int32_t kind, const Shape* shape, const Weights* weights, const Sequences* sequences,
                                      const void* x, const Kept* kept, void* y) {
  if (kind) {
    Layer<Bf16s>(*shape, *weights, *sequences, x, *kept).forward(static_cast<Bf16*>(y));
  } else {
    Layer<Fp32>(*shape, *weights, *sequences, x, *kept).forward(static_cast<float*>(y));
  }
}

extern "C" void trivium_layer_backward(int32_t kind, const Shape* shape, const Weights* weights, const Sequences* sequences,
                                       const void* x, const Kept* kept, const void* dy, const float* dweights, const float* dscores,
                                       const Weights* grads, void* dx) {
  if (kind) {
    Layer<Bf16s>(*shape, *weights, *sequences, x, *kept).backward(static_cast<const Bf16*>(dy), dweights, dscores, *grads, static_cast<Bf16*>(dx));
  } else {
    Layer<Fp32>(*shape, *weights, *sequences, x, *kept).backward(static_cast<const float*>(dy), dweights, dscores, *grads, static_cast<float*>(dx));
  }
}

extern "C" double trivium_cross_entropy(int32_t kind, const void* hidden, const float* weight, const int64_t* labels, int64_t tokens,
                                        int32_t dim, int32_t vocabulary, int32_t threads, void* dhidden, float* dweight) {
  if (kind)
    return cross_entropy<Bf16s>(static_cast<const Bf16*>(hidden), weight, labels, tokens, dim, vocabulary, threads, static_cast<Bf16*>(dhidden), dweight);
  return cross_entropy<Fp32>(static_cast<const float*>(hidden), weight, labels, tokens, dim, vocabulary, threads, static_cast<float*>(dhidden), dweight);
}

extern "C" void trivium_norm_forward(int32_t kind, const void* x, const float* weight, int64_t rows, int32_t width, float eps,
                                     int32_t threads, void* y) {
  if (kind) return norm_forward<Bf16s>(static_cast<const Bf16*>(x), weight, rows, width, eps, threads, static_cast<Bf16*>(y));
  norm_forward<Fp32>(static_cast<const float*>(x), weight, rows, width, eps, threads, static_cast<float*>(y));
}

extern "C" void trivium_norm_backward(int32_t kind, const void* x, const float* weight, int64_t rows, int32_t width, float eps,
                                      int32_t threads, const void* dy, void* dx, float* dweight) {
  if (kind)
    return norm_backward<Bf16s>(static_cast<const Bf16*>(x), weight, rows, width, eps, threads, static_cast<const Bf16*>(dy), static_cast<Bf16*>(dx), dweight);
  norm_backward<Fp32>(static_cast<const float*>(x), weight, rows, width, eps, threads, static_cast<const float*>(dy), static_cast<float*>(dx), dweight);
}

extern "C" double trivium_squares(const float* const* arrays, const int64_t* sizes, int32_t many, int32_t threads) {
  return squares(arrays, sizes, many, threads);
}

extern "C" void trivium_embedding_backward(const int64_t* ids, const float* dy, int64_t tokens, int32_t dim, int32_t threads, float* dweight) {
  embedding_backward(ids, dy, tokens, dim, threads, dweight);
}

extern "C" double trivium_sequence_balance(const float* scores, const uint8_t* real, int64_t sequences, int64_t length, int32_t experts,
                                           int32_t chosen, int32_t threads, float* dscores) {
  return sequence_balance(scores, real, sequences, length, experts, chosen, threads, dscores);
}
