// Parts of a decoder layer over tiles of tokens: norms, rotations, SwiGLU; and what all phases of a pass share.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include <omp.h>

#include "products.h"

namespace {

constexpr int TILE = 96;       // tokens of a tile: a multiple of every number of rows that a product takes at once
constexpr int BLOCK_ROWS = 48; // of a weight's gradient, taken by one thread
constexpr int STRETCH = 512;   // pairs of tokens summed up before the next rows of the gradient

inline float inverse_rms(const Bf16* x, int width, float eps) {
  Vector squares{};
  for (int i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum(squares) / width + eps);
}

inline void normalise(const Bf16* x, const float* weight, int width, float eps, Bf16* out) {
  const float inverse = inverse_rms(x, width, eps);
  for (int i = 0; i < width; i += LANES) store(out + i, load(x + i) * inverse * load(weight + i));
}

// grad becomes the gradient of x; dweight grows.
inline void normalise_backward(const Bf16* x, const float* weight, int width, float eps, float* grad, float* dweight) {
  const float inverse = inverse_rms(x, width, eps);
  Vector dot{};
  for (int i = 0; i < width; i += LANES) {
    const Vector unit = load(x + i) * inverse, product = load(grad + i) * unit;
    store(dweight + i, load(dweight + i) + product);
    dot += product * load(weight + i);
  }
  const float along = sum(dot) / width;
  for (int i = 0; i < width; i += LANES)
    store(grad + i, (load(grad + i) * load(weight + i) - load(x + i) * (inverse * along)) * inverse);
}

// Pairs (0, 1), (2, 3), ... times the complex rotations, or times their conjugates.
inline void rotate(float* x, int width, const float* rotations, bool back) {
  for (int i = 0; i < width; i += LANES) {
    const __m512 pairs = _mm512_loadu_ps(x + i), by = _mm512_loadu_ps(rotations + i);
    const __m512 other = _mm512_mul_ps(_mm512_permute_ps(pairs, 0xb1), _mm512_movehdup_ps(by));
    const __m512 real = _mm512_moveldup_ps(by);
    _mm512_storeu_ps(x + i, back ? _mm512_fmsubadd_ps(pairs, real, other) : _mm512_fmaddsub_ps(pairs, real, other));
  }
}

inline void round_row(const float* from, int width, Bf16* to) {
  for (int i = 0; i < width; i += LANES) store(to + i, load(from + i));
}

// Weights in panels, made by all threads together.
class Packed {
 public:
  int64_t add(const float* weight, int out, int in, bool transposed) {
    jobs_.push_back({weight, out, in, transposed, size_});
    size_ += static_cast<int64_t>(out) * in / 2;
    return jobs_.back().offset;
  }
  void make(int threads) {
    pairs_ = std::make_unique<Buffer<Pair>>(size_);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < jobs_.size(); i++) {
      const Job& job = jobs_[i];
      (job.transposed ? pack_transposed : pack)(job.weight, job.out, job.in, *pairs_ + job.offset);
    }
  }
  Right operator[](int64_t offset) const { return Right::panels(*pairs_ + offset); }

 private:
  struct Job {
    const float* weight;
    int out, in;
    bool transposed;
    int64_t offset;
  };
  std::vector<Job> jobs_;
  int64_t size_ = 0;
  std::unique_ptr<Buffer<Pair>> pairs_;
};

// Gradients of weights [rows, columns]: sums over tokens of the products of two of their numbers.
class WeightGradients {
 public:
  // left, right: pairs of tokens, rows `left_width` and `right_width` wide.
  void add(const Pair* left, int64_t left_width, int rows, const Pair* right, int64_t right_width, int columns, int64_t pairs, float* out) {
    for (int row = 0; row < rows; row += BLOCK_ROWS) {
      jobs_.push_back({Left::columns(left + row, left_width), Right::rows(right, right_width), std::min(BLOCK_ROWS, rows - row), columns,
                       pairs, out + static_cast<int64_t>(row) * columns});
    }
  }
  // add: to what is there.
  void make(int threads, bool add = false) const {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < jobs_.size(); i++) {
      const Job& job = jobs_[i];
      if (!job.pairs && !add) std::fill(job.out, job.out + static_cast<int64_t>(job.rows) * job.columns, 0.0f);
      for (int64_t pair = 0; pair < job.pairs; pair += STRETCH) {
        const Left left{job.left.at + pair * job.left.step, job.left.row, job.left.step};
        const Right right = Right::rows(job.right.at + pair * job.right.width, job.right.width);
        product(left, right, job.rows, job.columns, static_cast<int>(std::min<int64_t>(STRETCH, job.pairs - pair)), job.out, job.columns, add || pair > 0);
      }
    }
  }

 private:
  struct Job {
    Left left;
    Right right;
    int rows, columns;
    int64_t pairs;
    float* out;
  };
  std::vector<Job> jobs_;
};

// The gradient of a norm's weight, summed per tile and then over tiles: the same with any number of threads.
class NormGradient {
 public:
  NormGradient(int64_t tiles, int width) : width_(width), sums_(static_cast<size_t>(tiles) * width, 0.0f) {}
  float* of(int64_t tile) { return &sums_[static_cast<size_t>(tile) * width_]; }
  void total(float* out) const {
    std::fill(out, out + width_, 0.0f);
    for (size_t i = 0; i < sums_.size(); i++) out[i % width_] += sums_[i];
  }

 private:
  int width_;
  std::vector<float> sums_;
};

// silu(x W_gate^T) * (x W_up^T), and then W_down.
struct Swiglu {
  int dim, width;
  int64_t gate, up, down;        // in Packed, for forward
  int64_t gate_t, up_t, down_t;  // for backward
};

struct SwigluScratch {
  float first[TILE * PANEL], second[TILE * PANEL];
};

// inner [rows, 2 width] (gate, then up) and act [rows, width] of x.
inline void swiglu(const Swiglu& s, const Packed& packed, const Bf16* x, int rows, Bf16* inner, Bf16* act, SwigluScratch& scratch) {
  for (int column = 0; column < s.width; column += PANEL) {
    panel_product(Left::rows(x, s.dim), packed[s.gate], rows, column, s.width, s.dim / 2, scratch.first, PANEL, false);
    panel_product(Left::rows(x, s.dim), packed[s.up], rows, column, s.width, s.dim / 2, scratch.second, PANEL, false);
    const int width = std::min(PANEL, s.width - column);
    for (int row = 0; row < rows; row++) {
      Bf16* to = inner + static_cast<int64_t>(row) * 2 * s.width + column;
      for (int i = 0; i < width; i += LANES) {
        store(to + i, load(&scratch.first[row * PANEL + i]));
        store(to + s.width + i, load(&scratch.second[row * PANEL + i]));
        const Vector gate = load(to + i), up = load(to + s.width + i);  // rounded, as backward reads them
        store(act + static_cast<int64_t>(row) * s.width + column + i, gate * sigmoid(gate) * up);
      }
    }
  }
}

// dinner [rows, 2 width] from dy. factors (or null): the share of each row's output that is used; then act becomes the
// share of the activations, and dfactors the gradients of the shares.
inline void swiglu_backward(const Swiglu& s, const Packed& packed, const Bf16* dy, int rows, const Bf16* inner, const float* factors,
                            Bf16* dinner, Bf16* act, float* dfactors, SwigluScratch& scratch) {
  if (factors) std::fill(dfactors, dfactors + rows, 0.0f);
  for (int column = 0; column < s.width; column += PANEL) {
    panel_product(Left::rows(dy, s.dim), packed[s.down_t], rows, column, s.width, s.dim / 2, scratch.first, PANEL, false);
    const int width = std::min(PANEL, s.width - column);
    for (int row = 0; row < rows; row++) {
      const int64_t at = static_cast<int64_t>(row) * 2 * s.width + column;
      const float factor = factors ? factors[row] : 1.0f;
      Vector shares{};
      for (int i = 0; i < width; i += LANES) {
        const Vector gate = load(inner + at + i), up = load(inner + at + s.width + i);
        const Vector opened = sigmoid(gate), silu = gate * opened;
        Vector dact = load(&scratch.first[row * PANEL + i]);
        shares += dact * silu * up;
        store(act + static_cast<int64_t>(row) * s.width + column + i, silu * up * factor);
        dact *= factor;
        store(dinner + at + i, dact * up * (opened + silu * (1.0f - opened)));
        store(dinner + at + s.width + i, dact * silu);
      }
      if (factors) dfactors[row] += sum(shares);
    }
  }
}

// dx [rows, dim] (+)= dinner times the weights.
inline void swiglu_input(const Swiglu& s, const Packed& packed, const Bf16* dinner, int rows, float* dx, bool add) {
  const Left gate = Left::rows(dinner, 2 * s.width), up = Left::rows(dinner + s.width, 2 * s.width);
  product(gate, packed[s.gate_t], rows, s.dim, s.width / 2, dx, s.dim, add);
  product(up, packed[s.up_t], rows, s.dim, s.width / 2, dx, s.dim, true);
}

}  // namespace
