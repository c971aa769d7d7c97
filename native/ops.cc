// Operators beside the matrix product, compiled once per ISA. Every function is one definition of src/anybit/reference/ops.py, line for line:
// 16 lanes, one fixed order, fused multiply-adds only where `fma` stands. Operations per 16 elements stand beside each loop that matters.
#include "ops.h"

#include "isa.h"

#include "pattern.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

// ------------------------------------------------------------------------------------------------ elementary functions
AB_INLINE F power_of_two(I n) { return i_float(i_shl(i_add(n, i_set(127)), 23)); }

// 20 operations. Two halves of the exponent, so that results underflow gradually.
AB_INLINE F exp_lanes(F x) {
  const F t = f_min(f_set(89.0f), f_max(f_set(-105.0f), x));
  const F n = f_rne(f_mul(t, f_set(0x1.715476p+0f)));
  const F r = f_fma(n, f_set(0x1.05c610p-29f), f_fma(n, f_set(-0x1.62e430p-1f), t));
  F p = f_fma(f_set(0x1.6a23eep-10f), r, f_set(0x1.123a0ap-7f));
  p = f_fma(p, r, f_set(0x1.5558f2p-5f));
  p = f_fma(p, r, f_set(0x1.555492p-3f));
  p = f_fma(p, r, f_set(0x1.fffffcp-2f));
  p = f_fma(p, r, f_set(1.0f));
  p = f_fma(p, r, f_set(1.0f));
  const I whole = f_to_i(f_max(n, f_set(-152.0f)));  // -152 for NaN, where p is NaN already
  const I half = i_sar(whole, 1);
  return f_mul(f_mul(p, power_of_two(half)), power_of_two(i_sub(whole, half)));
}
AB_INLINE float exp_one(float x) {
  float t[16];
  f_store(t, exp_lanes(f_set(x)));
  return t[0];
}
AB_INLINE F silu_lanes(F x) { return f_div(x, f_add(f_set(1.0f), exp_lanes(f_sub(f_set(-0.0f), x)))); }

AB_INLINE F load_part(const float *p, int64_t count) {  // fewer than 16: the rest is +0
  float t[16] = {0};
  memcpy(t, p, sizeof(float) * (size_t)count);
  return f_load(t);
}
AB_INLINE void store_part(float *p, F a, int64_t count) {
  float t[16];
  f_store(t, a);
  memcpy(p, t, sizeof(float) * (size_t)count);
}
AB_INLINE Mask within(int64_t at, int64_t first, int64_t end) {  // lanes whose index at + j lies in [first, end)
  static const int32_t kIndex[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const I index = i_add(i_load(kIndex), i_set((int32_t)at));
  const F one = f_set(1.0f), zero = f_zero();
  const F inside = f_mul(f_select(i_lt(index, i_set((int32_t)end)), one, zero), f_select(i_lt(i_set((int32_t)first - 1), index), one, zero));
  return f_lt(zero, inside);
}

static double log64(double x) {  // finite, positive, normal
  int64_t bits;
  memcpy(&bits, &x, 8);
  double e = (double)((bits >> 52) - 1023), m;
  bits = (bits & ((1ll << 52) - 1)) | (1023ll << 52);
  memcpy(&m, &bits, 8);
  if (m > 0x1.6a09e667f3bcdp+0) m = m * 0.5, e = e + 1.0;
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double q = 1.0 / 21.0;
  for (int k = 19; k > 1; k -= 2) q = q * z + 1.0 / (double)k;
  const double twice = s + s;
  return e * 0x1.62e42feep-1 + (e * 0x1.a39ef35793c76p-33 + (twice + twice * (z * q)));
}
static void sincos(double x, double *sine, double *cosine) {
  static const double kFactorial[17] = {1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880, 3628800, 39916800, 479001600, 6227020800.0, 87178291200.0,
                                        1307674368000.0, 20922789888000.0};
  const double n = (x * 0x1.45f306dc9c883p-1 + 0x1.8p+52) - 0x1.8p+52;  // nearest-even for |n| < 2^51
  const double r = ((x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
  const double z = r * r;
  double s = -1.0 / kFactorial[15], c = 1.0 / kFactorial[16];
  for (int k = 13; k > 1; k -= 2) s = s * z + (k % 4 == 1 ? 1.0 : -1.0) / kFactorial[k];
  for (int k = 14; k > 0; k -= 2) c = c * z + (k % 4 == 0 ? 1.0 : -1.0) / kFactorial[k];
  s = r + r * (z * s), c = 1.0 + z * c;
  const int64_t quadrant = (int64_t)n & 3;
  const double a = quadrant & 1 ? c : s, b = quadrant & 1 ? s : c;
  *sine = quadrant & 2 ? -a : a;
  *cosine = (quadrant + 1) & 2 ? -b : b;
}

// ------------------------------------------------------------------------------------------------ rows
static int64_t rmsnorm(const float *x, int64_t stride, int64_t n, const float *weight, float eps, int64_t m0, int64_t m1, float *y, int64_t y_stride) {
  const int64_t whole = n / 16 * 16;
  for (int64_t m = m0; m < m1; m++) {
    const float *p = x + m * stride;
    float *out = y + m * y_stride;
    F sum = f_zero();
    for (int64_t i = 0; i < whole; i += 16) sum = f_fma(f_load(p + i), f_load(p + i), sum);
    if (whole < n) {
      const F v = load_part(p + whole, n - whole);
      sum = f_fma(v, v, sum);
    }
    const float mean = f_fold(sum) / (float)n;
    if ((float_bits(mean) & 0x7f800000u) == 0x7f800000u) return m;
    const float r = 1.0f / __builtin_sqrtf(mean + eps);
    const F by = f_set(r);
    for (int64_t i = 0; i < whole; i += 16) f_store(out + i, f_mul(f_mul(f_load(p + i), by), f_load(weight + i)));
    for (int64_t i = whole; i < n; i++) out[i] = (p[i] * r) * weight[i];
  }
  return -1;
}

static void add(float *x, const float *y, float factor, int64_t n) {
  int64_t i = 0;
  if (factor == 1.0f) {
    for (; i + 16 <= n; i += 16) f_store(x + i, f_add(f_load(x + i), f_load(y + i)));
    for (; i < n; i++) x[i] = x[i] + y[i];
    return;
  }
  const F by = f_set(factor);
  for (; i + 16 <= n; i += 16) f_store(x + i, f_fma(by, f_load(y + i), f_load(x + i)));
  if (i < n) store_part(x + i, f_fma(by, load_part(y + i, n - i), load_part(x + i, n - i)), n - i);
}

static void swiglu(const float *gate, const float *up, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f_store(y + i, f_mul(silu_lanes(f_load(gate + i)), f_load(up + i)));
  if (i < n) store_part(y + i, f_mul(silu_lanes(load_part(gate + i, n - i)), load_part(up + i, n - i)), n - i);
}

static void exp_all(const float *x, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f_store(y + i, exp_lanes(f_load(x + i)));
  if (i < n) store_part(y + i, exp_lanes(load_part(x + i, n - i)), n - i);
}

static void rope_table(int64_t position, const float *inverse, int64_t half, float factor, float *cos, float *sin) {
  const float at = (float)position;
  for (int64_t i = 0; i < half; i++) {
    double s, c;
    sincos((double)(at * inverse[i]), &s, &c);
    cos[i] = (float)c * factor, sin[i] = (float)s * factor;
  }
}

AB_INLINE void rotate_lanes(F *a, F *b, F cos, F sin) {
  const F x = *a, y = *b;
  *a = f_fma(x, cos, f_sub(f_set(-0.0f), f_mul(y, sin)));
  *b = f_fma(y, cos, f_mul(x, sin));
}
static void rotate(float *x, int64_t half, const float *cos, const float *sin) {
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    F a = f_load(x + i), b = f_load(x + half + i);
    rotate_lanes(&a, &b, f_load(cos + i), f_load(sin + i));
    f_store(x + i, a), f_store(x + half + i, b);
  }
  if (i < half) {
    const int64_t left = half - i;
    F a = load_part(x + i, left), b = load_part(x + half + i, left);
    rotate_lanes(&a, &b, load_part(cos + i, left), load_part(sin + i, left));
    store_part(x + i, a, left), store_part(x + half + i, b, left);
  }
}

static bool finite(const float *x, int64_t n) {
  I top = i_zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) top = i_max(top, i_and(f_bits(f_load(x + i)), i_set(0x7fffffff)));
  if (i < n) top = i_max(top, i_and(f_bits(load_part(x + i, n - i)), i_set(0x7fffffff)));
  int32_t lanes[16], most = 0;
  i_store(lanes, top);
  for (int j = 0; j < 16; j++) most = lanes[j] > most ? lanes[j] : most;
  return most < 0x7f800000;
}

// ------------------------------------------------------------------------------------------------ attention
// Register blocks: R queries by G vectors of 16 keys (scores) or of 16 head elements (weighted values).
#if ANYBIT_512
constexpr int kQueries = 4, kGroups = 4;
#elif ANYBIT_256
constexpr int kQueries = 4, kGroups = 1;  // measured: 18.5 ms where (2, 2) took 22.9
#else
constexpr int kQueries = 4, kGroups = 1;
#endif

template <int R, int G> struct Sums { F v[R][G]; };

// Another product, then a sum: two roundings where Fused has one.
struct Fused {
  AB_LAMBDA F next(F a, F b, F sum) const { return f_fma(a, b, sum); }
};
struct Patterned {
  const Pattern &pattern;
  AB_LAMBDA F operand(F x) const { return pattern.mantissa < 23 ? round_pattern(x, pattern) : x; }
  AB_LAMBDA F next(F a, F b, F sum) const { return f_add(sum, pattern_product(operand(a), operand(b), pattern)); }
};

// The fold of the lanes first, first + step, ... below 16: lane `first` of the definition is one chain here, because keys lie in lanes.
// `steps` is dim / 16 where it is known when compiling, else 0. A chain begins with a product: a fused multiply-add onto +0 would differ only in
// the sign of a zero, which no score's exponential shows.
template <int R, int G, int steps, int first, int step> AB_INLINE Sums<R, G> fold_keys(const float *const *q, const float *keys, int64_t dim) {
  Sums<R, G> sum;
  if constexpr (step < 16) {
    sum = fold_keys<R, G, steps, first, 2 * step>(q, keys, dim);
    const Sums<R, G> other = fold_keys<R, G, steps, first + step, 2 * step>(q, keys, dim);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < G; g++) sum.v[r][g] = f_add(sum.v[r][g], other.v[r][g]);
  } else {
    if (steps == 0 && first >= dim) {
      for (int r = 0; r < R; r++)
        for (int g = 0; g < G; g++) sum.v[r][g] = f_zero();
      return sum;
    }
    for (int g = 0; g < G; g++) {
      const F k = f_load(keys + (first + g * dim) * 16);
      for (int r = 0; r < R; r++) sum.v[r][g] = f_mul(f_set(q[r][first]), k);
    }
    const int64_t end = steps ? 16 * steps : dim;
    for (int64_t d = first + 16; d < end; d += 16)
      for (int g = 0; g < G; g++) {
        const F k = f_load(keys + (d + g * dim) * 16);
        for (int r = 0; r < R; r++) sum.v[r][g] = f_fma(f_set(q[r][d]), k, sum.v[r][g]);
      }
  }
  return sum;
}

// s[r][0..16G) = dot(q[r], key) * scale for 16G keys: dim * R * G fma, 15 * R * G additions.
template <int R, int G, int steps> static void scores(const float *const *q, const float *keys, int64_t dim, float scale, float *s) {
  const Sums<R, G> sum = fold_keys<R, G, steps, 0, 1>(q, keys, dim);
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) f_store(s + r * kTileKeys + 16 * g, f_mul(sum.v[r][g], f_set(scale)));
}

template <int R, int G> static void all_scores(const float *const *q, const float *keys, int64_t dim, float scale, float *s, Fused) {
  if (dim == 32) scores<R, G, 2>(q, keys, dim, scale, s);
  else if (dim == 64) scores<R, G, 4>(q, keys, dim, scale, s);
  else if (dim == 128) scores<R, G, 8>(q, keys, dim, scale, s);
  else scores<R, G, 0>(q, keys, dim, scale, s);
}
template <int R, int G> static void all_scores(const float *const *q, const float *keys, int64_t dim, float scale, float *s, Patterned m) {
  for (int g = 0; g < G; g++, keys += 16 * dim) {
    F lanes[16][R];
    for (int j = 0; j < 16; j++)
      for (int r = 0; r < R; r++) lanes[j][r] = f_zero();
    for (int64_t d = 0; d < dim; d++) {
      const F k = f_load(keys + 16 * d);
      for (int r = 0; r < R; r++) lanes[d & 15][r] = m.next(f_set(q[r][d]), k, lanes[d & 15][r]);
    }
    for (int half = 8; half; half >>= 1)
      for (int j = 0; j < half; j++)
        for (int r = 0; r < R; r++) lanes[j][r] = f_add(lanes[j][r], lanes[j + half][r]);
    for (int r = 0; r < R; r++) f_store(s + r * kTileKeys + 16 * g, f_mul(lanes[0][r], f_set(scale)));
  }
}

// o[r][0..16G) = o + sum over keys [first, end), ascending, of e[r][key] * values[key].
template <int R, int G, class M> static void weigh(const float *e, const float *values, int64_t padded, int64_t first, int64_t end, float *o, int64_t o_stride, M m) {
  F acc[R][G];
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) acc[r][g] = f_load(o + r * o_stride + 16 * g);
  for (int64_t key = first; key < end; key++) {
    F v[G];
    for (int g = 0; g < G; g++) v[g] = f_load(values + key * padded + 16 * g);
    for (int r = 0; r < R; r++) {
      const F x = f_set(e[r * kTileKeys + key]);
      for (int g = 0; g < G; g++) acc[r][g] = m.next(x, v[g], acc[r][g]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) f_store(o + r * o_stride + 16 * g, acc[r][g]);
}
template <int R, class M> static void weigh_all(const float *e, const float *values, int64_t padded, int64_t first, int64_t end, float *o, int64_t o_stride, M m) {
  if (first >= end) return;
  int64_t d = 0;
  for (; d + 16 * kGroups <= padded; d += 16 * kGroups) weigh<R, kGroups>(e, values + d, padded, first, end, o + d, o_stride, m);
  for (; d < padded; d += 16) weigh<R, 1>(e, values + d, padded, first, end, o + d, o_stride, m);
}

// Scores of visible keys become weights exp(s - top), the others +0. Returns the sum; *top is the maximum.
AB_INLINE float softmax_row(float *s, int64_t first, int64_t end, float *top) {
  F x[4], e[4];
  for (int g = 0; g < 4; g++) x[g] = f_load(s + 16 * g);
  if (first > 0 || end < kTileKeys)
    for (int g = 0; g < 4; g++) x[g] = f_select(within(16 * g, first, end), x[g], f_set(-__builtin_inff()));
  *top = f_fold_max(f_max(f_max(x[0], x[1]), f_max(x[2], x[3])));
  for (int g = 0; g < 4; g++) e[g] = exp_lanes(f_sub(x[g], f_set(*top)));  // exp(-inf) is +0
  for (int g = 0; g < 4; g++) f_store(s + 16 * g, e[g]);
  const F sum = f_add(f_add(f_add(e[0], e[1]), e[2]), e[3]);
  return f_fold(sum);
}

static void merge(float *state, const float *later, int64_t padded) {
  if (later[2] == 0.0f) return;
  if (state[2] == 0.0f) {
    memcpy(state, later, sizeof(float) * (size_t)(kStateHead + padded));
    return;
  }
  const float top = state[0] > later[0] ? state[0] : later[0];
  const float a = exp_one(state[0] - top), b = exp_one(later[0] - top);
  state[0] = top;
  state[1] = __builtin_fmaf(later[1], b, state[1] * a);
  const F by_a = f_set(a), by_b = f_set(b);
  for (int64_t d = kStateHead; d < kStateHead + padded; d += 16) f_store(state + d, f_fma(f_load(later + d), by_b, f_mul(f_load(state + d), by_a)));
}

struct Block {  // the buffers of one register block of queries
  float *s;      // [kQueries][64]
  float *tile;   // [kQueries][kStateHead + padded]: the state of one tile
  float *span;   // the same for the span
  int64_t size;  // kStateHead + padded
};

// One tile for `R` queries from q0 on: its state is merged into the block's span state.
template <int R, class M> static void attend_tile(const Attend &a, int64_t q0, int64_t tile, const Block &b, M m) {
  const float *q[R];
  int64_t first[R], end[R], common_first = 0, common_end = kTileKeys;
  const int64_t start = tile * kTileKeys;
  for (int r = 0; r < R; r++) {
    const Query &query = a.queries[q0 + r];
    q[r] = query.q;
    first[r] = query.first - start, end[r] = query.end - start;
    first[r] = first[r] < 0 ? 0 : first[r] > kTileKeys ? kTileKeys : first[r];
    end[r] = end[r] > kTileKeys ? kTileKeys : end[r] < first[r] ? first[r] : end[r];
    common_first = first[r] > common_first ? first[r] : common_first;
    common_end = end[r] < common_end ? end[r] : common_end;
  }
  for (int g = 0; g < 4; g += kGroups) all_scores<R, kGroups>(q, a.keys[tile] + 16 * g * a.dim, a.dim, a.scale, b.s + 16 * g, m);
  memset(b.tile, 0, sizeof(float) * (size_t)(R * b.size));
  for (int r = 0; r < R; r++) {
    if (first[r] == end[r]) continue;
    float *state = b.tile + r * b.size;
    state[1] = softmax_row(b.s + r * kTileKeys, first[r], end[r], state);
    state[2] = 1.0f;
  }
  // Keys that all queries see run together; those before and after run query by query, so that no key that a query does not see takes part.
  float *o = b.tile + kStateHead;
  if (common_first < common_end) {
    for (int r = 0; r < R; r++) weigh_all<1>(b.s + r * kTileKeys, a.values[tile], a.padded, first[r], common_first, o + r * b.size, b.size, m);
    weigh_all<R>(b.s, a.values[tile], a.padded, common_first, common_end, o, b.size, m);
    for (int r = 0; r < R; r++) weigh_all<1>(b.s + r * kTileKeys, a.values[tile], a.padded, common_end, end[r], o + r * b.size, b.size, m);
  } else {
    for (int r = 0; r < R; r++) weigh_all<1>(b.s + r * kTileKeys, a.values[tile], a.padded, first[r], end[r], o + r * b.size, b.size, m);
  }
  for (int r = 0; r < R; r++) merge(b.span + r * b.size, b.tile + r * b.size, a.padded);
}

template <int R, class M> static void attend_block(const Attend &a, int64_t q0, const Block &b, M m) {
  for (int r = 0; r < R; r++) b.span[r * b.size + 2] = 0.0f;
  int64_t first = a.queries[q0].first, end = a.queries[q0].end;
  for (int r = 1; r < R; r++) {
    const Query &query = a.queries[q0 + r];
    first = query.first < first ? query.first : first;
    end = query.end > end ? query.end : end;
  }
  for (int64_t tile = a.tile0; tile < a.tile1; tile++)
    if (first < (tile + 1) * kTileKeys && end > tile * kTileKeys) attend_tile<R>(a, q0, tile, b, m);
  for (int r = 0; r < R; r++) merge(a.queries[q0 + r].state, b.span + r * b.size, a.padded);
}

static size_t attend_floats(int64_t padded) { return (size_t)(kQueries * (kTileKeys + 2 * (kStateHead + padded))); }

template <class M> static void attend_with(const Attend &a, M m) {
  const int64_t size = kStateHead + a.padded;
  const Block b = {a.buffer, a.buffer + kQueries * kTileKeys, a.buffer + kQueries * (kTileKeys + size), size};
  int64_t q0 = 0;
  for (; q0 + kQueries <= a.count; q0 += kQueries) attend_block<kQueries>(a, q0, b, m);
  for (; q0 < a.count; q0++) attend_block<1>(a, q0, b, m);
}

static void attend(const Attend &a) {
  if (a.pattern) attend_with(a, Patterned{*a.pattern});
  else attend_with(a, Fused{});
}

static void finish(const float *state, int64_t dim, float *out) {
  const float r = 1.0f / state[1];
  for (int64_t d = 0; d < dim; d++) out[d] = state[kStateHead + d] * r;
}

// ------------------------------------------------------------------------------------------------ logits
static int64_t argmax(const float *logits, int64_t n) {
  if (n == 0 || !finite(logits, n)) return -1;
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  return best;
}

static void weights(const float *logits, int64_t n, float top, float temperature, float *e) {
  const F most = f_set(top), by = f_set(temperature);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f_store(e + i, exp_lanes(f_div(f_sub(f_load(logits + i), most), by)));
  if (i < n) store_part(e + i, exp_lanes(f_div(f_sub(load_part(logits + i, n - i), most), by)), n - i);
}

AB_INLINE double fold64(double *lanes) {
  for (int half = 8; half; half >>= 1)
    for (int j = 0; j < half; j++) lanes[j] = lanes[j] + lanes[j + half];
  return lanes[0];
}
AB_INLINE float largest(const float *x, int64_t n) {
  F most = f_set(-__builtin_inff());
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) most = f_max(most, f_load(x + i));
  float top = f_fold_max(most);
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

static void route(const float *logits, int64_t n, int64_t count, bool renormalise, float *e, int32_t *chosen, float *weights) {
  bool taken[kMostExperts] = {false};
  float top = 0.0f;
  for (int64_t j = 0; j < count; j++) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
      if (!taken[i] && (best < 0 || logits[i] > logits[best])) best = i;
    taken[best] = true;
    if (j == 0) top = logits[best];
  }
  for (int64_t i = 0; i < n; i++) e[i] = logits[i] - top;
  exp_all(e, n, e);
  float sum = 0.0f;
  for (int64_t i = 0; i < n; i++)
    if (!renormalise || taken[i]) sum = sum + e[i];
  int64_t j = 0;
  for (int64_t i = 0; i < n; i++)
    if (taken[i]) chosen[j] = (int32_t)i, weights[j++] = e[i] / sum;
}

static double logsumexp(const float *logits, int64_t n) {
  const float top = largest(logits, n);
  double lanes[16] = {0};
  float e[16];
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    f_store(e, exp_lanes(f_sub(count == 16 ? f_load(logits + i) : load_part(logits + i, count), f_set(top))));
    for (int j = 0; j < 16; j++) lanes[j] = lanes[j] + (j < count ? (double)e[j] : 0.0);
  }
  return (double)top + log64(fold64(lanes));
}

// sum of p * ((reference - reference_lse) - (logits - lse)), p = exp(reference - top) / sum, in 16 float64 lanes.
static double divergence(const float *reference, const float *logits, int64_t n, double reference_lse, double lse) {
  const float top = largest(reference, n);
  double sums[16] = {0}, terms[16] = {0};
  float e[16];
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    f_store(e, exp_lanes(f_sub(count == 16 ? f_load(reference + i) : load_part(reference + i, count), f_set(top))));
    for (int j = 0; j < count; j++) {
      const double p = (double)e[j];
      sums[j] = sums[j] + p;
      terms[j] = terms[j] + p * (((double)reference[i + j] - reference_lse) - ((double)logits[i + j] - lse));
    }
  }
  const double total = fold64(sums);
  return fold64(terms) / total;
}

}  // namespace

extern const OpsKernels ops_kernels;
#define AB_TEXT(x) #x
#define AB_NAME(x) AB_TEXT(x)
const OpsKernels ops_kernels = {AB_NAME(ANYBIT_ISA), rmsnorm, add, swiglu, exp_all, rope_table, rotate, finite, attend_floats, attend, merge, finish,
                                argmax, weights, route, logsumexp, divergence};

}  // namespace ANYBIT_ISA
}  // namespace anybit
