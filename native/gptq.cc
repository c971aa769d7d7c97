// One block of columns with feedback, compiled once per ISA. 64 rows at a time: their errors [count][64] stay in the cache, the sum for the next
// column in four registers. Operations per weight: one multiplication and one addition for each column before it (not fused: the order and the
// roundings are those of the NumPy loop), a division, and rounding by the element's plan.
#include "gptq.h"

#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {

extern const RoundKernels round_kernels;

namespace {

constexpr int64_t kRows = kFeedbackRows;

struct Sum {
  F v[4];
};
AB_INLINE Sum load4(const float *p) { return {{f_load(p), f_load(p + 16), f_load(p + 32), f_load(p + 48)}}; }
AB_INLINE void store4(float *p, const Sum &s) {
  for (int i = 0; i < 4; i++) f_store(p + 16 * i, s.v[i]);
}
AB_INLINE void add4(Sum *s, const float *e, float a) {
  const F by = f_set(a);
  for (int i = 0; i < 4; i++) s->v[i] = f_add(s->v[i], f_mul(f_load(e + 16 * i), by));
}

void fill(const float *from, int64_t rows, float *to) {
  memcpy(to, from, sizeof(float) * (size_t)rows);
  for (int64_t r = rows; r < kRows; r++) to[r] = 0;
}

void spread(const FeedbackPlan &p, const float *grid, int64_t first, int64_t rows, int32_t column, float *to) {
  for (int64_t r = 0; r < rows; r++) to[r] = grid[p.row[first + r] * p.blocks + column];
  for (int64_t r = rows; r < kRows; r++) to[r] = 1;
}

void run(const FeedbackPlan &p, int64_t first, int64_t rows, float *held) {
  float *error = held, *moved = held + p.count * kRows;
  alignas(64) float x[kRows], scale[kRows], zero[kRows], offset[kRows], ratio[kRows], weight[kRows];
  alignas(64) int32_t codes[kRows];
  alignas(64) uint8_t stored[2 * kRows];
  const float end = 3.4028234663852886e38f;
  if (p.full)
    for (int64_t j = 0; j < p.count; j++) fill(p.error + j * p.n + first, rows, error + j * kRows);
  int32_t block = -1;
  for (int64_t i = 0; i < p.count; i++) {
    fill(p.base + i * p.n + first, rows, x);
    Sum sum = load4(x);
    const int64_t before = p.full ? p.count : i;
    for (int64_t j = 0; j < before; j++) {
      if (j == i) continue;
      add4(&sum, error + j * kRows, p.coupling[j * p.count + i]);
      if (p.second) add4(&sum, moved + j * kRows, p.second[j * p.count + i]);
    }
    store4(x, sum);
    if (p.column[i] != block) {
      block = p.column[i];
      spread(p, p.scale, first, rows, block, scale);
      if (p.zero) spread(p, p.zero, first, rows, block, zero);
      if (p.offset) spread(p, p.offset, first, rows, block, offset);
    }
    for (int64_t r = 0; r < kRows; r++) {
      const float t = p.offset ? x[r] - offset[r] : x[r];
      ratio[r] = scale[r] == 0 ? 0.0f * t : t / scale[r];
    }
    if (p.symmetric >= 0)
      for (int64_t r = 0; r < kRows; r++) ratio[r] = ratio[r] < -p.symmetric ? -p.symmetric : ratio[r] > p.symmetric ? p.symmetric : ratio[r];
    if (p.zero)
      for (int64_t r = 0; r < kRows; r++) ratio[r] = (p.whole_zero ? __builtin_rintf(ratio[r]) : ratio[r]) + zero[r];
    for (int64_t r = 0; r < kRows; r++) ratio[r] = ratio[r] > end ? end : ratio[r] >= -end ? ratio[r] : -end;  // NaN too: plans take finite numbers
    round_kernels.codes(*p.round, ratio, nullptr, kRows, p.width, stored, false);
    for (int64_t r = 0; r < kRows; r++) codes[r] = p.width == 1 ? stored[r] : reinterpret_cast<const uint16_t *>(stored)[r];
    fill((p.second ? p.moved : p.weight) + i * p.n + first, rows, weight);
    for (int64_t r = 0; r < kRows; r++) {
      float value = p.decoded[codes[r]];
      if (p.zero && p.whole_zero) value = (value - zero[r]) * scale[r];
      else {
        value = value * scale[r];
        if (p.zero) value = value - zero[r] * scale[r];
        if (p.offset) value = value + offset[r];
      }
      error[i * kRows + r] = (p.second ? x[r] : weight[r]) - value;
    }
    if (p.second) memcpy(moved + i * kRows, x, sizeof x);
    memcpy(p.moved + i * p.n + first, x, sizeof(float) * (size_t)rows);
    memcpy(p.error + i * p.n + first, error + i * kRows, sizeof(float) * (size_t)rows);
    memcpy(p.codes + (i * p.n + first) * p.width, stored, (size_t)(rows * p.width));
  }
}

}  // namespace

extern const FeedbackKernels feedback_kernels;
const FeedbackKernels feedback_kernels = {run};

}  // namespace ANYBIT_ISA
}  // namespace anybit
