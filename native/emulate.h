// AVX-512 on a machine without it, for tests only: SIMDe's emulation, and the few intrinsics that its release 0.7.4 lacks, lane by lane from the
// instruction set's definition. Built with -DANYBIT_SIMDE=ON; never part of a package.
#pragma once
#include <math.h>
#include <string.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

namespace {

template <class T, class V> struct Lanes {
  T v[sizeof(V) / sizeof(T)];
  explicit Lanes(V x) { memcpy(v, &x, sizeof x); }
  Lanes() {}
  V pack() const { V x; memcpy(&x, v, sizeof x); return x; }
};

inline __mmask16 emulated_cmplt_epi32(__m512i a, __m512i b) {
  Lanes<int32_t, __m512i> x(a), y(b);
  int mask = 0;
  for (int j = 0; j < 16; j++) mask |= (x.v[j] < y.v[j]) << j;
  return (__mmask16)mask;
}
inline __m128i emulated_cvtepi32_epi8(__m512i a) {
  Lanes<int32_t, __m512i> x(a);
  Lanes<int8_t, __m128i> r;
  for (int j = 0; j < 16; j++) r.v[j] = (int8_t)x.v[j];
  return r.pack();
}
inline __m512 emulated_cvtepi32_ps(__m512i a) {
  Lanes<int32_t, __m512i> x(a);
  Lanes<float, __m512> r;
  for (int j = 0; j < 16; j++) r.v[j] = (float)x.v[j];
  return r.pack();
}
inline __m512i emulated_cvtps_epi32(__m512 a) {
  Lanes<float, __m512> x(a);
  Lanes<int32_t, __m512i> r;
  for (int j = 0; j < 16; j++) r.v[j] = fabsf(x.v[j]) < 2147483648.0f ? (int32_t)nearbyintf(x.v[j]) : INT32_MIN;
  return r.pack();
}
template <class T, class V> inline __m512i emulated_widen(V a) {
  Lanes<T, V> x(a);
  Lanes<int32_t, __m512i> r;
  for (int j = 0; j < 16; j++) r.v[j] = x.v[j];
  return r.pack();
}
inline __m512 emulated_cvtph_ps(__m256i a) {
  Lanes<__m128i, __m256i> x(a);
  Lanes<__m256, __m512> r;
  for (int j = 0; j < 2; j++) r.v[j] = _mm256_cvtph_ps(x.v[j]);
  return r.pack();
}
template <class T, class V> inline V emulated_gather(__m512i at, const T *t) {
  Lanes<int32_t, __m512i> x(at);
  Lanes<T, V> r;
  for (int j = 0; j < 16; j++) r.v[j] = t[x.v[j]];
  return r.pack();
}
inline __m512i emulated_sra_epi32(__m512i a, __m128i n) {
  Lanes<int32_t, __m512i> x(a);
  Lanes<uint64_t, __m128i> count(n);
  for (int j = 0; j < 16; j++) x.v[j] >>= count.v[0] > 31 ? 31 : (int)count.v[0];
  return x.pack();
}

}  // namespace

#define _mm512_cmplt_epi32_mask emulated_cmplt_epi32
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepu8_epi32 (emulated_widen<uint8_t>)
#define _mm512_cvtepu16_epi32 (emulated_widen<uint16_t>)
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_i32gather_ps(at, table, scale) (emulated_gather<float, __m512>(at, table))
#define _mm512_i32gather_epi32(at, table, scale) (emulated_gather<int32_t, __m512i>(at, table))
#define _mm512_sra_epi32 emulated_sra_epi32
#undef _mm512_madd_epi16  // SIMDe 0.7.4 gives this alias the masked form's arguments
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
