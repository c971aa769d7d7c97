/* What this machine can do at most: bytes read, int8, int16 and float32 multiply-adds a second, for each number of threads.
 *
 *     cc -O3 -pthread roofline.c -o roofline && ./roofline [threads]
 *
 * One JSON line a thread count. Instruction sets are chosen at run time (AVX-512 VNNI, AVX2, plain C), so one binary serves every x86-64;
 * elsewhere the plain C loops run. int8 is what the best kernel of that set could reach: vpdpbusd, or vpmaddubsw with 16-bit sums; int16 is
 * vpdpwssd, or vpmaddwd with 32-bit sums.
 * Arithmetic loops keep twelve independent sums in registers, which is more than latency times throughput of any current core.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#endif

enum { SUMS = 12, REPEATS = 5 };
static const size_t kBytes = (size_t)512 << 20;
static char *memory;
static int thread_count;

typedef struct {
  int index;
  long rounds;
  uint64_t result;
} Job;
typedef void *(*Work)(void *);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---------------------------------------------------------------------------------------------- plain C */
static void *read_plain(void *argument) {
  Job *job = argument;
  const size_t part = kBytes / (size_t)thread_count / 64 * 64;
  const uint64_t *p = (const uint64_t *)(memory + part * (size_t)job->index);
  uint64_t sums[8] = {0};
  for (size_t i = 0; i < part / 8; i += 8)
    for (int j = 0; j < 8; j++) sums[j] ^= p[i + (size_t)j];
  for (int j = 0; j < 8; j++) job->result ^= sums[j];
  return NULL;
}

static void *fma_plain(void *argument) {
  Job *job = argument;
  float sums[SUMS * 4] = {0};
  for (long r = 0; r < job->rounds; r++)
    for (int j = 0; j < SUMS * 4; j++) sums[j] = sums[j] * 0.5f + 1.0f;
  for (int j = 0; j < SUMS * 4; j++) job->result += (uint64_t)sums[j];
  return NULL;
}

static void *dot_plain(void *argument) {
  Job *job = argument;
  int32_t sums[SUMS * 4] = {0};
  volatile int8_t seed = 3;
  int8_t a = seed, b = (int8_t)(seed + 1);
  for (long r = 0; r < job->rounds; r++, a++)
    for (int j = 0; j < SUMS * 4; j++) sums[j] += (int16_t)(a ^ j) * b;
  for (int j = 0; j < SUMS * 4; j++) job->result += (uint64_t)sums[j];
  return NULL;
}

/* ---------------------------------------------------------------------------------------------- x86-64 */
#if X86
#define DEFINE_READ(NAME, TARGET, VECTOR, LOAD, XOR, ZERO)                                                       \
  __attribute__((target(TARGET))) static void *NAME(void *argument) {                                            \
    Job *job = argument;                                                                                         \
    const size_t part = kBytes / (size_t)thread_count / 4096 * 4096, step = sizeof(VECTOR);                      \
    const char *p = memory + part * (size_t)job->index;                                                          \
    VECTOR s0 = ZERO, s1 = ZERO, s2 = ZERO, s3 = ZERO;                                                           \
    for (size_t i = 0; i < part; i += 4 * step) {                                                                \
      for (size_t line = 0; line < 4 * step; line += 64) _mm_prefetch(p + i + 4096 + line, _MM_HINT_T0);         \
      s0 = XOR(s0, LOAD((const void *)(p + i))), s1 = XOR(s1, LOAD((const void *)(p + i + step)));               \
      s2 = XOR(s2, LOAD((const void *)(p + i + 2 * step))), s3 = XOR(s3, LOAD((const void *)(p + i + 3 * step))); \
    }                                                                                                            \
    s0 = XOR(XOR(s0, s1), XOR(s2, s3));                                                                          \
    memcpy(&job->result, &s0, sizeof job->result);                                                               \
    return NULL;                                                                                                 \
  }
DEFINE_READ(read_avx2, "avx2", __m256i, _mm256_load_si256, _mm256_xor_si256, _mm256_setzero_si256())
DEFINE_READ(read_avx512, "avx512f", __m512i, _mm512_load_si512, _mm512_xor_si512, _mm512_setzero_si512())

#define TWELVE(X) X(s0) X(s1) X(s2) X(s3) X(s4) X(s5) X(s6) X(s7) X(s8) X(s9) X(s10) X(s11)

/* Operations are inline assembly on named variables: in an array the compiler may keep the sums in memory, and measure its stores. */
#define DEFINE_PEAK(NAME, TARGET, VECTOR, ZERO, STEP)                                                       \
  __attribute__((target(TARGET))) static void *NAME(void *argument) {                                       \
    Job *job = argument;                                                                                    \
    VECTOR a = ZERO, b = ZERO, t = ZERO;                                                                    \
    VECTOR s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a; \
    for (long r = 0; r < job->rounds; r++) {                                                                \
      TWELVE(STEP)                                                                                          \
    }                                                                                                       \
    (void)t;                                                                                                \
    memcpy(&job->result, &s0, sizeof job->result);                                                          \
    return NULL;                                                                                            \
  }
#define FMA(s) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(s) : "v"(a), "v"(b));
#define DPBUSD(s) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(a), "v"(b));
#define DPWSSD(s) __asm__ volatile("vpdpwssd %2, %1, %0" : "+v"(s) : "v"(a), "v"(b));
#define MADDWD(s) __asm__ volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(s), "=&v"(t) : "v"(a), "v"(b));
#define MADDUBS(s) __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(s), "=&v"(t) : "v"(a), "v"(b));
DEFINE_PEAK(fma_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), FMA)
DEFINE_PEAK(dot_avx2, "avx2", __m256i, _mm256_setzero_si256(), MADDUBS)
DEFINE_PEAK(wide_avx2, "avx2", __m256i, _mm256_setzero_si256(), MADDWD)
DEFINE_PEAK(wide_avx512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), DPWSSD)
DEFINE_PEAK(fma_avx512, "avx512f", __m512, _mm512_setzero_ps(), FMA)
DEFINE_PEAK(dot_avx512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), DPBUSD)
#endif

/* ---------------------------------------------------------------------------------------------- measuring */
static double best_seconds(Work work, long rounds) {
  double best = 1e9;
  for (int repeat = 0; repeat < REPEATS; repeat++) {
    pthread_t threads[256];
    Job jobs[256];
    const double begun = now();
    for (int i = 0; i < thread_count; i++) {
      jobs[i] = (Job){i, rounds, 0};
      if (pthread_create(&threads[i], NULL, work, &jobs[i])) exit(1);
    }
    for (int i = 0; i < thread_count; i++) pthread_join(threads[i], NULL);
    const double seconds = now() - begun;
    if (seconds < best) best = seconds;
  }
  return best;
}

int main(int count, char **arguments) {
  Work read = read_plain, fma = fma_plain, dot = dot_plain, wide = dot_plain;
  const char *isa = "generic";
  double fma_lanes = 4, dot_lanes = 4, wide_lanes = 4; /* lanes of one of the SUMS sums */
#if X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    read = read_avx2, fma = fma_avx2, dot = dot_avx2, wide = wide_avx2, isa = "avx2", fma_lanes = 8, dot_lanes = 32, wide_lanes = 16;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"))
    read = read_avx512, fma = fma_avx512, dot = dot_avx512, wide = wide_avx512, isa = "avx512", fma_lanes = 16, dot_lanes = 64, wide_lanes = 32;
#endif
  const int most = count > 1 ? atoi(arguments[1]) : (int)sysconf(_SC_NPROCESSORS_ONLN);
  memory = aligned_alloc((size_t)2 << 20, kBytes + ((size_t)2 << 20));
  if (!memory || most < 1 || most > 256) return 1;
#ifdef MADV_HUGEPAGE
  madvise(memory, kBytes, MADV_HUGEPAGE);
#endif
  for (size_t i = 0; i < kBytes + ((size_t)2 << 20); i += 8) *(uint64_t *)(memory + i) = i * 0x9E3779B97F4A7C15u;
  const long rounds = 10000000;
  for (thread_count = 1; thread_count <= most; thread_count = thread_count < most && 2 * thread_count > most ? most : 2 * thread_count) {
    const double threads = thread_count, work = threads * (double)rounds * SUMS * 2;
    printf("{\"threads\": %d, \"isa\": \"%s\", \"read_gb_s\": %.1f, \"int8_gop_s\": %.0f, \"int16_gop_s\": %.0f, \"float32_gflop_s\": %.0f}\n", thread_count, isa,
           (double)kBytes / best_seconds(read, 0) / 1e9, work * dot_lanes / best_seconds(dot, rounds) / 1e9,
           work * wide_lanes / best_seconds(wide, rounds) / 1e9, work * fma_lanes / best_seconds(fma, rounds) / 1e9);
    fflush(stdout);
  }
  free(memory);
  return 0;
}
