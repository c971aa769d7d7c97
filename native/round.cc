// Rounding float32 to an element's values or codes, compiled once per ISA. All inputs here are finite (the caller replaces what is not); results are
// those of formats/rounding.py's switch points, or of formats/stochastic.py, to the last bit.
//
// Sixteen numbers at a time by round_kinds.h. The upper halves of random words are made just before them, 256 at a time (128 without AVX-512), and the lower ones where
// they are needed: for modes of up to 24 bits once in some thousand sixteens, which are then rounded again. Buckets: one load of a threshold and one of the result, number by number.
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

// While random words or scales are made nothing is fetched: what comes later has to be in the second-level cache by then.
AB_INLINE void fetch(const float *x) {
  __builtin_prefetch(x + kAhead);
  __builtin_prefetch(x + 8 * kAhead, 0, 2);
}

AB_INLINE F loaded_once(const float *x) {  // compilers load twice rather than move: across lines, which takes longer than what is done with it
  F v = f_load(x);
#if ANYBIT_512 && !ANYBIT_SIMDE
  __asm__("" : "+v"(v.v));
#endif
  return v;
}

AB_INLINE void put(float *out, F y, bool stream) {
  if (stream) f_stream(out, y);
  else f_store(out, y);
}
template <int count> AB_INLINE void puts(float *out, const F *y, bool stream) {
  if (stream) {
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) f_stream(out + 16 * j, y[j]);
  } else {
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) f_store(out + 16 * j, y[j]);
  }
}

template <class Kind> static __attribute__((noinline)) void values_lanes(const RoundPlan &plan, const float *x, int64_t n, float *out, bool stream) {
  const RoundPlan p = plan;  // what no store can change stays in registers
  I none = i_zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __builtin_prefetch(x + i + kAhead);
    put(out + i, Kind().value(p, f_load(x + i), none), stream);
  }
  if (i == n) return;
  float t[16];
  f_store(t, Kind().value(p, load_part(x + i, n - i), none));
  memcpy(out + i, t, sizeof(float) * (size_t)(n - i));
}

// The halves of words for numbers that come one after the other: half i - from is that of number i.
struct HalfWindow {
  static constexpr int64_t kMost = 8 * kHalves;
  HalfSource upper, lower;
  const Draw &draw;
  const bool both;
  int64_t from, to;  // numbers whose halves there are
  alignas(64) uint16_t h[2][kMost + 64];  // readers may look at 64 more than there are

  __attribute__((always_inline)) HalfWindow(const Draw &d, bool both_) : upper(d.seed, d.place, 0), lower(d.seed, d.place, 1), draw(d), both(both_) {
    from = to = -(int64_t)(d.place % (uint64_t)kHalves);
    if (!d.kept || d.kept->first != d.place + (uint64_t)from || d.kept->lower != both) return;
    to += d.kept->count;
    for (int set = 0; set <= both; set++) memcpy(h[set], d.kept->halves[set], sizeof(uint16_t) * (size_t)d.kept->count);
  }
  __attribute__((always_inline)) const uint16_t *at(int64_t i, int set) const { return h[set] + (i - from); }
  __attribute__((always_inline)) void make(int64_t i) {  // those of numbers [to, to + kHalves); what is before i may be given up
    if (__builtin_expect(to - from + kHalves > kMost, 0)) {
      const int64_t first = to - (to - i + kHalves - 1) / kHalves * kHalves;
      for (int set = 0; set <= both; set++) memmove(h[set], h[set] + (first - from), sizeof(uint16_t) * (size_t)(to - first));
      from = first;
    }
    upper.make(draw.place + (uint64_t)to, h[0] + (to - from));
    if (both) lower.make(draw.place + (uint64_t)to, h[1] + (to - from));
    to += kHalves;
  }
  __attribute__((always_inline)) void keep(int64_t n) {  // for the numbers after the n that are done
    if (!draw.kept || to < n) return;
    const int64_t first = to - (to - n + kHalves - 1) / kHalves * kHalves;
    if (to - first > kKeptHalves) return;
    draw.kept->first = draw.place + (uint64_t)first, draw.kept->count = to - first, draw.kept->lower = both;
    for (int set = 0; set <= both; set++) memcpy(draw.kept->halves[set], h[set] + (first - from), sizeof(uint16_t) * (size_t)(to - first));
  }
};

// What kinds take for sixteen numbers: `Upper`, or whole words, whose lower halves are 0 where none can matter.
template <class W> AB_INLINE W word_at(const uint16_t *upper, const uint16_t *lower) {
  const I half = i_load_u16((const uint8_t *)upper);
  if constexpr (kIsUpper<W>) {
    W w = {};
    w.half = half;
    return w;
  } else {
    return lower ? i_or(i_shl(half, 16), i_load_u16((const uint8_t *)lower)) : i_shl(half, 16);
  }
}

// `body(from, to, upper, lower)` for numbers [from, to), whole units of them but for the last ones, by those halves; lower: nullptr without `both`.
template <int64_t unit, class Body> AB_INLINE void in_steps(bool both, const Draw &draw, int64_t n, Body body) {
  HalfWindow halves(draw, both);
  for (int64_t i = 0; i < n;) {
    while (halves.to < n && halves.to - i < unit) halves.make(i);
    const int64_t end = halves.to >= n ? n : i + (halves.to - i) / unit * unit;
    body(i, end, halves.at(i, 0), both ? halves.at(i, 1) : nullptr);
    i = end;
  }
  halves.keep(n);
}

// `call` is given what a kind takes of each draw.
template <class Kind, class Call> AB_INLINE void by_words(const RoundPlan &p, Call call) {
  if constexpr (kOnlyUpper<Kind>) {
    call(Upper{});
  } else {
    if constexpr (kUpperFirst && kTakesUpper<Kind>)
      if (p.seldom) return call(Upper{});
    call(I{});
  }
}

// Sixteen numbers from a place on whose upper halves left something open, by whole words.
AB_INLINE I whole_words(uint64_t seed, uint64_t place, I half) {
  uint16_t lower[16];
  philox_halves(seed, place, 1, 16, lower);
  return i_or(i_shl(half, 16), i_load_u16((const uint8_t *)lower));
}
template <class Kind> static __attribute__((noinline, cold)) F value_by_all(const RoundPlan &p, uint64_t seed, uint64_t place, F x, I half) {
  I word = whole_words(seed, place, half);
  return typename All<Kind>::By().value(p, x, word);
}
template <class Kind> static __attribute__((noinline, cold)) I code_by_all(const RoundPlan &p, uint64_t seed, uint64_t place, F x, I half) {
  I word = whole_words(seed, place, half);
  return typename All<Kind>::By().code(p, x, word);
}
// Of numbers i to i + 15. p: a copy of `plan` whose address goes nowhere, so that no store can change it.
template <class Kind, class W> AB_INLINE F value_at(const RoundPlan &p, const RoundPlan &plan, const Draw &draw, int64_t i, F x, W word) {
  const F y = Kind().value(p, x, word);
  if constexpr (kIsUpper<W>)
    if (__builtin_expect(i_any(word.open), 0)) return value_by_all<Kind>(plan, draw.seed, draw.place + (uint64_t)i, x, word.half);
  return y;
}
template <class Kind, class W> AB_INLINE I code_at(const RoundPlan &p, const RoundPlan &plan, const Draw &draw, int64_t i, F x, W word) {
  const I c = Kind().code(p, x, word);
  if constexpr (kIsUpper<W>)
    if (__builtin_expect(i_any(word.open), 0)) return code_by_all<Kind>(plan, draw.seed, draw.place + (uint64_t)i, x, word.half);
  return c;
}

// How many times sixteen numbers go side by side: a search's operations would wait for each other.
template <class Kind> constexpr int kSide = 1;
#if ANYBIT_512 && !ANYBIT_SIMDE
template <class Way> constexpr int kSide<Searched<Way>> = 4;
template <bool parted> constexpr int kSide<DrawnSided<parted>> = 4;
template <bool upwards, bool even, bool plain> constexpr int kSide<DrawnSteps<upwards, even, plain>> = 2;
template <int entries> constexpr int kSide<DrawnTapered<entries>> = 2;
#endif
template <class Kind> constexpr bool kTogether = false;  // whether it takes several at a time, and puts what is open of all in the first one's
template <class Way> constexpr bool kTogether<Searched<Way>> = true;
template <bool parted> constexpr bool kTogether<DrawnSided<parted>> = true;
template <bool even, bool plain> constexpr bool kTogether<DrawnSteps<true, even, plain>> = true;

template <class Kind, class W, int count> AB_INLINE void values_of(const RoundPlan &p, const F *x, W *words, F *y) {
  if constexpr (kTogether<Kind>) return Kind().template values<count>(p, x, words, y);
#pragma GCC unroll 4
  for (int j = 0; j < count; j++) y[j] = Kind().value(p, x[j], words[j]);
  if constexpr (kIsUpper<W>)
#pragma GCC unroll 4
    for (int j = 1; j < count; j++) words[0].open = m_or(words[0].open, words[j].open);
}

// The same, one sixteen after the other, where one of them has left something open.
template <class Kind, int count>
static __attribute__((noinline, cold)) void values_again(const RoundPlan &p, const Draw &draw, int64_t i, const float *x, const uint16_t *upper, float *out) {
  for (int j = 0; j < count; j++) f_store(out + 16 * j, value_at<Kind>(p, p, draw, i + 16 * j, f_load(x + 16 * j), word_at<Upper>(upper + 16 * j, nullptr)));
}

template <class Kind, class W, int count>  // count times sixteen numbers, from number i on; x: the array of number 0, and so out
AB_INLINE void values_beside(const RoundPlan &p, const RoundPlan &plan, const Draw &draw, int64_t i, const float *x, const uint16_t *upper, const uint16_t *lower,
                            float *out, bool stream) {
  F v[count], y[count];
  W words[count];
#pragma GCC unroll 4
  for (int j = 0; j < count; j++) {
    fetch(x + i + 16 * j);
    v[j] = f_load(x + i + 16 * j), words[j] = word_at<W>(upper + 16 * j, lower ? lower + 16 * j : nullptr);
  }
  values_of<Kind, W, count>(p, v, words, y);
  if constexpr (kIsUpper<W>)
    if (__builtin_expect(i_any(words[0].open), 0)) {
      float again[16 * count];
      values_again<Kind, count>(plan, draw, i, x + i, upper, again);
      for (int j = 0; j < count; j++) y[j] = f_load(again + 16 * j);
    }
#pragma GCC unroll 4
  for (int j = 0; j < count; j++) put(out + i + 16 * j, y[j], stream);
}

template <class Kind, class W>
static __attribute__((noinline)) void values_by_words(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, float *out, bool stream) {
  const RoundPlan p = plan;
  in_steps<16>(!kIsUpper<W> && p.lower, draw, n, [&](int64_t i, int64_t end, const uint16_t *upper, const uint16_t *lower) AB_LAMBDA {
    const auto next = [&](int64_t count) AB_LAMBDA { i += count, upper += count, lower = lower ? lower + count : nullptr; };
    constexpr int side = kSide<Kind>;
    if constexpr (side > 1)
      for (; i + 16 * side <= end; next(16 * side)) values_beside<Kind, W, side>(p, plan, draw, i, x, upper, lower, out, stream);
    for (; i + 16 <= end; next(16)) {
      fetch(x + i);
      put(out + i, value_at<Kind>(p, plan, draw, i, f_load(x + i), word_at<W>(upper, lower)), stream);
    }
    if (i == end) return;
    float t[16];
    f_store(t, value_at<Kind>(p, plan, draw, i, load_part(x + i, end - i), word_at<W>(upper, lower)));
    memcpy(out + i, t, sizeof(float) * (size_t)(end - i));
  });
}

template <class Kind> static void values_drawn(const RoundPlan &p, const float *x, const Draw &draw, int64_t n, float *out, bool stream) {
  [[maybe_unused]] const Mode<Kind> mode = {};
  by_words<Kind>(p, [&](auto word) { values_by_words<Kind, decltype(word)>(p, x, draw, n, out, stream); });
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

AB_INLINE void load_rest(const float *x, int64_t count, float *rest) {  // fewer than 64: the others are +0
  memset(rest, 0, 64 * sizeof(float));
  memcpy(rest, x, sizeof(float) * (size_t)count);
}

template <class Kind>
static __attribute__((noinline)) void codes_lanes(const RoundPlan &plan, const float *x, int64_t n, int width, uint8_t *out, bool stream) {
  const RoundPlan p = plan;
  I none = i_zero();
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    I c[4];
#pragma GCC unroll 1
    for (int j = 0; j < 4; j++) {
      __builtin_prefetch(x + i + 16 * j + kAhead);
      c[j] = Kind().code(p, f_load(x + i + 16 * j), none);
    }
    put_codes(out + width * i, c, width, stream);
  }
  if (i == n) return;
  float rest[64];
  uint8_t t[128];
  load_rest(x + i, n - i, rest);
  codes_lanes<Kind>(plan, rest, 64, width, t, false);
  memcpy(out + width * i, t, (size_t)(width * (n - i)));
}

template <class Kind, class W>
static __attribute__((noinline)) void codes_by_words(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, int width, uint8_t *out, bool stream) {
  const RoundPlan p = plan;
  in_steps<64>(!kIsUpper<W> && p.lower, draw, n, [&](int64_t i, int64_t end, const uint16_t *upper, const uint16_t *lower) {
    for (; i < end; i += 64, upper += 64) {
      float rest[64];
      uint8_t t[128];
      const bool whole = i + 64 <= end;
      const float *from = x + i;
      if (!whole) load_rest(x + i, end - i, rest), from = rest;
      I c[4];
#pragma GCC unroll 1
      for (int j = 0; j < 4; j++) {
        fetch(x + i + 16 * j);
        c[j] = code_at<Kind>(p, plan, draw, i + 16 * j, f_load(from + 16 * j), word_at<W>(upper + 16 * j, lower ? lower + 16 * j : nullptr));
      }
      put_codes(whole ? out + width * i : t, c, width, whole && stream);
      if (!whole) memcpy(out + width * i, t, (size_t)(width * (end - i)));
      if (lower) lower += 64;
    }
  });
}

template <class Kind> static void codes_drawn(const RoundPlan &p, const float *x, const Draw &draw, int64_t n, int width, uint8_t *out, bool stream) {
  [[maybe_unused]] const Mode<Kind> mode = {};
  by_words<Kind>(p, [&](auto word) { codes_by_words<Kind, decltype(word)>(p, x, draw, n, width, out, stream); });
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

static void all_words(const RoundPlan &p, const Draw &draw, int64_t at, int64_t n, uint32_t *words) {  // of up to kRoundBlock numbers
  uint16_t halves[2][kRoundBlock];
  for (int set = 0; set <= p.lower; set++) philox_halves(draw.seed, draw.place + (uint64_t)at, set, n, halves[set]);
  for (int64_t i = 0; i < n; i++) words[i] = (uint32_t)halves[0][i] << 16;
  if (p.lower)
    for (int64_t i = 0; i < n; i++) words[i] |= halves[1][i];
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
    if (draw) all_words(p, *draw, at, count, words);
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

template <class Call> AB_INLINE void by_search(const RoundPlan &p, Call call) {
  kByteTables && p.parted ? call(Searched<SearchOf<kByteTables>>()) : call(Searched<SearchOf<false>>());
}
template <class Call> AB_INLINE void by_drawn_search(const RoundPlan &p, Call call) {
  const bool parted = kByteTables && p.parted;
  if constexpr (kUpperFirst)
    if (p.seldom && p.sided) return parted ? call(DrawnSided<kByteTables>()) : call(DrawnSided<false>());
  if (p.exact) return parted ? call(DrawnExact<kByteTables>()) : call(DrawnExact<false>());
  parted ? call(Searched<DrawnSearch<kByteTables>>()) : call(Searched<DrawnSearch<false>>());
}

template <class Call> AB_INLINE void by_kind(const RoundPlan &p, Call call) {
  if (p.kind == RoundKind::Steps) by_mode<Steps>(p.mode, call);
  else if (p.kind == RoundKind::Prefix) by_mode<Prefix>(p.mode, call);
  else if (p.kind == RoundKind::Tapered) by_entries(p, call);
  else by_search(p, call);
}

template <bool upwards> AB_INLINE bool float_steps(const RoundPlan &p) {
  return p.random_bits <= 24 && (upwards ? p.least > p.mantissa + 24 && p.mantissa <= 20 : p.least <= 127 + p.mantissa);
}

template <class Call> AB_INLINE void by_drawn(const RoundPlan &p, Call call) {
  if (p.kind == RoundKind::Search) return by_drawn_search(p, call);
  if (p.kind == RoundKind::Prefix) return call(Prefix<RoundMode::Stochastic>());
  if (p.kind == RoundKind::Steps) {
    if (!float_steps<kUpwards>(p)) return call(Steps<RoundMode::Stochastic>());
    return kUpwards && p.even ? call(DrawnSteps<kUpwards, kUpwards>()) : call(DrawnSteps<kUpwards>());
  }
#if ANYBIT_512 || ANYBIT_256
  return p.entries <= 64 ? call(DrawnTapered<64>()) : call(DrawnTapered<128>());
#else
  return call(DrawnTapered<0>());
#endif
}

static void values(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, float *out, bool stream) {
  if (by_lanes(p) && draw) return by_drawn(p, [&](auto k) { values_drawn<decltype(k)>(p, x, *draw, n, out, stream); });
  if (by_lanes(p)) return by_kind(p, [&](auto k) { values_lanes<decltype(k)>(p, x, n, out, stream); });
  if (!stream) return picked(p, x, draw, n, out, p.rank_values);
  float block[kRoundBlock];
  for (int64_t at = 0; at < n; at += kRoundBlock) {
    const int64_t count = n - at < kRoundBlock ? n - at : kRoundBlock;
    const Draw here = {draw ? draw->seed : 0, draw ? draw->place + (uint64_t)at : 0, nullptr};
    picked(p, x + at, draw ? &here : nullptr, count, block, p.rank_values);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) f_stream(out + at + i, f_load(block + i));
    memcpy(out + at + i, block + i, sizeof(float) * (size_t)(count - i));
  }
}

static void codes(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, int width, void *out, bool stream) {
  if (!by_lanes(p)) return width == 1 ? picked(p, x, draw, n, (uint8_t *)out, p.rank_codes) : picked(p, x, draw, n, (uint16_t *)out, p.rank_codes);
  if (draw) return by_drawn(p, [&](auto k) { codes_drawn<decltype(k)>(p, x, *draw, n, width, (uint8_t *)out, stream); });
  if (p.kind == RoundKind::Tapered && p.mode == RoundMode::NearestEven && p.bytes) return codes_lanes<TaperedBytes>(p, x, n, width, (uint8_t *)out, stream);
  by_kind(p, [&](auto k) { codes_lanes<decltype(k)>(p, x, n, width, (uint8_t *)out, stream); });
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

// The same by float32, sixteen blocks at a time. The target, a product with a rounded reciprocal, is off by 2^-22.9 of itself at most, and another scale results only
// where a middle of two lies between it and the true one, which is below half a step times 2^(mantissa + 2). `open`: where that may be so, or the target may be beyond
// the end, or is no number.
struct FloatScales {
  const bool serves;  // whether the plan's numbers are in float32's middle
  const int mantissa;
  const F times, low, high, factor, close;
  const I end, first;
  __attribute__((always_inline)) FloatScales(const BlockPlan &b)
      : serves(!b.power_of_two && b.mantissa >= 1 && b.mantissa <= 10 && b.smallest >= 0x1p-60 && b.first >= 0x1p-60 && b.biggest <= 0x1p60 && b.smallest <= b.end &&
               1 / (b.most * b.outer) > 0x1p-100 && 1 / (b.most * b.outer) < 0x1p100),
        mantissa(b.mantissa), times(f_set((float)(1 / (b.most * b.outer)))), low(f_set((float)b.smallest)), high(f_set((float)b.biggest)), factor(f_set(b.factor)),
        close(f_set(bits_float((uint32_t)(127 + b.mantissa - 20) << 23))), end(f_bits(f_set((float)(b.end * (1 - 0x1p-20))))), first(i_set((int32_t)float_bits((float)b.first))) {}
  __attribute__((always_inline)) F of(I largest, Mask *open) const {
    const F target = f_mul(i_float(largest), times), held = f_min(f_max(target, low), high);
    const I binade = i_max(i_and(f_bits(held), i_set(0x7f800000)), first);
    const F big = i_float(i_add(binade, i_set((23 - mantissa) << 23))), half = i_float(i_sub(binade, i_set((mantissa + 1) << 23)));
    const F s = f_sub(f_add(held, big), big);
    *open = m_or(*open, m_or(i_lt(end, f_bits(target)), f_lt(f_magnitude(f_sub(f_magnitude(f_sub(held, s)), half)), f_mul(half, close))));
    return f_mul(s, factor);
  }
};

static bool scales_by_floats(const BlockPlan &b, const uint32_t *largest, int64_t count, float *scale) {  // whether none is open
  const FloatScales by(b);
  if (!by.serves) return false;
  Mask open = i_lt(i_zero(), i_zero());
  for (int64_t i = 0; i < count; i += 16) f_store(scale + i, by.of(i_load((const int32_t *)largest + i), &open));
  return !i_any(open);
}

static void scales(const BlockPlan &b, uint32_t *largest, int64_t count, float *scale) {
  if (!b.power_of_two && scales_by_floats(b, largest, count, scale)) return;
  if (b.power_of_two) return b.outer == 1.0 ? scales_of<true, true>(b, largest, count, scale) : scales_of<true, false>(b, largest, count, scale);
  return b.outer == 1.0 ? scales_of<false, true>(b, largest, count, scale) : scales_of<false, false>(b, largest, count, scale);
}

// Blocks of whole registers: divided, rounded and multiplied in one go. The quotient is that of the division, to the last bit, by
//   Times   a power of two whose reciprocal is a normal number
//   Fused   y = fl(1 / s), q0 = fl(x y), q1 = fl(q0 - (q0 s - x) y), which is one of the quotient's neighbours, q = fl(q1 - (q1 s - x) y); remainders are exact where
//           nothing underflows (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990). With s from 2^-30 to 2^60 that
//           holds for quotients from 2^-70 on; smaller ones stay small, and round to zero like the true ones (see `fused`). -0 stays -0.
//   Near    q1 alone. Before it is rounded it is the quotient but for 4 * 2^-48 of it, 2^-22 of its last place: another number results only where the quotient lies
//           that close to the middle of two neighbours, and is rounded to another value only where one of them is a switch point t of m + 2 bits (m: the
//           mantissa's). There x - t s is half or a quarter of t's last place times s but for 2^-22 of that place. With s an integer of 24 bits, in units of
//           its last place times t's: x - t s is a multiple of 2^(22-m), and s / 2 or s / 4 not within 4 of one, if s is not within 16 of a multiple of 2^(23-m).
//   InPlace no quotients: a power of two times the element's values and switch points stands in their place, which gives the same where no quotient that matters
//           underflows: of scales from 2^-60 on, to 2^60 to nearest, to 1 at random, where the smallest number counts if nothing is drawn
//   Divide  everything else
enum class Quotient { InPlace, Times, Near, Fused, Divide };

template <Quotient way, int count> AB_INLINE void quotients(const F *times, const F *by, F *v) {  // step by step, as kinds do it
  if constexpr (way == Quotient::Divide) {
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) v[j] = f_div(v[j], by[j]);
  } else {
    F q[count];
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) q[j] = f_mul(v[j], by[j]);
#pragma GCC unroll 2
    for (int step = 0; step < (way == Quotient::Fused ? 2 : way == Quotient::Near ? 1 : 0); step++) {
      F rest[count];
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) rest[j] = f_fms(q[j], times[j], v[j]);
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) q[j] = f_nfma(rest[j], by[j], q[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) v[j] = q[j];
  }
}

template <class Kind, Quotient way> AB_INLINE F in_block(const RoundPlan &p, F v, F times, F by) {
  I none = i_zero();
  quotients<way, 1>(&times, &by, &v);
  return f_mul(Kind().value(p, v, none), times);
}

// Where a piece's results go: into memory as they lie, `stream` past the caches, which takes aligned addresses; or past them, joined with those of the piece before.
struct Straight {
  const bool stream;
  __attribute__((always_inline)) Straight(const float *, Lines *, bool past) : stream(past) {}
  template <int count> __attribute__((always_inline)) void put(float *out, const F *y) { puts<count>(out, y, stream); }
  void end() const {}
};
AB_INLINE int beyond_of(const float *out) { return (int)((uintptr_t)out / sizeof(float) % Joined::kStep); }
struct Shifted {
  const int beyond;
  Lines *const lines;
  Joined joined;
  __attribute__((always_inline)) Shifted(const float *out, Lines *l, bool) : beyond(beyond_of(out)), lines(l), joined(l->held, beyond) {}
  template <int count> __attribute__((always_inline)) void put(float *out, const F *y) {
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) joined.put(out - beyond + 16 * j, y[j]);
  }
  void end() const { joined.keep(lines->held); }
};

// The same for numbers that lie in a buffer, with room for 16 before them: any number of them, and at the beginning of a result.
static void put_lines(float *from, int64_t n, float *out, Lines *lines) {
  const int64_t waiting = lines->count, step = Joined::kStep;
  from -= waiting, out -= waiting, n += waiting;
  memcpy(from, lines->held + 16 - waiting, sizeof(float) * (size_t)waiting);
  int64_t i = (step - beyond_of(out)) % step;  // none, if some waited
  if (i > n) i = n;
  memcpy(out, from, sizeof(float) * (size_t)i);
  for (; i + step <= n; i += step) Joined::copy(from + i, out + i);
  lines->count = (int)(n - i);
  memcpy(lines->held + 16 - lines->count, from + i, sizeof(float) * (size_t)lines->count);
}

// What magnitudes of `count` registers v are held to, once they are in the units of that.
template <Quotient way, int count> AB_INLINE void ends_beside(const RoundPlan &p, const F *times, const F *by, F *v, Ends *ends) {
#pragma GCC unroll 4
  for (int j = 0; j < count; j++) ends[j] = way == Quotient::InPlace ? Ends{times[j], f_bits(by[j])} : ends_of(p);
  if constexpr (way != Quotient::InPlace) quotients<way, count>(times, by, v);
}

// `count` registers from number `at` on, of blocks of `each`. scale, over: for InPlace the caps and the first binades, times the scales.
template <class Kind, Quotient way, int each, int count, class To>
AB_INLINE void blocks_beside(const RoundPlan &p, const float *x, int64_t at, const float *scale, const float *over, float *out, To *to) {
  F v[count], times[count], by[count], y[count];
  const int64_t block = at / (16 * each);
#pragma GCC unroll 4
  for (int j = 0; j < count; j++) {
    fetch(x + at + 16 * j);
    v[j] = loaded_once(x + at + 16 * j);
    times[j] = j % each == 0 ? f_set(scale[block + j / each]) : times[j - 1], by[j] = j % each == 0 ? f_set(over[block + j / each]) : by[j - 1];
  }
  Ends ends[count];
  ends_beside<way, count>(p, times, by, v, ends);
  Kind().template within<count>(p, v, ends, y);
  if constexpr (way != Quotient::InPlace)
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = f_mul(y[j], times[j]);
  to->template put<count>(out + at, y);
}

// Sixteens of whole blocks that go step by step: as many as registers hold.
#if ANYBIT_512 && !ANYBIT_SIMDE
constexpr int kBlocksSide = 4;
#else
constexpr int kBlocksSide = 1;
#endif

// `each`: registers a block, of which all are whole; 0: any number.
template <class Kind, Quotient way, int each, class To>
static __attribute__((noinline)) void whole_blocks(const RoundPlan &plan, const float *x, int64_t n, int64_t size, const float *scale, const float *over,
                                                   float *out, Lines *lines, bool stream) {
  const RoundPlan p = plan;
  To to(out, lines, stream);
  if constexpr (each > 0) {
    int64_t at = 0;
    for (; at + 16 * kBlocksSide <= n; at += 16 * kBlocksSide) blocks_beside<Kind, way, each, kBlocksSide>(p, x, at, scale, over, out, &to);
    for (; at < n; at += 16) blocks_beside<Kind, way, each, 1>(p, x, at, scale, over, out, &to);
    return to.end();
  }
  for (int64_t block = 0, at = 0; at < n; block++) {
    const F times = f_set(scale[block]), by = f_set(over[block]);
    for (const int64_t end = n - at < size ? n : at + size; at < end; at += 16) {
      fetch(x + at);
      const F y = in_block<Kind, way>(p, f_load(x + at), times, by);
      to.template put<1>(out + at, &y);
    }
  }
  to.end();
}

// Of `count` registers from number i on, of blocks of `each`.
template <class Kind, class W, Quotient way, int each, int count, class To>
AB_INLINE void drawn_beside(const RoundPlan &p, const RoundPlan &plan, const Draw &draw, int64_t i, const float *x, const uint16_t *upper, const uint16_t *lower,
                            const float *scale, const float *over, float *out, To *to) {
  F v[count], times[count], by[count], y[count];
  W words[count];
  const int64_t block = i / (16 * each);
#pragma GCC unroll 4
  for (int j = 0; j < count; j++) {
    fetch(x + i + 16 * j);
    v[j] = f_load(x + i + 16 * j), words[j] = word_at<W>(upper + 16 * j, lower ? lower + 16 * j : nullptr);
    times[j] = j % each == 0 ? f_set(scale[block + j / each]) : times[j - 1], by[j] = j % each == 0 ? f_set(over[block + j / each]) : by[j - 1];
  }
  Ends ends[count];
  ends_beside<way, count>(p, times, by, v, ends);
  Kind().template within<count>(p, v, ends, words, y);
  if constexpr (kIsUpper<W> && !kTogether<Kind>)
#pragma GCC unroll 4
    for (int j = 1; j < count; j++) words[0].open = m_or(words[0].open, words[j].open);
  if constexpr (kIsUpper<W>)
    if (__builtin_expect(i_any(words[0].open), 0)) {
      float again[16 * count];
      const F cap = f_set(p.cap);
      for (int j = 0; j < count; j++) f_store(again + 16 * j, way == Quotient::InPlace ? f_mul(v[j], f_div(cap, times[j])) : v[j]);
      values_again<Kind, count>(plan, draw, i, again, upper, again);
      for (int j = 0; j < count; j++) y[j] = f_load(again + 16 * j), y[j] = way == Quotient::InPlace ? f_mul(y[j], f_div(times[j], cap)) : y[j];
    }
  if constexpr (way != Quotient::InPlace)
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = f_mul(y[j], times[j]);
  to->template put<count>(out + i, y);
}

template <class Kind, class W, Quotient way, int each, class To>
static __attribute__((noinline)) void drawn_blocks(const RoundPlan &plan, const float *x, const Draw &draw, int64_t n, int64_t size, const float *scale,
                                                   const float *over, float *out, Lines *lines, bool stream) {
  const RoundPlan p = plan;
  To to(out, lines, stream);
  if constexpr (each > 0) {
    constexpr int side = kSide<Kind> > each ? kSide<Kind> : each;
    in_steps<16 * each>(!kIsUpper<W> && p.lower, draw, n, [&](int64_t i, int64_t end, const uint16_t *upper, const uint16_t *lower) AB_LAMBDA {
      const auto next = [&](int64_t count) AB_LAMBDA { i += count, upper += count, lower = lower ? lower + count : nullptr; };
      for (; i + 16 * side <= end; next(16 * side)) drawn_beside<Kind, W, way, each, side>(p, plan, draw, i, x, upper, lower, scale, over, out, &to);
      if constexpr (side > each)
        for (; i < end; next(16 * each)) drawn_beside<Kind, W, way, each, each>(p, plan, draw, i, x, upper, lower, scale, over, out, &to);
    });
    return to.end();
  }
  const int64_t whole = size / 16;
  int64_t block = 0, left = whole;
  in_steps<16>(!kIsUpper<W> && p.lower, draw, n, [&](int64_t i, int64_t end, const uint16_t *upper, const uint16_t *lower) AB_LAMBDA {
    for (; i < end; i += 16, upper += 16) {
      fetch(x + i);
      const F times = f_set(scale[block]), by = f_set(over[block]);
      F v = f_load(x + i);
      quotients<way, 1>(&times, &by, &v);
      const F y = f_mul(value_at<Kind>(p, plan, draw, i, v, word_at<W>(upper, lower)), times);
      to.template put<1>(out + i, &y);
      if (lower) lower += 16;
      if (--left == 0) left = whole, block++;
    }
  });
  to.end();
}

struct Scales {  // of a piece's blocks
  alignas(64) float scale[kRoundBlock];
  alignas(64) float over[kRoundBlock];  // reciprocals, or what to divide by, or for InPlace the first binade times the scale
  alignas(64) float caps[kRoundBlock];  // for InPlace: the cap times the scale
  Quotient way;
};

// Whether nothing that is rounded to nearest needs the bits of quotients below 2^-70.
AB_INLINE bool fused(const RoundPlan &p) { return p.kind == RoundKind::Steps && p.mode == RoundMode::NearestEven && p.least - p.mantissa > 127 - 60; }

// Whether no scale is too large.
static bool settle(const RoundPlan &p, const BlockPlan &b, int64_t count, Scales *s) {
  float limit = (float)b.limit;
  if ((double)limit > b.limit) limit = bits_float(float_bits(limit) - 1);
  const I most = i_set((int32_t)float_bits(limit)), places = i_set((1 << (23 - p.mantissa)) - 1);
  for (int64_t i = count; i % 16 != 0; i++) s->scale[i] = s->scale[count - 1];
  Mask beyond = i_lt(i_zero(), i_zero()), odd = beyond, small = beyond, large = beyond, close = beyond;
  for (int64_t i = 0; i < count; i += 16) {  // scales are not negative
    const I bits = i_load((const int32_t *)s->scale + i);
    beyond = m_or(beyond, i_lt(most, bits));
    odd = m_or(odd, i_lt(i_zero(), i_and(bits, i_set(0x7fffff))));
    small = m_or(small, i_lt(bits, i_set(0x30800000)));  // 2^-30
    large = m_or(large, i_lt(i_set(0x5d800000), bits));  // 2^60
    close = m_or(close, i_lt(i_and(i_add(bits, i_set(16)), places), i_set(33)));
  }
  if (i_any(beyond)) return false;
  if (!i_any(odd)) {
    Mask out = i_lt(i_zero(), i_zero());
    for (int64_t i = 0; i < count; i += 16) {  // 2^-126 to 2^126: so is the reciprocal
      const I bits = i_load((const int32_t *)s->scale + i);
      out = m_or(out, m_or(i_lt(bits, i_set(0x00800000)), i_lt(i_set(0x7e800000), bits)));
    }
    s->way = i_any(out) ? Quotient::Divide : Quotient::Times;
  } else {
    s->way = i_any(small) || i_any(large) || !fused(p) ? Quotient::Divide : i_any(close) || p.mantissa > 10 ? Quotient::Fused : Quotient::Near;
  }
  for (int64_t i = 0; i < count; i += 16) {
    const F scale = f_load(s->scale + i);
    if (s->way == Quotient::Divide) {
      f_store(s->over + i, f_select(f_lt(f_zero(), scale), scale, f_set(bits_float(0x7f800000u))));  // 0: a product of tiny scales has vanished
    } else {
      f_store(s->over + i, f_div(f_set(1), scale));
    }
  }
  return true;
}

// Largest magnitudes of sixteen blocks of `each` registers.
template <int each> AB_INLINE I largest_of(const float *x) {
  const I magnitude = i_set(0x7fffffff);
  I m[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; j++) {
    const float *block = x + j * 16 * each;
    m[j] = i_and(f_bits(f_load(block)), magnitude);
    if constexpr (each == 2) m[j] = i_max(m[j], i_and(f_bits(f_load(block + 16)), magnitude));
  }
  return i_fold16(m);
}

// Scales of a piece and how to divide by them, sixteen blocks of one or two registers after the other: where every scale of the plan is fit for Near, and powers of two where
// all are fit for InPlace. False: they are for the general way, or some may be, or some number may not be finite.
template <int each> static bool near_at_once(const BlockPlan &b, const float *x, int64_t count, Scales *s) {
  const FloatScales by(b);
  Mask open = i_lt(i_zero(), i_zero());
  for (int64_t i = 0; i < count; i += 16) {
    const F scale = by.of(largest_of<each>(x + i * 16 * each), &open);
    f_store(s->scale + i, scale), f_store(s->over + i, f_div(f_set(1), scale));
  }
  s->way = Quotient::Near;
  return !i_any(open);
}
template <int each> static bool in_place_at_once(const RoundPlan &p, const BlockPlan &b, const float *x, int64_t count, Scales *s) {
  const double least = b.smallest > b.first ? b.smallest : b.first, most = p.mode == RoundMode::Stochastic ? 1 : 0x1p60;
  const I low = i_set((int32_t)float_bits(least > 0x1p-60 ? (float)least : 0x1p-60f)), down = i_set((b.top - 1) * (1 << 23));
  const I high = i_set((int32_t)float_bits(b.biggest < most ? (float)b.biggest : (float)most));
  const F cap = f_set(p.cap), first = f_set(bits_float((uint32_t)p.least << 23));
  Mask open = i_lt(i_zero(), i_zero());
  for (int64_t i = 0; i < count; i += 16) {
    const I scale = i_sub(i_and(largest_of<each>(x + i * 16 * each), i_set(0x7f800000)), down);
    open = m_or(open, m_or(i_lt(high, scale), i_lt(scale, low)));
    f_store(s->caps + i, f_mul(i_float(scale), cap)), f_store(s->over + i, f_mul(i_float(scale), first));
  }
  s->way = Quotient::InPlace;
  return !i_any(open);
}
static bool at_once(const RoundPlan &p, const BlockPlan &b, const float *x, int64_t n, Scales *s) {
  if (p.kind != RoundKind::Steps || !is_plain(p) || (b.size != 16 && b.size != 32) || n > kRoundBlock || n % (16 * b.size) != 0) return false;
  const int64_t count = n / b.size;
  if (!b.power_of_two) return b.near && p.mode == RoundMode::NearestEven && (b.size == 16 ? near_at_once<1>(b, x, count, s) : near_at_once<2>(b, x, count, s));
  if (p.mode != RoundMode::NearestEven && !(kUpperFirst && p.mode == RoundMode::Stochastic && p.seldom && float_steps<kUpwardsAnywhere>(p))) return false;
  if (b.outer != 1.0 || b.factor != 1.0f || b.top < -60 || b.top > 60 || b.biggest >= b.end || b.limit < 0x1p60 || b.biggest < 0x1p-60 || b.smallest > 1 || b.first > 1) return false;
  return b.size == 16 ? in_place_at_once<1>(p, b, x, count, s) : in_place_at_once<2>(p, b, x, count, s);
}

// Whether every scale of a plan is fit for Near: its grid is gone through, if it is not long.
static bool near(const RoundPlan &p, const BlockPlan &b) {
  const FloatScales by(b);
  if (!by.serves || !fused(p) || p.mantissa > 10 || b.biggest / b.first > 0x1p32 || b.mantissa > 5) return false;
  const uint32_t places = (1u << (23 - p.mantissa)) - 1;
  for (double s = b.smallest, next; s <= b.biggest; s = next) {
    const uint64_t e = double_bits(s < b.first ? b.first : s) & (0x7ffull << 52);
    next = s + bits_double(e - ((uint64_t)b.mantissa << 52));
    const float scale = (float)s * b.factor;
    const uint32_t bits = float_bits(scale);
    const bool power = (bits & 0x7fffff) == 0;
    if (!(scale <= b.limit) || bits - 0x30800000u > 0x2d000000u || (!power && ((bits + 16) & places) <= 32)) return false;
  }
  return true;
}

// A piece of whole blocks, and where it goes.
struct Piece {
  const float *x;
  const Draw *draw;
  int64_t n, size;
  const Scales &s;
  float *out;
  Lines *lines;
  bool stream;
};

template <class To, class Kind, Quotient way> AB_INLINE void whole_blocks_of(const RoundPlan &p, const Piece &c) {
  const auto call = [&](auto whole) { whole(p, c.x, c.n, c.size, way == Quotient::InPlace ? c.s.caps : c.s.scale, c.s.over, c.out, c.lines, c.stream); };
  if constexpr (kIsPlain<Kind>) {
    if (c.size == 16) return call(whole_blocks<Kind, way, 1, To>);
    if (c.size == 32 && c.n % 32 == 0) return call(whole_blocks<Kind, way, 2, To>);
  }
  if constexpr (way != Quotient::InPlace) call(whole_blocks<Kind, way, 0, To>);
}

template <class To, class Kind> AB_INLINE void whole_blocks_by(const RoundPlan &p, const Piece &c) {
  if constexpr (kIsPlain<Kind>)
    if (c.s.way == Quotient::InPlace) return whole_blocks_of<To, Kind, Quotient::InPlace>(p, c);
  if (c.s.way == Quotient::Times) return whole_blocks_of<To, Kind, Quotient::Times>(p, c);
  constexpr bool steps = __is_same(Kind, PlainSteps) || __is_same(Kind, Steps<RoundMode::NearestEven>);
  if constexpr (steps)
    if (c.s.way == Quotient::Near) return whole_blocks_of<To, Kind, Quotient::Near>(p, c);
  if constexpr (steps)
    if (c.s.way == Quotient::Fused) return whole_blocks_of<To, Kind, Quotient::Fused>(p, c);
  whole_blocks_of<To, Kind, Quotient::Divide>(p, c);
}

template <class To, class Kind, class W, Quotient way> AB_INLINE void drawn_blocks_of(const RoundPlan &p, const Piece &c) {
  const auto call = [&](auto drawn) { drawn(p, c.x, *c.draw, c.n, c.size, way == Quotient::InPlace ? c.s.caps : c.s.scale, c.s.over, c.out, c.lines, c.stream); };
  if constexpr (kIsPlain<Kind> && kIsUpper<W>) {
    if (c.size == 16) return call(drawn_blocks<Kind, W, way, 1, To>);
    if (c.size == 32 && c.n % 32 == 0) return call(drawn_blocks<Kind, W, way, 2, To>);
  }
  if constexpr (way != Quotient::InPlace) call(drawn_blocks<Kind, W, way, 0, To>);
}

template <class To, class Kind> AB_INLINE void drawn_blocks_by(const RoundPlan &p, const Piece &c) {
  by_words<Kind>(p, [&](auto word) {
    using W = decltype(word);
    if constexpr (kIsPlain<Kind> && kIsUpper<W>)
      if (c.s.way == Quotient::InPlace) return drawn_blocks_of<To, Kind, W, Quotient::InPlace>(p, c);
    if (c.s.way == Quotient::Times) drawn_blocks_of<To, Kind, W, Quotient::Times>(p, c);
    else drawn_blocks_of<To, Kind, W, Quotient::Divide>(p, c);
  });
}

// Whether it was done. Modes that blocks seldom use go the other way, and what is drawn from a list is not shifted: each costs as much code as these.
template <class To> static bool in_one_go(const RoundPlan &p, const Piece &c) {
  constexpr bool shifts = __is_same(To, Shifted);
  if (p.kind == RoundKind::Steps && p.mode == RoundMode::NearestEven) {
    is_plain(p) ? whole_blocks_by<To, PlainSteps>(p, c) : whole_blocks_by<To, Steps<RoundMode::NearestEven>>(p, c);
  } else if (p.kind == RoundKind::Steps && c.draw && float_steps<kUpwardsAnywhere>(p)) {
    is_plain(p) ? drawn_blocks_by<To, DrawnSteps<kUpwardsAnywhere, false, true>>(p, c) : drawn_blocks_by<To, DrawnSteps<kUpwardsAnywhere>>(p, c);
  } else if (p.kind == RoundKind::Search && c.draw) {
    if constexpr (shifts) return false;
    else by_drawn_search(p, [&](auto k) { drawn_blocks_by<To, decltype(k)>(p, c); });
  } else if (p.kind == RoundKind::Search) {
    by_search(p, [&](auto k) { whole_blocks_by<To, decltype(k)>(p, c); });
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

static void multiplied(const float *x, int64_t n, float scale, float *out) {
  const F s = f_set(scale);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f_store(out + i, f_mul(f_load(x + i), s));
  for (; i < n; i++) out[i] = x[i] * scale;
}

static void block_maxima(const float *x, int64_t n, int64_t size, uint32_t *most) {
  const int64_t whole = n / size;
  int64_t i = 0;
  if (size == 16)
    for (; i + 16 <= whole; i += 16) i_store((int32_t *)most + i, largest_of<1>(x + i * 16));
  if (size == 32)
    for (; i + 16 <= whole; i += 16) i_store((int32_t *)most + i, largest_of<2>(x + i * 32));
  for (; i * size < n; i++) most[i] = largest(x + i * size, n - i * size < size ? n - i * size : size);
}

// Loads wait for stores under way whose addresses have the same last twelve bits. Where results go a little beyond what numbers' addresses look like, those of the
// next numbers do, and pieces take two to three times as long.
AB_INLINE bool looks_alike(const float *x, const float *out) {
  const uintptr_t ahead = ((uintptr_t)out / 64 * 64 - (uintptr_t)x) % 4096;  // of the line that `out` is in
  return ahead != 0 && ahead < 640;
}

static bool whole_piece(const RoundPlan &p, const Piece &c, float *held) {  // whether it was done
  if (!c.lines) return in_one_go<Straight>(p, c);
  const int beyond = beyond_of(c.out);
  if (kPast && !looks_alike(c.x, c.out)) {
    if (beyond == 0 && c.lines->count == 0) return in_one_go<Straight>(p, {c.x, c.draw, c.n, c.size, c.s, c.out, nullptr, true});
    if (beyond != 0 && c.lines->count == beyond && in_one_go<Shifted>(p, c)) return true;
  }
  if (!in_one_go<Straight>(p, {c.x, c.draw, c.n, c.size, c.s, held, nullptr, false})) return false;
  put_lines(held, c.n, c.out, c.lines);
  return true;
}

static bool blocks(const RoundPlan &p, const BlockPlan &b, const float *x, const Draw *draw, int64_t n, float *out, Lines *past) {
  alignas(64) float room[16 + 1024 + kRoundBlock];
  alignas(64) uint32_t most[kRoundBlock];
  float *const held = room + 16 + ((uintptr_t)x + 2048 - (uintptr_t)(room + 16)) % 4096 / 64 * 16;  // half a page beyond x: see `looks_alike`
  Lines *const lines = kPast ? past : nullptr;
  Scales s;
  if (at_once(p, b, x, n, &s)) return whole_piece(p, {x, draw, n, b.size, s, out, lines, false}, held);
  const int64_t count = (n + b.size - 1) / b.size;
  block_maxima(x, n, b.size, most);
  for (int64_t i = count; i % 16 != 0; i++) most[i] = most[count - 1];
  Mask special = i_lt(i_zero(), i_zero());
  for (int64_t i = 0; i < count; i += 16) special = m_or(special, i_lt(i_set(0x7f7fffff), i_load((const int32_t *)most + i)));
  if (i_any(special)) return false;
  scales(b, most, count, s.scale);
  if (!settle(p, b, count, &s)) return false;
  const float *scale = s.scale;
  if (b.size % 16 == 0 && n % 16 == 0 && n <= kRoundBlock && whole_piece(p, {x, draw, n, b.size, s, out, lines, false}, held)) return true;
  for (int64_t from = 0; from < n; from += kRoundBlock) {  // more than one time: one block, in pieces
    const int64_t here = n - from < kRoundBlock ? n - from : kRoundBlock, each = n > kRoundBlock ? here : b.size;
    float *const to = lines ? held : out + from;
    for (int64_t at = 0, i = 0; at < here; at += each, i++) divided(x + from + at, here - at < each ? here - at : each, scale[i], held + at);
    values(p, held, draw, here, held, false);
    for (int64_t at = 0, i = 0; at < here; at += each, i++) multiplied(held + at, here - at < each ? here - at : each, scale[i], to + at);
    if (lines) put_lines(held, here, out + from, lines);
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
const RoundKernels round_kernels = {AB_NAME(ANYBIT_ISA), largest, range, values, codes, blocks, near, philox_halves, decode};

}  // namespace ANYBIT_ISA
}  // namespace anybit
