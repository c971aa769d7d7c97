// Lanes that only rounding needs, beside those of isa.h.
#pragma once
#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {

// Rounding towards +infinity: constants of AVX-512's instructions, a mode of the core on AVX2, which `Upwards` sets while it lives; compilers know
// nothing of modes, so what computes in one is a function that is not inlined. Other sets have neither.
#if ANYBIT_512 && !ANYBIT_SIMDE
constexpr bool kUpwards = true, kUpwardsAnywhere = true;
constexpr bool kPast = true;  // whether f_stream goes past the caches
struct Upwards {};
AB_INLINE F f_add_up(F a, F b) { return {_mm512_add_round_ps(a.v, b.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)}; }
AB_INLINE F f_less_up(F a, F b, F c) { return {_mm512_fnmadd_round_ps(b.v, c.v, a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)}; }  // a - b c
AB_INLINE F f_fms(F a, F b, F c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }   // a b - c
AB_INLINE F f_nfma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
AB_INLINE I i_signed(I magnitude, I sign) { return {_mm512_ternarylogic_epi32(magnitude.v, sign.v, _mm512_set1_epi32((int)0x80000000), 0xf8)}; }
AB_INLINE F f_flip(F a, F sign) {  // the other sign where `sign` is negative
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(sign.v), _mm512_set1_epi32((int)0x80000000), 0x78))};
}
AB_INLINE F f_fma_where(Mask m, F a, F b, F c) { return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, m.v)}; }  // c where not; c is not -0
AB_INLINE I i_fold16(const I *m) {  // lane i: the largest lane of m[i]
  __m512i t[8], u[4], v[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) t[i] = _mm512_max_epi32(_mm512_unpacklo_epi32(m[2 * i].v, m[2 * i + 1].v), _mm512_unpackhi_epi32(m[2 * i].v, m[2 * i + 1].v));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) u[i] = _mm512_max_epi32(_mm512_unpacklo_epi64(t[2 * i], t[2 * i + 1]), _mm512_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) v[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(u[2 * i], u[2 * i + 1], 0x44), _mm512_shuffle_i32x4(u[2 * i], u[2 * i + 1], 0xee));
  return {_mm512_max_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd))};
}
AB_INLINE I i_lookup64(const uint8_t *t, I at) {  // of 64 bytes, by the low 6 bits of `at`
  constexpr __mmask64 lowest = 0x1111111111111111ull;  // bytes
#if ANYBIT_VBMI
  return {_mm512_maskz_permutexvar_epi8(lowest, at.v, _mm512_loadu_si512(t))};
#else
  const __m512i by = _mm512_and_si512(at.v, _mm512_set1_epi32(63));
  const __mmask16 odd = _mm512_test_epi32_mask(at.v, _mm512_set1_epi32(16)), upper = _mm512_test_epi32_mask(at.v, _mm512_set1_epi32(32));
  __m512i part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm512_maskz_shuffle_epi8(lowest, b_table(t + 16 * i).v, by);
  return {_mm512_mask_blend_epi32(upper, _mm512_mask_blend_epi32(odd, part[0], part[1]), _mm512_mask_blend_epi32(odd, part[2], part[3]))};
#endif
}
AB_INLINE Mask m_or(Mask a, Mask b) { return {_kor_mask16(a.v, b.v)}; }
AB_INLINE Mask i_zeros(I a, uint32_t bits) { return {_mm512_testn_epi32_mask(a.v, _mm512_set1_epi32((int)bits))}; }  // where a has none of them
AB_INLINE F f_trunc(F a) { return {_mm512_roundscale_ps(a.v, 11)}; }
AB_INLINE F f_size(F a, F most) { return {_mm512_range_ps(a.v, most.v, 10)}; }  // min(|a|, most)
AB_INLINE F f_held(F a, F most) { return {_mm512_range_ps(a.v, most.v, 2)}; }  // to [-most, most]
AB_INLINE I i_add_where(Mask m, I a, I b) { return {_mm512_mask_add_epi32(a.v, m.v, a.v, b.v)}; }
AB_INLINE bool all_within(I a, uint32_t from, uint32_t span) {  // each unsigned a is 0, or from `from` to from + span
  const __mmask16 out = _mm512_cmpgt_epu32_mask(_mm512_sub_epi32(a.v, _mm512_set1_epi32((int)from)), _mm512_set1_epi32((int)span));
  return _mm512_mask_test_epi32_mask(out, a.v, a.v) == 0;
}
AB_INLINE Mask f_from(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }  // b >= a
AB_INLINE I i_rank(const float (*)[16], const float (*spread)[16], F x) {  // see RoundPlan's `tree` and `spread`
  I at = {_mm512_maskz_set1_epi32(f_from(f_set(spread[0][0]), x).v, 8)};
  at = i_add_where(f_from(f_lookup16(spread[1], at), x), at, i_set(4));
  at = i_add_where(f_from(f_lookup16(spread[2], at), x), at, i_set(2));
  return i_add_where(f_from(f_lookup16(spread[3], at), x), at, i_set(1));
}
AB_INLINE void b_stream(uint8_t *p, B a) { _mm512_stream_si512((__m512i *)p, a.v); }  // past the caches; p is 64-byte aligned
struct Joined {  // sixteens that follow each other, past the caches, at an address that is `beyond` floats (1 to 15) beyond an aligned one
  static constexpr int kStep = 16;  // floats between aligned addresses
  __m512 last;
  const __m512i at;
  Joined(const float *before, int beyond)  // the sixteen numbers before the first
      : last(_mm512_loadu_ps(before)), at(_mm512_add_epi32(_mm512_set1_epi32(16 - beyond), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))) {}
  __attribute__((always_inline)) void put(float *aligned, F a) {
    _mm512_stream_ps(aligned, _mm512_permutex2var_ps(last, at, a.v));
    last = a.v;
  }
  void keep(float *before) const { _mm512_storeu_ps(before, last); }
  static __attribute__((always_inline)) void copy(const float *from, float *aligned) { _mm512_stream_ps(aligned, _mm512_loadu_ps(from)); }
};
AB_INLINE B b_narrow(I a, I b, I c, I d) {  // 64 numbers, 0 to 255, as bytes
  const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(a.v, b.v), _mm512_packus_epi32(c.v, d.v));
  return {_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes)};
}
AB_INLINE B b_narrow16(I a, I b) {  // 32 numbers, 0 to 65,535, in two bytes each
  return {_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi32(a.v, b.v))};
}
#elif ANYBIT_256
constexpr bool kUpwards = true, kUpwardsAnywhere = false;
constexpr bool kPast = true;
struct Upwards {
  unsigned before = _mm_getcsr();
  Upwards() { _mm_setcsr((before & ~0x6000u) | 0x4000u); }
  ~Upwards() { _mm_setcsr(before); }
};
AB_INLINE F f_add_up(F a, F b) { return f_add(a, b); }
AB_INLINE F f_less_up(F a, F b, F c) { return {_mm256_fnmadd_ps(b.a, c.a, a.a), _mm256_fnmadd_ps(b.b, c.b, a.b)}; }  // a - b c
AB_INLINE F f_fms(F a, F b, F c) { return {_mm256_fmsub_ps(a.a, b.a, c.a), _mm256_fmsub_ps(a.b, b.b, c.b)}; }   // a b - c
AB_INLINE F f_nfma(F a, F b, F c) { return {_mm256_fnmadd_ps(a.a, b.a, c.a), _mm256_fnmadd_ps(a.b, b.b, c.b)}; }  // c - a b
AB_INLINE I i_signed(I magnitude, I sign) { return i_or(magnitude, i_and(sign, i_set((int32_t)0x80000000))); }
AB_INLINE F f_flip(F a, F sign) { return i_float(i_xor(f_bits(a), i_and(f_bits(sign), i_set((int32_t)0x80000000)))); }  // the other sign where `sign` is negative
AB_INLINE F f_fma_where(Mask m, F a, F b, F c) { return f_add_where(m, c, f_mul(a, b)); }  // c where not; c is not -0, a b is exact
AB_INLINE __m256i fold8(const I *m) {
  __m256i t[4], u[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m256i a = _mm256_max_epi32(m[2 * i].a, m[2 * i].b), b = _mm256_max_epi32(m[2 * i + 1].a, m[2 * i + 1].b);
    t[i] = _mm256_max_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) u[i] = _mm256_max_epi32(_mm256_unpacklo_epi64(t[2 * i], t[2 * i + 1]), _mm256_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
  return _mm256_max_epi32(_mm256_permute2x128_si256(u[0], u[1], 0x20), _mm256_permute2x128_si256(u[0], u[1], 0x31));
}
AB_INLINE I i_fold16(const I *m) { return {fold8(m), fold8(m + 8)}; }  // lane i: the largest lane of m[i]
AB_INLINE __m256i lookup64(const B *t, __m256i at) {
  const __m256i by = _mm256_or_si256(_mm256_and_si256(at, _mm256_set1_epi32(63)), _mm256_set1_epi32((int)0x80808000)), odd = _mm256_slli_epi32(at, 3), upper = _mm256_slli_epi32(at, 2);
  const __m256i low = _mm256_blendv_epi8(_mm256_shuffle_epi8(t[0].a, by), _mm256_shuffle_epi8(t[1].a, by), odd);
  return _mm256_blendv_epi8(low, _mm256_blendv_epi8(_mm256_shuffle_epi8(t[2].a, by), _mm256_shuffle_epi8(t[3].a, by), odd), upper);
}
AB_INLINE I i_lookup64(const uint8_t *t, I at) {  // of 64 bytes, by the low 6 bits of `at`
  const B tables[4] = {b_table(t), b_table(t + 16), b_table(t + 32), b_table(t + 48)};
  return {lookup64(tables, at.a), lookup64(tables, at.b)};
}
AB_INLINE Mask m_or(Mask a, Mask b) { return AB_BOTH(Mask, _mm256_or_ps); }
AB_INLINE __m256 zeros(__m256i a, __m256i bits) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(a, bits), _mm256_setzero_si256())); }
AB_INLINE Mask i_zeros(I a, uint32_t bits) { return {zeros(a.a, _mm256_set1_epi32((int)bits)), zeros(a.b, _mm256_set1_epi32((int)bits))}; }  // where a has none of them
AB_INLINE F f_trunc(F a) { return {_mm256_round_ps(a.a, 11), _mm256_round_ps(a.b, 11)}; }
AB_INLINE F f_size(F a, F most) { return f_min(i_float(i_and(f_bits(a), i_set(0x7fffffff))), most); }  // min(|a|, most)
AB_INLINE F f_held(F a, F) { return a; }            // never called, and so the next: see kByteTables
AB_INLINE Mask f_from(F a, F b) { return f_lt(a, b); }
AB_INLINE I i_add_where(Mask m, I a, I b) { return i_add(a, i_and({_mm256_castps_si256(m.a), _mm256_castps_si256(m.b)}, b)); }
AB_INLINE __m256i within(__m256i a, __m256i from, __m256i span) {  // all ones where it is
  const __m256i in = _mm256_cmpeq_epi32(_mm256_max_epu32(_mm256_sub_epi32(a, from), span), span);
  return _mm256_or_si256(in, _mm256_cmpeq_epi32(a, _mm256_setzero_si256()));
}
AB_INLINE bool all_within(I a, uint32_t from, uint32_t span) {  // each unsigned a is 0, or from `from` to from + span
  const __m256i f = _mm256_set1_epi32((int)from), s = _mm256_set1_epi32((int)span);
  return _mm256_movemask_epi8(_mm256_and_si256(within(a.a, f, s), within(a.b, f, s))) == -1;
}
struct Joined {  // sixteens that follow each other, past the caches, at an address that is `beyond` floats (1 to 7) beyond an aligned one
  static constexpr int kStep = 8;  // floats between aligned addresses
  const __m256i at;
  const __m256 second;  // which lanes of eight come from the later ones
  __m256 last, turned;  // the last eight, as they are and turned
  Joined(const float *before, int beyond)  // the sixteen numbers before the first
      : at(_mm256_sub_epi32(_mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15), _mm256_set1_epi32(beyond))),
        second(_mm256_castsi256_ps(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(7)))), last(_mm256_loadu_ps(before + 8)),
        turned(_mm256_permutevar8x32_ps(last, at)) {}
  __attribute__((always_inline)) void put(float *aligned, F x) {
    const __m256 a = _mm256_permutevar8x32_ps(x.a, at), b = _mm256_permutevar8x32_ps(x.b, at);
    _mm256_stream_ps(aligned, _mm256_blendv_ps(turned, a, second));
    _mm256_stream_ps(aligned + 8, _mm256_blendv_ps(a, b, second));
    last = x.b, turned = b;
  }
  void keep(float *before) const { _mm256_storeu_ps(before + 8, last); }
  static __attribute__((always_inline)) void copy(const float *from, float *aligned) { _mm256_stream_ps(aligned, _mm256_loadu_ps(from)); }
};
AB_INLINE void b_stream(uint8_t *p, B a) {  // past the caches; p is 32-byte aligned
  _mm256_stream_si256((__m256i *)p, a.a);
  _mm256_stream_si256((__m256i *)(p + 32), a.b);
}
AB_INLINE __m256i narrow32(I a, I b) {
  const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(a.a, a.b), _mm256_packus_epi32(b.a, b.b));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
AB_INLINE B b_narrow(I a, I b, I c, I d) { return {narrow32(a, b), narrow32(c, d)}; }  // 64 numbers, 0 to 255, as bytes
AB_INLINE B b_narrow16(I a, I b) {  // 32 numbers, 0 to 65,535, in two bytes each
  return {_mm256_permute4x64_epi64(_mm256_packus_epi32(a.a, a.b), 0xd8), _mm256_permute4x64_epi64(_mm256_packus_epi32(b.a, b.b), 0xd8)};
}
#else
constexpr bool kUpwards = false, kUpwardsAnywhere = false;
constexpr bool kPast = false;
struct Upwards {};
struct Joined {  // never made: see kPast
  static constexpr int kStep = 16;
  Joined(const float *, int) {}
  void put(float *, F) {}
  void keep(float *) const {}
  static void copy(const float *, float *) {}
};
AB_INLINE F f_add_up(F a, F b) { return f_add(a, b); }  // never called, and so the next: see kUpwards
AB_INLINE F f_less_up(F a, F, F) { return a; }
AB_INLINE F f_fms(F a, F b, F c) { return f_fma(a, b, f_sub(f_set(-0.0f), c)); }                  // a b - c
AB_INLINE F f_nfma(F a, F b, F c) { return f_fma(f_sub(f_set(-0.0f), a), b, c); }                 // c - a b
AB_INLINE I i_signed(I magnitude, I sign) { return i_or(magnitude, i_and(sign, i_set((int32_t)0x80000000))); }
AB_INLINE F f_flip(F a, F sign) { return i_float(i_xor(f_bits(a), i_and(f_bits(sign), i_set((int32_t)0x80000000)))); }  // the other sign where `sign` is negative
AB_INLINE F f_fma_where(Mask m, F a, F b, F c) { return f_add_where(m, c, f_mul(a, b)); }  // c where not; c is not -0, a b is exact
AB_INLINE I i_fold16(const I *m) {  // lane i: the largest lane of m[i]
  int32_t t[16];
  for (int i = 0; i < 16; i++) t[i] = i_fold_max(m[i]);
  return i_load(t);
}
AB_INLINE I i_lookup64(const uint8_t *table, I at) {  // of 64 bytes, by the low 6 bits of `at`
  int32_t t[16];
  i_store(t, at);
  for (int j = 0; j < 16; j++) t[j] = table[t[j] & 63];
  return i_load(t);
}
AB_INLINE F f_size(F a, F most) { return f_min(i_float(i_and(f_bits(a), i_set(0x7fffffff))), most); }  // min(|a|, most)
AB_INLINE F f_held(F a, F) { return a; }            // never called, and so the next: see kByteTables
AB_INLINE Mask f_from(F a, F b) { return f_lt(a, b); }
AB_INLINE I i_add_where(Mask m, I a, I b) { return i_select(m, i_add(a, b), a); }
AB_INLINE bool all_within(I a, uint32_t from, uint32_t span) {  // each unsigned a is 0, or from `from` to from + span
  int32_t t[16];
  i_store(t, a);
  bool all = true;
  for (int j = 0; j < 16; j++) all &= t[j] == 0 || (uint32_t)t[j] - from <= span;
  return all;
}
AB_INLINE Mask m_or(Mask a, Mask b) { return i_nonzero(i_select(a, i_set(1), i_select(b, i_set(1), i_zero()))); }
AB_INLINE Mask i_zeros(I a, uint32_t bits) { return i_nonzero(i_select(i_nonzero(i_and(a, i_set((int32_t)bits))), i_zero(), i_set(1))); }  // where a has none of them
AB_INLINE F f_trunc(F a) {
  float t[16];
  f_store(t, a);
  for (int j = 0; j < 16; j++) t[j] = __builtin_truncf(t[j]);
  return f_load(t);
}
AB_INLINE void b_stream(uint8_t *p, B a) { b_store(p, a); }
AB_INLINE B b_narrow(I a, I b, I c, I d) {  // 64 numbers, 0 to 255, as bytes
  int32_t t[64];
  uint8_t r[64];
  i_store(t, a), i_store(t + 16, b), i_store(t + 32, c), i_store(t + 48, d);
  for (int j = 0; j < 64; j++) r[j] = (uint8_t)t[j];
  return b_load(r);
}
AB_INLINE B b_narrow16(I a, I b) {  // 32 numbers, 0 to 65,535, in two bytes each
  int32_t t[32];
  uint8_t r[64];
  i_store(t, a), i_store(t + 16, b);
  for (int j = 0; j < 32; j++) r[2 * j] = (uint8_t)t[j], r[2 * j + 1] = (uint8_t)(t[j] >> 8);
  return b_load(r);
}
#endif

#if !(ANYBIT_512 && !ANYBIT_SIMDE)
AB_INLINE I i_down(const float *level, F x, I at) {  // to the next level: twice the index, one more from the threshold on
  const I two = i_add(at, at);
  return i_select(f_lt(x, f_lookup8(level, at)), two, i_add(two, i_set(1)));
}
AB_INLINE I i_rank(const float (*tree)[16], const float (*)[16], F x) {  // see RoundPlan's `tree` and `spread`
  const I second = i_select(f_lt(x, f_set(tree[0][0])), i_zero(), i_set(1));
  return i_down(tree[3], x, i_down(tree[2], x, i_down(tree[1], x, second)));
}
#endif

}  // namespace ANYBIT_ISA
}  // namespace anybit
