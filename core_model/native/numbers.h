// The two kinds of numbers that states are kept in and products are taken of: fp32, and bf16.
//
// Processors with AVX-512 BF16 multiply two bf16 numbers by two others and add both to one fp32 sum. Numbers that are
// summed over therefore go in pairs. What one instruction takes of a row is called a step: a pair of bf16 numbers, or one
// number in fp32. Without those instructions bf16 gives the same sums more slowly.
#pragma once

#include "vectors.h"

namespace {

typedef uint16_t Bf16;

struct Fp32 {
  typedef float Number;
  typedef float Step;
  typedef Vector Steps;               // of as many columns as a register has lanes
  static constexpr int STEP = 1;      // numbers of a step
  static constexpr bool IS_BF16 = false;
};

struct Bf16s {
  typedef Bf16 Number;
  typedef uint32_t Step;
  typedef Words Steps;
  static constexpr int STEP = 2;
  static constexpr bool IS_BF16 = true;
};

typedef Bf16 Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef Bf16 HalvesAt __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));

inline Words bits(Vector x) { return reinterpret_cast<Words>(x); }
inline Vector numbers(Words x) { return reinterpret_cast<Vector>(x); }

inline Vector widened(Halves x) { return numbers(__builtin_convertvector(x, Words) << 16); }

// To the nearest bf16, ties to even.
inline Halves rounded(Vector x) {
#if VECTOR_BYTES == 64 && defined(__AVX512BF16__)
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x));
#else
  const Words whole = bits(x), up = whole + 0x7fff + ((whole >> 16) & 1);
  return __builtin_convertvector((x == x ? up : (whole | 0x400000)) >> 16, Halves);
#endif
}

inline Halves halves(const Bf16* from) { return *reinterpret_cast<const HalvesAt*>(from); }
inline Vector load(const Bf16* from) { return widened(halves(from)); }
inline void store(Bf16* to, Vector x) { *reinterpret_cast<HalvesAt*>(to) = rounded(x); }

// Steps of one number of each: of two rows, in bf16.
inline Words paired(Halves first, Halves second) {
  return __builtin_convertvector(first, Words) | (__builtin_convertvector(second, Words) << 16);
}

inline Words load(const uint32_t* from) { return *reinterpret_cast<const WordsAt*>(from); }
inline void store(uint32_t* to, Words pairs) { *reinterpret_cast<WordsAt*>(to) = pairs; }
inline Words repeated(uint32_t pair) { return Words{} + static_cast<int32_t>(pair); }

inline Vector multiply_add(Vector sums, Vector left, Vector right) { return sums + left * right; }

inline Vector multiply_add(Vector sums, Words left, Words right) {
#if VECTOR_BYTES == 64 && defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right));
#else
  const Words high = Words{} + static_cast<int32_t>(0xffff0000);
  return (sums + numbers(left & high) * numbers(right & high)) + numbers(left << 16) * numbers(right << 16);
#endif
}

// As many rows of steps as there are lanes become columns.
template <typename Steps>
inline void transpose(Steps rows[LANES]) {
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
  __m512i r[16], t[16];
  std::memcpy(r, rows, sizeof r);
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
  std::memcpy(rows, t, sizeof t);
#elif VECTOR_BYTES == 32 && defined(__AVX__)
  __m256 r[8], t[8];
  std::memcpy(r, rows, sizeof r);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
    t[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
  }
  std::memcpy(rows, t, sizeof t);
#else
  Steps columns[LANES];
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++) columns[j][i] = rows[i][j];
  std::memcpy(rows, columns, sizeof columns);
#endif
}

}  // namespace
