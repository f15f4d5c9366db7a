// Numbers of a register at once, in GCC's and Clang's vector types.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef VECTOR_BYTES  // tests try other widths than this processor's
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#endif

namespace {

constexpr int LANES = VECTOR_BYTES / 4;

typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Words __attribute__((vector_size(VECTOR_BYTES)));

// In memory, at any address. Not for values: the compiler would keep those in memory too.
typedef float VectorAt __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t WordsAt __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const VectorAt*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<VectorAt*>(to) = value; }
inline Vector repeated(float x) { return x - Vector{}; }

inline Words count_up() {
  Words lanes;
  for (int i = 0; i < LANES; i++) lanes[i] = i;
  return lanes;
}

// The first `count` numbers, zeros after them.
inline Vector first(Vector x, int count) { return count >= LANES ? x : count_up() < count ? x : Vector{}; }

// Of two NaN-free numbers.
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

#ifdef __clang__
inline Vector shuffled(Vector x, Words places) { return __builtin_shufflevector(x, places); }
#else
inline Vector shuffled(Vector x, Words places) { return __builtin_shuffle(x, places); }
#endif

template <typename Join>
inline float folded(Vector value, Join join) {
  float numbers[LANES];
  std::memcpy(numbers, &value, sizeof numbers);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) numbers[i] = join(numbers[i], numbers[i + half]);
  return numbers[0];
}

inline float largest(Vector value) {
  return folded(value, [](float a, float b) { return a > b ? a : b; });
}

// By halves.
inline float sum(Vector value) {
#if VECTOR_BYTES >= 32
  typedef float Quarter __attribute__((vector_size(16)));
#if VECTOR_BYTES == 64
  typedef float Half __attribute__((vector_size(32)));
  Half halves[2];
  std::memcpy(halves, &value, sizeof halves);
  halves[0] += halves[1];
#else
  const Vector halves[1] = {value};
#endif
  Quarter quarters[2];
  std::memcpy(quarters, &halves[0], sizeof quarters);
  const Quarter four = quarters[0] + quarters[1];
#else
  const Vector four = value;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// e^x, off by 2 units in the last place at most; below -87 as at -87.
inline Vector exponential(Vector x) {
  // Of NaN and a number, the processor's max and min give the second: NaN stays.
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
#elif VECTOR_BYTES == 32 && defined(__AVX__)
  x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
#else
  x = x < -87.0f ? Vector{} - 87.0f : x;
  x = x > 88.0f ? Vector{} + 88.0f : x;
#endif
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vector shifted = x * 1.44269504f + round, whole = shifted - round;
  const Vector rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
#if VECTOR_BYTES == 64 && defined(__AVX512F__)
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
