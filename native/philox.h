// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) for eight counters side by side. One 64-bit lane holds one word of one counter in its lower half;
// what the upper half holds never matters: products read lower halves only.
//
// Operations a round, for 32 words: 2 products, 2 shifts, 2 three-way exclusive ors (4 of two on AVX2, and everything twice). Eight rounds of that, the
// first two shorter, and 4 shuffles: 60 instructions of 512 bits or 160 of 256 for 32 words. A core that issues two of the former or four of the
// latter in a cycle needs 0.94 or 1.25 cycles a word, and a copy at 35 GB/s and 3.7 GHz takes 0.85.
#pragma once
#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {

#if ANYBIT_512 && !ANYBIT_SIMDE
struct L { __m512i v; };
AB_INLINE L l_set(uint64_t x) { return {_mm512_set1_epi64((int64_t)x)}; }
AB_INLINE L l_load(const uint64_t *p) { return {_mm512_loadu_si512(p)}; }
AB_INLINE L l_mul(L a, L b) { return {_mm512_mul_epu32(a.v, b.v)}; }
AB_INLINE L l_add(L a, L b) { return {_mm512_add_epi64(a.v, b.v)}; }
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
AB_INLINE L l_high(L a) { return {_mm512_srli_epi64(a.v, 32)}; }
AB_INLINE __m512i even_dwords(__m512i a, __m512i b) { return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88)); }
AB_INLINE __m512i odd_dwords(__m512i a, __m512i b) { return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xdd)); }
AB_INLINE void l_words(I *w, L a, L b, L c, L d) {  // of counters 0 4 1 5 2 6 3 7, put in order
  const __m512i ab = even_dwords(a.v, b.v), cd = even_dwords(c.v, d.v);
  w[0] = {even_dwords(ab, cd)}, w[1] = {odd_dwords(ab, cd)};
}
constexpr uint64_t kCounterOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};
#elif ANYBIT_256 && !ANYBIT_SIMDE
struct L { __m256i a, b; };
AB_INLINE L l_set(uint64_t x) { __m256i v = _mm256_set1_epi64x((int64_t)x); return {v, v}; }
AB_INLINE L l_load(const uint64_t *p) { return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 4))}; }
AB_INLINE L l_mul(L a, L b) { return AB_BOTH(L, _mm256_mul_epu32); }
AB_INLINE L l_add(L a, L b) { return AB_BOTH(L, _mm256_add_epi64); }
#if defined(__AVX512VL__)
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm256_ternarylogic_epi64(a.a, b.a, c.a, 0x96), _mm256_ternarylogic_epi64(a.b, b.b, c.b, 0x96)}; }
#else
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm256_xor_si256(_mm256_xor_si256(a.a, b.a), c.a), _mm256_xor_si256(_mm256_xor_si256(a.b, b.b), c.b)}; }
#endif
AB_INLINE L l_high(L a) { return {_mm256_srli_epi64(a.a, 32), _mm256_srli_epi64(a.b, 32)}; }
AB_INLINE __m256i even_dwords(__m256i a, __m256i b) { return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88)); }
AB_INLINE __m256i odd_dwords(__m256i a, __m256i b) { return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0xdd)); }
AB_INLINE I four_counters(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i ab = even_dwords(a, b), cd = even_dwords(c, d);
  return {even_dwords(ab, cd), odd_dwords(ab, cd)};
}
AB_INLINE void l_words(I *w, L a, L b, L c, L d) { w[0] = four_counters(a.a, b.a, c.a, d.a), w[1] = four_counters(a.b, b.b, c.b, d.b); }
constexpr uint64_t kCounterOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};
#else
struct L { uint64_t v[8]; };
AB_INLINE L l_set(uint64_t x) { L r; for (int j = 0; j < 8; j++) r.v[j] = x; return r; }
AB_INLINE L l_load(const uint64_t *p) { L r; memcpy(r.v, p, 64); return r; }
AB_INLINE L l_mul(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = (a.v[j] & 0xffffffffu) * (b.v[j] & 0xffffffffu); return r; }
AB_INLINE L l_add(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] + b.v[j]; return r; }
AB_INLINE L l_xor3(L a, L b, L c) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] ^ b.v[j] ^ c.v[j]; return r; }
AB_INLINE L l_high(L a) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] >> 32; return r; }
AB_INLINE void l_words(I *w, L a, L b, L c, L d) {
  int32_t t[32];
  for (int j = 0; j < 8; j++) t[4 * j] = (int32_t)a.v[j], t[4 * j + 1] = (int32_t)b.v[j], t[4 * j + 2] = (int32_t)c.v[j], t[4 * j + 3] = (int32_t)d.v[j];
  w[0] = i_load(t), w[1] = i_load(t + 16);
}
constexpr uint64_t kCounterOrder[8] = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

// The keys of a seed, (seed low, seed high), and what the first two rounds make of counters (low, high, 0, 0) with one upper half: two words are zero at first, and
// then one is the same for all.
struct Keys {
  L first1, second0, same, low, key0[8], key1[8];
};
AB_INLINE Keys philox_keys(uint64_t seed, uint64_t counter) {
  const uint32_t s0 = (uint32_t)seed, s1 = (uint32_t)(seed >> 32);
  const uint64_t all = (uint64_t)((uint32_t)(counter >> 32) ^ s0) * 0xD2511F53u;  // the product of what the first round makes of words 0
  Keys k;
  k.first1 = l_set(s1), k.second0 = l_set(s0 + 0x9E3779B9u), k.same = l_set((uint32_t)(all >> 32) ^ (s1 + 0xBB67AE85u)), k.low = l_set(all);
  for (uint32_t i = 0; i < 8; i++) k.key0[i] = l_set(s0 + (i + 2) * 0x9E3779B9u), k.key1[i] = l_set(s1 + (i + 2) * 0xBB67AE85u);
  return k;
}

// Sets of eight counters that are worked on together, so that products wait for less: as many as the registers hold.
#if ANYBIT_512 && !ANYBIT_SIMDE
constexpr int kSets = 4;
#else
constexpr int kSets = 2;
#endif
constexpr int kWords = 32 * kSets;  // what they give

// The words of 8 kSets counters from `counter` on, all with the keys' upper half.
AB_INLINE void philox_sets(const Keys &k, uint64_t counter, I *w) {
  const L m0 = l_set(0xD2511F53u), m1 = l_set(0xCD9E8D57u), order = l_load(kCounterOrder), zero = l_set(0);
  L c0[kSets], c1[kSets], c2[kSets], c3[kSets];
#pragma GCC unroll 4
  for (int s = 0; s < kSets; s++) {
    const L p = l_mul(l_add(l_set(counter + 8 * (uint64_t)s), order), m0), q = l_mul(l_xor3(l_high(p), k.first1, zero), m1);
    c0[s] = l_xor3(l_high(q), k.second0, zero), c1[s] = q, c2[s] = l_xor3(p, k.same, zero), c3[s] = k.low;
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
#pragma GCC unroll 4
    for (int s = 0; s < kSets; s++) {
      const L p = l_mul(c0[s], m0), q = l_mul(c2[s], m1);
      c0[s] = l_xor3(l_high(q), c1[s], k.key0[i]), c2[s] = l_xor3(l_high(p), c3[s], k.key1[i]);
      c1[s] = q, c3[s] = p;
    }
#pragma GCC unroll 4
  for (int s = 0; s < kSets; s++) l_words(w + 2 * s, c0[s], c1[s], c2[s], c3[s]);
}

// The four words of one counter, for those that have not one upper half.
AB_INLINE void philox_4(uint64_t seed, uint64_t counter, uint32_t *w) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32), c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;
  for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t p = (uint64_t)c0 * 0xD2511F53u, q = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(q >> 32) ^ c1 ^ k0, c1 = (uint32_t)q, c2 = (uint32_t)(p >> 32) ^ c3 ^ k1, c3 = (uint32_t)p;
  }
  w[0] = c0, w[1] = c1, w[2] = c2, w[3] = c3;
}

static __attribute__((noinline)) void words_in_step(const Keys &k, uint64_t counter, int64_t n, uint32_t *out) {
  for (int64_t i = 0; i < n; i += kWords) {
    I w[kWords / 16];
    philox_sets(k, counter + (uint64_t)i / 4, w);
    for (int j = 0; j < kWords / 16; j++) i_store((int32_t *)out + i + 16 * j, w[j]);
  }
}

// The words of n places from `place` on: word place % 4 of counter place / 4.
static void philox_words(uint64_t seed, uint64_t place, int64_t n, uint32_t *out) {
  Keys k = philox_keys(seed, place / 4);
  uint64_t upper = place / 4 >> 32;
  for (int64_t i = 0; i < n;) {
    const uint64_t counter = (place + (uint64_t)i) / 4, skip = (place + (uint64_t)i) % 4, left = ((uint64_t)1 << 32) - (counter & 0xffffffff);
    if (counter >> 32 != upper) k = philox_keys(seed, counter), upper = counter >> 32;
    const int64_t whole = (n - i) / kWords * kWords;
    if (skip == 0 && whole > 0 && left >= (uint64_t)whole / 4) {
      words_in_step(k, counter, whole, out + i);
      i += whole;
      continue;
    }
    alignas(64) uint32_t t[kWords];
    if (left < kWords / 4)
      for (uint64_t j = 0; j < kWords / 4; j++) philox_4(seed, counter + j, t + 4 * j);
    else
      words_in_step(k, counter, kWords, t);
    const int64_t count = n - i < kWords - (int64_t)skip ? n - i : kWords - (int64_t)skip;
    memcpy(out + i, t + skip, sizeof(uint32_t) * (size_t)count);
    i += count;
  }
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
