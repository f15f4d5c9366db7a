// The functions of avx512_in_parts.h against the instructions, for a processor that has them: prints what differs.
#include "avx512_in_parts.h"

#undef _mm512_cvtneps_pbh
#undef _mm512_dpbf16_ps
#undef _mm512_max_ps
#undef _mm512_min_ps
#undef _mm512_scalef_ps
#undef _mm512_unpackhi_epi32
#undef _mm512_unpackhi_epi64
#undef _mm512_unpacklo_epi32
#undef _mm512_unpacklo_epi64

#include <cstdio>
#include <random>

using namespace in_parts;

template <class Mine, class Theirs>
int differs(const char* what, Mine mine, Theirs theirs) {
  static_assert(sizeof mine == sizeof theirs);
  if (!std::memcmp(&mine, &theirs, sizeof mine)) return 0;
  std::puts(what);
  return 1;
}

int main() {
  std::mt19937 draw(0);
  int wrong = 0;
  for (int round = 0; round < 20000; round++) {
    // Random bits, of which every second round makes numbers near one another and every eighth subnormal ones and NaN.
    Ints bits[3];
    for (auto& one : bits)
      for (int i = 0; i < 16; i++) {
        one[i] = static_cast<int32_t>(draw());
        if (round % 2) one[i] = (one[i] & 0x807fffff) | 0x3f000000;
        if (round % 8 == 0 && i % 4 == 0) one[i] &= 0x807fffff;
        if (round % 8 == 4 && i % 4 == 0) one[i] |= 0x7f800000;
      }
    const __m512i a = (__m512i)bits[0], b = (__m512i)bits[1];
    const __m512 x = (__m512)bits[0], y = (__m512)bits[1], sums = (__m512)bits[2];
    wrong += differs("cvtneps_pbh", cvtneps_pbh((Floats)x), _mm512_cvtneps_pbh(x));
    wrong += differs("min_ps", min_ps((Floats)x, (Floats)y), _mm512_min_ps(x, y));
    wrong += differs("max_ps", max_ps((Floats)x, (Floats)y), _mm512_max_ps(x, y));
    wrong += differs("unpacklo_epi32", unpacked(bits[0], bits[1], false), _mm512_unpacklo_epi32(a, b));
    wrong += differs("unpackhi_epi32", unpacked(bits[0], bits[1], true), _mm512_unpackhi_epi32(a, b));
    wrong += differs("unpacklo_epi64", unpacked((Longs)a, (Longs)b, false), _mm512_unpacklo_epi64(a, b));
    wrong += differs("unpackhi_epi64", unpacked((Longs)a, (Longs)b, true), _mm512_unpackhi_epi64(a, b));
    if (round % 2) {  // numbers; which NaN comes of two is the processor's affair
      wrong += differs("dpbf16_ps", dpbf16_ps((Floats)sums, bits[0], bits[1]), _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b));
      const Floats power = __builtin_convertvector(bits[2] % 100, Floats);
      wrong += differs("scalef_ps", scalef_ps((Floats)x, power), _mm512_scalef_ps(x, (__m512)power));
    }
  }
  return wrong != 0;
}
