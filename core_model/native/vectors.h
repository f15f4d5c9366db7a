// Sixteen fp32 numbers at once, in GCC's and Clang's vector types.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(64), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

inline float sum(Vector value) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half halves[2];
  std::memcpy(halves, &value, sizeof halves);
  halves[0] += halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &halves[0], sizeof quarters);
  const Quarter four = quarters[0] + quarters[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// e^x, off by 2 units in the last place at most; below -87 as at -87.
inline Vector exponential(Vector x) {
#ifdef __AVX512F__  // the same numbers by fewer instructions; of NaN and a number, max and min give the second
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
#else
  x = x < -87.0f ? Vector{} - 87.0f : x;
  x = x > 88.0f ? Vector{} + 88.0f : x;
#endif
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vector whole = (x * 1.44269504f + round) - round;
  const Vector rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
#ifdef __AVX512F__
  return _mm512_scalef_ps(power, whole);
#else
  const Words exponent = (__builtin_convertvector(whole, Words) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return power * scale;
#endif
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace
