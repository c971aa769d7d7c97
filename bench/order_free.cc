// What one order of additions costs (docs/contract.md): the library's loops for one and eight rows of 4-bit weights beside the same loops with several partial
// sums an output, added in whatever order is fastest. Integers inside a block have no order, so only the ends of blocks and float activations differ.
//
//     c++ -std=c++17 -O3 order_free.cc -o order_free && ./order_free
//
// One thread, AVX-512 VNNI, weights in the cache (a worse case than reading them from memory), the thread's own time, best of many.
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <iterator>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define INLINE AVX512 static inline __attribute__((always_inline))

namespace {

constexpr int kLength = 4096, kTiles = 32, kRows = 8;
alignas(64) uint8_t weights[kTiles * kLength * 8];
alignas(64) int8_t q[kLength * kRows];
alignas(64) float x[kLength], scales[kLength / 16 * kRows], sws[kTiles * kLength], table[16], y[kTiles * 16 * kRows];

INLINE __m512 multiple(__m512i dot, const float *sx, const float *sw, __m512 acc) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(_mm512_set1_ps(*sx), _mm512_loadu_ps(sw)), acc);
}

// int8 activations: `sums` partial sums an output and row; 1 is the contract's order.
template <int block, int rows, int sums> AVX512 void integers() {
  const __m512i low = _mm512_set1_epi8(15);
  for (int t = 0; t < kTiles; t++) {
    const uint8_t *p = weights + t * kLength * 8;
    __m512 acc[rows][sums];
    for (int r = 0; r < rows; r++)
      for (int s = 0; s < sums; s++) acc[r][s] = _mm512_setzero_ps();
    const int8_t *from = q;
    for (int b = 0; b < kLength / block; b += sums)
#pragma GCC unroll 4
      for (int s = 0; s < sums; s++) {
        __m512i dot[rows];
        for (int r = 0; r < rows; r++) dot[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int v = 0; v < block / 8; v++, p += 64) {
          const __m512i w = _mm512_load_si512(p), g[2] = {_mm512_and_si512(w, low), _mm512_and_si512(_mm512_srli_epi16(w, 4), low)};
          for (int f = 0; f < 2; f++, from += 4 * rows)
            for (int r = 0; r < rows; r++) {
              int32_t four;
              memcpy(&four, from + 4 * r, 4);
              dot[r] = _mm512_dpbusd_epi32(dot[r], g[f], _mm512_set1_epi32(four));
            }
        }
        for (int r = 0; r < rows; r++) acc[r][s] = multiple(dot[r], scales + (b + s) * rows + r, sws + (t * (kLength / block) + b + s) * 16, acc[r][s]);
      }
    for (int r = 0; r < rows; r++) {
      for (int s = 1; s < sums; s++) acc[r][0] = _mm512_add_ps(acc[r][0], acc[r][s]);
      _mm512_storeu_ps(y + (t * rows + r) * 16, acc[r][0]);
    }
  }
}

// Float activations: four tiles with one chain an output are the contract's order; one tile with four chains an output is free.
template <bool free_order> AVX512 void floats() {
  const __m512 values = _mm512_loadu_ps(table);
  constexpr int tiles = free_order ? 1 : 4, chains = free_order ? 4 : 1;
  for (int t = 0; t < kTiles; t += tiles) {
    __m512 acc[tiles];
    for (int i = 0; i < tiles; i++) acc[i] = _mm512_setzero_ps();
    for (int b = 0; b < kLength / 128; b++) {
      __m512 part[tiles][chains];
      for (int i = 0; i < tiles; i++)
        for (int c = 0; c < chains; c++) part[i][c] = _mm512_setzero_ps();
      for (int v = 0; v < 16; v++) {
        const float *xs = x + b * 128 + v * 8;
        const uint8_t *p = weights + (t * kLength + b * 128 + v * 8) * 8;
        __m512i w[tiles];
        for (int i = 0; i < tiles; i++) w[i] = _mm512_load_si512(p + i * kLength * 8);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
          const __m512 v1 = _mm512_set1_ps(xs[k]);
          for (int i = 0; i < tiles; i++) {
            const __m512i code = _mm512_srli_epi32(w[i], 8 * (k % 4) + 4 * (k / 4));
            part[i][k % chains] = _mm512_fmadd_ps(v1, _mm512_permutexvar_ps(code, values), part[i][k % chains]);
          }
        }
      }
      for (int i = 0; i < tiles; i++) {
        for (int c = 1; c < chains; c++) part[i][0] = _mm512_add_ps(part[i][0], part[i][c]);
        acc[i] = _mm512_fmadd_ps(part[i][0], _mm512_loadu_ps(sws + ((t + i) * (kLength / 128) + b) * 16), acc[i]);
      }
    }
    for (int i = 0; i < tiles; i++) _mm512_storeu_ps(y + (t + i) * 16, acc[i]);
  }
}

double once(void (*run)()) {
  timespec a, b;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
  run();
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
  return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

void compare(const char *name, int rows, void (*ordered)(), void (*loose)()) {
  double best[2] = {1e9, 1e9};
  for (int i = 0; i < 400; i++) best[0] = std::min(best[0], once(ordered)), best[1] = std::min(best[1], once(loose));
  const double work = 2.0 * rows * kTiles * 16 * kLength;
  printf("%-34s in order %6.0f GOP/s, free %6.0f GOP/s: the order costs %5.1f %%\n", name, work / best[0] / 1e9, work / best[1] / 1e9, 100 * (best[0] / best[1] - 1));
}

}  // namespace

int main() {
  if (!__builtin_cpu_supports("avx512vnni")) return puts("needs AVX-512 VNNI"), 1;
  uint32_t seed = 1;
  for (auto &w : weights) w = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
  for (auto &v : q) v = (int8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
  for (auto &v : x) v = 1.0f + (float)((seed = seed * 1664525u + 1013904223u) >> 20) / 4096.0f;
  for (int i = 0; i < 16; i++) table[i] = (float)(i - 8);
  std::fill(std::begin(scales), std::end(scales), 0.01f), std::fill(std::begin(sws), std::end(sws), 0.02f);
  compare("one row, blocks of 128, int8", 1, integers<128, 1, 1>, integers<128, 1, 4>);
  compare("one row, blocks of 32, int8", 1, integers<32, 1, 1>, integers<32, 1, 4>);
  compare("one row, blocks of 16, int8", 1, integers<16, 1, 1>, integers<16, 1, 4>);
  compare("eight rows, blocks of 128, int8", 8, integers<128, 8, 1>, integers<128, 8, 2>);
  compare("eight rows, blocks of 32, int8", 8, integers<32, 8, 1>, integers<32, 8, 2>);
  compare("eight rows, blocks of 16, int8", 8, integers<16, 8, 1>, integers<16, 8, 2>);
  compare("one row, blocks of 128, float", 1, floats<false>, floats<true>);
  return 0;
}
