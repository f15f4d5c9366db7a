// AVX-512 and AVX-512 BF16 for processors without: what core_model/native calls of them, as the manuals define it, from
// operations that every processor has. Included ahead of a source, so that its AVX-512 code runs wherever tests do.
#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define OUT_OF_LINE __attribute__((noinline))  // inlined in unrolled products they take a minute to compile

namespace in_parts {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef uint16_t HalfOfShorts __attribute__((vector_size(32)));

// bf16 instructions take subnormal numbers for zeros of their sign, and give none.
inline Floats flushed(Floats x) {
  const Ints sign = reinterpret_cast<Ints>(x) & INT32_MIN;
  const Floats size = reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & INT32_MAX);
  return size < FLT_MIN ? reinterpret_cast<Floats>(sign) : x;
}

OUT_OF_LINE inline HalfOfShorts cvtneps_pbh(Floats x) {
  const Ints whole = reinterpret_cast<Ints>(flushed(x));
  const Ints up = whole + 0x7fff + (whole >> 16 & 1);  // to the nearest, ties to even
  return __builtin_convertvector((x == x ? up : whole | 0x400000) >> 16, HalfOfShorts);
}

OUT_OF_LINE inline Floats dpbf16_ps(Floats sums, Ints a, Ints b) {
  const auto product = [](Ints x, Ints y) {  // exact
    return flushed(reinterpret_cast<Floats>(x)) * flushed(reinterpret_cast<Floats>(y));
  };
  sums = flushed(flushed(sums) + product(a & -65536, b & -65536));
  return flushed(sums + product(a << 16, b << 16));
}

inline Floats set1_ps(float x) { return x - Floats{}; }
inline Floats min_ps(Floats a, Floats b) { return a < b ? a : b; }  // the second where one is NaN
inline Floats max_ps(Floats a, Floats b) { return a > b ? a : b; }

OUT_OF_LINE inline Floats scalef_ps(Floats x, Floats power) {
  for (int i = 0; i < 16; i++) x[i] *= std::exp2(std::floor(power[i]));
  return x;
}

// Of each quarter of 16 bytes: the low or the high half of both, taken in turn.
template <class Numbers>
OUT_OF_LINE inline Numbers unpacked(Numbers a, Numbers b, bool high) {
  constexpr int QUARTER = 16 / sizeof a[0], HALF = QUARTER / 2;
  Numbers y;
  for (int quarter = 0; quarter < 4; quarter++)
    for (int i = 0; i < HALF; i++) {
      const int from = quarter * QUARTER + high * HALF + i, to = quarter * QUARTER + 2 * i;
      y[to] = a[from];
      y[to + 1] = b[from];
    }
  return y;
}

// Whole quarters by two bits each: two of a, two of b.
OUT_OF_LINE inline Ints shuffle_i32x4(Ints a, Ints b, int places) {
  Ints y;
  for (int quarter = 0; quarter < 4; quarter++)
    for (int i = 0; i < 4; i++) y[4 * quarter + i] = (quarter < 2 ? a : b)[4 * (places >> 2 * quarter & 3) + i];
  return y;
}

inline void stream_si512(void* to, Longs x) {
  if (reinterpret_cast<uintptr_t>(to) % 64) std::abort();  // as the processor does
  std::memcpy(to, &x, sizeof x);
}

}  // namespace in_parts

#undef _mm512_shuffle_i32x4  // which compilers that do not optimise have as a macro
#define _mm512_cvtneps_pbh(x) in_parts::cvtneps_pbh(x)
#define _mm512_dpbf16_ps(sums, a, b) in_parts::dpbf16_ps(sums, (in_parts::Ints)(a), (in_parts::Ints)(b))
#define _mm512_set1_ps(x) in_parts::set1_ps(x)
#define _mm512_min_ps(a, b) in_parts::min_ps(a, b)
#define _mm512_max_ps(a, b) in_parts::max_ps(a, b)
#define _mm512_scalef_ps(x, power) in_parts::scalef_ps(x, power)
#define _mm512_unpacklo_epi32(a, b) (__m512i) in_parts::unpacked((in_parts::Ints)(a), (in_parts::Ints)(b), false)
#define _mm512_unpackhi_epi32(a, b) (__m512i) in_parts::unpacked((in_parts::Ints)(a), (in_parts::Ints)(b), true)
#define _mm512_unpacklo_epi64(a, b) (__m512i) in_parts::unpacked((in_parts::Longs)(a), (in_parts::Longs)(b), false)
#define _mm512_unpackhi_epi64(a, b) (__m512i) in_parts::unpacked((in_parts::Longs)(a), (in_parts::Longs)(b), true)
#define _mm512_shuffle_i32x4(a, b, places) (__m512i) in_parts::shuffle_i32x4((in_parts::Ints)(a), (in_parts::Ints)(b), places)
#define _mm512_stream_si512(to, x) in_parts::stream_si512(to, (in_parts::Longs)(x))

#define __AVX512F__ 1
#define __AVX512BF16__ 1
