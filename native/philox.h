// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) for sixteen counters and more side by side. One 64-bit lane holds one word of one counter in its
// lower half; what the upper half holds never matters: products read lower halves only.
//
// A stochastic rounding takes halves of words: sixteen counters serve 128 numbers, 32 of them by their words 0, two a word, the next 32 by their words 1, and
// so on (docs/contract.md). Words that are stored in the order of their counters are such halves in the order of their numbers.
//
// Operations for sixteen counters, on 512 bits: 34 products, 38 shifts and shuffles, 36 additions and exclusive ors; AVX2 needs two for each one of three
// words, and everything twice. Zen 4 could issue two of 512 bits in a cycle.
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
AB_INLINE L l_xor(L a, L b) { return {_mm512_xor_si512(a.v, b.v)}; }
AB_INLINE L l_xor3(L a, L b, L c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
AB_INLINE L l_high(L a) { return {_mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(a.v)))}; }  // a shuffle: more ports take one than a shift
template <int by> AB_INLINE __m512i two_sets(__m512i a, __m512i b) { return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), by)); }
AB_INLINE L l_lower(L a, L b) { return {two_sets<0x88>(a.v, b.v)}; }  // lower halves of sixteen counters, in order
AB_INLINE L l_upper(L a, L b) { return {two_sets<0xdd>(a.v, b.v)}; }
AB_INLINE void l_store(uint16_t *p, L a) { _mm512_storeu_si512(p, a.v); }
constexpr uint64_t kCounterOrder[2][8] = {{0, 1, 4, 5, 8, 9, 12, 13}, {2, 3, 6, 7, 10, 11, 14, 15}};
#elif ANYBIT_256 && !ANYBIT_SIMDE
struct L { __m256i a, b; };
AB_INLINE L l_set(uint64_t x) { __m256i v = _mm256_set1_epi64x((int64_t)x); return {v, v}; }
AB_INLINE L l_load(const uint64_t *p) { return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 4))}; }
AB_INLINE L l_mul(L a, L b) { return AB_BOTH(L, _mm256_mul_epu32); }
AB_INLINE L l_add(L a, L b) { return AB_BOTH(L, _mm256_add_epi64); }
#if defined(__AVX512VL__)
AB_INLINE __m256i xor3(__m256i a, __m256i b, __m256i c) { return _mm256_ternarylogic_epi64(a, b, c, 0x96); }
#else
AB_INLINE __m256i xor3(__m256i a, __m256i b, __m256i c) {  // a comes last, out of a product: nothing waits for it longer than it must
  __m256i t = _mm256_xor_si256(b, c);
  __asm__("" : "+x"(t));  // compilers regroup
  return _mm256_xor_si256(a, t);
}
#endif
AB_INLINE L l_xor(L a, L b) { return AB_BOTH(L, _mm256_xor_si256); }
AB_INLINE L l_xor3(L a, L b, L c) { return {xor3(a.a, b.a, c.a), xor3(a.b, b.b, c.b)}; }
AB_INLINE L l_high(L a) { return {_mm256_srli_epi64(a.a, 32), _mm256_srli_epi64(a.b, 32)}; }
template <int by> AB_INLINE __m256i two_sets(__m256i a, __m256i b) { return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), by)); }
AB_INLINE L l_lower(L a, L b) { return {two_sets<0x88>(a.a, b.a), two_sets<0x88>(a.b, b.b)}; }  // lower halves of sixteen counters, in order
AB_INLINE L l_upper(L a, L b) { return {two_sets<0xdd>(a.a, b.a), two_sets<0xdd>(a.b, b.b)}; }
AB_INLINE void l_store(uint16_t *p, L a) { _mm256_storeu_si256((__m256i *)p, a.a); _mm256_storeu_si256((__m256i *)(p + 16), a.b); }
constexpr uint64_t kCounterOrder[2][8] = {{0, 1, 4, 5, 8, 9, 12, 13}, {2, 3, 6, 7, 10, 11, 14, 15}};
#else
struct L { uint64_t v[8]; };
AB_INLINE L l_set(uint64_t x) { L r; for (int j = 0; j < 8; j++) r.v[j] = x; return r; }
AB_INLINE L l_load(const uint64_t *p) { L r; memcpy(r.v, p, 64); return r; }
AB_INLINE L l_mul(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = (a.v[j] & 0xffffffffu) * (b.v[j] & 0xffffffffu); return r; }
AB_INLINE L l_add(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] + b.v[j]; return r; }
AB_INLINE L l_xor(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] ^ b.v[j]; return r; }
AB_INLINE L l_xor3(L a, L b, L c) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] ^ b.v[j] ^ c.v[j]; return r; }
AB_INLINE L l_high(L a) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] >> 32; return r; }
AB_INLINE L l_lower(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = (a.v[j] & 0xffffffffu) | b.v[j] << 32; return r; }  // of counters 0 8 1 9 ...
AB_INLINE L l_upper(L a, L b) { L r; for (int j = 0; j < 8; j++) r.v[j] = a.v[j] >> 32 | (b.v[j] & ~(uint64_t)0xffffffffu); return r; }
AB_INLINE void l_store(uint16_t *p, L a) { for (int j = 0; j < 32; j++) p[j] = (uint16_t)(a.v[j / 4] >> (j % 4 * 16)); }
constexpr uint64_t kCounterOrder[2][8] = {{0, 2, 4, 6, 8, 10, 12, 14}, {1, 3, 5, 7, 9, 11, 13, 15}};
#endif

// The keys of a seed, (seed low, seed high), and what the first two rounds make of counters (low, high, set, 0) with one upper half: two words are the same for all
// at first, and then one; set: 0 or 1. `both`: what the first round's product is xored with for the second, its upper half for words 2 and its lower one for words 2 after it.
constexpr uint32_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u;
struct Keys {
  uint64_t both, second0, low, key0[8], key1[8];
};
AB_INLINE uint64_t twice(uint32_t x) { return (uint64_t)x << 32 | x; }
AB_INLINE void philox_keys(uint64_t seed, uint64_t counter, int set, Keys *k) {
  const uint32_t s0 = (uint32_t)seed, s1 = (uint32_t)(seed >> 32);
  const uint64_t all = (uint64_t)((uint32_t)(counter >> 32) ^ s0) * kFactor0;  // the product of what the first round makes of words 0
  k->both = (uint64_t)s1 << 32 | ((uint32_t)(all >> 32) ^ (s1 + 0xBB67AE85u)), k->second0 = (s0 + 0x9E3779B9u) ^ (set ? kFactor1 : 0), k->low = all;
  for (uint32_t i = 0; i < 8; i++) k->key0[i] = twice(s0 + (i + 2) * 0x9E3779B9u), k->key1[i] = twice(s1 + (i + 2) * 0xBB67AE85u);
}

// Sixteens of counters that are worked on together, so that products wait for less: as many as the registers hold. With fewer registers each set of eight
// goes through all rounds before the next one does, which the processor overlaps by itself.
#if ANYBIT_512 && !ANYBIT_SIMDE
constexpr int kSixteens = 2;
constexpr bool kAbreast = true;
#else
constexpr int kSixteens = 1;
constexpr bool kAbreast = false;
#endif
constexpr int kHalves = 128 * kSixteens;  // what they give

// The first round's products of counters that follow one with the product 0, set by set: those of others are larger by one number.
struct Products {
  alignas(64) uint64_t of[2 * kSixteens][8];
};
constexpr Products products() {
  Products r = {};
  for (int s = 0; s < 2 * kSixteens; s++)
    for (int j = 0; j < 8; j++) r.of[s][j] = (16 * (uint64_t)(s / 2) + kCounterOrder[s % 2][j]) * kFactor0;
  return r;
}
constexpr Products kProducts = products();

// Counters on their way through the rounds: `begin` is the first two, `round` one more, seven times, and `end` the last.
struct Philox {
  static constexpr int kSets = 2 * kSixteens;
  L c0[kSets], c1[kSets], c2[kSets], c3[kSets];

  __attribute__((always_inline)) void begin(const Keys &k, uint64_t counter, int s) {
    const L p = l_xor(l_add(l_set((uint32_t)counter * (uint64_t)kFactor0), l_load(kProducts.of[s])), l_set(k.both)), q = l_mul(l_high(p), l_set(kFactor1));
    c0[s] = l_xor(l_high(q), l_set(k.second0)), c1[s] = q, c2[s] = p, c3[s] = l_set(k.low);
  }
  __attribute__((always_inline)) void round(const Keys &k, int i, int s) {
    const L m0 = l_set(kFactor0), m1 = l_set(kFactor1);
    const L p = l_mul(c0[s], m0), q = l_mul(c2[s], m1);
    c0[s] = l_xor3(l_high(q), c1[s], l_set(k.key0[i])), c2[s] = l_xor3(l_high(p), c3[s], l_set(k.key1[i]));
    c1[s] = q, c3[s] = p;
  }
  __attribute__((always_inline)) void end(const Keys &k, int s, uint16_t *h) {  // of sets s and s + 1
    const L m0 = l_set(kFactor0), m1 = l_set(kFactor1);
    const L pa = l_mul(c0[s], m0), pb = l_mul(c0[s + 1], m0), qa = l_mul(c2[s], m1), qb = l_mul(c2[s + 1], m1);
    const L w0 = l_xor3(l_upper(qa, qb), l_lower(c1[s], c1[s + 1]), l_set(k.key0[7])), w1 = l_lower(qa, qb);
    const L w2 = l_xor3(l_upper(pa, pb), l_lower(c3[s], c3[s + 1]), l_set(k.key1[7])), w3 = l_lower(pa, pb);
    l_store(h, w0), l_store(h + 32, w1), l_store(h + 64, w2), l_store(h + 96, w3);
  }
};

// The halves of 16 kSixteens counters from `counter` on, all with the keys' upper half.
static __attribute__((noinline)) void philox_step(const Keys &k, uint64_t counter, uint16_t *h) {
  Philox x;
  if constexpr (kAbreast) {
#pragma GCC unroll 4
    for (int s = 0; s < Philox::kSets; s++) x.begin(k, counter, s);
#pragma GCC unroll 8
    for (int i = 0; i < 7; i++)
#pragma GCC unroll 4
      for (int s = 0; s < Philox::kSets; s++) x.round(k, i, s);
  } else {
#pragma GCC unroll 4
    for (int s = 0; s < Philox::kSets; s++) {
      x.begin(k, counter, s);
#pragma GCC unroll 8
      for (int i = 0; i < 7; i++) x.round(k, i, s);
    }
  }
#pragma GCC unroll 2
  for (int s = 0; s < Philox::kSets; s += 2) x.end(k, s, h + 64 * s);
}

// The halves that a stochastic rounding uses one after the other, whatever pieces its numbers come in. set: 0 for the upper bits, 1 for the lower ones.
struct HalfSource {
  uint64_t seed;
  int set;
  uint64_t upper;  // of the counters that the keys are for
  Keys keys;

  __attribute__((always_inline)) HalfSource(uint64_t seed_, uint64_t place, int set_) : seed(seed_), set(set_) { start(counter(place)); }
  __attribute__((always_inline)) void make(uint64_t place, uint16_t *h) {  // those of the places from `place`, a multiple of kHalves, on
    const uint64_t c = counter(place);
    if (__builtin_expect(c >> 32 != upper, 0)) start(c);  // a step's counters have one upper half
    philox_step(keys, c, h);
  }

 private:
  static __attribute__((always_inline)) uint64_t counter(uint64_t place) { return place / (uint64_t)kHalves * (16 * kSixteens); }
  __attribute__((always_inline)) void start(uint64_t c) { upper = c >> 32, philox_keys(seed, c, set, &keys); }
};

// The halves of n places from `place` on.
static __attribute__((noinline)) void philox_halves(uint64_t seed, uint64_t place, int set, int64_t n, uint16_t *out) {
  HalfSource source(seed, place, set);
  alignas(64) uint16_t t[kHalves];
  for (int64_t i = 0; i < n;) {
    const int64_t skip = (int64_t)((place + (uint64_t)i) % kHalves);
    if (skip == 0 && n - i >= kHalves) {
      source.make(place + (uint64_t)i, out + i);
      i += kHalves;
      continue;
    }
    source.make(place + (uint64_t)i - (uint64_t)skip, t);
    const int64_t count = n - i < kHalves - skip ? n - i : kHalves - skip;
    memcpy(out + i, t + skip, sizeof(uint16_t) * (size_t)count);
    i += count;
  }
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
