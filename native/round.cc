// Rounding float32 to an element's values or codes, compiled once per ISA. All inputs here are finite (the caller replaces what is not); results are
// those of formats/rounding.py's switch points, or of formats/stochastic.py, to the last bit.
//
// Steps, operations on 16 lanes: 10 for values to nearest even, where adding a power of two whose last place is the step lets the hardware round:
//   y = (|x| + C) - C,  C = 2^(23 - mantissa) * (binade of |x|, at least the first)        exact: |x| < C and C is an even number of steps
// about 25 for every other mode, on the significand as an integer: q = (significand + what the mode adds) >> (bits that the step drops).
// Tapered: as the other modes of steps, on the whole pattern, and a permute of the exponent's table.
// Search: four comparisons down a tree whose levels are permutes. Buckets: one load of a threshold and one of the result, number by number.
#include "round.h"

#include "isa.h"
#include "philox.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

AB_INLINE F load_part(const float *p, int64_t count) {  // fewer than 16: the rest is +0
  float t[16] = {0};
  memcpy(t, p, sizeof(float) * (size_t)count);
  return f_load(t);
}

// ------------------------------------------------------------------------------------------------ magnitudes
// sig / 2^d, rounded to a whole number. sig < 2^31; d from 1 to 30, for stochastic rounding to any number. negative: all ones or 0.
template <RoundMode mode> AB_INLINE I shifted(I sig, I d, I negative, I word) {
  const I mask = i_sub(i_shlv(i_set(1), d), i_set(1));
  if constexpr (mode == RoundMode::Stochastic) {
    // r < p 2^N for whole r is r's upper d bits < the dropped bits: adding all ones less r carries just then.
    const I most = i_shrv(i_xor(word, i_set(-1)), i_sub(i_set(32), d));
    if (!i_any(i_lt(i_set(30), i_select(i_lt(i_zero(), sig), d, i_zero())))) return i_shrv(i_add(sig, most), i_min(d, i_set(31)));
    // Further down the dropped bits are a fraction of 2^32, rounded up below its last place.
    const I beyond = i_sub(d, i_set(32)), flip = i_set((int32_t)0x80000000);  // flip: unsigned comparison
    const I tail = i_shrv(i_add(sig, i_sub(i_shlv(i_set(1), beyond), i_set(1))), beyond);
    const I part = i_or(i_shlv(i_and(sig, mask), i_sub(i_set(32), d)), tail);
    return i_add(i_shrv(sig, d), i_select(i_lt(i_xor(word, flip), i_xor(part, flip)), i_set(1), i_zero()));
  } else if constexpr (mode == RoundMode::Odd) {
    return i_or(i_shrv(sig, d), i_shrv(i_add(i_and(sig, mask), mask), d));
  } else if constexpr (mode == RoundMode::Zero) {
    return i_shrv(sig, d);
  } else {
    I add;
    if constexpr (mode == RoundMode::Up) add = i_and(mask, i_xor(negative, i_set(-1)));
    else if constexpr (mode == RoundMode::Down) add = i_and(mask, negative);
    else if constexpr (mode == RoundMode::NearestZero) add = i_shr(mask, 1);
    else if constexpr (mode == RoundMode::NearestAway) add = i_add(i_shr(mask, 1), i_set(1));
    else add = i_add(i_shr(mask, 1), i_and(i_shrv(sig, d), i_set(1)));
    return i_shrv(i_add(sig, add), d);
  }
}

// Whole steps q and the binade e (float32's exponent field) whose steps they are. a: bits of a magnitude.
template <RoundMode mode> AB_INLINE I steps_of(const RoundPlan &p, I a, I negative, I word, I *binade) {
  if constexpr (mode == RoundMode::NearestEven) {
    const F x = f_min(i_float(a), f_set(p.cap));
    const I e = i_max(i_and(f_bits(x), i_set(0x7f800000)), i_set(p.least << 23));
    const I big = i_add(e, i_set((23 - p.mantissa) << 23));
    *binade = i_shr(e, 23);
    return i_sub(f_bits(f_add(x, i_float(big))), big);
  } else {
    a = i_min(a, i_set((int32_t)float_bits(p.cap)));
    const I e = i_shr(a, 23), first = i_max(e, i_set(p.least));
    const I sig = i_or(i_and(a, i_set(0x007fffff)), i_set(0x00800000));
    const I d = i_min(i_add(i_sub(first, e), i_set(23 - p.mantissa)), i_set(mode == RoundMode::Stochastic ? 57 : 30));
    *binade = first;
    return shifted<mode>(i_select(i_lt(i_zero(), a), sig, i_zero()), d, negative, word);
  }
}

// Signs, ends and zeros of a value whose magnitude y is rounded.
AB_INLINE F signed_value(const RoundPlan &p, F y, I bits) {
  const I sign = i_and(bits, i_set((int32_t)0x80000000));
  F r;
  if (p.symmetric && p.clips) {
    r = i_float(i_or(f_bits(f_min(y, f_set(p.largest[0]))), sign));
  } else {
    const Mask negative = i_lt(bits, i_zero());
    const F limit = f_select(negative, f_set(p.largest[1]), f_set(p.largest[0]));
    r = i_float(i_or(f_bits(f_min(y, limit)), sign));
    if (!p.clips) r = f_select(f_lt(limit, y), f_select(negative, f_set(p.out_value[1]), f_set(p.out_value[0])), r);
  }
  return p.minus_zero ? r : f_add(r, f_zero());  // -0 + 0 is +0
}

AB_INLINE I signed_code(const RoundPlan &p, I m, I bits) {
  const I sign = i_sar(bits, 31);
  const Mask negative = i_lt(bits, i_zero());
  const I limit = p.symmetric ? i_set(p.top[0]) : i_select(negative, i_set(p.top[1]), i_set(p.top[0]));
  const Mask out = i_lt(limit, m);
  m = i_min(m, limit);
  I c = m;
  if (p.two_complement) {
    c = i_and(i_sub(i_xor(m, sign), sign), i_set(p.code_mask));
  } else if (p.sign_bit >= 0) {
    c = i_or(m, i_and(sign, i_set(1 << p.sign_bit)));
    if (!p.minus_zero) c = i_select(i_lt(i_zero(), m), c, i_zero());
  }
  return p.clips ? c : i_select(out, i_select(negative, i_set(p.out_code[1]), i_set(p.out_code[0])), c);
}

// Whole steps of magnitudes c (bits, at most cap), up or down as the word says: r < p 2^N for whole r is r's upper d bits < the d bits that are dropped,
// and adding all ones less r carries just then. Where more than 30 bits are dropped, `shifted` does it; of zero all are, and none is added.
AB_INLINE I drawn_steps(const RoundPlan &p, I c, I word) {
  const I d = i_max(i_sub(i_set(p.least + 23 - p.mantissa), i_shr(c, 23)), i_set(23 - p.mantissa));
  const I sig = i_or(i_and(c, i_set(0x007fffff)), i_set(0x00800000));
  const int32_t faint = p.least - 7 - p.mantissa;  // magnitudes of lower exponents drop more; unsigned c - 1 < their end - 1
  const Mask deep = i_lt(i_add(c, i_set(0x7fffffff)), i_set((int32_t)((uint32_t)(faint << 23) + 0x7fffffffu)));
  if (__builtin_expect(i_any(deep), 0)) return shifted<RoundMode::Stochastic>(i_select(i_lt(i_zero(), c), sig, i_zero()), i_min(d, i_set(57)), c, word);
  return i_shrv(i_add(sig, i_shrv(i_xor(word, i_set(-1)), i_sub(i_set(32), d))), d);
}

template <RoundMode mode> struct Steps {
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff));
    F y;
    if constexpr (mode == RoundMode::NearestEven) {
      const F size = f_min(i_float(a), f_set(p.cap));
      const F big = i_float(i_add(i_max(i_and(f_bits(size), i_set(0x7f800000)), i_set(p.least << 23)), i_set((23 - p.mantissa) << 23)));
      y = f_sub(f_add(size, big), big);
    } else if constexpr (mode == RoundMode::Stochastic) {
      const I c = i_min(a, i_set((int32_t)float_bits(p.cap)));
      const I first = i_max(i_and(c, i_set(0x7f800000)), i_set(p.least << 23));
      y = f_mul(i_to_f(drawn_steps(p, c, word)), i_float(i_sub(first, i_set(p.mantissa << 23))));  // exact
    } else {
      I e;
      const I q = steps_of<mode>(p, a, i_sar(bits, 31), word, &e);
      y = f_mul(i_to_f(q), i_float(i_shl(i_sub(e, i_set(p.mantissa)), 23)));  // exact
    }
    return signed_value(p, y, bits);
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x);
    I e, q;
    if constexpr (mode == RoundMode::Stochastic) {
      const I c = i_min(i_and(bits, i_set(0x7fffffff)), i_set((int32_t)float_bits(p.cap)));
      e = i_max(i_shr(c, 23), i_set(p.least)), q = drawn_steps(p, c, word);
    } else {
      q = steps_of<mode>(p, i_and(bits, i_set(0x7fffffff)), i_sar(bits, 31), word, &e);
    }
    return signed_code(p, i_add(q, i_shl(i_sub(e, i_set(p.least)), p.mantissa)), bits);
  }
};

template <RoundMode mode> struct Prefix {
  AB_INLINE I magnitude(const RoundPlan &p, I bits, I word) {
    if constexpr (mode == RoundMode::Stochastic)  // as drawn_steps; some bits are kept
      return i_shr(i_add(i_and(bits, i_set(0x7fffffff)), i_shr(i_xor(word, i_set(-1)), 9 + p.mantissa)), 23 - p.mantissa);
    return shifted<mode>(i_and(bits, i_set(0x7fffffff)), i_set(23 - p.mantissa), i_sar(bits, 31), word);
  }
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    return signed_value(p, i_float(i_shl(magnitude(p, f_bits(x), word), 23 - p.mantissa)), f_bits(x));
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) { return signed_code(p, magnitude(p, f_bits(x), word), f_bits(x)); }
};

AB_INLINE B b_of(I a) { B r; memcpy(&r, &a, sizeof r); return r; }

template <int entries> struct TaperedOf {  // 0: any
  template <RoundMode mode> struct Kind {
    AB_INLINE F value(const RoundPlan &p, F x, I) {
      const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff));
      I entry;
      const I q = rounded<mode, true>(p, bits, a, &entry);
      I y = i_sub(i_shlv(q, i_and(entry, i_set(31))), i_set(p.origin));
      const Mask zero = i_lt(a, by_sign<mode>(p.zero_below, bits));
      if (p.clips && !p.minus_zero) return i_float(i_select(zero, i_zero(), i_or(y, i_and(bits, i_set((int32_t)0x80000000)))));
      if (!p.clips) y = i_select(i_lt(a, by_sign<mode>(p.out_from, bits)), y, i_set(0x7f800000));
      return signed_value(p, i_float(i_select(zero, i_zero(), y)), bits);
    }
    AB_INLINE I code(const RoundPlan &p, F x, I) {
      const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff));
      I entry;
      const I q = rounded<mode, false>(p, bits, a, &entry);
      I m = i_add(q, i_sar(entry, 5));
      if (!p.clips) m = i_select(i_lt(a, by_sign<mode>(p.out_from, bits)), m, i_set(0x10000));
      return signed_code(p, i_select(i_lt(a, by_sign<mode>(p.zero_below, bits)), i_zero(), m), bits);
    }

   private:
    template <RoundMode m> AB_INLINE I by_sign(const int32_t *limits, I bits) {
      if constexpr (m == RoundMode::Up || m == RoundMode::Down) return i_select(i_lt(bits, i_zero()), i_set(limits[1]), i_set(limits[0]));
      else return i_set(limits[0]);
    }
    template <RoundMode m, bool only_drop> AB_INLINE I rounded(const RoundPlan &p, I bits, I a, I *entry) {
      const I held = i_min(i_max(a, i_set(p.smallest)), i_set(p.biggest));
      const I exponent = i_shr(held, 23);
      if constexpr (entries == 64 && only_drop && kByteTables) *entry = b_dwords(b_lookup64(p.drops, b_of(exponent)));  // upper bytes: anything
      else if constexpr (entries > 0) *entry = i_lookup<entries>(p.taper, exponent);
      else *entry = f_bits(f_gather((const float *)p.taper, i_and(exponent, i_set(p.entries - 1))));
      return shifted<m>(i_add(held, i_set(p.origin)), i_and(*entry, i_set(31)), i_sar(bits, 31), i_zero());
    }
  };
};

// ------------------------------------------------------------------------------------------------ at most 16 values
struct Search {
  AB_INLINE I down(const float *level, F x, I at) {  // to the next level: twice the index, one more from the threshold on
    const I two = i_add(at, at);
    return i_select(f_lt(x, f_lookup8(level, at)), two, i_add(two, i_set(1)));
  }
  AB_INLINE I rank(const RoundPlan &p, F x) {
    const I second = i_select(f_lt(x, f_set(p.tree[0][0])), i_zero(), i_set(1));
    return down(p.tree[3], x, down(p.tree[2], x, down(p.tree[1], x, second)));
  }
  AB_INLINE F value(const RoundPlan &p, F x, I) {
    const F y = f_lookup16(p.values16, rank(p, x));
    if (!p.minus_zero) return y;
    const I bits = f_bits(y), sign = i_and(f_bits(x), i_set((int32_t)0x80000000));
    return i_float(i_select(i_lt(i_and(bits, i_set(0x7fffffff)), i_set(1)), sign, bits));
  }
  AB_INLINE I code(const RoundPlan &p, F x, I) {
    const I c = f_bits(f_lookup16((const float *)p.codes16, rank(p, x)));
    if (!p.minus_zero) return c;
    const I signed_zero = i_select(i_lt(f_bits(x), i_zero()), i_set(p.minus_zero_code), c);
    return i_select(i_lt(i_xor(c, i_set(p.zero_code)), i_set(1)), signed_zero, c);  // codes are not negative
  }
};

template <class Kind> static void values_lanes(const RoundPlan &plan, const float *x, const uint32_t *words, int64_t n, float *out, bool stream) {
  const RoundPlan p = plan;  // what no store can change stays in registers
  int64_t i = 0;
  const int32_t *w = (const int32_t *)words;
  const I drawn = i_set((int32_t)p.word_mask);
  if (stream) {
    for (; i + 16 <= n; i += 16) f_stream(out + i, Kind::value(p, f_load(x + i), w ? i_and(i_load(w + i), drawn) : i_zero()));
  } else {
    for (; i + 16 <= n; i += 16) f_store(out + i, Kind::value(p, f_load(x + i), w ? i_and(i_load(w + i), drawn) : i_zero()));
  }
  if (i == n) return;
  int32_t rest[16] = {0};
  float t[16];
  if (w) memcpy(rest, w + i, sizeof(int32_t) * (size_t)(n - i));
  f_store(t, Kind::value(p, load_part(x + i, n - i), i_and(i_load(rest), drawn)));
  memcpy(out + i, t, sizeof(float) * (size_t)(n - i));
}

template <class Kind> static void codes_lanes(const RoundPlan &plan, const float *x, const uint32_t *words, int64_t n, int32_t *out) {
  const RoundPlan p = plan;
  int64_t i = 0;
  const int32_t *w = (const int32_t *)words;
  const I drawn = i_set((int32_t)p.word_mask);
  for (; i + 16 <= n; i += 16) i_store(out + i, Kind::code(p, f_load(x + i), w ? i_and(i_load(w + i), drawn) : i_zero()));
  if (i == n) return;
  int32_t rest[16] = {0}, t[16];
  if (w) memcpy(rest, w + i, sizeof(int32_t) * (size_t)(n - i));
  i_store(t, Kind::code(p, load_part(x + i, n - i), i_and(i_load(rest), drawn)));
  memcpy(out + i, t, sizeof(int32_t) * (size_t)(n - i));
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

template <class T> static void picked(const RoundPlan &p, const float *x, const uint32_t *words, int64_t n, T *out, const T *table) {
  if (p.kind == RoundKind::Buckets && p.mode != RoundMode::Stochastic) {
    const Node *nodes = p.nodes;
    const Bucket *buckets = p.buckets, *halves = p.halves;
    if (halves) {
      for (int64_t i = 0; i < n; i++) {
        const Bucket b = halves[float_bits(x[i]) >> 16];
        out[i] = table[b.rank + (x[i] >= b.threshold)];
      }
      return;
    }
    for (int64_t i = 0; i < n; i++) {
      const uint32_t bits = float_bits(x[i]);
      const Node node = nodes[bits >> 23];
      const Bucket b = buckets[node.base + ((bits & 0x7fffff) >> node.shift)];
      out[i] = table[b.rank + (x[i] >= b.threshold)];
    }
    return;
  }
  uint32_t rank[kRoundBlock];
  for (int64_t at = 0; at < n; at += kRoundBlock) {
    const int64_t count = n - at < kRoundBlock ? n - at : kRoundBlock;
    ranks(p, x + at, words ? words + at : nullptr, count, rank);
    for (int64_t i = 0; i < count; i++) out[at + i] = table[rank[i]];
  }
}

// ------------------------------------------------------------------------------------------------ by kind and mode
template <template <RoundMode> class Kind, class Call> AB_INLINE void by_mode(RoundMode mode, Call call) {
  switch (mode) {
    case RoundMode::NearestEven: return call(Kind<RoundMode::NearestEven>());
    case RoundMode::NearestAway: return call(Kind<RoundMode::NearestAway>());
    case RoundMode::NearestZero: return call(Kind<RoundMode::NearestZero>());
    case RoundMode::Zero: return call(Kind<RoundMode::Zero>());
    case RoundMode::Up: return call(Kind<RoundMode::Up>());
    case RoundMode::Down: return call(Kind<RoundMode::Down>());
    case RoundMode::Odd: return call(Kind<RoundMode::Odd>());
    case RoundMode::Stochastic: return call(Kind<RoundMode::Stochastic>());
  }
}

template <class Call> AB_INLINE void by_entries(const RoundPlan &p, Call call) {
#if !ANYBIT_512 && !ANYBIT_256
  return by_mode<TaperedOf<0>::Kind>(p.mode, call);  // tables of all sizes are read alike
#endif
  switch (p.entries) {
    case 16: return by_mode<TaperedOf<16>::Kind>(p.mode, call);
    case 32: return by_mode<TaperedOf<32>::Kind>(p.mode, call);
    case 64: return by_mode<TaperedOf<64>::Kind>(p.mode, call);
    default: return by_mode<TaperedOf<128>::Kind>(p.mode, call);
  }
}

static void values(const RoundPlan &p, const float *x, const uint32_t *words, int64_t n, float *out, bool stream) {
  if (p.kind == RoundKind::Steps) return by_mode<Steps>(p.mode, [&](auto k) { values_lanes<decltype(k)>(p, x, words, n, out, stream); });
  if (p.kind == RoundKind::Prefix) return by_mode<Prefix>(p.mode, [&](auto k) { values_lanes<decltype(k)>(p, x, words, n, out, stream); });
  if (p.kind == RoundKind::Tapered) return by_entries(p, [&](auto k) { values_lanes<decltype(k)>(p, x, words, n, out, stream); });
  if (p.kind == RoundKind::Search) return values_lanes<Search>(p, x, words, n, out, stream);
  if (!stream) return picked(p, x, words, n, out, p.rank_values);
  float block[kRoundBlock];
  for (int64_t at = 0; at < n; at += kRoundBlock) {
    const int64_t count = n - at < kRoundBlock ? n - at : kRoundBlock;
    picked(p, x + at, words ? words + at : nullptr, count, block, p.rank_values);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) f_stream(out + at + i, f_load(block + i));
    memcpy(out + at + i, block + i, sizeof(float) * (size_t)(count - i));
  }
}

static void codes(const RoundPlan &p, const float *x, const uint32_t *words, int64_t n, int32_t *out) {
  if (p.kind == RoundKind::Steps) return by_mode<Steps>(p.mode, [&](auto k) { codes_lanes<decltype(k)>(p, x, words, n, out); });
  if (p.kind == RoundKind::Prefix) return by_mode<Prefix>(p.mode, [&](auto k) { codes_lanes<decltype(k)>(p, x, words, n, out); });
  if (p.kind == RoundKind::Tapered) return by_entries(p, [&](auto k) { codes_lanes<decltype(k)>(p, x, words, n, out); });
  if (p.kind == RoundKind::Search) return codes_lanes<Search>(p, x, words, n, out);
  picked(p, x, words, n, out, p.rank_codes);
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

// Blocks of whole registers: divided, rounded and multiplied in one go. By a power of two whose reciprocal is a normal number, multiplying gives
// the quotient's own bits.
template <class Kind, bool reciprocal, bool stream>
static void whole_blocks(const RoundPlan &plan, const float *x, const uint32_t *words, int64_t n, int64_t size, const float *scale, float *out) {
  const RoundPlan p = plan;
  const I drawn = i_set((int32_t)p.word_mask);
  const int32_t *w = (const int32_t *)words;
  for (int64_t block = 0, at = 0; at < n; block++) {
    const float s = scale[block], by = s == 0.0f ? bits_float(0x7f800000u) : s;
    const F times = f_set(s), over = f_set(reciprocal ? 1.0f / s : by);
    const int64_t end = n - at < size ? n : at + size;
    for (; at < end; at += 16) {
      const F v = f_load(x + at), q = reciprocal ? f_mul(v, over) : f_div(v, over);
      const F y = f_mul(Kind::value(p, q, w ? i_and(i_load(w + at), drawn) : i_zero()), times);
      if (stream) f_stream(out + at, y);
      else f_store(out + at, y);
    }
  }
}

template <class Kind>
AB_INLINE void whole_blocks_by(const RoundPlan &p, const float *x, const uint32_t *w, int64_t n, int64_t size, const float *scale, bool powers, float *out, bool stream) {
  if (powers) return stream ? whole_blocks<Kind, true, true>(p, x, w, n, size, scale, out) : whole_blocks<Kind, true, false>(p, x, w, n, size, scale, out);
  return stream ? whole_blocks<Kind, false, true>(p, x, w, n, size, scale, out) : whole_blocks<Kind, false, false>(p, x, w, n, size, scale, out);
}

// Whether it was done. Modes that blocks seldom use go the other way: each costs as much code as these.
static bool in_one_go(const RoundPlan &p, const float *x, const uint32_t *w, int64_t n, int64_t size, const float *scale, bool powers, float *out, bool stream) {
  const bool nearest = p.mode == RoundMode::NearestEven;
  if (p.kind == RoundKind::Steps && nearest) whole_blocks_by<Steps<RoundMode::NearestEven>>(p, x, w, n, size, scale, powers, out, stream);
  else if (p.kind == RoundKind::Steps && p.mode == RoundMode::Stochastic)
    whole_blocks_by<Steps<RoundMode::Stochastic>>(p, x, w, n, size, scale, powers, out, stream);
  else if (p.kind == RoundKind::Search) whole_blocks_by<Search>(p, x, w, n, size, scale, powers, out, stream);
  else return false;
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

static bool blocks(const RoundPlan &p, const BlockPlan &b, const float *x, const uint32_t *words, int64_t n, float *out, bool stream) {
  alignas(64) float held[kRoundBlock] = {0};
  uint32_t most[kRoundBlock];
  float scale[kRoundBlock];
  const int64_t count = (n + b.size - 1) / b.size;
  const bool registers = b.size % 16 == 0 && n % 16 == 0 && n <= kRoundBlock;
  if (registers) {
    const I magnitude = i_set(0x7fffffff);
    for (int64_t i = 0, at = 0; at < n; i++) {
      const int64_t end = n - at < b.size ? n : at + b.size;
      I m = i_and(f_bits(f_load(x + at)), magnitude);
      for (at += 16; at < end; at += 16) m = i_max(m, i_and(f_bits(f_load(x + at)), magnitude));
      most[i] = (uint32_t)i_fold_max(m);
    }
  } else {
    for (int64_t i = 0; i < count; i++) {
      const int64_t left = n - i * b.size;
      most[i] = largest(x + i * b.size, left < b.size ? left : b.size);
    }
  }
  uint32_t all = 0;
  for (int64_t i = 0; i < count; i++) all = most[i] > all ? most[i] : all;
  if (all >= 0x7f800000u) return false;
  scales(b, most, count, scale);
  int within = 1;
  for (int64_t i = 0; i < count; i++) within &= (double)scale[i] <= b.limit;
  if (!within) return false;
  if (registers) {
    int powers = 1;
    for (int64_t i = 0; i < count; i++) {
      const uint32_t bits = float_bits(scale[i]);
      powers &= ((bits & 0x7fffff) == 0) & (bits - 0x00800000u <= 0x7e000000u);  // 2^-126 to 2^126
    }
    if (in_one_go(p, x, words, n, b.size, scale, powers != 0, out, stream)) return true;
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
  values(p, held, words, n, held, false);
  const bool whole = stream && b.size % 16 == 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = i * b.size, size = n - at < b.size ? n - at : b.size;
    multiplied(held + at, size, scale[i], out + at, whole);
  }
  return true;
}

static void philox(uint64_t seed, uint64_t counter, int64_t counters, uint32_t *out, const float *next) {
  philox_run(seed, counter, counters, out, next);
}

static void narrow(const int32_t *codes, int64_t n, int width, void *out) {
  if (width == 1)
    for (int64_t i = 0; i < n; i++) ((uint8_t *)out)[i] = (uint8_t)codes[i];
  else
    for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[i] = (uint16_t)codes[i];
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
const RoundKernels round_kernels = {AB_NAME(ANYBIT_ISA), largest, range, values, codes, blocks, philox, narrow, decode};

}  // namespace ANYBIT_ISA
}  // namespace anybit
