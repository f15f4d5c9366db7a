// Products of matrices with sums in fp32. The kind of the numbers, `F`, is one of numbers.h.
//
// Steps (numbers.h) lie along what is summed over: a left matrix has the steps of a row one after the other (which is how
// rows lie in memory), a right one the same step of many columns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "numbers.h"

namespace {

// As many sums as registers hold beside a factor and the right matrix's vectors: of 32, or of 16.
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int PANEL_VECTORS = 2;
#else
constexpr int PANEL_VECTORS = 4;
#endif
constexpr int PANEL = PANEL_VECTORS * LANES;  // columns of a panel: what a product keeps of the right matrix near the core

constexpr int most_rows(int vectors) {
  return PANEL_VECTORS == 2 ? (vectors == 2 ? 6 : 12) : vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 16;
}

// A left matrix: the step p of row m is at[m * row + p * step].
template <class F>
struct Left {
  const typename F::Step* at;
  int64_t row, step;

  static Left rows(const typename F::Number* at, int64_t width) {
    return {reinterpret_cast<const typename F::Step*>(at), width / F::STEP, 1};
  }
  // The transposed of rows of steps.
  static Left columns(const typename F::Step* at, int64_t width) { return {at, 1, width}; }
};

// A right matrix [steps, columns]: as rows, or in panels one after the other (packed weights).
template <class F>
struct Right {
  const typename F::Step* at;
  int64_t width;  // of a row; 0: panels
  int columns;    // of all panels, each PANEL wide but the last

  static Right panels(const typename F::Step* at, int columns) { return {at, 0, columns}; }
  static Right rows(const typename F::Step* at, int64_t width) { return {at, width, 0}; }
};

template <class F, int ROWS, int VECTORS>
void tile(const Left<F>& a, int row, const typename F::Step* b, int64_t b_step, int depth, float* c, int64_t c_row, bool add) {
  // Loops over registers are unrolled, else the sums go by way of memory before and after the one over steps.
  Vector sums[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sums[r][v] = add ? load(c + (row + r) * c_row + v * LANES) : Vector{};
  const typename F::Step* from = a.at + row * a.row;
  for (int p = 0; p < depth; p++, from += a.step, b += b_step) {
    typename F::Steps right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) right[v] = load(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const typename F::Steps left = repeated(from[r * a.row]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sums[r][v] = multiply_add(sums[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) store(c + (row + r) * c_row + v * LANES, sums[r][v]);
}

template <class F, int VECTORS, int ROWS>
void some_rows(int rows, const Left<F>& a, int row, const typename F::Step* b, int64_t b_step, int depth, float* c, int64_t c_row, bool add) {
  if (rows >= ROWS) {
    tile<F, ROWS, VECTORS>(a, row, b, b_step, depth, c, c_row, add);
  } else if constexpr (ROWS > 1) {
    some_rows<F, VECTORS, ROWS - 1>(rows, a, row, b, b_step, depth, c, c_row, add);
  }
}

template <class F, int VECTORS>
void panel(const Left<F>& a, int rows, const typename F::Step* b, int64_t b_step, int depth, float* c, int64_t c_row, bool add) {
  constexpr int MOST = most_rows(VECTORS);
  for (int row = 0; row < rows; row += MOST) some_rows<F, VECTORS, MOST>(rows - row, a, row, b, b_step, depth, c, c_row, add);
}

// c [rows, columns] (+)= a times the panel of b that begins at `column`; depth: steps that are summed over.
template <class F>
void panel_product(const Left<F>& a, const Right<F>& b, int rows, int column, int columns, int depth, float* c, int64_t c_row, bool add) {
  const int width = std::min(PANEL, columns - column);
  const typename F::Step* from = b.width ? b.at + column : b.at + static_cast<int64_t>(column) * depth;
  const int64_t step = b.width ? b.width : std::min(PANEL, b.columns - column);
  switch (width / LANES) {
    case 1: return panel<F, 1>(a, rows, from, step, depth, c, c_row, add);
    case 2: return panel<F, 2>(a, rows, from, step, depth, c, c_row, add);
    case 3: if constexpr (PANEL_VECTORS > 2) return panel<F, 3>(a, rows, from, step, depth, c, c_row, add); else return;
    default: if constexpr (PANEL_VECTORS > 2) return panel<F, 4>(a, rows, from, step, depth, c, c_row, add); else return;
  }
}

// c [rows, columns] (+)= a b; columns a multiple of 16.
template <class F>
void product(const Left<F>& a, const Right<F>& b, int rows, int columns, int depth, float* c, int64_t c_row, bool add = false) {
  for (int column = 0; column < columns; column += PANEL)
    panel_product<F>(a, b, rows, column, columns, depth, c + column, c_row, add);
}

// The panels of a weight [out, in] for x W^T, steps along `in`; both multiples of 16.
template <class F>
void pack(const float* weight, int out, int in, typename F::Step* to) {
  constexpr int MANY = LANES * F::STEP;
  for (int begin = 0; begin < out; begin += PANEL) {
    const int width = std::min(PANEL, out - begin);
    for (int n = 0; n < width; n += LANES) {
      for (int k = 0; k < in; k += MANY) {
        const int some = std::min(MANY, in - k);
        typename F::Steps block[LANES];
        for (int i = 0; i < LANES; i++) {
          const float* from = weight + static_cast<int64_t>(begin + n + i) * in + k;
          if constexpr (F::IS_BF16) {
            const Halves row[2] = {rounded(load(from)), some > LANES ? rounded(load(from + LANES)) : Halves{}};
            std::memcpy(&block[i], row, sizeof row);
          } else {
            block[i] = load(from);
          }
        }
        transpose(block);
        for (int i = 0; i < some / F::STEP; i++) store(to + static_cast<int64_t>(k / F::STEP + i) * width + n, block[i]);
      }
    }
    to += static_cast<int64_t>(width) * in / F::STEP;
  }
}

// The panels of a weight [out, in] for dy W, steps along `out`.
template <class F>
void pack_transposed(const float* weight, int out, int in, typename F::Step* to) {
  for (int begin = 0; begin < in; begin += PANEL) {
    const int width = std::min(PANEL, in - begin);
    for (int n = 0; n < out; n += F::STEP) {
      for (int k = 0; k < width; k += LANES, to += LANES) {
        const float* from = weight + static_cast<int64_t>(n) * in + begin + k;
        if constexpr (F::IS_BF16) {
          store(to, paired(rounded(load(from)), rounded(load(from + in))));
        } else {
          store(to, load(from));
        }
      }
    }
  }
}

// Past the caches, which would first read what is overwritten: for readers that come later. `to`: of a Buffer.
inline void stream(uint32_t* to, Words steps) {
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(steps));
#else
  store(to, steps);
#endif
}

// Rows [rows, width] -> [ceil(rows / 2), width] of pairs of rows, the last one with zeros where rows are odd.
template <bool STREAM = false>
void pair_rows(const Bf16* from, int64_t from_row, int rows, int width, uint32_t* to) {
  for (int row = 0; row < rows; row += 2, from += 2 * from_row) {
    for (int i = 0; i < width; i += LANES, to += LANES) {
      const Words pairs = paired(halves(from + i), row + 1 < rows ? halves(from + from_row + i) : Halves{});
      if constexpr (STREAM) stream(to, pairs); else store(to, pairs);
    }
  }
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
  if constexpr (STREAM) _mm_sfence();
#endif
}

// The panels of rows [rows, width], rows as columns and steps along the row; rows: a multiple of 16.
template <class F>
void pack_rows(const typename F::Number* from, int rows, int width, typename F::Step* to) {
  const int steps = width / F::STEP;
  for (int begin = 0; begin < rows; begin += PANEL) {
    const int columns = std::min(PANEL, rows - begin);
    for (int column = 0; column < columns; column += LANES) {
      for (int step = 0; step < steps; step += LANES) {
        const int some = std::min(LANES, steps - step);
        typename F::Steps block[LANES] = {};
        for (int i = 0; i < LANES; i++) {
          const auto* row = reinterpret_cast<const typename F::Step*>(from + static_cast<int64_t>(begin + column + i) * width) + step;
          if (some == LANES) block[i] = load(row); else std::memcpy(&block[i], row, some * sizeof *row);
        }
        transpose(block);
        for (int i = 0; i < some; i++) store(to + static_cast<int64_t>(step + i) * columns + column, block[i]);
      }
    }
    to += static_cast<int64_t>(steps) * columns;
  }
}

}  // namespace
