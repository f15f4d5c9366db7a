// Products of bf16 matrices with sums in fp32, for processors with AVX-512 BF16.
//
// The processor multiplies two bf16 numbers by two others and adds both to one fp32 sum. Numbers that are summed over
// therefore go in pairs: a left matrix has the pairs of a row one after the other (which is how rows lie in memory), a
// right one the same pair of many columns.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "vectors.h"

namespace {

typedef uint16_t Bf16;
typedef uint32_t Pair;

constexpr int LANES = 16;
constexpr int PANEL = 64;  // columns of a panel: what a product keeps of the right matrix near the core

inline __m256i rounded(Vector x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }
inline Vector widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline Vector load(const Bf16* from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline void store(Bf16* to, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(x)); }

// Pairs of one number of each.
inline __m512i paired(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

inline void store(Pair* to, __m512i pairs) { _mm512_storeu_si512(to, pairs); }

// Sixteen rows of sixteen pairs become columns.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    const __m512i even = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), odd = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    const __m512i more = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88), last = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    t[i] = _mm512_shuffle_i32x4(even, more, 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(odd, last, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(even, more, 0xdd);
    t[12 + i] = _mm512_shuffle_i32x4(odd, last, 0xdd);
  }
  for (int i = 0; i < 16; i++) r[i] = t[i];
}

// A left matrix: the pair p of row m is at[m * row + p * step].
struct Left {
  const Pair* at;
  int64_t row, step;

  static Left rows(const Bf16* at, int64_t width) { return {reinterpret_cast<const Pair*>(at), width / 2, 1}; }
  // The transposed of rows that `pair_rows` has paired.
  static Left columns(const Pair* at, int64_t width) { return {at, 1, width}; }
};

// A right matrix: pairs of columns, in panels one after the other (packed weights), or as rows `width` wide.
struct Right {
  const Pair* at;
  int64_t width;  // 0: panels

  static Right panels(const Pair* at) { return {at, 0}; }
  static Right rows(const Pair* at, int64_t width) { return {at, width}; }
};

template <int ROWS, int VECTORS>
void tile(const Left& a, int row, const Pair* b, int64_t b_step, int depth, float* c, int64_t c_row, bool add) {
  __m512 sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) sums[r][v] = add ? _mm512_loadu_ps(c + (row + r) * c_row + v * LANES) : _mm512_setzero_ps();
  const Pair* from = a.at + row * a.row;
  for (int p = 0; p < depth; p++, from += a.step, b += b_step) {
    __m512i right[VECTORS];
    for (int v = 0; v < VECTORS; v++) right[v] = _mm512_loadu_si512(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const __m512i left = _mm512_set1_epi32(static_cast<int>(from[r * a.row]));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right[v]));
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(c + (row + r) * c_row + v * LANES, sums[r][v]);
}

template <int VECTORS, int ROWS>
void some_rows(int rows, const Left& a, int row, const Pair* b, int64_t b_step, int depth, float* c, int64_t c_row, bool add) {
  if (rows >= ROWS) {
    tile<ROWS, VECTORS>(a, row, b, b_step, depth, c, c_row, add);
  } else if constexpr (ROWS > 1) {
    some_rows<VECTORS, ROWS - 1>(rows, a, row, b, b_step, depth, c, c_row, add);
  }
}

// As many rows at once as their sums, a factor and the right matrix's vectors find registers.
template <int VECTORS>
void panel(const Left& a, int rows, const Pair* b, int64_t b_step, int depth, float* c, int64_t c_row, bool add) {
  constexpr int MOST = VECTORS == 4 ? 6 : VECTORS == 3 ? 8 : VECTORS == 2 ? 12 : 16;
  for (int row = 0; row < rows; row += MOST) some_rows<VECTORS, MOST>(rows - row, a, row, b, b_step, depth, c, c_row, add);
}

// c [rows, columns] (+)= a times the panel of b that begins at `column`; depth: pairs that are summed over.
inline void panel_product(const Left& a, const Right& b, int rows, int column, int columns, int depth, float* c, int64_t c_row,
                          bool add) {
  const int width = std::min(PANEL, columns - column);
  const Pair* from = b.width ? b.at + column : b.at + static_cast<int64_t>(column) * depth;
  const int64_t step = b.width ? b.width : width;
  switch (width / LANES) {
    case 4: return panel<4>(a, rows, from, step, depth, c, c_row, add);
    case 3: return panel<3>(a, rows, from, step, depth, c, c_row, add);
    case 2: return panel<2>(a, rows, from, step, depth, c, c_row, add);
    default: return panel<1>(a, rows, from, step, depth, c, c_row, add);
  }
}

// c [rows, columns] (+)= a b; columns a multiple of 16.
inline void product(const Left& a, const Right& b, int rows, int columns, int depth, float* c, int64_t c_row, bool add = false) {
  for (int column = 0; column < columns; column += PANEL)
    panel_product(a, b, rows, column, columns, depth, c + column, c_row, add);
}

// The panels of a weight [out, in] for x W^T, pairs along `in`; both multiples of 16.
inline void pack(const float* weight, int out, int in, Pair* to) {
  for (int first = 0; first < out; first += PANEL) {
    const int width = std::min(PANEL, out - first);
    for (int n = 0; n < width; n += LANES) {
      for (int k = 0; k < in; k += 2 * LANES) {
        const bool whole = k + LANES < in;
        __m512i block[16];
        for (int i = 0; i < 16; i++) {
          const float* from = weight + static_cast<int64_t>(first + n + i) * in + k;
          block[i] = _mm512_inserti64x4(_mm512_castsi256_si512(rounded(load(from))), whole ? rounded(load(from + LANES)) : __m256i{}, 1);
        }
        transpose(block);
        for (int i = 0; i < (whole ? 16 : 8); i++) store(to + static_cast<int64_t>(k / 2 + i) * width + n, block[i]);
      }
    }
    to += static_cast<int64_t>(width) * in / 2;
  }
}

// The panels of a weight [out, in] for dy W, pairs along `out`.
inline void pack_transposed(const float* weight, int out, int in, Pair* to) {
  for (int first = 0; first < in; first += PANEL) {
    const int width = std::min(PANEL, in - first);
    for (int n = 0; n < out; n += 2) {
      for (int k = 0; k < width; k += LANES, to += LANES) {
        const float* from = weight + static_cast<int64_t>(n) * in + first + k;
        store(to, paired(rounded(load(from)), rounded(load(from + in))));
      }
    }
  }
}

inline __m256i sixteen(const Bf16* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// Rows [rows, width] -> [ceil(rows / 2), width] of pairs of rows, the last one with zeros where rows are odd.
template <typename Store>
void pair_rows(const Bf16* from, int64_t from_row, int rows, int width, Pair* to, Store store_pairs) {
  for (int row = 0; row < rows; row += 2, from += 2 * from_row) {
    for (int i = 0; i < width; i += LANES, to += LANES)
      store_pairs(to, paired(sixteen(from + i), row + 1 < rows ? sixteen(from + from_row + i) : __m256i{}));
  }
}

inline void pair_rows(const Bf16* from, int64_t from_row, int rows, int width, Pair* to) {
  pair_rows(from, from_row, rows, width, to, [](Pair* at, __m512i pairs) { store(at, pairs); });
}

// For readers that come later: past the caches, which would first read what is overwritten. `to`: of a Buffer.
inline void stream_rows(const Bf16* from, int64_t from_row, int rows, int width, Pair* to) {
  pair_rows(from, from_row, rows, width, to, [](Pair* at, __m512i pairs) { _mm512_stream_si512(reinterpret_cast<__m512i*>(at), pairs); });
  _mm_sfence();
}

// Rows [rows, width] -> [width / 2, columns] of pairs along the row; columns: rows up to a multiple of 16, zeros there.
inline void pair_columns(const Bf16* from, int64_t from_row, int rows, int width, Pair* to, int64_t columns) {
  for (int row = 0; row < columns; row += LANES) {
    for (int pair = 0; pair < width / 2; pair += LANES) {
      const int some = std::min(LANES, width / 2 - pair);
      const __mmask16 there = static_cast<__mmask16>((1u << some) - 1);
      __m512i block[16];
      for (int i = 0; i < 16; i++) {
        block[i] = row + i < rows ? _mm512_maskz_loadu_epi32(there, from + (row + i) * from_row + 2 * pair) : __m512i{};
      }
      transpose(block);
      for (int i = 0; i < some; i++) store(to + (pair + i) * columns + row, block[i]);
    }
  }
}

}  // namespace
