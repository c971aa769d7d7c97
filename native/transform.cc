// Transforms of rows and codes with a scale that was given; compiled once per ISA. Each is elementwise or a fixed tree of additions, so lanes do not show.
#include "transform.h"

#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

static void scale(const float *x, const float *by, int64_t k, float *out) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) f_store(out + i, f_mul(f_load(x + i), f_load(by + i)));
  for (; i < k; i++) out[i] = x[i] * by[i];
}

static void shift(const float *x, const float *by, int64_t k, float *out) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) f_store(out + i, f_add(f_load(x + i), f_load(by + i)));
  for (; i < k; i++) out[i] = x[i] + by[i];
}

static void add(const float *x, int64_t n, float *y) { shift(y, x, n, y); }

// Stages h = 1, 2, 4, ...: (a, b) at distance h become (a + b, a - b); four multiplications less than a matrix has for each number. The first
// four stages stay inside 16 numbers, the others are whole vectors.
template <int h> AB_INLINE void stage(float *t) {
  for (int i = 0; i < 16; i += 2 * h)
    for (int j = i; j < i + h; j++) {
      const float a = t[j], b = t[j + h];
      t[j] = a + b, t[j + h] = a - b;
    }
}

static void hadamard(float *x, int64_t k, int64_t block) {
  const float by = 1.0f / __builtin_sqrtf((float)block);
  for (float *p = x; p < x + k; p += block) {
    if (block < 16) {
      for (int64_t h = 1; h < block; h *= 2)
        for (int64_t i = 0; i < block; i += 2 * h)
          for (int64_t j = i; j < i + h; j++) {
            const float a = p[j], b = p[j + h];
            p[j] = a + b, p[j + h] = a - b;
          }
      for (int64_t i = 0; i < block; i++) p[i] = p[i] * by;
      continue;
    }
    for (int64_t i = 0; i < block; i += 16) {
      float t[16];
      memcpy(t, p + i, sizeof t);
      stage<1>(t), stage<2>(t), stage<4>(t), stage<8>(t);
      memcpy(p + i, t, sizeof t);
    }
    for (int64_t h = 16; h < block; h *= 2)
      for (int64_t i = 0; i < block; i += 2 * h)
        for (int64_t j = i; j < i + h; j += 16) {
          const F a = f_load(p + j), b = f_load(p + j + h);
          f_store(p + j, f_add(a, b)), f_store(p + j + h, f_sub(a, b));
        }
    const F all = f_set(by);
    for (int64_t i = 0; i < block; i += 16) f_store(p + i, f_mul(f_load(p + i), all));
  }
}

static int64_t quantize(const Weight &w, float by, const float *x, int64_t stride, int64_t m0, int64_t m1, int64_t group, int8_t *q, int16_t *q16, float *scale,
                        int32_t *total) {
  int8_t line[2 * 512 + 64];  // codes of a segment: at most 512, and what fills up groups of four
  const F r = f_set(1.0f / by), most = f_set(127.0f), least = f_set(-127.0f);
  for (int64_t m = m0; m < m1; m++) {
    int8_t *const row = q + m / group * group * w.codes_length + 4 * (m % group);
    const int64_t ends = m / group * group * w.segment_count + m % group;
    for (int64_t s = 0; s < w.segment_count; s++) {
      const Segment &seg = w.segments[s];
      const float *p = x + m * stride + seg.k0;
      const int64_t fours = seg.g1 - seg.g0;
      int8_t *const codes = group == 1 ? row + seg.at : line;
      int8_t *const out = codes + seg.k0 - 4 * seg.g0;
      memset(codes, 0, (size_t)(4 * fours));
      int32_t sum = 0, lanes[16];
      for (int64_t i = 0; i < seg.k1 - seg.k0; i += 16) {
        const int64_t count = seg.k1 - seg.k0 - i < 16 ? seg.k1 - seg.k0 - i : 16;
        float part[16] = {0};
        memcpy(part, p + i, sizeof(float) * (size_t)count);
        const F v = f_load(part);
        i_store(lanes, i_and(f_bits(v), i_set(0x7fffffff)));
        for (int j = 0; j < 16; j++)
          if (lanes[j] >= 0x7f800000) return m;
        i_store(lanes, f_to_i(f_min(most, f_max(least, f_mul(v, r)))));
        for (int64_t j = 0; j < count; j++) out[i + j] = (int8_t)lanes[j], sum += lanes[j];
      }
      scale[ends + s * group] = by, total[ends + s * group] = sum;
      if (group > 1)
        for (int64_t i = 0; i < fours; i++) memcpy(row + (seg.at + 4 * i) * group, line + 4 * i, 4);
      if (q16)
        for (int64_t i = 0; i < 4 * fours; i++) q16[m * w.codes_length + seg.at + i] = codes[i];
    }
  }
  return -1;
}

}  // namespace

extern const TransformKernels transform_kernels;
const TransformKernels transform_kernels = {scale, shift, hadamard, add, quantize};

}  // namespace ANYBIT_ISA
}  // namespace anybit
