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

// Numbers of all rows of a set: in place, or from a copy that goes on with zeros.
AB_INLINE const float *whole(const float *from, int64_t rows, float *copy) {
  if (rows == kRows) return from;
  memcpy(copy, from, sizeof(float) * (size_t)rows);
  for (int64_t r = rows; r < kRows; r++) copy[r] = 0;
  return copy;
}
AB_INLINE void keep(const float *from, int64_t rows, float *to) {
  if (rows == kRows) store4(to, load4(from));
  else memcpy(to, from, sizeof(float) * (size_t)rows);
}

// What the element rounds: targets over scales, with zero points.
AB_INLINE void ratios(const FeedbackPlan &p, const float *x, const float *scale, const float *zero, const float *offset, float *ratio) {
  const F end = f_set(3.4028234663852886e38f), start = f_set(-3.4028234663852886e38f), none = f_zero();
  const F most = f_set(p.symmetric), least = f_set(-p.symmetric);
  for (int64_t r = 0; r < kRows; r += 16) {
    const F s = f_load(scale + r), t = offset ? f_sub(f_load(x + r), f_load(offset + r)) : f_load(x + r);
    const I bits = f_bits(s);
    F q = f_select(i_nonzero(i_add(bits, bits)), f_div(t, s), f_mul(none, t));
    if (p.symmetric >= 0) q = f_select(f_lt(q, least), least, f_select(f_lt(most, q), most, q));
    if (zero) q = f_add(p.whole_zero ? f_rne(q) : q, f_load(zero + r));
    f_store(ratio + r, f_min(f_max(q, start), end));  // NaN too: plans take finite numbers
  }
}

AB_INLINE F magnitude(F a) { return f_max(a, f_sub(f_zero(), a)); }

// A bit for each of the rows whose two codes differ.
uint64_t differ(const uint8_t *a, const uint8_t *b, int64_t rows, int width) {
  if (!memcmp(a, b, (size_t)(rows * width))) return 0;
  uint64_t found = 0;
  for (int64_t r = 0; r < rows; r++) found |= (uint64_t)(memcmp(a + r * width, b + r * width, (size_t)width) != 0) << r;
  return found;
}

void run(const FeedbackPlan &p, int64_t first, int64_t rows, float *held) {
  float *error = held, *moved = held + p.count * kRows;
  alignas(64) float x[kRows], beyond[kRows], copy[4][kRows], ratio[kRows];
  alignas(64) uint8_t stored[2 * kRows], farther[2 * kRows];
  const F none = f_zero(), near = f_set(kNear), half = f_set(p.half);
  const float *const coupling = p.coupling, *const second = p.second;
  Sum loss = {{none, none, none, none}};
  if (p.full)
    for (int64_t j = 0; j < p.count; j++) store4(error + j * kRows, load4(whole(p.error + j * p.n + first, rows, x)));
  for (int64_t i = 0; i < p.count; i++) {
    Sum sum = load4(whole(p.base + i * p.n + first, rows, copy[0]));
    const int64_t before = p.full ? p.count : i;
    for (int64_t j = 0; j < before; j++) {
      if (j == i) continue;
      add4(&sum, error + j * kRows, coupling[j * p.count + i]);
      if (second) add4(&sum, moved + j * kRows, second[j * p.count + i]);
    }
    store4(x, sum);
    const int64_t grid = p.column[i] * p.n + first;
    const float *scale = whole(p.scale + grid, rows, copy[0]), *zero = p.zero ? whole(p.zero + grid, rows, copy[1]) : nullptr;
    const float *offset = p.offset ? whole(p.offset + grid, rows, copy[2]) : nullptr;
    ratios(p, x, scale, zero, offset, ratio);
    round_kernels.codes(*p.round, ratio, nullptr, kRows, p.width, stored, false);
    const float *weight = whole(p.weight + i * p.n + first, rows, copy[3]), *from = second ? x : weight;
    const F cost = f_set(p.cost ? p.cost[i] : 0.0f);
    bool doubt = false;
    for (int64_t r = 0; r < kRows; r += 16) {
      const I code = p.width == 1 ? i_load_u8(stored + r) : i_load_u16(stored + 2 * r);
      const F s = f_load(scale + r);
      F value = p.few ? f_lookup16(p.decoded, code) : f_gather(p.decoded, code);
      if (zero && p.whole_zero) value = f_mul(f_sub(value, f_load(zero + r)), s);
      else {
        value = f_mul(value, s);
        if (zero) value = f_sub(value, f_mul(f_load(zero + r), s));
        if (offset) value = f_add(value, f_load(offset + r));
      }
      f_store(error + i * kRows + r, f_sub(f_load(from + r), value));
      const F missed = f_sub(f_load(x + r), value);
      loss.v[r / 16] = f_add(loss.v[r / 16], f_mul(cost, f_mul(missed, missed)));
      if (p.near) {
        const F a = f_load(x + r);
        F size = f_add(magnitude(a), magnitude(f_load(weight + r)));
        if (offset) size = f_add(size, magnitude(f_load(offset + r)));
        if (zero && !p.whole_zero) size = f_add(size, magnitude(f_mul(f_load(zero + r), s)));
        const F by = f_mul(near, size), reach = f_mul(half, magnitude(s)), gone = magnitude(missed);
        doubt |= i_any(f_lt(reach, f_add(gone, f_add(by, by))));
        f_store(beyond + r, f_add(a, f_select(f_lt(missed, none), f_sub(none, by), by)));
      }
    }
    if (p.near) p.near[i * ((p.n + kRows - 1) / kRows) + first / kRows] = 0;
    if (doubt) {  // never where every value is nearer than half a step, less what it is moved by
      ratios(p, beyond, scale, zero, offset, ratio);
      round_kernels.codes(*p.round, ratio, nullptr, kRows, p.width, farther, false);
      p.near[i * ((p.n + kRows - 1) / kRows) + first / kRows] = differ(stored, farther, rows, p.width);
    }
    if (second) {
      store4(moved + i * kRows, load4(x));
      keep(x, rows, p.moved + i * p.n + first);
    }
    keep(error + i * kRows, rows, p.error + i * p.n + first);
    memcpy(p.codes + (i * p.n + first) * p.width, stored, (size_t)(rows * p.width));
  }
  if (p.cost) store4(x, loss), keep(x, rows, p.loss + first);
}

// Sixteen rows at a time: what is read of them stays in the second-level cache whatever the order, and what is written is whole lines.
void columnwise(const float *in, int64_t rows, int64_t k, const int64_t *order, float *out, int64_t stride) {
  for (int64_t i = 0; i < k; i++) {
    const float *from = in + order[i];
    float *to = out + i * stride;
    if (rows == 16)
      for (int64_t r = 0; r < 16; r++) to[r] = from[r * k];
    else
      for (int64_t r = 0; r < rows; r++) to[r] = from[r * k];
  }
}

void ordered(const float *xtx, const int64_t *index, double mean, int64_t k, int64_t i, double *out) {
  const float *row = xtx + index[i] * k;
  for (int64_t j = 0; j <= i; j++) out[j] = (double)row[index[j]] / mean;
}

void unit(const double *lower, const double *diagonal, int64_t k, int64_t i, float *out) {
  const double *row = lower + (k - 1 - i) * k + (k - 1);
  for (int64_t j = i; j < k; j++) out[j] = (float)(row[-j] / diagonal[j]);
}

}  // namespace

extern const FeedbackKernels feedback_kernels;
const FeedbackKernels feedback_kernels = {run, columnwise, ordered, unit};

}  // namespace ANYBIT_ISA
}  // namespace anybit
