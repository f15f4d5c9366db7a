// Parts of a decoder layer over tiles of tokens: norms, rotations, SwiGLU; and what all phases of a pass share.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include <omp.h>

#include "products.h"

namespace {

constexpr int TILE = 96;       // tokens of a tile: a multiple of every number of rows that a product takes at once

template <typename Number>
float inverse_rms(const Number* x, int width, float eps) {
  Vector squares{};
  for (int i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum(squares) / width + eps);
}

template <typename Number>
void normalise(const Number* x, const float* weight, int width, float eps, Number* out) {
  const float inverse = inverse_rms(x, width, eps);
  for (int i = 0; i < width; i += LANES) store(out + i, load(x + i) * inverse * load(weight + i));
}

// grad becomes the gradient of x; dweight grows.
template <typename Number>
void normalise_backward(const Number* x, const float* weight, int width, float eps, float* grad, float* dweight) {
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
  const Words lanes = count_up();
  const Vector sign = numbers(bits(repeated(back ? -1.0f : 1.0f)) ^ (((lanes & 1) - 1) << 31));  // the first of a pair: the other way
  for (int i = 0; i < width; i += LANES) {
    const Vector pairs = load(x + i), by = load(rotations + i);
    const Vector other = shuffled(pairs, lanes ^ 1) * shuffled(by, lanes | 1);
    store(x + i, pairs * shuffled(by, lanes & ~1) + other * sign);
  }
}

template <typename Number>
void round_row(const float* from, int width, Number* to) {
  for (int i = 0; i < width; i += LANES) store(to + i, load(from + i));
}

template <typename Number>
void widen_row(const Number* from, int width, float* to) {
  for (int i = 0; i < width; i += LANES) store(to + i, load(from + i));
}

// Weights in panels, made by all threads together.
template <class F>
class Packed {
 public:
  typedef typename F::Step Step;

  int add(const float* weight, int out, int in, bool transposed) {
    jobs_.push_back({weight, out, in, transposed, size_});
    size_ += static_cast<int64_t>(out) * in / F::STEP;
    return static_cast<int>(jobs_.size()) - 1;
  }
  void make(int threads) {
    steps_ = std::make_unique<Buffer<Step>>(size_);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < jobs_.size(); i++) {
      const Job& job = jobs_[i];
      (job.transposed ? pack_transposed<F> : pack<F>)(job.weight, job.out, job.in, *steps_ + job.offset);
    }
  }
  Right<F> operator[](int which) const {
    const Job& job = jobs_[which];
    return Right<F>::panels(*steps_ + job.offset, job.transposed ? job.in : job.out);
  }

 private:
  struct Job {
    const float* weight;
    int out, in;
    bool transposed;
    int64_t offset;
  };
  std::vector<Job> jobs_;
  int64_t size_ = 0;
  std::unique_ptr<Buffer<Step>> steps_;
};

// Rows that gradients of weights sum over: in fp32 these rows; in bf16 pairs of rows, which are written beside them, tile
// by tile, while they are near the core. A tile begins at an even row.
template <class F>
class Summed {
 public:
  typedef typename F::Number Number;
  typedef typename F::Step Step;

  // rows: [count, width] that are there, or will be; null: rows of its own, written to their `place`. wanted: whether
  // anything is summed over them.
  Summed(const Number* rows, int64_t count, int width, bool wanted)
      : width_(width), wanted_(wanted), own_(!wanted ? 0 : F::IS_BF16 ? (count + 1) / 2 * width : rows ? 0 : count * width) {
    if constexpr (!F::IS_BF16) steps_ = rows ? rows : own_; else steps_ = own_;
  }
  Summed(const Summed&) = delete;

  // Where to write rows from `row` on: `near`, or where they stay.
  Number* place(int64_t row, Number* near) {
    if constexpr (F::IS_BF16) return near; else return wanted_ ? own_ + row * width_ : near;
  }
  // The rows from `row` on are at `from`.
  void take(int64_t row, int count, const Number* from) {
    if constexpr (F::IS_BF16)
      if (wanted_) pair_rows<true>(from, width_, count, width_, own_ + row / 2 * width_);
  }
  int width() const { return width_; }
  // From an even row on.
  const Step* steps(int64_t row = 0) const { return steps_ + row / F::STEP * width_; }

 private:
  int width_;
  bool wanted_;
  Buffer<Step> own_;
  const Step* steps_;
};

// Gradients of weights [rows, columns]: sums over tokens of the products of two of their numbers.
template <class F>
class WeightGradients {
  static constexpr int BLOCK_ROWS = F::IS_BF16 ? 48 : 96;  // of a gradient, taken by one thread
  static constexpr int STRETCH = F::IS_BF16 ? 512 : 128;   // steps of tokens summed up before the next rows of the gradient

 public:
  // `count` rows from `row` on: of `left` the numbers [at, at + rows) with all of `right`. out: null where nobody asks.
  void add(const Summed<F>& left, int at, int rows, const Summed<F>& right, int64_t row, int64_t count, float* out) {
    if (!out) return;
    const int64_t steps = (count + F::STEP - 1) / F::STEP;
    const int blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, block = ((rows + blocks - 1) / blocks + LANES - 1) / LANES * LANES;
    for (int begin = 0; begin < rows; begin += block) {
      jobs_.push_back({Left<F>::columns(left.steps(row) + at + begin, left.width()), Right<F>::rows(right.steps(row), right.width()),
                       std::min(block, rows - begin), right.width(), steps, out + static_cast<int64_t>(begin) * right.width()});
    }
  }
  // add: to what is there.
  void make(int threads, bool add = false) {
    // The longest first, so that threads end at the same time.
    std::stable_sort(jobs_.begin(), jobs_.end(), [](const Job& a, const Job& b) { return a.work() > b.work(); });
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < jobs_.size(); i++) {
      const Job& job = jobs_[i];
      if (!job.steps && !add) std::fill(job.out, job.out + static_cast<int64_t>(job.rows) * job.columns, 0.0f);
      for (int64_t step = 0; step < job.steps; step += STRETCH) {
        const Left<F> left{job.left.at + step * job.left.step, job.left.row, job.left.step};
        const Right<F> right = Right<F>::rows(job.right.at + step * job.right.width, job.right.width);
        product<F>(left, right, job.rows, job.columns, static_cast<int>(std::min<int64_t>(STRETCH, job.steps - step)), job.out, job.columns, add || step > 0);
      }
    }
  }

 private:
  struct Job {
    Left<F> left;
    Right<F> right;
    int rows, columns;
    int64_t steps;
    float* out;

    int64_t work() const { return steps * rows * columns; }
  };
  std::vector<Job> jobs_;
};

// The gradient of a norm's weight, summed per tile and then over tiles: the same with any number of threads.
class NormGradient {
 public:
  NormGradient(int64_t tiles, int width) : width_(width), sums_(static_cast<size_t>(tiles) * width, 0.0f) {}
  float* of(int64_t tile) { return &sums_[static_cast<size_t>(tile) * width_]; }
  // out: null where nobody asks.
  void total(float* out) const {
    if (!out) return;
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
  int gate, up, down;        // in Packed, for forward
  int gate_t, up_t, down_t;  // for backward
};

struct SwigluScratch {
  float first[TILE * PANEL], second[TILE * PANEL];
};

// inner [rows, 2 width] (gate, then up) and act [rows, width] of x.
template <class F>
void swiglu(const Swiglu& s, const Packed<F>& packed, const typename F::Number* x, int rows, typename F::Number* inner,
            typename F::Number* act, SwigluScratch& scratch) {
  for (int column = 0; column < s.width; column += PANEL) {
    panel_product<F>(Left<F>::rows(x, s.dim), packed[s.gate], rows, column, s.width, s.dim / F::STEP, scratch.first, PANEL, false);
    panel_product<F>(Left<F>::rows(x, s.dim), packed[s.up], rows, column, s.width, s.dim / F::STEP, scratch.second, PANEL, false);
    const int width = std::min(PANEL, s.width - column);
    for (int row = 0; row < rows; row++) {
      typename F::Number* to = inner + static_cast<int64_t>(row) * 2 * s.width + column;
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
template <class F>
void swiglu_backward(const Swiglu& s, const Packed<F>& packed, const typename F::Number* dy, int rows, const typename F::Number* inner,
                     const float* factors, typename F::Number* dinner, typename F::Number* act, float* dfactors, SwigluScratch& scratch) {
  if (factors) std::fill(dfactors, dfactors + rows, 0.0f);
  for (int column = 0; column < s.width; column += PANEL) {
    panel_product<F>(Left<F>::rows(dy, s.dim), packed[s.down_t], rows, column, s.width, s.dim / F::STEP, scratch.first, PANEL, false);
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
template <class F>
void swiglu_input(const Swiglu& s, const Packed<F>& packed, const typename F::Number* dinner, int rows, float* dx, bool add) {
  const Left<F> gate = Left<F>::rows(dinner, 2 * s.width), up = Left<F>::rows(dinner + s.width, 2 * s.width);
  product<F>(gate, packed[s.gate_t], rows, s.dim, s.width / F::STEP, dx, s.dim, add);
  product<F>(up, packed[s.up_t], rows, s.dim, s.width / F::STEP, dx, s.dim, true);
}

}  // namespace
