// Sixteen virtual lanes behind one interface, for each instruction set that this file is compiled for.
//
// A translation unit that includes this file is compiled once per ISA with -DANYBIT_ISA=<a set of isas.h> and lives in namespace
// anybit::ANYBIT_ISA. Everything here has internal linkage, so that no object compiled for one ISA can lend code to another. Every function
// gives the same bits on every ISA: lanes are independent IEEE operations, and folds have one fixed order (8, 4, 2, 1).
//
//   F  16 float32 lanes    I  16 int32 lanes    B  64 bytes    C  the running sum of byte dots (int16 pairs on AVX2, int32 elsewhere)
#pragma once
#include <stdint.h>
#include <string.h>

#ifndef ANYBIT_ISA
#error "compile with -DANYBIT_ISA=<a set of isas.h>"
#endif

#if defined(ANYBIT_SIMDE)
#include "emulate.h"
#define ANYBIT_512 1
#elif defined(__AVX512F__) && ANYBIT_LANES != 256
#include <immintrin.h>
#define ANYBIT_512 1
#elif defined(__AVX2__)
#include <immintrin.h>
#define ANYBIT_256 1
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__aarch64__)
#include <arm_neon.h>
#define ANYBIT_NEON 1
#endif

#if defined(ANYBIT_SIMDE) || defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define ANYBIT_VNNI 1
#endif
#if defined(ANYBIT_SIMDE) || defined(__AVX512VBMI__)
#define ANYBIT_VBMI 1
#endif

#define AB_INLINE static inline __attribute__((always_inline, unused))
#define AB_LAMBDA __attribute__((always_inline))
#define AB_KEEP_IN_MEMORY() __asm__ volatile("" ::: "memory")  // compilers do not move stores across

namespace anybit {
namespace ANYBIT_ISA {

AB_INLINE float bits_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
AB_INLINE uint32_t float_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

AB_INLINE float half_float(uint32_t h) {
  uint32_t sign = (h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
  if (e == 31) return bits_float(sign | 0x7f800000u | m << 13 | (m ? 0x400000u : 0u));
  if (e == 0) return bits_float(float_bits((float)m * bits_float(0x33800000u)) | sign);  // m * 2^-24, exact
  return bits_float(sign | (e + 112) << 23 | m << 13);
}

#if ANYBIT_512
// ------------------------------------------------------------------------------------------------ AVX-512 F, BW, VL, DQ; with or without VNNI and VBMI
constexpr bool kManyRegisters = true;  // a register block's sums fit beside its dots
constexpr int kRowsInt = 8, kRowsWide = 8, kRowsFloat = 12, kStreamFloat = 8;  // rows of a register block: 8 to 16 accumulators of 16 lanes; those of a few floats
#if ANYBIT_VNNI
constexpr int kStreamRows = 8;  // the most rows that share one decoding in registers
#else
constexpr int kStreamRows = 1;
#endif
struct F { __m512 v; };
struct I { __m512i v; };
struct B { __m512i v; };
struct C { __m512i v; };
struct Mask { __mmask16 v; };

AB_INLINE F f_set(float x) { return {_mm512_set1_ps(x)}; }
AB_INLINE F f_load(const float *p) { return {_mm512_loadu_ps(p)}; }
AB_INLINE void f_store(float *p, F a) { _mm512_storeu_ps(p, a.v); }
AB_INLINE F f_add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
AB_INLINE F f_sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
AB_INLINE F f_mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
AB_INLINE F f_div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
AB_INLINE F f_fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
AB_INLINE F f_max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }  // b when either is NaN
AB_INLINE F f_min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
AB_INLINE F f_rne(F a) { return {_mm512_roundscale_ps(a.v, 8)}; }
AB_INLINE I f_to_i(F a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest-even
AB_INLINE F i_to_f(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
AB_INLINE I f_bits(F a) { return {_mm512_castps_si512(a.v)}; }
AB_INLINE F i_float(I a) { return {_mm512_castsi512_ps(a.v)}; }
AB_INLINE Mask f_lt(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
AB_INLINE Mask i_lt(I a, I b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
AB_INLINE F f_select(Mask m, F yes, F no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }

AB_INLINE I i_set(int32_t x) { return {_mm512_set1_epi32(x)}; }
AB_INLINE I i_load(const int32_t *p) { return {_mm512_loadu_si512(p)}; }
AB_INLINE void i_store(int32_t *p, I a) { _mm512_storeu_si512(p, a.v); }
AB_INLINE I i_add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
AB_INLINE I i_sub(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
AB_INLINE I i_mul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
AB_INLINE I i_and(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
AB_INLINE I i_or(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
AB_INLINE I i_xor(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
AB_INLINE I i_max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
AB_INLINE I i_min(I a, I b) { return {_mm512_min_epi32(a.v, b.v)}; }
AB_INLINE I i_shlv(I a, I n) { return {_mm512_sllv_epi32(a.v, n.v)}; }  // 0 where n, unsigned, is 32 or more
AB_INLINE I i_shrv(I a, I n) { return {_mm512_srlv_epi32(a.v, n.v)}; }
AB_INLINE bool i_any(Mask m) { return m.v != 0; }
AB_INLINE __m128i max_across(__m128i a) {  // the largest of four, in every lane
  a = _mm_max_epi32(a, _mm_shuffle_epi32(a, 0x4e));
  return _mm_max_epi32(a, _mm_shuffle_epi32(a, 0xb1));
}
AB_INLINE int32_t i_fold_max(I a) {
  const __m256i b = _mm256_max_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  return _mm_cvtsi128_si32(max_across(_mm_max_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1))));
}
AB_INLINE I i_select(Mask m, I yes, I no) { return {_mm512_mask_blend_epi32(m.v, no.v, yes.v)}; }
AB_INLINE Mask i_nonzero(I a) { return {_mm512_test_epi32_mask(a.v, a.v)}; }
AB_INLINE F f_add_where(Mask m, F a, F b) { return {_mm512_mask_add_ps(a.v, m.v, a.v, b.v)}; }  // a where not; a is not -0
AB_INLINE I i_gather(const int32_t *t, I at) { return {_mm512_i32gather_epi32(at.v, t, 4)}; }
AB_INLINE I i_shl(I a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
AB_INLINE I i_shr(I a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
AB_INLINE I i_sar(I a, int n) { return {_mm512_sra_epi32(a.v, _mm_cvtsi32_si128(n))}; }
AB_INLINE I i_load_u8(const uint8_t *p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))}; }
AB_INLINE I i_load_u16(const uint8_t *p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p))}; }
AB_INLINE F f_load_half(const uint8_t *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))}; }
AB_INLINE void i_store_i8(int8_t *p, I a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a.v)); }
AB_INLINE F f_gather(const float *t, I at) { return {_mm512_i32gather_ps(at.v, t, 4)}; }
#if ANYBIT_SIMDE
AB_INLINE void f_stream(float *p, F a) { f_store(p, a); }
#else
AB_INLINE void f_stream(float *p, F a) { _mm512_stream_ps(p, a.v); }  // past the caches; p is 64-byte aligned
#endif
AB_INLINE F f_lookup8(const float *t, I at) { return {_mm512_permutexvar_ps(at.v, _mm512_loadu_ps(t))}; }  // t: 16 floats; at: 0..7
AB_INLINE F f_lookup16(const float *t, I at) { return {_mm512_permutexvar_ps(at.v, _mm512_loadu_ps(t))}; }

AB_INLINE I i_lookup32(const int32_t *t, I at) { return {_mm512_permutex2var_epi32(_mm512_loadu_si512(t), at.v, _mm512_loadu_si512(t + 16))}; }
// The low bits of `at` count, here and below.
template <int entries> AB_INLINE I i_lookup(const int32_t *t, I at) {
  if constexpr (entries == 16) return {_mm512_permutexvar_epi32(at.v, _mm512_loadu_si512(t))};
  else if constexpr (entries == 32) return i_lookup32(t, at);
  else
    return {_mm512_mask_blend_epi32(_mm512_test_epi32_mask(at.v, _mm512_set1_epi32(entries / 2)), i_lookup<entries / 2>(t, at).v,
                                    i_lookup<entries / 2>(t + entries / 2, at).v)};
}

AB_INLINE B b_load(const uint8_t *p) { return {_mm512_loadu_si512(p)}; }
AB_INLINE void b_store(uint8_t *p, B a) { _mm512_storeu_si512(p, a.v); }
AB_INLINE B b_set(int x) { return {_mm512_set1_epi8((char)x)}; }
AB_INLINE B b_and(B a, B b) { return {_mm512_and_si512(a.v, b.v)}; }
AB_INLINE B b_or(B a, B b) { return {_mm512_or_si512(a.v, b.v)}; }
AB_INLINE B b_xor(B a, B b) { return {_mm512_xor_si512(a.v, b.v)}; }
AB_INLINE B b_add(B a, B b) { return {_mm512_add_epi8(a.v, b.v)}; }
AB_INLINE B b_sub(B a, B b) { return {_mm512_sub_epi8(a.v, b.v)}; }
AB_INLINE B b_above(B a, int limit) { return {_mm512_movm_epi8(_mm512_cmpgt_epi8_mask(a.v, _mm512_set1_epi8((char)limit)))}; }  // signed; 0xff or 0
AB_INLINE uint64_t b_equal(B a, B b) { return _mm512_cmpeq_epi8_mask(a.v, b.v); }  // bit i: bytes i are equal
template <int n> AB_INLINE B b_shr(B a) { return {_mm512_srli_epi16(a.v, n)}; }  // bits of the neighbour come in: mask after
template <int n> AB_INLINE B b_shl(B a) { return {_mm512_slli_epi16(a.v, n)}; }
AB_INLINE B b_sign(B a) { return {_mm512_movm_epi8(_mm512_movepi8_mask(a.v))}; }  // 0xff where the top bit is set
AB_INLINE B b_table(const uint8_t *t) { return {_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)t))}; }
AB_INLINE B b_lookup(B table, B at) { return {_mm512_shuffle_epi8(table.v, at.v)}; }  // at: 0..15, or bit 7 set for zero; a table for each 16 bytes
AB_INLINE B b_pick(B top_clear, B top_set, B by) { return {_mm512_mask_blend_epi8(_mm512_movepi8_mask(by.v), top_clear.v, top_set.v)}; }
AB_INLINE B b_negate(B a, B by) { return {_mm512_mask_sub_epi8(a.v, _mm512_movepi8_mask(by.v), _mm512_setzero_si512(), a.v)}; }  // -a where by < 0
AB_INLINE I b_dwords(B a) { return {a.v}; }
AB_INLINE B b_merge(B a, B mask, B b) { return {_mm512_ternarylogic_epi64(a.v, mask.v, b.v, 0xea)}; }  // a & mask | b
AB_INLINE I i_merge(I a, I mask, I b) { return {_mm512_ternarylogic_epi32(a.v, mask.v, b.v, 0xea)}; }
AB_INLINE B b_choose(B mask, B yes, B no) { return {_mm512_ternarylogic_epi64(mask.v, yes.v, no.v, 0xca)}; }  // bit by bit
// In each 16 bytes: bytes (16-bit numbers) of a and b in turns, from the lower or the upper half.
AB_INLINE B b_zip_low(B a, B b) { return {_mm512_unpacklo_epi8(a.v, b.v)}; }
AB_INLINE B b_zip_high(B a, B b) { return {_mm512_unpackhi_epi8(a.v, b.v)}; }
AB_INLINE B b_zip_low16(B a, B b) { return {_mm512_unpacklo_epi16(a.v, b.v)}; }
AB_INLINE B b_zip_high16(B a, B b) { return {_mm512_unpackhi_epi16(a.v, b.v)}; }
#if ANYBIT_VBMI
constexpr bool kByteTables = true;  // tables of 64 and 128 bytes in one permute
AB_INLINE B b_lookup64(const uint8_t *t, B at) { return {_mm512_permutexvar_epi8(at.v, _mm512_loadu_si512(t))}; }  // the low 6 bits of `at` count
AB_INLINE B b_lookup128(const uint8_t *t, B at) {  // the low 7 bits of `at` count
  return {_mm512_permutex2var_epi8(_mm512_loadu_si512(t), at.v, _mm512_loadu_si512(t + 64))};
}
AB_INLINE B b_permute64(B table, B at) { return {_mm512_permutexvar_epi8(at.v, table.v)}; }
AB_INLINE B b_permute(B low, B high, B at) { return {_mm512_permutex2var_epi8(low.v, at.v, high.v)}; }  // tables in registers
#else
constexpr bool kByteTables = false;
#endif

// Sixteen outputs x four k: from byte 4 * output + k to byte 16 * k + output.
AB_INLINE B b_by_k(B a) {
  const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(a.v, within))};
}
AB_INLINE B b_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {  // 16 bytes from each
  __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)a));
  v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)b), 1);
  v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)c), 2);
  return {_mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)d), 3)};
}
// Sums of bytes in 16 bits, those at even and at odd places apart.
struct H { __m512i v; };
AB_INLINE H h_zero() { return {_mm512_setzero_si512()}; }
AB_INLINE H h_even(H s, B a) { return {_mm512_add_epi16(s.v, _mm512_and_si512(a.v, _mm512_set1_epi16(255)))}; }
AB_INLINE H h_odd(H s, B a) { return {_mm512_add_epi16(s.v, _mm512_srli_epi16(a.v, 8))}; }
AB_INLINE __m256i h_fold(H s) {  // of the four k of one output: at most 65,535
  const __m256i t = _mm256_add_epi16(_mm512_castsi512_si256(s.v), _mm512_extracti64x4_epi64(s.v, 1));
  return _mm256_add_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(t)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(t, 1)));
}
AB_INLINE I h_end(H even, H odd) {  // sixteen outputs
  const __m256i e = h_fold(even), o = h_fold(odd), low = _mm256_unpacklo_epi32(e, o), high = _mm256_unpackhi_epi32(e, o);
  return {_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_permute2x128_si256(low, high, 0x20)), _mm256_permute2x128_si256(low, high, 0x31), 1)};
}

AB_INLINE C c_zero() { return {_mm512_setzero_si512()}; }
AB_INLINE B q_four(const int8_t *q) { int32_t x; memcpy(&x, q, 4); return {_mm512_set1_epi32(x)}; }
#if ANYBIT_VNNI
constexpr bool kWideDot = true;  // dpbusd: any u8 x s8, summed in int32
AB_INLINE C c_from(I sum) { return {sum.v}; }  // a sum to go on from
AB_INLINE C c_step(C c, B u, B q) { return {_mm512_dpbusd_epi32(c.v, u.v, q.v)}; }
AB_INLINE I c_end(I sum, C c) { return {_mm512_add_epi32(sum.v, c.v)}; }
AB_INLINE I signed_dot(I sum, B w, B q) {  // s8 x s8; not chosen on this ISA (the biased form is), kept right for tests
  B u = b_xor(w, b_set(0x80));
  __m512i bias = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)0x80), q.v);
  return {_mm512_sub_epi32(_mm512_dpbusd_epi32(sum.v, u.v, q.v), bias)};
}
#else
constexpr bool kWideDot = false;  // as on AVX2
AB_INLINE C c_from(I) { return c_zero(); }  // never called: sums are int16 pairs
AB_INLINE C c_step(C c, B u, B q) {
  C r = {_mm512_add_epi16(c.v, _mm512_maddubs_epi16(u.v, q.v))};
  __asm__("" : "+v"(r.v));  // as on AVX2
  return r;
}
AB_INLINE I c_end(I sum, C c) { return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(c.v, _mm512_set1_epi16(1)))}; }
AB_INLINE I signed_dot(I sum, B w, B q) {
  I r = c_end(sum, {_mm512_maddubs_epi16(_mm512_abs_epi8(w.v), b_negate(q, w).v)});
  __asm__("" : "+v"(r.v));  // as on AVX2
  return r;
}
#endif
// int16 weights as pairs: two registers hold outputs (0 1 | 4 5 | 8 9 | 12 13) and (2 3 | 6 7 | 10 11 | 14 15), four k each
struct W { __m512i a, b; };
AB_INLINE void w_store(uint8_t *p, B lo, B hi) {
  _mm512_storeu_si512(p, _mm512_unpacklo_epi8(lo.v, hi.v));
  _mm512_storeu_si512(p + 64, _mm512_unpackhi_epi8(lo.v, hi.v));
}
AB_INLINE void w_store_signed(uint8_t *p, B lo, B hi, B sign) {  // negated where sign is 0xff
  __m512i a = _mm512_unpacklo_epi8(sign.v, sign.v), b = _mm512_unpackhi_epi8(sign.v, sign.v);
  _mm512_storeu_si512(p, _mm512_sub_epi16(_mm512_xor_si512(_mm512_unpacklo_epi8(lo.v, hi.v), a), a));
  _mm512_storeu_si512(p + 64, _mm512_sub_epi16(_mm512_xor_si512(_mm512_unpackhi_epi8(lo.v, hi.v), b), b));
}
AB_INLINE W w_zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
AB_INLINE W w_step(W s, const uint8_t *p, const int16_t *q) {
  int64_t x; memcpy(&x, q, 8);
  __m512i v = _mm512_set1_epi64(x);
  return {_mm512_add_epi32(s.a, _mm512_madd_epi16(_mm512_loadu_si512(p), v)), _mm512_add_epi32(s.b, _mm512_madd_epi16(_mm512_loadu_si512(p + 64), v))};
}
AB_INLINE I w_end(W s) {
  __m512 a = _mm512_castsi512_ps(s.a), b = _mm512_castsi512_ps(s.b);
  return {_mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)))};
}

#elif ANYBIT_256
// ------------------------------------------------------------------------------------------------ AVX2, FMA, F16C; with or without VNNI
constexpr bool kManyRegisters = false;
constexpr int kRowsInt = 4, kRowsWide = 2, kRowsFloat = 6, kStreamFloat = 4;
#if ANYBIT_VNNI
constexpr int kStreamRows = 4;
#else
constexpr int kStreamRows = 1;
#endif
constexpr bool kByteTables = false;
struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct B { __m256i a, b; };
struct C { __m256i a, b; };
struct Mask { __m256 a, b; };
#define AB_BOTH(T, op) T{op(a.a, b.a), op(a.b, b.b)}

AB_INLINE F f_set(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
AB_INLINE F f_load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
AB_INLINE void f_store(float *p, F a) { _mm256_storeu_ps(p, a.a); _mm256_storeu_ps(p + 8, a.b); }
AB_INLINE F f_add(F a, F b) { return AB_BOTH(F, _mm256_add_ps); }
AB_INLINE F f_sub(F a, F b) { return AB_BOTH(F, _mm256_sub_ps); }
AB_INLINE F f_mul(F a, F b) { return AB_BOTH(F, _mm256_mul_ps); }
AB_INLINE F f_div(F a, F b) { return AB_BOTH(F, _mm256_div_ps); }
AB_INLINE F f_fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
AB_INLINE F f_max(F a, F b) { return AB_BOTH(F, _mm256_max_ps); }  // b when either is NaN
AB_INLINE F f_min(F a, F b) { return AB_BOTH(F, _mm256_min_ps); }
AB_INLINE F f_rne(F a) { return {_mm256_round_ps(a.a, 8), _mm256_round_ps(a.b, 8)}; }
AB_INLINE I f_to_i(F a) { return {_mm256_cvtps_epi32(a.a), _mm256_cvtps_epi32(a.b)}; }  // nearest-even
AB_INLINE F i_to_f(I a) { return {_mm256_cvtepi32_ps(a.a), _mm256_cvtepi32_ps(a.b)}; }
AB_INLINE I f_bits(F a) { return {_mm256_castps_si256(a.a), _mm256_castps_si256(a.b)}; }
AB_INLINE F i_float(I a) { return {_mm256_castsi256_ps(a.a), _mm256_castsi256_ps(a.b)}; }
AB_INLINE Mask f_lt(F a, F b) { return {_mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ)}; }
AB_INLINE Mask i_lt(I a, I b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.a, a.a)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.b, a.b))}; }
AB_INLINE F f_select(Mask m, F yes, F no) { return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)}; }

AB_INLINE I i_set(int32_t x) { __m256i v = _mm256_set1_epi32(x); return {v, v}; }
AB_INLINE I i_load(const int32_t *p) { return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))}; }
AB_INLINE void i_store(int32_t *p, I a) { _mm256_storeu_si256((__m256i *)p, a.a); _mm256_storeu_si256((__m256i *)(p + 8), a.b); }
AB_INLINE I i_add(I a, I b) { return AB_BOTH(I, _mm256_add_epi32); }
AB_INLINE I i_sub(I a, I b) { return AB_BOTH(I, _mm256_sub_epi32); }
AB_INLINE I i_mul(I a, I b) { return AB_BOTH(I, _mm256_mullo_epi32); }
AB_INLINE I i_and(I a, I b) { return AB_BOTH(I, _mm256_and_si256); }
AB_INLINE I i_or(I a, I b) { return AB_BOTH(I, _mm256_or_si256); }
AB_INLINE I i_xor(I a, I b) { return AB_BOTH(I, _mm256_xor_si256); }
AB_INLINE I i_max(I a, I b) { return AB_BOTH(I, _mm256_max_epi32); }
AB_INLINE I i_min(I a, I b) { return AB_BOTH(I, _mm256_min_epi32); }
AB_INLINE I i_shlv(I a, I n) { return {_mm256_sllv_epi32(a.a, n.a), _mm256_sllv_epi32(a.b, n.b)}; }  // 0 where n, unsigned, is 32 or more
AB_INLINE I i_shrv(I a, I n) { return {_mm256_srlv_epi32(a.a, n.a), _mm256_srlv_epi32(a.b, n.b)}; }
AB_INLINE int32_t i_fold_max(I a) {
  const __m256i b = _mm256_max_epi32(a.a, a.b);
  __m128i c = _mm_max_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
}
AB_INLINE bool i_any(Mask m) { return _mm256_movemask_ps(_mm256_or_ps(m.a, m.b)) != 0; }
AB_INLINE I i_select(Mask m, I yes, I no) {
  return {_mm256_blendv_epi8(no.a, yes.a, _mm256_castps_si256(m.a)), _mm256_blendv_epi8(no.b, yes.b, _mm256_castps_si256(m.b))};
}
AB_INLINE Mask i_nonzero(I a) {
  const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi32(-1);
  return {_mm256_castsi256_ps(_mm256_xor_si256(_mm256_cmpeq_epi32(a.a, zero), ones)), _mm256_castsi256_ps(_mm256_xor_si256(_mm256_cmpeq_epi32(a.b, zero), ones))};
}
AB_INLINE F f_add_where(Mask m, F a, F b) {  // a where not; a is not -0
  return {_mm256_add_ps(a.a, _mm256_and_ps(b.a, m.a)), _mm256_add_ps(a.b, _mm256_and_ps(b.b, m.b))};
}
AB_INLINE I i_gather(const int32_t *t, I at) { return {_mm256_i32gather_epi32(t, at.a, 4), _mm256_i32gather_epi32(t, at.b, 4)}; }
AB_INLINE I i_shl(I a, int n) { __m128i c = _mm_cvtsi32_si128(n); return {_mm256_sll_epi32(a.a, c), _mm256_sll_epi32(a.b, c)}; }
AB_INLINE I i_shr(I a, int n) { __m128i c = _mm_cvtsi32_si128(n); return {_mm256_srl_epi32(a.a, c), _mm256_srl_epi32(a.b, c)}; }
AB_INLINE I i_sar(I a, int n) { __m128i c = _mm_cvtsi32_si128(n); return {_mm256_sra_epi32(a.a, c), _mm256_sra_epi32(a.b, c)}; }
AB_INLINE I i_load_u8(const uint8_t *p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8)))};
}
AB_INLINE I i_load_u16(const uint8_t *p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
AB_INLINE F f_load_half(const uint8_t *p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16)))};
}
AB_INLINE void i_store_i8(int8_t *p, I a) {
  __m256i v = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.a, a.b), 0xd8);
  _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
AB_INLINE F f_gather(const float *t, I at) { return {_mm256_i32gather_ps(t, at.a, 4), _mm256_i32gather_ps(t, at.b, 4)}; }
AB_INLINE void f_stream(float *p, F a) { _mm256_stream_ps(p, a.a); _mm256_stream_ps(p + 8, a.b); }  // past the caches; p is 32-byte aligned
AB_INLINE F f_lookup8(const float *t, I at) {  // t: 16 floats; at: 0..7
  const __m256 table = _mm256_loadu_ps(t);
  return {_mm256_permutevar8x32_ps(table, at.a), _mm256_permutevar8x32_ps(table, at.b)};
}
AB_INLINE __m256 permute16(__m256 low, __m256 high, __m256i at) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
AB_INLINE F f_lookup16(const float *t, I at) {
  __m256 low = _mm256_loadu_ps(t), high = _mm256_loadu_ps(t + 8);
  return {permute16(low, high, at.a), permute16(low, high, at.b)};
}
template <int entries> AB_INLINE __m256i permute_in(const int32_t *t, __m256i at) {
  if constexpr (entries == 8) return _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)t), at);
  else {
    const __m256 low = _mm256_castsi256_ps(permute_in<entries / 2>(t, at)), high = _mm256_castsi256_ps(permute_in<entries / 2>(t + entries / 2, at));
    constexpr int to_sign = entries == 16 ? 28 : entries == 32 ? 27 : 26;
    return _mm256_castps_si256(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, to_sign))));
  }
}
template <int entries> AB_INLINE I i_lookup(const int32_t *t, I at) {
  if constexpr (entries <= 64) return {permute_in<entries>(t, at.a), permute_in<entries>(t, at.b)};
  const __m256i mask = _mm256_set1_epi32(entries - 1);
  return {_mm256_i32gather_epi32(t, _mm256_and_si256(at.a, mask), 4), _mm256_i32gather_epi32(t, _mm256_and_si256(at.b, mask), 4)};
}

AB_INLINE B b_load(const uint8_t *p) { return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))}; }
AB_INLINE void b_store(uint8_t *p, B a) { _mm256_storeu_si256((__m256i *)p, a.a); _mm256_storeu_si256((__m256i *)(p + 32), a.b); }
AB_INLINE B b_set(int x) { __m256i v = _mm256_set1_epi8((char)x); return {v, v}; }
AB_INLINE B b_and(B a, B b) { return AB_BOTH(B, _mm256_and_si256); }
AB_INLINE B b_or(B a, B b) { return AB_BOTH(B, _mm256_or_si256); }
AB_INLINE B b_xor(B a, B b) { return AB_BOTH(B, _mm256_xor_si256); }
AB_INLINE B b_add(B a, B b) { return AB_BOTH(B, _mm256_add_epi8); }
AB_INLINE B b_sub(B a, B b) { return AB_BOTH(B, _mm256_sub_epi8); }
AB_INLINE B b_above(B a, int limit) {  // signed; 0xff or 0
  __m256i v = _mm256_set1_epi8((char)limit);
  return {_mm256_cmpgt_epi8(a.a, v), _mm256_cmpgt_epi8(a.b, v)};
}
AB_INLINE uint64_t b_equal(B a, B b) {  // bit i: bytes i are equal
  return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a.a, b.a)) | (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a.b, b.b)) << 32;
}
template <int n> AB_INLINE B b_shr(B a) { return {_mm256_srli_epi16(a.a, n), _mm256_srli_epi16(a.b, n)}; }  // mask after
template <int n> AB_INLINE B b_shl(B a) { return {_mm256_slli_epi16(a.a, n), _mm256_slli_epi16(a.b, n)}; }
AB_INLINE B b_sign(B a) { __m256i z = _mm256_setzero_si256(); return {_mm256_cmpgt_epi8(z, a.a), _mm256_cmpgt_epi8(z, a.b)}; }  // 0xff where the top bit is set
AB_INLINE B b_table(const uint8_t *t) { __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t)); return {v, v}; }
AB_INLINE B b_lookup(B table, B at) { return {_mm256_shuffle_epi8(table.a, at.a), _mm256_shuffle_epi8(table.b, at.b)}; }
AB_INLINE B b_pick(B top_clear, B top_set, B by) {
  return {_mm256_blendv_epi8(top_clear.a, top_set.a, by.a), _mm256_blendv_epi8(top_clear.b, top_set.b, by.b)};
}
AB_INLINE B b_negate(B a, B by) {  // -a where by < 0
  return {_mm256_sign_epi8(a.a, _mm256_or_si256(by.a, _mm256_set1_epi8(1))), _mm256_sign_epi8(a.b, _mm256_or_si256(by.b, _mm256_set1_epi8(1)))};
}
AB_INLINE I b_dwords(B a) { return {a.a, a.b}; }
AB_INLINE B b_merge(B a, B mask, B b) { return b_or(b_and(a, mask), b); }  // a & mask | b
AB_INLINE I i_merge(I a, I mask, I b) { return i_or(i_and(a, mask), b); }
AB_INLINE __m256i choose(__m256i mask, __m256i yes, __m256i no) { return _mm256_or_si256(_mm256_and_si256(mask, yes), _mm256_andnot_si256(mask, no)); }
AB_INLINE B b_choose(B mask, B yes, B no) { return {choose(mask.a, yes.a, no.a), choose(mask.b, yes.b, no.b)}; }  // bit by bit
// In each 16 bytes: bytes (16-bit numbers) of a and b in turns, from the lower or the upper half.
AB_INLINE B b_zip_low(B a, B b) { return AB_BOTH(B, _mm256_unpacklo_epi8); }
AB_INLINE B b_zip_high(B a, B b) { return AB_BOTH(B, _mm256_unpackhi_epi8); }
AB_INLINE B b_zip_low16(B a, B b) { return AB_BOTH(B, _mm256_unpacklo_epi16); }
AB_INLINE B b_zip_high16(B a, B b) { return AB_BOTH(B, _mm256_unpackhi_epi16); }

// Sixteen outputs x four k: from byte 4 * output + k to byte 16 * k + output.
AB_INLINE __m256i two_by_k(__m256i a) {  // eight outputs: their bytes of k 0, 2, 1, 3
  const __m256i within = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a, within), _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
}
AB_INLINE B b_by_k(B a) {
  const __m256i x = two_by_k(a.a), y = two_by_k(a.b);
  return {_mm256_unpacklo_epi64(x, y), _mm256_unpackhi_epi64(x, y)};
}
AB_INLINE B b_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {  // 16 bytes from each
  return {_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)), _mm_loadu_si128((const __m128i *)b), 1),
          _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)c)), _mm_loadu_si128((const __m128i *)d), 1)};
}
// Sums of bytes in 16 bits, those at even and at odd places apart.
struct H { __m256i a, b; };
AB_INLINE H h_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
AB_INLINE H h_even(H s, B x) {
  const __m256i byte = _mm256_set1_epi16(255);
  return {_mm256_add_epi16(s.a, _mm256_and_si256(x.a, byte)), _mm256_add_epi16(s.b, _mm256_and_si256(x.b, byte))};
}
AB_INLINE H h_odd(H s, B x) { return {_mm256_add_epi16(s.a, _mm256_srli_epi16(x.a, 8)), _mm256_add_epi16(s.b, _mm256_srli_epi16(x.b, 8))}; }
AB_INLINE __m256i h_fold(H s) {  // of the four k of one output: at most 65,535
  const __m256i t = _mm256_add_epi16(s.a, s.b);
  return _mm256_add_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(t)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(t, 1)));
}
AB_INLINE I h_end(H even, H odd) {  // sixteen outputs
  const __m256i e = h_fold(even), o = h_fold(odd), low = _mm256_unpacklo_epi32(e, o), high = _mm256_unpackhi_epi32(e, o);
  return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
}

AB_INLINE C c_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
AB_INLINE B q_four(const int8_t *q) { int32_t x; memcpy(&x, q, 4); __m256i v = _mm256_set1_epi32(x); return {v, v}; }
#if ANYBIT_VNNI
constexpr bool kWideDot = true;
#if defined(__AVX512VNNI__)
#define AB_DPBUSD _mm256_dpbusd_epi32
#else
#define AB_DPBUSD _mm256_dpbusd_avx_epi32
#endif
AB_INLINE C c_from(I sum) { return {sum.a, sum.b}; }
AB_INLINE C c_step(C c, B u, B q) { return {AB_DPBUSD(c.a, u.a, q.a), AB_DPBUSD(c.b, u.b, q.b)}; }
AB_INLINE I c_end(I sum, C c) { return {_mm256_add_epi32(sum.a, c.a), _mm256_add_epi32(sum.b, c.b)}; }
AB_INLINE I signed_dot(I sum, B w, B q) {  // as on AVX-512 with VNNI
  const C c = c_step(c_zero(), b_set(0x80), q), d = c_step({sum.a, sum.b}, b_xor(w, b_set(0x80)), q);
  return {_mm256_sub_epi32(d.a, c.a), _mm256_sub_epi32(d.b, c.b)};
}
#else
constexpr bool kWideDot = false;  // maddubs saturates in int16: the unsigned side must stay <= 129
AB_INLINE C c_from(I) { return c_zero(); }  // never called: sums are int16 pairs
AB_INLINE C c_step(C c, B u, B q) {
  C r = {_mm256_add_epi16(c.a, _mm256_maddubs_epi16(u.a, q.a)), _mm256_add_epi16(c.b, _mm256_maddubs_epi16(u.b, q.b))};
  __asm__("" : "+x"(r.a), "+x"(r.b));  // keeps sums in their registers: compilers regroup integer adds, and spill what they hoist
  return r;
}
AB_INLINE I c_end(I sum, C c) {
  __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(c.a, one)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(c.b, one))};
}
AB_INLINE I signed_dot(I sum, B w, B q) {  // |w| as the unsigned side (128 included), q with w's sign: |q| <= 127, so a pair stays <= 32,512
  C c = {_mm256_maddubs_epi16(_mm256_abs_epi8(w.a), _mm256_sign_epi8(q.a, w.a)), _mm256_maddubs_epi16(_mm256_abs_epi8(w.b), _mm256_sign_epi8(q.b, w.b))};
  I r = c_end(sum, c);
  __asm__("" : "+x"(r.a), "+x"(r.b));  // as in c_step
  return r;
}
#endif
// int16 weights as pairs: four registers, (0 1 | 4 5) (2 3 | 6 7) (8 9 | 12 13) (10 11 | 14 15), four k each
struct W { __m256i a, b, c, d; };
AB_INLINE void w_store(uint8_t *p, B lo, B hi) {
  _mm256_storeu_si256((__m256i *)p, _mm256_unpacklo_epi8(lo.a, hi.a));
  _mm256_storeu_si256((__m256i *)(p + 32), _mm256_unpackhi_epi8(lo.a, hi.a));
  _mm256_storeu_si256((__m256i *)(p + 64), _mm256_unpacklo_epi8(lo.b, hi.b));
  _mm256_storeu_si256((__m256i *)(p + 96), _mm256_unpackhi_epi8(lo.b, hi.b));
}
AB_INLINE void store_signed(uint8_t *p, __m256i t, __m256i sign) { _mm256_storeu_si256((__m256i *)p, _mm256_sub_epi16(_mm256_xor_si256(t, sign), sign)); }
AB_INLINE void w_store_signed(uint8_t *p, B lo, B hi, B sign) {  // negated where sign is 0xff
  store_signed(p, _mm256_unpacklo_epi8(lo.a, hi.a), _mm256_unpacklo_epi8(sign.a, sign.a));
  store_signed(p + 32, _mm256_unpackhi_epi8(lo.a, hi.a), _mm256_unpackhi_epi8(sign.a, sign.a));
  store_signed(p + 64, _mm256_unpacklo_epi8(lo.b, hi.b), _mm256_unpacklo_epi8(sign.b, sign.b));
  store_signed(p + 96, _mm256_unpackhi_epi8(lo.b, hi.b), _mm256_unpackhi_epi8(sign.b, sign.b));
}
AB_INLINE W w_zero() { __m256i z = _mm256_setzero_si256(); return {z, z, z, z}; }
AB_INLINE W w_step(W s, const uint8_t *p, const int16_t *q) {
  int64_t x; memcpy(&x, q, 8);
  __m256i v = _mm256_set1_epi64x(x);
  const __m256i *w = (const __m256i *)p;
  W r = {_mm256_add_epi32(s.a, _mm256_madd_epi16(_mm256_loadu_si256(w), v)), _mm256_add_epi32(s.b, _mm256_madd_epi16(_mm256_loadu_si256(w + 1), v)),
         _mm256_add_epi32(s.c, _mm256_madd_epi16(_mm256_loadu_si256(w + 2), v)), _mm256_add_epi32(s.d, _mm256_madd_epi16(_mm256_loadu_si256(w + 3), v))};
  __asm__("" : "+x"(r.a), "+x"(r.b), "+x"(r.c), "+x"(r.d));  // as in c_step
  return r;
}
AB_INLINE I w_end(W s) { return {_mm256_hadd_epi32(s.a, s.b), _mm256_hadd_epi32(s.c, s.d)}; }

#elif ANYBIT_NEON
// ------------------------------------------------------------------------------------------------ NEON with dot products (ARMv8.2)
constexpr bool kManyRegisters = false;
constexpr int kRowsInt = 4, kRowsWide = 2, kRowsFloat = 4, kStreamRows = 4, kStreamFloat = 4;
constexpr bool kWideDot = true, kByteTables = false;
struct F { float32x4_t a, b, c, d; };
struct I { int32x4_t a, b, c, d; };
struct B { uint8x16_t a, b, c, d; };  // byte 4 * output + j: four outputs a register
struct C { int32x4_t a, b, c, d; };
struct Mask { uint32x4_t a, b, c, d; };
#define AB_FOUR1(T, op, x) T{op(x.a), op(x.b), op(x.c), op(x.d)}
#define AB_FOUR2(T, op, x, y) T{op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d)}
#define AB_FOUR3(T, op, x, y, z) T{op(x.a, y.a, z.a), op(x.b, y.b, z.b), op(x.c, y.c, z.c), op(x.d, y.d, z.d)}

AB_INLINE F f_set(float x) { const float32x4_t v = vdupq_n_f32(x); return {v, v, v, v}; }
AB_INLINE F f_load(const float *p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
AB_INLINE void f_store(float *p, F x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d); }
AB_INLINE F f_add(F x, F y) { return AB_FOUR2(F, vaddq_f32, x, y); }
AB_INLINE F f_sub(F x, F y) { return AB_FOUR2(F, vsubq_f32, x, y); }
AB_INLINE F f_mul(F x, F y) { return AB_FOUR2(F, vmulq_f32, x, y); }
AB_INLINE F f_div(F x, F y) { return AB_FOUR2(F, vdivq_f32, x, y); }
AB_INLINE F f_fma(F x, F y, F z) { return AB_FOUR3(F, vfmaq_f32, z, x, y); }
AB_INLINE float32x4_t choose(uint32x4_t m, float32x4_t yes, float32x4_t no) { return vbslq_f32(m, yes, no); }
AB_INLINE float32x4_t larger(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
AB_INLINE float32x4_t smaller(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
AB_INLINE F f_max(F x, F y) { return AB_FOUR2(F, larger, x, y); }  // y when either is NaN
AB_INLINE F f_min(F x, F y) { return AB_FOUR2(F, smaller, x, y); }
AB_INLINE F f_rne(F x) { return AB_FOUR1(F, vrndnq_f32, x); }
AB_INLINE I f_to_i(F x) { return AB_FOUR1(I, vcvtnq_s32_f32, x); }  // nearest-even; callers keep |x| < 2^31
AB_INLINE F i_to_f(I x) { return AB_FOUR1(F, vcvtq_f32_s32, x); }
AB_INLINE I f_bits(F x) { return AB_FOUR1(I, vreinterpretq_s32_f32, x); }
AB_INLINE F i_float(I x) { return AB_FOUR1(F, vreinterpretq_f32_s32, x); }
AB_INLINE Mask f_lt(F x, F y) { return AB_FOUR2(Mask, vcltq_f32, x, y); }
AB_INLINE Mask i_lt(I x, I y) { return AB_FOUR2(Mask, vcltq_s32, x, y); }
AB_INLINE F f_select(Mask m, F yes, F no) { return AB_FOUR3(F, choose, m, yes, no); }

AB_INLINE I i_set(int32_t x) { const int32x4_t v = vdupq_n_s32(x); return {v, v, v, v}; }
AB_INLINE I i_load(const int32_t *p) { return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
AB_INLINE void i_store(int32_t *p, I x) { vst1q_s32(p, x.a), vst1q_s32(p + 4, x.b), vst1q_s32(p + 8, x.c), vst1q_s32(p + 12, x.d); }
AB_INLINE I i_add(I x, I y) { return AB_FOUR2(I, vaddq_s32, x, y); }
AB_INLINE I i_sub(I x, I y) { return AB_FOUR2(I, vsubq_s32, x, y); }
AB_INLINE I i_mul(I x, I y) { return AB_FOUR2(I, vmulq_s32, x, y); }
AB_INLINE I i_and(I x, I y) { return AB_FOUR2(I, vandq_s32, x, y); }
AB_INLINE I i_or(I x, I y) { return AB_FOUR2(I, vorrq_s32, x, y); }
AB_INLINE I i_xor(I x, I y) { return AB_FOUR2(I, veorq_s32, x, y); }
AB_INLINE I i_max(I x, I y) { return AB_FOUR2(I, vmaxq_s32, x, y); }
AB_INLINE I i_min(I x, I y) { return AB_FOUR2(I, vminq_s32, x, y); }
AB_INLINE int32x4_t places(int32x4_t n) { return vreinterpretq_s32_u32(vminq_u32(vreinterpretq_u32_s32(n), vdupq_n_u32(32))); }  // shifts read a signed byte
AB_INLINE int32x4_t left_by(int32x4_t x, int32x4_t n) { return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), places(n))); }
AB_INLINE int32x4_t right_by(int32x4_t x, int32x4_t n) { return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vnegq_s32(places(n)))); }
AB_INLINE I i_shlv(I x, I n) { return AB_FOUR2(I, left_by, x, n); }  // 0 where n, unsigned, is 32 or more
AB_INLINE I i_shrv(I x, I n) { return AB_FOUR2(I, right_by, x, n); }
AB_INLINE int32_t i_fold_max(I x) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }
AB_INLINE bool i_any(Mask m) { return vmaxvq_u32(vorrq_u32(vorrq_u32(m.a, m.b), vorrq_u32(m.c, m.d))) != 0; }
AB_INLINE I i_select(Mask m, I yes, I no) { return AB_FOUR3(I, vbslq_s32, m, yes, no); }
AB_INLINE Mask i_nonzero(I x) { return AB_FOUR2(Mask, vtstq_s32, x, x); }
AB_INLINE float32x4_t add_where(uint32x4_t m, float32x4_t x, float32x4_t y) {
  return vaddq_f32(x, vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(y))));
}
AB_INLINE F f_add_where(Mask m, F x, F y) { return AB_FOUR3(F, add_where, m, x, y); }  // x where not; x is not -0
AB_INLINE I i_shl(I x, int n) { return i_shlv(x, i_set(n)); }
AB_INLINE I i_shr(I x, int n) { return i_shrv(x, i_set(n)); }
AB_INLINE I i_sar(I x, int n) { const int32x4_t by = vdupq_n_s32(-n); return {vshlq_s32(x.a, by), vshlq_s32(x.b, by), vshlq_s32(x.c, by), vshlq_s32(x.d, by)}; }
AB_INLINE I i_gather(const int32_t *t, I at) {
  int32_t i[16], v[16];
  i_store(i, at);
  for (int j = 0; j < 16; j++) v[j] = t[i[j]];
  return i_load(v);
}
AB_INLINE I i_wide(uint16x8_t low, uint16x8_t high) {
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)), vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
          vreinterpretq_s32_u32(vmovl_high_u16(high))};
}
AB_INLINE uint16x8_t u16_load(const uint8_t *p) { return vreinterpretq_u16_u8(vld1q_u8(p)); }
AB_INLINE I i_load_u8(const uint8_t *p) { const uint8x16_t v = vld1q_u8(p); return i_wide(vmovl_u8(vget_low_u8(v)), vmovl_high_u8(v)); }
AB_INLINE I i_load_u16(const uint8_t *p) { return i_wide(u16_load(p), u16_load(p + 16)); }
AB_INLINE F f_load_half(const uint8_t *p) {
  const float16x8_t low = vreinterpretq_f16_u16(u16_load(p)), high = vreinterpretq_f16_u16(u16_load(p + 16));
  return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)};
}
AB_INLINE void i_store_i8(int8_t *p, I x) {
  vst1q_s8(p, vcombine_s8(vmovn_s16(vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b))), vmovn_s16(vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d)))));
}
AB_INLINE F f_gather(const float *t, I at) { return i_float(i_gather((const int32_t *)t, at)); }
AB_INLINE void f_stream(float *p, F x) { f_store(p, x); }
// 16 numbers of 32 bits are one table of 64 bytes; the low four bits of `at` count.
AB_INLINE uint8x16x4_t table64(const void *t) { const uint8_t *p = (const uint8_t *)t; return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}}; }
AB_INLINE int32x4_t pick16(uint8x16x4_t t, int32x4_t at) {
  const uint32x4_t i = vandq_u32(vreinterpretq_u32_s32(at), vdupq_n_u32(15));
  return vreinterpretq_s32_u8(vqtbl4q_u8(t, vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x03020100), i, vdupq_n_u32(0x04040404)))));
}
AB_INLINE I pick16(const void *t, I at) { const uint8x16x4_t v = table64(t); return {pick16(v, at.a), pick16(v, at.b), pick16(v, at.c), pick16(v, at.d)}; }
AB_INLINE F f_lookup8(const float *t, I at) { return i_float(pick16(t, at)); }  // t: 16 floats; at: 0..7
AB_INLINE F f_lookup16(const float *t, I at) { return i_float(pick16(t, at)); }
template <int entries> AB_INLINE I i_lookup(const int32_t *t, I at) {
  if constexpr (entries == 16) return pick16(t, at);
  else return i_gather(t, i_and(at, i_set(entries - 1)));
}

AB_INLINE B b_load(const uint8_t *p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
AB_INLINE void b_store(uint8_t *p, B x) { vst1q_u8(p, x.a), vst1q_u8(p + 16, x.b), vst1q_u8(p + 32, x.c), vst1q_u8(p + 48, x.d); }
AB_INLINE B b_set(int x) { const uint8x16_t v = vdupq_n_u8((uint8_t)x); return {v, v, v, v}; }
AB_INLINE B b_and(B x, B y) { return AB_FOUR2(B, vandq_u8, x, y); }
AB_INLINE B b_or(B x, B y) { return AB_FOUR2(B, vorrq_u8, x, y); }
AB_INLINE B b_xor(B x, B y) { return AB_FOUR2(B, veorq_u8, x, y); }
AB_INLINE B b_add(B x, B y) { return AB_FOUR2(B, vaddq_u8, x, y); }
AB_INLINE B b_sub(B x, B y) { return AB_FOUR2(B, vsubq_u8, x, y); }
AB_INLINE uint8x16_t above(uint8x16_t x, int8x16_t limit) { return vcgtq_s8(vreinterpretq_s8_u8(x), limit); }
AB_INLINE B b_above(B x, int limit) {  // signed; 0xff or 0
  const int8x16_t v = vdupq_n_s8((int8_t)limit);
  return {above(x.a, v), above(x.b, v), above(x.c, v), above(x.d, v)};
}
AB_INLINE uint64_t b_equal(B x, B y) {  // bit i: bytes i are equal
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const B e = AB_FOUR2(B, vceqq_u8, x, y);
  const uint8x16_t ab = vpaddq_u8(vandq_u8(e.a, bit), vandq_u8(e.b, bit)), cd = vpaddq_u8(vandq_u8(e.c, bit), vandq_u8(e.d, bit));
  const uint8x16_t all = vpaddq_u8(ab, cd);
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}
template <int n> AB_INLINE B b_shr(B x) {  // callers mask: other ISAs bring the neighbour's bits in
  if constexpr (n == 0) return x;
  else return {vshrq_n_u8(x.a, n), vshrq_n_u8(x.b, n), vshrq_n_u8(x.c, n), vshrq_n_u8(x.d, n)};
}
template <int n> AB_INLINE B b_shl(B x) { return {vshlq_n_u8(x.a, n), vshlq_n_u8(x.b, n), vshlq_n_u8(x.c, n), vshlq_n_u8(x.d, n)}; }
AB_INLINE uint8x16_t below_zero(uint8x16_t x) { return vcltzq_s8(vreinterpretq_s8_u8(x)); }
AB_INLINE B b_sign(B x) { return AB_FOUR1(B, below_zero, x); }  // 0xff where the top bit is set
AB_INLINE B b_table(const uint8_t *t) { const uint8x16_t v = vld1q_u8(t); return {v, v, v, v}; }
AB_INLINE B b_lookup(B table, B at) { return AB_FOUR2(B, vqtbl1q_u8, table, at); }  // beyond 15: zero
AB_INLINE uint8x16_t pick(uint8x16_t clear, uint8x16_t set, uint8x16_t by) { return vbslq_u8(below_zero(by), set, clear); }
AB_INLINE B b_pick(B top_clear, B top_set, B by) { return AB_FOUR3(B, pick, top_clear, top_set, by); }
AB_INLINE uint8x16_t negate(uint8x16_t x, uint8x16_t by) { return vbslq_u8(below_zero(by), vreinterpretq_u8_s8(vnegq_s8(vreinterpretq_s8_u8(x))), x); }
AB_INLINE B b_negate(B x, B by) { return AB_FOUR2(B, negate, x, by); }  // -x where by < 0
AB_INLINE I b_dwords(B x) { return AB_FOUR1(I, vreinterpretq_s32_u8, x); }
AB_INLINE B b_merge(B x, B mask, B y) { return b_or(b_and(x, mask), y); }  // x & mask | y
AB_INLINE I i_merge(I x, I mask, I y) { return i_or(i_and(x, mask), y); }
AB_INLINE B b_choose(B mask, B yes, B no) { return AB_FOUR3(B, vbslq_u8, mask, yes, no); }  // bit by bit
// In each 16 bytes: bytes (16-bit numbers) of x and y in turns, from the lower or the upper half.
AB_INLINE uint8x16_t zip_low16(uint8x16_t x, uint8x16_t y) { return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(x), vreinterpretq_u16_u8(y))); }
AB_INLINE uint8x16_t zip_high16(uint8x16_t x, uint8x16_t y) { return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(x), vreinterpretq_u16_u8(y))); }
AB_INLINE B b_zip_low(B x, B y) { return AB_FOUR2(B, vzip1q_u8, x, y); }
AB_INLINE B b_zip_high(B x, B y) { return AB_FOUR2(B, vzip2q_u8, x, y); }
AB_INLINE B b_zip_low16(B x, B y) { return AB_FOUR2(B, zip_low16, x, y); }
AB_INLINE B b_zip_high16(B x, B y) { return AB_FOUR2(B, zip_high16, x, y); }

// Sixteen outputs x four k: from byte 4 * output + k to byte 16 * k + output.
AB_INLINE B b_by_k(B x) {
  uint8_t t[64];
  b_store(t, x);
  const uint8x16x4_t v = vld4q_u8(t);
  return {v.val[0], v.val[1], v.val[2], v.val[3]};
}
AB_INLINE B b_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) { return {vld1q_u8(a), vld1q_u8(b), vld1q_u8(c), vld1q_u8(d)}; }
// Sums of bytes in 16 bits, those at even and at odd places apart.
struct H { uint16x8_t a, b, c, d; };
AB_INLINE H h_zero() { const uint16x8_t z = vdupq_n_u16(0); return {z, z, z, z}; }
AB_INLINE uint16x8_t even(uint16x8_t s, uint8x16_t x) { return vaddq_u16(s, vandq_u16(vreinterpretq_u16_u8(x), vdupq_n_u16(255))); }
AB_INLINE uint16x8_t odd(uint16x8_t s, uint8x16_t x) { return vsraq_n_u16(s, vreinterpretq_u16_u8(x), 8); }
AB_INLINE H h_even(H s, B x) { return AB_FOUR2(H, even, s, x); }
AB_INLINE H h_odd(H s, B x) { return AB_FOUR2(H, odd, s, x); }
AB_INLINE I h_end(H e, H o) {  // sixteen outputs, each the sum of its four k
  const uint32x4_t e0 = vaddq_u32(vaddl_u16(vget_low_u16(e.a), vget_low_u16(e.b)), vaddl_u16(vget_low_u16(e.c), vget_low_u16(e.d)));
  const uint32x4_t o0 = vaddq_u32(vaddl_u16(vget_low_u16(o.a), vget_low_u16(o.b)), vaddl_u16(vget_low_u16(o.c), vget_low_u16(o.d)));
  const uint32x4_t e1 = vaddq_u32(vaddl_high_u16(e.a, e.b), vaddl_high_u16(e.c, e.d)), o1 = vaddq_u32(vaddl_high_u16(o.a, o.b), vaddl_high_u16(o.c, o.d));
  return {vreinterpretq_s32_u32(vzip1q_u32(e0, o0)), vreinterpretq_s32_u32(vzip2q_u32(e0, o0)), vreinterpretq_s32_u32(vzip1q_u32(e1, o1)),
          vreinterpretq_s32_u32(vzip2q_u32(e1, o1))};
}

// sdot multiplies signed bytes: what other sets hold as unsigned bytes this one holds as signed ones (OwnedWeight::finish).
#define ANYBIT_SIGNED_DOT 1
AB_INLINE C c_zero() { const int32x4_t z = vdupq_n_s32(0); return {z, z, z, z}; }
AB_INLINE C c_from(I sum) { return {sum.a, sum.b, sum.c, sum.d}; }
AB_INLINE B q_four(const int8_t *q) { int32_t x; memcpy(&x, q, 4); const uint8x16_t v = vreinterpretq_u8_s32(vdupq_n_s32(x)); return {v, v, v, v}; }
AB_INLINE int32x4_t dot(int32x4_t s, uint8x16_t w, uint8x16_t q) { return vdotq_s32(s, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(q)); }
AB_INLINE C c_step(C c, B w, B q) { return AB_FOUR3(C, dot, c, w, q); }
AB_INLINE I c_end(I sum, C c) { return AB_FOUR2(I, vaddq_s32, sum, c); }
AB_INLINE I signed_dot(I sum, B w, B q) { return AB_FOUR3(I, dot, sum, w, q); }
// int16 pairs: for sets without wide dots
struct W { int32x4_t a; };
AB_INLINE void w_store(uint8_t *, B, B) {}
AB_INLINE void w_store_signed(uint8_t *, B, B, B) {}
AB_INLINE W w_zero() { return {vdupq_n_s32(0)}; }
AB_INLINE W w_step(W s, const uint8_t *, const int16_t *) { return s; }
AB_INLINE I w_end(W) { return i_set(0); }

#else
// ------------------------------------------------------------------------------------------------ any machine: plain C++, fma from libm
constexpr int kRowsInt = 4, kRowsWide = 4, kRowsFloat = 4, kStreamRows = 0, kStreamFloat = 1;
constexpr bool kWideDot = true, kByteTables = false, kManyRegisters = false;
struct F { float v[16]; };
struct I { int32_t v[16]; };
struct B { uint8_t v[64]; };
struct C { int32_t v[16]; };
struct Mask { bool v[16]; };
#define AB_LANES(T, expr) T r; for (int j = 0; j < 16; j++) r.v[j] = (expr); return r
#define AB_BYTES(expr) B r; for (int j = 0; j < 64; j++) r.v[j] = (uint8_t)(expr); return r

AB_INLINE F f_set(float x) { AB_LANES(F, x); }
AB_INLINE F f_load(const float *p) { F r; memcpy(r.v, p, 64); return r; }
AB_INLINE void f_store(float *p, F a) { memcpy(p, a.v, 64); }
AB_INLINE F f_add(F a, F b) { AB_LANES(F, a.v[j] + b.v[j]); }
AB_INLINE F f_sub(F a, F b) { AB_LANES(F, a.v[j] - b.v[j]); }
AB_INLINE F f_mul(F a, F b) { AB_LANES(F, a.v[j] * b.v[j]); }
AB_INLINE F f_div(F a, F b) { AB_LANES(F, a.v[j] / b.v[j]); }
AB_INLINE F f_fma(F a, F b, F c) { AB_LANES(F, __builtin_fmaf(a.v[j], b.v[j], c.v[j])); }
AB_INLINE F f_max(F a, F b) { AB_LANES(F, a.v[j] > b.v[j] ? a.v[j] : b.v[j]); }  // b when either is NaN
AB_INLINE F f_min(F a, F b) { AB_LANES(F, a.v[j] < b.v[j] ? a.v[j] : b.v[j]); }
AB_INLINE F f_rne(F a) { AB_LANES(F, __builtin_nearbyintf(a.v[j])); }
AB_INLINE I f_to_i(F a) { AB_LANES(I, (int32_t)__builtin_nearbyintf(a.v[j])); }  // callers keep |a| < 2^31
AB_INLINE F i_to_f(I a) { AB_LANES(F, (float)a.v[j]); }
AB_INLINE I f_bits(F a) { I r; memcpy(r.v, a.v, 64); return r; }
AB_INLINE F i_float(I a) { F r; memcpy(r.v, a.v, 64); return r; }
AB_INLINE Mask f_lt(F a, F b) { AB_LANES(Mask, a.v[j] < b.v[j]); }
AB_INLINE Mask i_lt(I a, I b) { AB_LANES(Mask, a.v[j] < b.v[j]); }
AB_INLINE F f_select(Mask m, F yes, F no) { AB_LANES(F, m.v[j] ? yes.v[j] : no.v[j]); }

AB_INLINE I i_set(int32_t x) { AB_LANES(I, x); }
AB_INLINE I i_load(const int32_t *p) { I r; memcpy(r.v, p, 64); return r; }
AB_INLINE void i_store(int32_t *p, I a) { memcpy(p, a.v, 64); }
AB_INLINE I i_add(I a, I b) { AB_LANES(I, (int32_t)((uint32_t)a.v[j] + (uint32_t)b.v[j])); }
AB_INLINE I i_sub(I a, I b) { AB_LANES(I, (int32_t)((uint32_t)a.v[j] - (uint32_t)b.v[j])); }
AB_INLINE I i_mul(I a, I b) { AB_LANES(I, (int32_t)((uint32_t)a.v[j] * (uint32_t)b.v[j])); }
AB_INLINE I i_and(I a, I b) { AB_LANES(I, a.v[j] & b.v[j]); }
AB_INLINE I i_or(I a, I b) { AB_LANES(I, a.v[j] | b.v[j]); }
AB_INLINE I i_xor(I a, I b) { AB_LANES(I, a.v[j] ^ b.v[j]); }
AB_INLINE I i_max(I a, I b) { AB_LANES(I, a.v[j] > b.v[j] ? a.v[j] : b.v[j]); }
AB_INLINE I i_min(I a, I b) { AB_LANES(I, a.v[j] < b.v[j] ? a.v[j] : b.v[j]); }
AB_INLINE I i_shlv(I a, I n) { AB_LANES(I, (uint32_t)n.v[j] < 32 ? (int32_t)((uint32_t)a.v[j] << n.v[j]) : 0); }  // 0 where n, unsigned, is 32 or more
AB_INLINE I i_shrv(I a, I n) { AB_LANES(I, (uint32_t)n.v[j] < 32 ? (int32_t)((uint32_t)a.v[j] >> n.v[j]) : 0); }
AB_INLINE int32_t i_fold_max(I a) {
  int32_t best = a.v[0];
  for (int j = 1; j < 16; j++) best = a.v[j] > best ? a.v[j] : best;
  return best;
}
AB_INLINE bool i_any(Mask m) { for (int j = 0; j < 16; j++) if (m.v[j]) return true; return false; }
AB_INLINE I i_select(Mask m, I yes, I no) { AB_LANES(I, m.v[j] ? yes.v[j] : no.v[j]); }
AB_INLINE Mask i_nonzero(I a) { AB_LANES(Mask, a.v[j] != 0); }
AB_INLINE F f_add_where(Mask m, F a, F b) { AB_LANES(F, m.v[j] ? a.v[j] + b.v[j] : a.v[j]); }  // a is not -0
AB_INLINE I i_gather(const int32_t *t, I at) { AB_LANES(I, t[at.v[j]]); }
AB_INLINE I i_shl(I a, int n) { AB_LANES(I, (int32_t)((uint32_t)a.v[j] << n)); }
AB_INLINE I i_shr(I a, int n) { AB_LANES(I, (int32_t)((uint32_t)a.v[j] >> n)); }
AB_INLINE I i_sar(I a, int n) { AB_LANES(I, a.v[j] >> n); }
AB_INLINE I i_load_u8(const uint8_t *p) { AB_LANES(I, p[j]); }
AB_INLINE I i_load_u16(const uint8_t *p) { AB_LANES(I, p[2 * j] | p[2 * j + 1] << 8); }
AB_INLINE F f_load_half(const uint8_t *p) { AB_LANES(F, half_float((uint32_t)(p[2 * j] | p[2 * j + 1] << 8))); }
AB_INLINE void i_store_i8(int8_t *p, I a) { for (int j = 0; j < 16; j++) p[j] = (int8_t)a.v[j]; }
AB_INLINE F f_gather(const float *t, I at) { AB_LANES(F, t[at.v[j]]); }
AB_INLINE void f_stream(float *p, F a) { f_store(p, a); }
AB_INLINE F f_lookup8(const float *t, I at) { AB_LANES(F, t[at.v[j] & 7]); }
AB_INLINE F f_lookup16(const float *t, I at) { AB_LANES(F, t[at.v[j] & 15]); }
template <int entries> AB_INLINE I i_lookup(const int32_t *t, I at) { AB_LANES(I, t[at.v[j] & (entries - 1)]); }

AB_INLINE B b_load(const uint8_t *p) { B r; memcpy(r.v, p, 64); return r; }
AB_INLINE void b_store(uint8_t *p, B a) { memcpy(p, a.v, 64); }
AB_INLINE B b_set(int x) { AB_BYTES(x); }
AB_INLINE B b_and(B a, B b) { AB_BYTES(a.v[j] & b.v[j]); }
AB_INLINE B b_or(B a, B b) { AB_BYTES(a.v[j] | b.v[j]); }
AB_INLINE B b_xor(B a, B b) { AB_BYTES(a.v[j] ^ b.v[j]); }
AB_INLINE B b_add(B a, B b) { AB_BYTES(a.v[j] + b.v[j]); }
AB_INLINE B b_sub(B a, B b) { AB_BYTES(a.v[j] - b.v[j]); }
AB_INLINE B b_above(B a, int limit) { AB_BYTES((int8_t)a.v[j] > limit ? 255 : 0); }  // signed; 0xff or 0
AB_INLINE uint64_t b_equal(B a, B b) {  // bit i: bytes i are equal
  uint64_t r = 0;
  for (int i = 0; i < 64; i += 8) {
    uint64_t x, y;
    memcpy(&x, a.v + i, 8), memcpy(&y, b.v + i, 8);
    x ^= y;  // a zero byte where they are equal
    x = ~(((x & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | x | 0x7f7f7f7f7f7f7f7fu) >> 7;
    r |= (x * 0x0102040810204080u >> 56) << i;
  }
  return r;
}
template <int n> AB_INLINE B b_shr(B a) { AB_BYTES(a.v[j] >> n); }  // callers mask: other ISAs bring the neighbour's bits in
template <int n> AB_INLINE B b_shl(B a) { AB_BYTES(a.v[j] << n); }
AB_INLINE B b_sign(B a) { AB_BYTES(a.v[j] & 128 ? 255 : 0); }
AB_INLINE B b_table(const uint8_t *t) { AB_BYTES(t[j & 15]); }
AB_INLINE B b_lookup(B table, B at) { AB_BYTES(at.v[j] & 128 ? 0 : table.v[(j & 48) | (at.v[j] & 15)]); }
AB_INLINE B b_pick(B top_clear, B top_set, B by) { AB_BYTES(by.v[j] & 128 ? top_set.v[j] : top_clear.v[j]); }
AB_INLINE B b_negate(B a, B by) { AB_BYTES(by.v[j] & 128 ? -a.v[j] : a.v[j]); }
AB_INLINE I b_dwords(B a) { I r; memcpy(r.v, a.v, 64); return r; }
AB_INLINE B b_merge(B a, B mask, B b) { AB_BYTES((a.v[j] & mask.v[j]) | b.v[j]); }  // a & mask | b
AB_INLINE I i_merge(I a, I mask, I b) { AB_LANES(I, (a.v[j] & mask.v[j]) | b.v[j]); }
AB_INLINE B b_choose(B mask, B yes, B no) { AB_BYTES((mask.v[j] & yes.v[j]) | (~mask.v[j] & no.v[j])); }  // bit by bit
// In each 16 bytes: bytes (16-bit numbers) of a and b in turns, from the lower or the upper half.
AB_INLINE B b_zip_low(B a, B b) { AB_BYTES((j & 1 ? b : a).v[(j & 48) + (j & 15) / 2]); }
AB_INLINE B b_zip_high(B a, B b) { AB_BYTES((j & 1 ? b : a).v[(j & 48) + 8 + (j & 15) / 2]); }
AB_INLINE B b_zip_low16(B a, B b) { AB_BYTES((j & 2 ? b : a).v[(j & 48) + (j & 12) / 2 + (j & 1)]); }
AB_INLINE B b_zip_high16(B a, B b) { AB_BYTES((j & 2 ? b : a).v[(j & 48) + 8 + (j & 12) / 2 + (j & 1)]); }

// Sixteen outputs x four k: from byte 4 * output + k to byte 16 * k + output.
AB_INLINE B b_by_k(B a) { AB_BYTES(a.v[4 * (j & 15) + (j >> 4)]); }
AB_INLINE B b_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {  // 16 bytes from each
  B r;
  memcpy(r.v, a, 16), memcpy(r.v + 16, b, 16), memcpy(r.v + 32, c, 16), memcpy(r.v + 48, d, 16);
  return r;
}
// Sums of bytes in 16 bits, those at even and at odd places apart.
struct H { uint16_t v[32]; };
AB_INLINE H h_zero() { H r; memset(&r, 0, sizeof r); return r; }
AB_INLINE H h_even(H s, B a) { for (int j = 0; j < 32; j++) s.v[j] = (uint16_t)(s.v[j] + a.v[2 * j]); return s; }
AB_INLINE H h_odd(H s, B a) { for (int j = 0; j < 32; j++) s.v[j] = (uint16_t)(s.v[j] + a.v[2 * j + 1]); return s; }
AB_INLINE I h_end(H even, H odd) {  // sixteen outputs, each the sum of its four k
  I r;
  for (int j = 0; j < 16; j++) {
    const uint16_t *p = (j & 1 ? odd.v : even.v) + j / 2;
    r.v[j] = p[0] + p[8] + p[16] + p[24];
  }
  return r;
}

AB_INLINE C c_zero() { C r; memset(&r, 0, sizeof r); return r; }
AB_INLINE B q_four(const int8_t *q) { AB_BYTES((uint8_t)q[j & 3]); }
AB_INLINE C c_from(I sum) { C r; memcpy(r.v, sum.v, 64); return r; }
AB_INLINE C c_step(C c, B u, B q) {
  for (int j = 0; j < 64; j++) c.v[j >> 2] += (int32_t)u.v[j] * (int8_t)q.v[j];
  return c;
}
AB_INLINE I c_end(I sum, C c) { AB_LANES(I, (int32_t)((uint32_t)sum.v[j] + (uint32_t)c.v[j])); }  // the parts of a wide dot may pass the ends: sums do not
AB_INLINE I signed_dot(I sum, B w, B q) {
  for (int j = 0; j < 64; j++) sum.v[j >> 2] += (int32_t)(int8_t)w.v[j] * (int8_t)q.v[j];
  return sum;
}
struct W { int32_t v[16]; };
AB_INLINE void w_store(uint8_t *p, B lo, B hi) {
  for (int j = 0; j < 64; j++) p[2 * j] = lo.v[j], p[2 * j + 1] = hi.v[j];
}
AB_INLINE void w_store_signed(uint8_t *p, B lo, B hi, B sign) {  // negated where sign is 0xff
  for (int j = 0; j < 64; j++) {
    const int t = (int16_t)(lo.v[j] | hi.v[j] << 8), v = sign.v[j] ? -t : t;
    p[2 * j] = (uint8_t)v, p[2 * j + 1] = (uint8_t)(v >> 8);
  }
}
AB_INLINE W w_zero() { W r; memset(&r, 0, sizeof r); return r; }
AB_INLINE W w_step(W s, const uint8_t *p, const int16_t *q) {
  for (int j = 0; j < 64; j++) s.v[j >> 2] += (int32_t)(int16_t)(p[2 * j] | p[2 * j + 1] << 8) * q[j & 3];
  return s;
}
AB_INLINE I w_end(W s) { I r; memcpy(r.v, s.v, 64); return r; }
#endif

// ------------------------------------------------------------------------------------------------ the same on every ISA
#if !ANYBIT_VBMI
AB_INLINE B b_lookup64(const uint8_t *, B at) { return at; }  // never called: see kByteTables
AB_INLINE B b_lookup128(const uint8_t *, B at) { return at; }
AB_INLINE B b_permute64(B, B at) { return at; }
AB_INLINE B b_permute(B, B, B at) { return at; }
#endif
#if ANYBIT_SIGNED_DOT
constexpr bool kSignedDot = true;  // byte dots take signed bytes on both sides
#else
constexpr bool kSignedDot = false;
#endif
#if ANYBIT_512
constexpr bool kLookup16 = true;  // 16 floats in one permute: no arithmetic on codes of up to 4 bits is quicker
#else
constexpr bool kLookup16 = false;
#endif
#if ANYBIT_512 || ANYBIT_256 || ANYBIT_NEON
constexpr bool kFloatPlanes = true;  // 16-entry shuffles put floats together faster than memory gives them
#else
constexpr bool kFloatPlanes = false;
#endif
AB_INLINE F f_zero() { return f_set(0.0f); }
AB_INLINE I i_zero() { return i_set(0); }
AB_INLINE F f_load_bf16(const uint8_t *p) { return i_float(i_shl(i_load_u16(p), 16)); }

// c_step by the four bytes at q.
#if ANYBIT_512 && ANYBIT_VNNI && !ANYBIT_SIMDE
// One operation with its load: compilers load first, and the fewer operations, the more bytes a core waits for at a time.
AB_INLINE C c_step_at(C c, B u, const int8_t *q) {
  typedef int32_t __attribute__((may_alias)) Four;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(c.v) : "v"(u.v), "m"(*(const Four *)q));
  return c;
}
#else
AB_INLINE C c_step_at(C c, B u, const int8_t *q) { return c_step(c, u, q_four(q)); }
#endif

// Sum of the lanes, folded 8, 4, 2, 1: lane j first meets lane j + 8.
AB_INLINE float f_fold(F a) {
  float t[16];
  f_store(t, a);
  for (int half = 8; half; half >>= 1)
    for (int j = 0; j < half; j++) t[j] = t[j] + t[j + half];
  return t[0];
}
// Largest lane: no order to fix. NaN must be excluded by the caller.
AB_INLINE float f_fold_max(F a) {
  float t[16];
  f_store(t, a);
  for (int half = 8; half; half >>= 1)
    for (int j = 0; j < half; j++) t[j] = t[j] > t[j + half] ? t[j] : t[j + half];
  return t[0];
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
