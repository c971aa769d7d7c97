// Ways to multiply one row of int8 codes with binary and two-bit weights, on one thread and one tile row of 16 outputs: byte dots, look-ups of sums of
// activations (T-MAC, arXiv 2407.00088: 16-entry tables, here with exact int16 entries), counts of common bits. All give the same integers.
//
//     c++ -std=c++17 -O3 few_bits.cc -o few_bits && ./few_bits
//
// Weights lie as in native/weight.h: a chunk of 32 k is `bits` vectors of 64 bytes, byte 4*o + j of vector v holds output o at
// k = v*(32/bits) + 4*f + j in bits [bits*f, bits*f + bits). Sums end every 128 k, as blocks of 128 do. Time is the thread's own.
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <algorithm>

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vpopcntdq")))

namespace {

constexpr int kLength = 4096, kTiles = 64, kBlock = 128, kChunks = kLength / 32;
alignas(64) uint8_t weights[kTiles * kChunks * 128];
alignas(64) int8_t q[kLength];
alignas(64) uint8_t tables[kChunks * 2 * 256];  // a vector's: [low, high nibble][j pair][bytes of 8 low, 24 high][2 j][16 entries]
alignas(64) uint32_t planes[kChunks][8];
int32_t want[kTiles * 16 * (kLength / kBlock)], got[kTiles * 16 * (kLength / kBlock)];

template <int bits> void reference() {
  memset(want, 0, sizeof want);
  for (int t = 0; t < kTiles; t++)
    for (int k = 0; k < kLength; k++)
      for (int o = 0; o < 16; o++) {
        constexpr int per = 32 / bits;
        const int c = k / 32, v = k % 32 / per, f = k % per / 4, j = k % 4;
        const uint8_t byte = weights[((t * kChunks + c) * bits + v) * 64 + 4 * o + j];
        want[(t * (kLength / kBlock) + k / kBlock) * 16 + o] += (byte >> (bits * f) & ((1 << bits) - 1)) * q[k];
      }
}

template <int bits> AVX2 void dots_avx2() {
  const __m256i mask = _mm256_set1_epi8((1 << bits) - 1), one = _mm256_set1_epi16(1);
  constexpr int fields = 8 / bits;
  for (int t = 0; t < kTiles; t++) {
    const uint8_t *p = weights + t * kChunks * 64 * bits;
    const int8_t *x = q;
    for (int b = 0; b < kLength / kBlock; b++) {
      __m256i s0 = _mm256_setzero_si256(), s1 = s0;  // 128 k: 32 products of at most 3 * 127, twice, fit 16 bits
      for (int v = 0; v < kBlock / 32 * bits; v++, p += 64) {
        const __m256i a = _mm256_load_si256((const __m256i *)p), c = _mm256_load_si256((const __m256i *)(p + 32));
#pragma GCC unroll 8
        for (int f = 0; f < fields; f++, x += 4) {
          int32_t four;
          memcpy(&four, x, 4);
          const __m256i y = _mm256_set1_epi32(four);
          s0 = _mm256_add_epi16(s0, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(a, f * bits), mask), y));
          s1 = _mm256_add_epi16(s1, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(c, f * bits), mask), y));
          __asm__("" : "+x"(s0), "+x"(s1));
        }
      }
      int32_t *out = got + (t * (kLength / kBlock) + b) * 16;
      _mm256_storeu_si256((__m256i *)out, _mm256_madd_epi16(s0, one));
      _mm256_storeu_si256((__m256i *)(out + 8), _mm256_madd_epi16(s1, one));
    }
  }
}

template <int bits> void make_tables() {
  for (int v = 0; v < kChunks * bits; v++)
    for (int nibble = 0; nibble < 2; nibble++)
      for (int j = 0; j < 4; j++)
        for (int i = 0; i < 16; i++) {
          int sum = 0;
          for (int f = 0; f < 4 / bits; f++) sum += (i >> (bits * f) & ((1 << bits) - 1)) * q[v * (32 / bits) + 4 * (nibble * 4 / bits + f) + j];
          uint8_t *at = tables + v * 256 + nibble * 128 + j / 2 * 64 + j % 2 * 16 + i;
          at[0] = (uint8_t)sum, at[32] = (uint8_t)(sum >> 8);
        }
}

AVX2 inline __m256i by_j(__m256i a) {  // eight outputs: their bytes of j 0, 2, 1, 3
  const __m256i within = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(a, within), _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
}

// `side` tiles share the loads of the tables.
template <int bits, int side> AVX2 void tables_avx2() {
  const __m256i low4 = _mm256_set1_epi8(15);
  for (int t = 0; t < kTiles; t += side) {
    const uint8_t *p = weights + t * kChunks * 64 * bits;
    const uint8_t *table = tables;
    for (int b = 0; b < kLength / kBlock; b++) {
      __m256i even[side], odd[side];  // outputs 0-7 and 8-15 of two j a lane: at most 16 sums of 4 * 127 a lane
      for (int s = 0; s < side; s++) even[s] = odd[s] = _mm256_setzero_si256();
      for (int v = 0; v < kBlock / 32 * bits; v++, p += 64, table += 256)
        for (int s = 0; s < side; s++) {
          const uint8_t *from = p + s * kChunks * 64 * bits;
          const __m256i a = by_j(_mm256_load_si256((const __m256i *)from)), c = by_j(_mm256_load_si256((const __m256i *)(from + 32)));
          const __m256i both[2] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c)};
          for (int half = 0; half < 2; half++)
            for (int nibble = 0; nibble < 2; nibble++) {
              const __m256i i = _mm256_and_si256(nibble ? _mm256_srli_epi16(both[half], 4) : both[half], low4);
              const __m256i *from_table = (const __m256i *)(table + nibble * 128 + half * 64);
              const __m256i l = _mm256_shuffle_epi8(_mm256_load_si256(from_table), i), h = _mm256_shuffle_epi8(_mm256_load_si256(from_table + 1), i);
              even[s] = _mm256_add_epi16(even[s], _mm256_unpacklo_epi8(l, h)), odd[s] = _mm256_add_epi16(odd[s], _mm256_unpackhi_epi8(l, h));
            }
        }
      for (int s = 0; s < side; s++) {
        int32_t *out = got + ((t + s) * (kLength / kBlock) + b) * 16;
        const __m256i e = _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(even[s])), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(even[s], 1)));
        const __m256i o = _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(odd[s])), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(odd[s], 1)));
        _mm256_storeu_si256((__m256i *)out, e), _mm256_storeu_si256((__m256i *)(out + 8), o);
      }
    }
    p += 0;
  }
}

template <int bits> AVX512 void dots_vnni() {
  const __m512i mask = _mm512_set1_epi8((1 << bits) - 1);
  constexpr int fields = 8 / bits;
  for (int t = 0; t < kTiles; t++) {
    const uint8_t *p = weights + t * kChunks * 64 * bits;
    const int8_t *x = q;
    for (int b = 0; b < kLength / kBlock; b++) {
      __m512i s[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
      for (int v = 0; v < kBlock / 32 * bits; v++, p += 64) {
        const __m512i a = _mm512_load_si512(p);
#pragma GCC unroll 8
        for (int f = 0; f < fields; f++, x += 4) {
          int32_t four;
          memcpy(&four, x, 4);
          s[f % 2] = _mm512_dpbusd_epi32(s[f % 2], _mm512_and_si512(_mm512_srli_epi16(a, f * bits), mask), _mm512_set1_epi32(four));
        }
      }
      _mm512_storeu_si512(got + (t * (kLength / kBlock) + b) * 16, _mm512_add_epi32(s[0], s[1]));
    }
  }
}

void make_planes() {  // bit 8 * j + f of plane b: bit b of the code at k = 4 * f + j
  for (int c = 0; c < kChunks; c++)
    for (int b = 0; b < 8; b++) {
      planes[c][b] = 0;
      for (int k = 0; k < 32; k++) planes[c][b] |= (uint32_t)((uint8_t)q[32 * c + k] >> b & 1) << (8 * (k % 4) + k / 4);
    }
}

AVX512 void counts_avx512() {  // binary weights: eight planes of the activations, the highest counts negative
  for (int t = 0; t < kTiles; t++) {
    const uint8_t *p = weights + t * kChunks * 64;
    for (int b = 0; b < kLength / kBlock; b++) {
      __m512i s[8];
      for (int i = 0; i < 8; i++) s[i] = _mm512_setzero_si512();
      for (int c = b * (kBlock / 32); c < (b + 1) * (kBlock / 32); c++, p += 64) {
        const __m512i w = _mm512_load_si512(p);
        for (int i = 0; i < 8; i++) s[i] = _mm512_add_epi32(s[i], _mm512_popcnt_epi32(_mm512_and_si512(w, _mm512_set1_epi32((int32_t)planes[c][i]))));
      }
      __m512i sum = _mm512_sub_epi32(_mm512_setzero_si512(), s[7]);
      for (int i = 6; i >= 0; i--) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 1), s[i]);
      _mm512_storeu_si512(got + (t * (kLength / kBlock) + b) * 16, sum);
    }
  }
}

AVX2 void counts_avx2() {  // bits of a byte by two look-ups, bytes of an output added at the end of a block: at most 4 * 8 a byte
  const __m256i low4 = _mm256_set1_epi8(15), one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
  const __m256i count = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  for (int t = 0; t < kTiles; t++)
    for (int b = 0; b < kLength / kBlock; b++)
      for (int half = 0; half < 2; half++) {
        const uint8_t *p = weights + (t * kChunks + b * (kBlock / 32)) * 64 + 32 * half;
        __m256i s[8];
        for (int i = 0; i < 8; i++) s[i] = _mm256_setzero_si256();
        for (int c = 0; c < kBlock / 32; c++) {
          const __m256i w = _mm256_load_si256((const __m256i *)(p + 64 * c));
          for (int i = 0; i < 8; i++) {
            const __m256i m = _mm256_and_si256(w, _mm256_set1_epi32((int32_t)planes[b * (kBlock / 32) + c][i]));
            const __m256i l = _mm256_shuffle_epi8(count, _mm256_and_si256(m, low4)), h = _mm256_shuffle_epi8(count, _mm256_and_si256(_mm256_srli_epi16(m, 4), low4));
            s[i] = _mm256_add_epi8(s[i], _mm256_add_epi8(l, h));
          }
        }
        __m256i sum = _mm256_setzero_si256();
        for (int i = 7; i >= 0; i--) {
          const __m256i n = _mm256_madd_epi16(_mm256_maddubs_epi16(s[i], one8), one16);
          sum = i == 7 ? _mm256_sub_epi32(sum, n) : _mm256_add_epi32(_mm256_slli_epi32(sum, 1), n);
        }
        _mm256_storeu_si256((__m256i *)(got + (t * (kLength / kBlock) + b) * 16 + 8 * half), sum);
      }
}

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

template <class Run> void measure(const char *name, int bits, Run run) {
  memset(got, 0x55, sizeof got);
  run();
  const bool equal = !memcmp(got, want, sizeof got);
  double best = 1e9;
  for (int i = 0; i < 200; i++) {
    const double begun = now();
    run();
    best = std::min(best, now() - begun);
  }
  const double bytes = (double)kTiles * kChunks * 64 * bits;
  printf("%d bits  %-32s %6.1f GB/s of weights %7.0f GOP/s  %s\n", bits, name, bytes / best / 1e9, 2.0 * kTiles * 16 * kLength / best / 1e9, equal ? "equal" : "WRONG");
}

template <int bits> void compare() {
  reference<bits>();
  make_tables<bits>();
  if (__builtin_cpu_supports("avx2")) {
    measure("avx2, byte dots", bits, dots_avx2<bits>);
    measure("avx2, tables", bits, tables_avx2<bits, 1>);
    measure("avx2, tables, two tiles", bits, tables_avx2<bits, 2>);
    measure("avx2, making the tables", bits, make_tables<bits>);
  }
  if (bits == 1 && __builtin_cpu_supports("avx2")) measure("avx2, counts", bits, counts_avx2);
  if (__builtin_cpu_supports("avx512vnni")) measure("avx512vnni, byte dots", bits, dots_vnni<bits>);
  if (bits == 1 && __builtin_cpu_supports("avx512vpopcntdq")) measure("avx512vpopcntdq, counts", bits, counts_avx512);
}

}  // namespace

int main() {
  uint32_t seed = 1;
  for (auto &w : weights) w = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
  for (auto &x : q) x = (int8_t)std::max(-127, (int)(int8_t)((seed = seed * 1664525u + 1013904223u) >> 24));
  make_planes();
  compare<1>();
  compare<2>();
  return 0;
}
