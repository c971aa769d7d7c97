// Rounding float32 to an element's values or codes, compiled once per ISA. All inputs here are finite (the caller replaces what is not); results are
// those of formats/rounding.py's switch points, or of formats/stochastic.py, to the last bit.
//
// Sixteen numbers at a time by round_kinds.h; random words are made in registers beside them, 64 at a time. Buckets: one load of a threshold and one of the
// result, number by number.
#include "round.h"

#include "isa.h"
#include "philox.h"
#include "round_kinds.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

AB_INLINE F load_part(const float *p, int64_t count) {  // fewer than 16: the rest is +0
  float t[16] = {0};
  memcpy(t, p, sizeof(float) * (size_t)count);
  return f_load(t);
}

// ------------------------------------------------------------------------------------------------ loops
constexpr int64_t kAhead = kRoundBlock;  // numbers: how far ahead of those that are rounded the next ones are fetched

struct NoWords {
  __attribute__((always_inline)) I at(int64_t) const { return i_zero(); }
  NoWords from(int64_t) const { return {}; }
};
struct Words {  // made before, up to 64 more than there are numbers
  const int32_t *w;
  __attribute__((always_inline)) I at(int64_t i) const { return i_load(w + i); }
  Words from(int64_t i) const { return {w + i}; }
};

AB_INLINE void put(float *out, F y, bool stream) {
  if (stream) f_stream(out, y);
  else f_store(out, y);
}

template <class Kind, class Source>
static __attribute__((noinline)) void values_lanes(const RoundPlan &plan, const float *x, Source words, int64_t n, float *out, bool stream) {
  const RoundPlan p = plan;  // what no store can change stays in registers
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __builtin_prefetch(x + i + kAhead);
    put(out + i, Kind().value(p, f_load(x + i), words.at(i)), stream);
  }
  if (i == n) return;
  float rest[16] = {0}, t[16];
  memcpy(rest, x + i, sizeof(float) * (size_t)(n - i));
  values_lanes<Kind, Source>(plan, rest, words.from(i), 16, t, false);
  memcpy(out + i, t, sizeof(float) * (size_t)(n - i));
}

// Whether all counters from a place on, for n numbers, are whole and have one upper half.
AB_INLINE bool in_step(const Draw &d, int64_t n) { return d.place % 4 == 0 && d.place >> 34 == (d.place + (uint64_t)n + kWords) >> 34; }

// Numbers in as many as words are made at a time: how many it did. On sets whose lanes are loops that gains nothing.
#if (ANYBIT_512 || ANYBIT_256) && !ANYBIT_SIMDE
constexpr bool kBeside = true;
#else
constexpr bool kBeside = false;
#endif
template <class Kind>
static __attribute__((noinline)) int64_t values_in_step(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, float *out, bool stream) {
  const RoundPlan p = plan;
  const Keys k = philox_keys(draw.seed, draw.place / 4);
  int64_t i = 0;
  for (; i + kWords <= n; i += kWords) {
    I w[kWords / 16];
    philox_sets(k, (draw.place + (uint64_t)i) / 4, w);
#pragma GCC unroll 8
    for (int j = 0; j < kWords / 16; j++) {
      __builtin_prefetch(x + i + 16 * j + kAhead);
      put(out + i + 16 * j, Kind().value(p, f_load(x + i + 16 * j), w[j]), stream);
    }
  }
  return i;
}

template <class Kind> static void values_drawn(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, float *out, bool stream) {
  [[maybe_unused]] const Mode<Kind> mode = {};
  int64_t i = 0;
  if constexpr (kBeside)
    if (in_step(draw, n)) i = values_in_step<Kind>(plan, x, draw, n, out, stream);
  alignas(64) uint32_t words[512 + 64];
  for (int64_t count; i < n; i += count) {
    count = n - i < 512 ? n - i : 512;
    philox_words(draw.seed, draw.place + (uint64_t)i, count, words);
    memset(words + count, 0, sizeof(uint32_t) * 64);
    values_lanes<Kind>(plan, x + i, Words{(const int32_t *)words}, count, out + i, stream);
  }
}

// Codes of 64 numbers in bytes, or in two each.
AB_INLINE void put_codes(uint8_t *out, const I *c, int width, bool stream) {
  if (width == 1) {
    const B bytes = b_narrow(c[0], c[1], c[2], c[3]);
    if (stream) b_stream(out, bytes);
    else b_store(out, bytes);
    return;
  }
  for (int j = 0; j < 4; j += 2) {
    const B pair = b_narrow16(c[j], c[j + 1]);
    if (stream) b_stream(out + 32 * j, pair);
    else b_store(out + 32 * j, pair);
  }
}

template <class Kind, class Source>
static __attribute__((noinline)) void codes_lanes(const RoundPlan &plan, const float *x, Source words, int64_t n, int width, uint8_t *out, bool stream) {
  const RoundPlan p = plan;
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    I c[4];
#pragma GCC unroll 1
    for (int j = 0; j < 4; j++) {
      __builtin_prefetch(x + i + 16 * j + kAhead);
      c[j] = Kind().code(p, f_load(x + i + 16 * j), words.at(i + 16 * j));
    }
    put_codes(out + width * i, c, width, stream);
  }
  if (i == n) return;
  float rest[64] = {0};
  uint8_t t[128];
  memcpy(rest, x + i, sizeof(float) * (size_t)(n - i));
  codes_lanes<Kind, Source>(plan, rest, words.from(i), 64, width, t, false);
  memcpy(out + width * i, t, (size_t)(width * (n - i)));
}

template <class Kind>
static __attribute__((noinline)) int64_t codes_in_step(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, int width, uint8_t *out, bool stream) {
  const RoundPlan p = plan;
  const Keys k = philox_keys(draw.seed, draw.place / 4);
  int64_t i = 0;
  for (; i + kWords <= n; i += kWords) {
    I w[kWords / 16];
    philox_sets(k, (draw.place + (uint64_t)i) / 4, w);
#pragma GCC unroll 8
    for (int j = 0; j < kWords / 16; j++) {
      __builtin_prefetch(x + i + 16 * j + kAhead);
      w[j] = Kind().code(p, f_load(x + i + 16 * j), w[j]);
    }
    for (int j = 0; j < kWords / 16; j += 4) put_codes(out + width * (i + 16 * j), w + j, width, stream);
  }
  return i;
}

template <class Kind> static void codes_drawn(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, int width, uint8_t *out, bool stream) {
  [[maybe_unused]] const Mode<Kind> mode = {};
  int64_t i = 0;
  if constexpr (kBeside)
    if (in_step(draw, n)) i = codes_in_step<Kind>(plan, x, draw, n, width, out, stream);
  alignas(64) uint32_t words[512 + 64];
  for (int64_t count; i < n; i += count) {
    count = n - i < 512 ? n - i : 512;
    philox_words(draw.seed, draw.place + (uint64_t)i, count, words);
    memset(words + count, 0, sizeof(uint32_t) * 64);
    codes_lanes<Kind>(plan, x + i, Words{(const int32_t *)words}, count, width, out + width * i, stream);
  }
}

// ------------------------------------------------------------------------------------------------ any values
AB_INLINE uint32_t rank_of(const RoundPlan &p, float x) {
  if (p.kind == RoundKind::Buckets) {
    const uint32_t bits = float_bits(x);
    const Node node = p.nodes[bits >> 23];
    const Bucket b = p.buckets[node.base + ((bits & 0x7fffff) >> node.shift)];
    return b.rank + (x >= b.threshold);
  }
  const float *at = p.points;  // how many points are <= x
  int64_t left = p.point_count;
  while (left > 0) {
    const int64_t half = left / 2;
    const bool on = at[half] <= x;
    at = on ? at + half + 1 : at;
    left = on ? left - half - 1 : half;
  }
  return (uint32_t)(at - p.points) + (float_bits(x) >> 31) * p.negative_ranks;
}

// Ranks of up to kRoundBlock numbers. Stochastic: the rank from below, and one more where the comparison of formats/stochastic.py says so.
static void ranks(const RoundPlan &p, const float *x, const uint32_t *words, int64_t n, uint32_t *out) {
  for (int64_t i = 0; i < n; i++) out[i] = rank_of(p, x[i]);
  if (p.mode != RoundMode::Stochastic) return;
  const int drop = 32 - p.random_bits;
  const double scale = (double)(1ull << p.random_bits);
  for (int64_t i = 0; i < n; i++) {
    const double a = p.chain[out[i]], b = p.chain[out[i] + 1], v = (double)x[i];
    const bool negative = float_bits(x[i]) >> 31;
    const double distance = negative ? b - v : v - a;
    const bool far = (double)(words[i] >> drop) * (b - a) < distance * scale;
    out[i] += far != negative;
  }
}

template <class T, class Table> static void picked(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, T *out, const Table *table) {
  if (p.kind == RoundKind::Buckets && !draw) {
    const Node *nodes = p.nodes;
    const Bucket *buckets = p.buckets, *halves = p.halves;
    if (halves) {
      for (int64_t i = 0; i < n; i++) {
        const Bucket b = halves[float_bits(x[i]) >> 16];
        out[i] = (T)table[b.rank + (x[i] >= b.threshold)];
      }
      return;
    }
    for (int64_t i = 0; i < n; i++) {
      const uint32_t bits = float_bits(x[i]);
      const Node node = nodes[bits >> 23];
      const Bucket b = buckets[node.base + ((bits & 0x7fffff) >> node.shift)];
      out[i] = (T)table[b.rank + (x[i] >= b.threshold)];
    }
    return;
  }
  uint32_t rank[kRoundBlock], words[kRoundBlock];
  for (int64_t at = 0; at < n; at += kRoundBlock) {
    const int64_t count = n - at < kRoundBlock ? n - at : kRoundBlock;
    if (draw) philox_words(draw->seed, draw->place + (uint64_t)at, count, words);
    ranks(p, x + at, words, count, rank);
    for (int64_t i = 0; i < count; i++) out[at + i] = (T)table[rank[i]];
  }
}

// ------------------------------------------------------------------------------------------------ by kind and mode
// What is to be done with each sixteen numbers, chosen by a plan: `call` is given the kind.
template <template <RoundMode> class Kind, class Call> AB_INLINE void by_mode(RoundMode mode, Call call) {
  switch (mode) {
    case RoundMode::NearestEven: return call(Kind<RoundMode::NearestEven>());
    case RoundMode::NearestAway: return call(Kind<RoundMode::NearestAway>());
    case RoundMode::NearestZero: return call(Kind<RoundMode::NearestZero>());
    case RoundMode::Zero: return call(Kind<RoundMode::Zero>());
    case RoundMode::Up: return call(Kind<RoundMode::Up>());
    case RoundMode::Down: return call(Kind<RoundMode::Down>());
    case RoundMode::Odd: return call(Kind<RoundMode::Odd>());
    case RoundMode::Stochastic: return;  // see by_drawn
  }
}

// Tables repeat up to 128 entries: modes other than the usual one read them as such.
template <class Call> AB_INLINE void by_entries(const RoundPlan &p, Call call) {
#if ANYBIT_512 || ANYBIT_256
  if (p.mode == RoundMode::NearestEven && p.entries == 16) return call(TaperedOf<16>::Kind<RoundMode::NearestEven>());
  if (p.mode == RoundMode::NearestEven && p.entries == 32) return call(TaperedOf<32>::Kind<RoundMode::NearestEven>());
  if (p.mode == RoundMode::NearestEven && p.entries == 64) return call(TaperedOf<64>::Kind<RoundMode::NearestEven>());
  return by_mode<TaperedOf<128>::Kind>(p.mode, call);
#else
  return by_mode<TaperedOf<0>::Kind>(p.mode, call);  // tables of all sizes are read alike
#endif
}

AB_INLINE bool by_lanes(const RoundPlan &p) { return p.kind <= RoundKind::Search; }

template <class Call> AB_INLINE void by_kind(const RoundPlan &p, Call call) {
  if (p.kind == RoundKind::Steps) by_mode<Steps>(p.mode, call);
  else if (p.kind == RoundKind::Prefix) by_mode<Prefix>(p.mode, call);
  else if (p.kind == RoundKind::Tapered) by_entries(p, call);
  else call(Searched<Search>());
}

template <bool upwards> AB_INLINE bool float_steps(const RoundPlan &p) {
  return p.random_bits <= 24 && (upwards ? p.least > p.mantissa + 24 && p.mantissa <= 20 : p.least <= 127 + p.mantissa);
}

template <class Call> AB_INLINE void by_drawn(const RoundPlan &p, Call call) {
  if (p.kind == RoundKind::Search) return call(Searched<DrawnSearch>());
  if (p.kind == RoundKind::Prefix) return call(Prefix<RoundMode::Stochastic>());
  if (p.kind == RoundKind::Steps) return float_steps<kUpwards>(p) ? call(DrawnSteps<kUpwards>()) : call(Steps<RoundMode::Stochastic>());
#if ANYBIT_512 || ANYBIT_256
  return p.entries <= 64 ? call(DrawnTapered<64>()) : call(DrawnTapered<128>());
#else
  return call(DrawnTapered<0>());
#endif
}

static void values(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, float *out, bool stream) {
  if (by_lanes(p) && draw) return by_drawn(p, [&](auto k) { values_drawn<decltype(k)>(p, x, *draw, n, out, stream); });
  if (by_lanes(p)) return by_kind(p, [&](auto k) { values_lanes<decltype(k)>(p, x, NoWords(), n, out, stream); });
  if (!stream) return picked(p, x, draw, n, out, p.rank_values);
  float block[kRoundBlock];
  for (int64_t at = 0; at < n; at += kRoundBlock) {
    const int64_t count = n - at < kRoundBlock ? n - at : kRoundBlock;
    const Draw here = {draw ? draw->seed : 0, draw ? draw->place + (uint64_t)at : 0};
    picked(p, x + at, draw ? &here : nullptr, count, block, p.rank_values);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) f_stream(out + at + i, f_load(block + i));
    memcpy(out + at + i, block + i, sizeof(float) * (size_t)(count - i));
  }
}

static void codes(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, int width, void *out, bool stream) {
  if (!by_lanes(p)) return width == 1 ? picked(p, x, draw, n, (uint8_t *)out, p.rank_codes) : picked(p, x, draw, n, (uint16_t *)out, p.rank_codes);
  if (draw) return by_drawn(p, [&](auto k) { codes_drawn<decltype(k)>(p, x, *draw, n, width, (uint8_t *)out, stream); });
  by_kind(p, [&](auto k) { codes_lanes<decltype(k)>(p, x, NoWords(), n, width, (uint8_t *)out, stream); });
}

// ------------------------------------------------------------------------------------------------ around it
static uint32_t largest(const float *x, int64_t n) {
  const I magnitude = i_set(0x7fffffff);
  I m0 = i_zero(), m1 = i_zero();
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    m0 = i_max(m0, i_and(f_bits(f_load(x + i)), magnitude));
    m1 = i_max(m1, i_and(f_bits(f_load(x + i + 16)), magnitude));
  }
  for (; i < n; i += 16) m0 = i_max(m0, i_and(f_bits(n - i < 16 ? load_part(x + i, n - i) : f_load(x + i)), magnitude));
  return (uint32_t)i_fold_max(i_max(m0, m1));
}

static void range(const float *x, int64_t n, float *low, float *high) {
  float least = x[0], most = x[0];
  for (int64_t i = 1; i < n; i++) least = x[i] < least ? x[i] : least, most = x[i] > most ? x[i] : most;
  *low = least, *high = most;
}

// ------------------------------------------------------------------------------------------------ blocks with scales
AB_INLINE uint64_t double_bits(double x) { uint64_t u; memcpy(&u, &x, 8); return u; }
AB_INLINE double bits_double(uint64_t u) { double x; memcpy(&x, &u, 8); return x; }

// Like the values of Steps, in float64: adding a power of two whose last place is the grid's step rounds to nearest even. No branches: compilers
// make lanes of it. A target that is not for this pass gives NaN, which is within no limit.
template <bool power_of_two, bool one_level> AB_INLINE void scales_of(const BlockPlan &plan, const uint32_t *largest, int64_t count, float *scale) {
  const BlockPlan b = plan;
  const uint64_t exponents = 0x7ffull << 52, first = double_bits(b.first), down = (uint64_t)(int64_t)(1 - b.top) << 52, places = (uint64_t)(52 - b.mantissa) << 52;
  for (int64_t i = 0; i < count; i++) {
    const double amax = (double)bits_float(largest[i]);
    double target = power_of_two ? (amax > 0 ? bits_double((double_bits(amax) & exponents) + down) : 0.0) : amax / b.most;
    if (!one_level) target = target / b.outer;
    double held = target < b.smallest ? b.smallest : target;
    held = held > b.biggest ? b.biggest : held;
    const uint64_t e = double_bits(held) & exponents;
    const double big = bits_double((e > first ? e : first) + places);
    const float s = (float)((held + big) - big) * b.factor;
    scale[i] = target >= b.end ? bits_float(0x7fc00000u) : s;
  }
}

static void scales(const BlockPlan &b, const uint32_t *largest, int64_t count, float *scale) {
  if (b.power_of_two) return b.outer == 1.0 ? scales_of<true, true>(b, largest, count, scale) : scales_of<true, false>(b, largest, count, scale);
  return b.outer == 1.0 ? scales_of<false, true>(b, largest, count, scale) : scales_of<false, false>(b, largest, count, scale);
}

// Blocks of whole registers: divided, rounded and multiplied in one go. The quotient is that of the division, to the last bit, by
//   Times   a power of two whose reciprocal is a normal number
//   Fused   y = fl(1 / s), q0 = fl(x y), q1 = fl(q0 - (q0 s - x) y), which is one of the quotient's neighbours, q = fl(q1 - (q1 s - x) y); remainders are exact where
//           nothing underflows (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990). With s from 2^-30 to 2^60 that
//           holds for quotients from 2^-70 on; smaller ones stay small, and round to zero like the true ones (see `fused`). -0 stays -0.
//   Divide  everything else
enum class Quotient { Times, Fused, Divide };

template <class Kind, Quotient way> AB_INLINE F in_block(const RoundPlan &p, F v, F times, F by, I word) {
  F q;
  if constexpr (way == Quotient::Divide) {
    q = f_div(v, by);
  } else {
    q = f_mul(v, by);
    if constexpr (way == Quotient::Fused) {
      q = f_nfma(f_fms(q, times, v), by, q);
      q = f_nfma(f_fms(q, times, v), by, q);
    }
  }
  return f_mul(Kind().value(p, q, word), times);
}

// `each`: registers a block, of which all are whole; 0: any number.
template <class Kind, Quotient way, int each>
static __attribute__((noinline)) void whole_blocks(const RoundPlan &plan, const float *x, const uint32_t *words, int64_t n, int64_t size, const float *scale,
                                                   const float *over, float *out, bool stream) {
  const RoundPlan p = plan;
  if constexpr (each > 0) {
    for (int64_t block = 0, at = 0; at < n; block++, at += 16 * each) {
      const F times = f_set(scale[block]), by = f_set(over[block]);
#pragma GCC unroll 2
      for (int j = 0; j < 16 * each; j += 16) {
        __builtin_prefetch(x + at + j + kAhead);
        put(out + at + j, in_block<Kind, way>(p, f_load(x + at + j), times, by, i_zero()), stream);
      }
    }
    return;
  }
  const int32_t *w = (const int32_t *)words;
  for (int64_t block = 0, at = 0; at < n; block++) {
    const F times = f_set(scale[block]), by = f_set(over[block]);
    for (const int64_t end = n - at < size ? n : at + size; at < end; at += 16) {
      __builtin_prefetch(x + at + kAhead);
      put(out + at, in_block<Kind, way>(p, f_load(x + at), times, by, w ? i_load(w + at) : i_zero()), stream);
    }
  }
}

struct Scales {  // of a piece's blocks
  alignas(64) float scale[kRoundBlock];
  alignas(64) float over[kRoundBlock];  // reciprocals, or what to divide by
  Quotient way;
};

// Whether nothing that is rounded to nearest needs the bits of quotients below 2^-70.
AB_INLINE bool fused(const RoundPlan &p) { return p.kind == RoundKind::Steps && p.mode == RoundMode::NearestEven && p.least - p.mantissa > 127 - 60; }

// Whether no scale is too large.
static bool settle(const RoundPlan &p, const BlockPlan &b, int64_t count, Scales *s) {
  const float *scale = s->scale;
  int within = 1, powers = 1, middling = 1;
  for (int64_t i = 0; i < count; i++) {
    within &= (double)scale[i] <= b.limit;
    const uint32_t bits = float_bits(scale[i]);
    powers &= ((bits & 0x7fffff) == 0) & (bits - 0x00800000u <= 0x7e000000u);  // 2^-126 to 2^126
    middling &= bits - 0x30800000u <= 0x2d000000u;                              // 2^-30 to 2^60
  }
  s->way = powers ? Quotient::Times : middling && fused(p) ? Quotient::Fused : Quotient::Divide;
  if (s->way == Quotient::Divide)
    for (int64_t i = 0; i < count; i++) s->over[i] = scale[i] == 0.0f ? bits_float(0x7f800000u) : scale[i];  // 0: a product of tiny scales has vanished
  else
    for (int64_t i = 0; i < count; i++) s->over[i] = 1.0f / scale[i];
  return within != 0;
}

template <class Kind, Quotient way>
AB_INLINE void whole_blocks_of(const RoundPlan &p, const float *x, const uint32_t *w, int64_t n, int64_t size, const Scales &s, float *out, bool stream) {
  if constexpr (__is_same(Kind, Steps<RoundMode::NearestEven>)) {
    if (size == 16) return whole_blocks<Kind, way, 1>(p, x, w, n, size, s.scale, s.over, out, stream);
    if (size == 32 && n % 32 == 0) return whole_blocks<Kind, way, 2>(p, x, w, n, size, s.scale, s.over, out, stream);
  }
  whole_blocks<Kind, way, 0>(p, x, w, n, size, s.scale, s.over, out, stream);
}

template <class Kind>
AB_INLINE void whole_blocks_by(const RoundPlan &p, const float *x, const uint32_t *w, int64_t n, int64_t size, const Scales &s, float *out, bool stream) {
  if (s.way == Quotient::Times) return whole_blocks_of<Kind, Quotient::Times>(p, x, w, n, size, s, out, stream);
  if constexpr (__is_same(Kind, Steps<RoundMode::NearestEven>))
    if (s.way == Quotient::Fused) return whole_blocks_of<Kind, Quotient::Fused>(p, x, w, n, size, s, out, stream);
  whole_blocks_of<Kind, Quotient::Divide>(p, x, w, n, size, s, out, stream);
}

// Whether it was done. Modes that blocks seldom use go the other way: each costs as much code as these.
static bool in_one_go(const RoundPlan &p, const float *x, const uint32_t *w, int64_t n, int64_t size, const Scales &s, float *out, bool stream) {
  if (p.kind == RoundKind::Steps && p.mode == RoundMode::NearestEven) {
    whole_blocks_by<Steps<RoundMode::NearestEven>>(p, x, w, n, size, s, out, stream);
  } else if (p.kind == RoundKind::Steps && w && float_steps<kUpwardsAnywhere>(p)) {
    whole_blocks_by<DrawnSteps<kUpwardsAnywhere>>(p, x, w, n, size, s, out, stream);
  } else if (p.kind == RoundKind::Search && w) {
    whole_blocks_by<Searched<DrawnSearch>>(p, x, w, n, size, s, out, stream);
  } else if (p.kind == RoundKind::Search) {
    whole_blocks_by<Searched<Search>>(p, x, w, n, size, s, out, stream);
  } else {
    return false;
  }
  return true;
}

static void divided(const float *x, int64_t n, float scale, float *out) {  // by infinity where a product of tiny scales has vanished
  const F s = f_set(scale == 0.0f ? bits_float(0x7f800000u) : scale);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f_store(out + i, f_div(f_load(x + i), s));
  if (i == n) return;
  float t[16];
  f_store(t, f_div(load_part(x + i, n - i), s));
  memcpy(out + i, t, sizeof(float) * (size_t)(n - i));
}

static void multiplied(const float *x, int64_t n, float scale, float *out, bool stream) {
  const F s = f_set(scale);
  int64_t i = 0;
  if (stream)
    for (; i + 16 <= n; i += 16) f_stream(out + i, f_mul(f_load(x + i), s));
  else
    for (; i + 16 <= n; i += 16) f_store(out + i, f_mul(f_load(x + i), s));
  for (; i < n; i++) out[i] = x[i] * scale;
}

// Largest magnitudes of blocks of whole registers. `each`: registers a block; 0: any number, and a last block that is short.
template <int each> AB_INLINE int64_t largest_of(const float *x, int64_t from, int64_t to, uint32_t *most) {
  const I magnitude = i_set(0x7fffffff);
  int64_t i = from;
  for (; i + 16 <= to; i += 16) {
    I m[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
      const float *block = x + (i + j) * 16 * each;
      m[j] = i_and(f_bits(f_load(block)), magnitude);
      if constexpr (each == 2) m[j] = i_max(m[j], i_and(f_bits(f_load(block + 16)), magnitude));
    }
    i_store((int32_t *)most + i, i_fold16(m));
  }
  return i;
}

static void block_maxima(const float *x, int64_t n, int64_t size, uint32_t *most) {
  const int64_t whole = n / size;
  int64_t i = size == 16 ? largest_of<1>(x, 0, whole, most) : size == 32 ? largest_of<2>(x, 0, whole, most) : 0;
  for (; i * size < n; i++) most[i] = largest(x + i * size, n - i * size < size ? n - i * size : size);
}

static bool blocks(const RoundPlan &p, const BlockPlan &b, const float *x, const Draw *draw, int64_t n, float *out, bool stream) {
  alignas(64) float held[kRoundBlock];
  alignas(64) uint32_t most[kRoundBlock], words[kRoundBlock];
  Scales s;
  const int64_t count = (n + b.size - 1) / b.size;
  block_maxima(x, n, b.size, most);
  uint32_t all = 0;
  for (int64_t i = 0; i < count; i++) all = most[i] > all ? most[i] : all;
  if (all >= 0x7f800000u) return false;
  scales(b, most, count, s.scale);
  if (!settle(p, b, count, &s)) return false;
  const float *scale = s.scale;
  if (b.size % 16 == 0 && n % 16 == 0 && n <= kRoundBlock) {
    if (draw) philox_words(draw->seed, draw->place, n, words);
    if (in_one_go(p, x, draw ? words : nullptr, n, b.size, s, out, stream)) return true;
  }
  if (n > kRoundBlock) {  // one block, in pieces
    for (int64_t at = 0; at < n; at += kRoundBlock) {
      const int64_t size = n - at < kRoundBlock ? n - at : kRoundBlock;
      divided(x + at, size, scale[0], held);
      values(p, held, nullptr, size, held, false);
      multiplied(held, size, scale[0], out + at, stream);
    }
    return true;
  }
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = i * b.size, size = n - at < b.size ? n - at : b.size;
    divided(x + at, size, scale[i], held + at);
  }
  values(p, held, draw, n, held, false);
  const bool whole = stream && b.size % 16 == 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = i * b.size, size = n - at < b.size ? n - at : b.size;
    multiplied(held + at, size, scale[i], out + at, whole);
  }
  return true;
}

template <class T> static uint32_t decode_of(const T *codes, int64_t n, const float *table, float *out) {
  uint32_t all = 0;
  for (int64_t i = 0; i < n; i++) {
    all |= codes[i];
    out[i] = table[codes[i]];
  }
  return all;
}
static uint32_t decode(const void *codes, int width, int64_t n, const float *table, float *out) {
  return width == 1 ? decode_of((const uint8_t *)codes, n, table, out) : decode_of((const uint16_t *)codes, n, table, out);
}

}  // namespace

extern const RoundKernels round_kernels;
#define AB_TEXT(x) #x
#define AB_NAME(x) AB_TEXT(x)
const RoundKernels round_kernels = {AB_NAME(ANYBIT_ISA), largest, range, values, codes, blocks, philox_words, decode};

}  // namespace ANYBIT_ISA
}  // namespace anybit
