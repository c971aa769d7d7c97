// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) for eight counters side by side. One 64-bit lane holds one word of one counter in its lower half;
// what the upper half holds never matters: products read lower halves only.
#pragma once
#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {

#if ANYBIT_512
struct L { __m512i v; };
AB_INLINE L l_set(uint64_t x) { return {_mm512_set1_epi64((int64_t)x)}; }
AB_INLINE L l_load(const uint64_t *p) { return {_mm512_loadu_si512(p)}; }
AB_INLINE L l_mul(L a, L b) { return {_mm512_mul_epu32(a.v, b.v)}; }
AB_INLINE L l_add(L a, L b) { return {_mm512_add_epi64(a.v, b.v)}; }
#if ANYBIT_SIMDE
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm512_xor_si512(_mm512_xor_si512(a.v, b.v), c.v)}; }
#else
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
#endif
AB_INLINE L l_high(L a) { return {_mm512_srli_epi64(a.v, 32)}; }
AB_INLINE void l_store(uint32_t *p, L a, L b, L c, L d) {  // words of counters 0 4 1 5 2 6 3 7, put in order
  const __m512i low = _mm512_set1_epi64(0xffffffff);
  const __m512i ab = _mm512_or_si512(_mm512_and_si512(a.v, low), _mm512_slli_epi64(b.v, 32));
  const __m512i cd = _mm512_or_si512(_mm512_and_si512(c.v, low), _mm512_slli_epi64(d.v, 32));
  _mm512_storeu_si512(p, _mm512_unpacklo_epi64(ab, cd));
  _mm512_storeu_si512(p + 16, _mm512_unpackhi_epi64(ab, cd));
}
constexpr uint64_t kCounterOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};
#elif ANYBIT_256
struct L { __m256i a, b; };
AB_INLINE L l_set(uint64_t x) { __m256i v = _mm256_set1_epi64x((int64_t)x); return {v, v}; }
AB_INLINE L l_load(const uint64_t *p) { return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 4))}; }
AB_INLINE L l_mul(L a, L b) { return AB_BOTH(L, _mm256_mul_epu32); }
AB_INLINE L l_add(L a, L b) { return AB_BOTH(L, _mm256_add_epi64); }
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm256_xor_si256(_mm256_xor_si256(a.a, b.a), c.a), _mm256_xor_si256(_mm256_xor_si256(a.b, b.b), c.b)}; }
AB_INLINE L l_high(L a) { return {_mm256_srli_epi64(a.a, 32), _mm256_srli_epi64(a.b, 32)}; }
AB_INLINE void l_store_half(uint32_t *p, __m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i ab = _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xaa), cd = _mm256_blend_epi32(c, _mm256_slli_epi64(d, 32), 0xaa);
  _mm256_storeu_si256((__m256i *)p, _mm256_unpacklo_epi64(ab, cd));
  _mm256_storeu_si256((__m256i *)(p + 8), _mm256_unpackhi_epi64(ab, cd));
}
AB_INLINE void l_store(uint32_t *p, L a, L b, L c, L d) {
  l_store_half(p, a.a, b.a, c.a, d.a);
  l_store_half(p + 16, a.b, b.b, c.b, d.b);
}
constexpr uint64_t kCounterOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};
#else
struct L { uint64_t v[8]; };
AB_INLINE L l_set(uint64_t x) { L r; for (int j = 0; j < 8; j++) r.v[j] = x; return r; }
AB_INLINE L l_load(const uint64_t *p) { L r; memcpy(r.v, p, 64); return r; }
AB_INLINE L l_mul(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = (a.v[j] & 0xffffffffu) * (b.v[j] & 0xffffffffu); return r; }
AB_INLINE L l_add(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] + b.v[j]; return r; }
AB_INLINE L l_xor3(L a, L b, L c) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] ^ b.v[j] ^ c.v[j]; return r; }
AB_INLINE L l_high(L a) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] >> 32; return r; }
AB_INLINE void l_store(uint32_t *p, L a, L b, L c, L d) {
  for (int j = 0; j < 8; j++) p[4 * j] = (uint32_t)a.v[j], p[4 * j + 1] = (uint32_t)b.v[j], p[4 * j + 2] = (uint32_t)c.v[j], p[4 * j + 3] = (uint32_t)d.v[j];
}
constexpr uint64_t kCounterOrder[8] = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

// The words of `counters` counters (in eights) from `counter` on, (low, high, 0, 0), under the key (seed low, seed high): 2 products, 2 shifts and 2
// other operations a round for 32 words. Two sets of counters at a time, so that products wait for less. The first two rounds, of counters with
// one upper half, are shorter: two words are zero and then one is the same for all.
AB_INLINE void philox_run(uint64_t seed, uint64_t counter, int64_t counters, uint32_t *out, const float *next) {
  uint32_t k0[10], k1[10];
  L key0[10], key1[10];
  for (uint32_t i = 0; i < 10; i++) {
    k0[i] = (uint32_t)seed + i * 0x9E3779B9u, k1[i] = (uint32_t)(seed >> 32) + i * 0xBB67AE85u;
    key0[i] = l_set(k0[i]), key1[i] = l_set(k1[i]);
  }
  const L m0 = l_set(0xD2511F53u), m1 = l_set(0xCD9E8D57u), order = l_load(kCounterOrder), zero = l_set(0);
  for (int64_t at = 0; at < counters; at += 16) {
    const uint64_t first = counter + (uint64_t)at;
    __builtin_prefetch(next + 4 * at), __builtin_prefetch(next + 4 * at + 16);
    __builtin_prefetch(next + 4 * at + 32), __builtin_prefetch(next + 4 * at + 48);
    L a0 = l_add(l_set(first), order), b0 = l_add(l_set(first + 8), order), a1, a2, a3, b1, b2, b3;
    int done = 0;
    if (first >> 32 == (first + 15) >> 32) {
      const uint64_t all = (uint64_t)((uint32_t)(first >> 32) ^ k0[0]) * 0xD2511F53u;  // the product of what the first round makes of words 0
      const L same = l_set((uint32_t)(all >> 32) ^ k1[1]), low = l_set(all);
      const L a = l_mul(a0, m0), b = l_mul(b0, m0), c = l_mul(l_xor3(l_high(a), key1[0], zero), m1), d = l_mul(l_xor3(l_high(b), key1[0], zero), m1);
      a0 = l_xor3(l_high(c), key0[1], zero), a2 = l_xor3(a, same, zero), a1 = c, a3 = low;
      b0 = l_xor3(l_high(d), key0[1], zero), b2 = l_xor3(b, same, zero), b1 = d, b3 = low;
      done = 2;
    } else {
      a1 = l_high(a0), b1 = l_high(b0), a2 = a3 = b2 = b3 = zero;
    }
    const auto round = [&](int i) AB_LAMBDA {
      const L a = l_mul(a0, m0), b = l_mul(a2, m1), c = l_mul(b0, m0), d = l_mul(b2, m1);
      a0 = l_xor3(l_high(b), a1, key0[i]), a2 = l_xor3(l_high(a), a3, key1[i]);
      b0 = l_xor3(l_high(d), b1, key0[i]), b2 = l_xor3(l_high(c), b3, key1[i]);
      a1 = b, a3 = a, b1 = d, b3 = c;
    };
    if (done == 0) round(0), round(1);
#pragma GCC unroll 8
    for (int i = 2; i < 10; i++) round(i);
    l_store(out + 4 * at, a0, a1, a2, a3);
    l_store(out + 4 * at + 32, b0, b1, b2, b3);
  }
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
