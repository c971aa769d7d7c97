// What rounds sixteen numbers, by the kind of plan and the mode: `value` and `code` of each. Included by round.cc, once per ISA.
//
// Steps, operations on 16 lanes: 10 for values to nearest even, where adding a power of two whose last place is the step lets the hardware round:
//   y = (|x| + C) - C,  C = 2^(23 - mantissa) * (binade of |x|, at least the first)        exact: |x| < C and C is an even number of steps
// 11 at random by up to 24 bits (DrawnSteps), 8 where one step is for all; about 25 for every other mode, on the significand as an integer: q = (significand + what the mode adds) >>
// (bits that the step drops).
// Tapered: as the other modes of steps, on the whole pattern, and a permute of the exponent's table; at random 11 where the exponent is kept, elsewhere as
// search, but exact at once.
// Search: four comparisons down a tree whose levels are permutes, or one after a permute of bytes has said how many values lie before a number's part.
#pragma once
#include "round.h"
#include "round_lanes.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

// ------------------------------------------------------------------------------------------------ magnitudes
// sig / 2^d, rounded to a whole number. sig < 2^31; d from 1 to 30, for stochastic rounding to any number. negative: all ones or 0.
template <RoundMode mode> AB_INLINE I shifted(I sig, I d, I negative, I word) {
  const I mask = i_sub(i_shlv(i_set(1), d), i_set(1));
  if constexpr (mode == RoundMode::Stochastic) {
    // r < p 2^N for whole r is r's upper d bits < the dropped bits: adding all ones less r carries just then. word: r, and no more.
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
template <bool held = false> AB_INLINE F signed_value(const RoundPlan &p, F y, I bits) {
  F r;
  if (p.symmetric && p.clips) {
    r = i_float(i_signed(f_bits(held ? y : f_min(y, f_set(p.largest[0]))), bits));
  } else {
    const Mask negative = i_lt(bits, i_zero());
    const F limit = f_select(negative, f_set(p.largest[1]), f_set(p.largest[0]));
    r = i_float(i_signed(f_bits(f_min(y, limit)), bits));
    if (!p.clips) r = f_select(f_lt(limit, y), f_select(negative, f_set(p.out_value[1]), f_set(p.out_value[0])), r);
  }
  return p.minus_zero ? r : f_add(r, f_zero());  // -0 + 0 is +0
}

// A draw of N bits, 17 to 24, by its upper sixteen. They decide but where the rest, whatever it is, could change the result: `open` says for which lanes that may
// be so, and at least for those where it is. Kinds that take it in a word's place say so by kTakesUpper.
struct Upper {
  I half;
  Mask open;
};
constexpr float kNextHalf = 65534;  // a step's parts of 2^-16, less two: how far below the next value a difference is that two more parts bring to this one
constexpr bool kUpperFirst = kUpwards;  // not worth its code where lanes are a loop
template <class Kind> constexpr bool kTakesUpper = false;
template <class Kind> struct All { using By = Kind; };  // what rounds the same by whole words
template <class Kind> constexpr bool kOnlyUpper = !__is_same(typename All<Kind>::By, Kind);

// The word's upper N bits, N up to 24.
AB_INLINE F drawn(const RoundPlan &p, I word) { return i_to_f(i_shr(word, 32 - p.random_bits)); }
AB_INLINE F drawn(const RoundPlan &, const Upper &word) { return i_to_f(word.half); }
AB_INLINE int bits_of(const RoundPlan &p, I) { return p.random_bits; }
AB_INLINE int bits_of(const RoundPlan &, const Upper &) { return 16; }
template <class W> constexpr bool kIsUpper = __is_same(W, Upper);
AB_INLINE F f_magnitude(F x) { return i_float(i_and(f_bits(x), i_set(0x7fffffff))); }

template <int count> AB_INLINE Mask any_of(const Mask *m) {
  Mask any = m[0];
#pragma GCC unroll 4
  for (int j = 1; j < count; j++) any = m_or(any, m[j]);
  return any;
}

// Plans of most floats: ends that are alike and clip, and a -0. Kinds that ask nothing of these at each number have names of their own.
AB_INLINE bool is_plain(const RoundPlan &p) { return p.symmetric && p.clips && p.minus_zero; }
template <class Kind> constexpr bool kIsPlain = false;

template <int count, bool held, bool plain> AB_INLINE void signed_values(const RoundPlan &p, const F *x, F *y) {  // of magnitudes y that are at most the cap, or `held` to the ends
  if (held || plain || (p.symmetric && p.clips)) {
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = i_float(i_signed(f_bits(y[j]), f_bits(x[j])));
    if (!plain && !p.minus_zero)
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) y[j] = f_add(y[j], f_zero());
  } else {
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = signed_value<true>(p, y[j], f_bits(x[j]));
  }
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

// What magnitudes are held to, and the bits of the first binade: a plan's, or those times a power of two.
struct Ends {
  F cap;
  I least;
};
AB_INLINE Ends ends_of(const RoundPlan &p) { return {f_set(p.cap), i_set(p.least << 23)}; }

template <RoundMode mode> struct Steps {
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff));
    F y;
    if constexpr (mode == RoundMode::NearestEven) {
      const F size = f_size(x, f_set(p.cap));
      const F big = i_float(i_add(i_max(i_and(f_bits(size), i_set(0x7f800000)), i_set(p.least << 23)), i_set((23 - p.mantissa) << 23)));
      y = f_sub(f_add(size, big), big);
    } else if constexpr (mode == RoundMode::Stochastic) {
      const I c = i_min(a, i_set((int32_t)float_bits(p.cap)));
      const I first = i_max(i_and(c, i_set(0x7f800000)), i_set(p.least << 23));
      y = f_mul(i_to_f(drawn_steps(p, c, i_and(word, i_set((int32_t)p.word_mask)))), i_float(i_sub(first, i_set(p.mantissa << 23))));  // exact
    } else {
      I e;
      const I q = steps_of<mode>(p, a, i_sar(bits, 31), word, &e);
      y = f_mul(i_to_f(q), i_float(i_shl(i_sub(e, i_set(p.mantissa)), 23)));  // exact
    }
    return signed_value<true>(p, y, bits);
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x);
    I e, q;
    if constexpr (mode == RoundMode::Stochastic) {
      const I c = i_min(i_and(bits, i_set(0x7fffffff)), i_set((int32_t)float_bits(p.cap)));
      e = i_max(i_shr(c, 23), i_set(p.least)), q = drawn_steps(p, c, i_and(word, i_set((int32_t)p.word_mask)));
    } else {
      q = steps_of<mode>(p, i_and(bits, i_set(0x7fffffff)), i_sar(bits, 31), word, &e);
    }
    return signed_code(p, i_add(q, i_shl(i_sub(e, i_set(p.least)), p.mantissa)), bits);
  }
};

struct PlainSteps {  // to nearest even
  AB_INLINE F value(const RoundPlan &p, F x, I) {
    const Ends ends = ends_of(p);
    F y;
    within<1>(p, &x, &ends, &y);
    return y;
  }
  // Step by step for all of them, as below.
  template <int count> AB_INLINE void within(const RoundPlan &p, const F *x, const Ends *ends, F *y) {
    F big[count];
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = f_size(x[j], ends[j].cap);
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) big[j] = i_float(i_add(i_max(i_and(f_bits(y[j]), i_set(0x7f800000)), ends[j].least), i_set((23 - p.mantissa) << 23)));
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = f_add(y[j], big[j]);
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = f_sub(y[j], big[j]);
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) y[j] = i_float(i_signed(f_bits(y[j]), f_bits(x[j])));
  }
};
template <> constexpr bool kIsPlain<PlainSteps> = true;

// At random by up to 24 bits, r of them. On sets that can round towards +infinity (`upwards`; where it is a mode, `Upwards` has to live around it):
//   y = ceil(|x| / step - r 2^-N) steps      a part of a step p stays below r 2^-N, or is larger; both roundings keep the ceiling
// by adding 1.5 * 2^23 steps and taking them off again. On others |x| / step (where no step is larger than 1), its whole part, the rest, and the rest
// times 2^N are exact, and compared with r.
template <bool upwards, bool even = false, bool plain = false> struct DrawnSteps {
  template <class W> AB_INLINE F value(const RoundPlan &p, F x, W &word) {
    F y;
    values<1>(p, &x, &word, &y);
    return y;
  }
  template <class W> AB_INLINE I code(const RoundPlan &p, F x, W &word) {
    const F size = f_size(x, f_set(p.cap));
    const I binade = binade_of(size, i_set(p.least << 23));
    I q;
    if constexpr (upwards) {
      const F big = big_of(p, binade), y = f_add_up(f_less_up(size, drawn(p, word), part_of(p, binade, word)), big);
      q = i_sub(f_bits(y), f_bits(big));
      if constexpr (kIsUpper<W>) word.open = left_open(f_less_up(size, drawn(p, word), part_of(p, binade, word)), f_sub(y, big), part_of(p, binade, word));
    } else {
      q = f_to_i(steps(p, size, binade, word));
    }
    return signed_code(p, i_add(q, i_shr(i_sub(binade, i_set(p.least << 23)), 23 - p.mantissa)), f_bits(x));
  }
  // Step by step for all of them: each number is a chain of operations that wait for each other. The first one's `open` is for all.
  template <int count, class W> AB_INLINE void values(const RoundPlan &p, const F *x, W *word, F *y) {
    Ends ends[count];
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) ends[j] = ends_of(p);
    within<count>(p, x, ends, word, y);
  }
  template <int count, class W> AB_INLINE void within(const RoundPlan &p, const F *x, const Ends *ends, W *word, F *y) {
    F size[count];
    if (even && !p.symmetric) {  // numbers beyond the ends are held to them first
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) size[j] = f_magnitude(f_min(f_max(x[j], f_set(-p.largest[1])), f_set(p.largest[0])));
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) size[j] = f_size(x[j], ends[j].cap);
    }
    I binade[count];
#pragma GCC unroll 4
    for (int j = 0; j < count; j++) binade[j] = even ? ends[j].least : binade_of(size[j], ends[j].least);
    if constexpr (upwards) {
      F rest[count], big[count], part[count];
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) part[j] = part_of(p, binade[j], word[j]), big[j] = big_of(p, binade[j]);
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) rest[j] = f_less_up(size[j], drawn(p, word[j]), part[j]);
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) y[j] = f_add_up(rest[j], big[j]);
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) y[j] = f_sub(y[j], big[j]);
      if constexpr (kIsUpper<W>) {
        Mask open[count];
#pragma GCC unroll 4
        for (int j = 0; j < count; j++) open[j] = left_open(rest[j], y[j], part[j]);
        word->open = any_of<count>(open);
      }
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < count; j++) y[j] = f_mul(steps(p, size[j], binade[j], word[j]), i_float(i_sub(binade[j], i_set(p.mantissa << 23))));  // exact
    }
    signed_values<count, even, plain>(p, x, y);
  }

 private:
  AB_INLINE I binade_of(F size, I least) { return i_max(i_and(f_bits(size), i_set(0x7f800000)), least); }
  AB_INLINE F big_of(const RoundPlan &p, I binade) { return i_float(i_add(binade, i_set(((23 - p.mantissa) << 23) + 0x400000))); }
  template <class W> AB_INLINE F part_of(const RoundPlan &p, I binade, const W &word) {  // a step times 2^-N
    return i_float(i_sub(binade, i_set((p.mantissa + bits_of(p, word)) << 23)));
  }
  AB_INLINE Mask left_open(F rest, F y, F part) { return f_lt(rest, f_less_up(y, f_set(kNextHalf), part)); }
  template <class W> AB_INLINE F steps(const RoundPlan &p, F size, I binade, W &word) {
    const F count = f_mul(size, i_float(i_sub(i_set((254 + p.mantissa) << 23), binade)));  // exact: sizes are not scaled down
    const F whole = f_trunc(count), r = drawn(p, word), part = f_mul(f_sub(count, whole), f_set(kIsUpper<W> ? 0x1p16f : p.whole_words));
    if constexpr (kIsUpper<W>) word.open = f_lt(f_magnitude(f_sub(part, r)), f_set(2));
    return f_add_where(f_lt(r, part), whole, f_set(1));
  }
};
template <bool upwards, bool even, bool plain> constexpr bool kTakesUpper<DrawnSteps<upwards, even, plain>> = true;
template <bool upwards, bool even> constexpr bool kIsPlain<DrawnSteps<upwards, even, true>> = true;

template <class Kind> struct Mode {};
template <bool even, bool plain> struct Mode<DrawnSteps<true, even, plain>> : Upwards {};

template <RoundMode mode> struct Prefix {
  AB_INLINE I magnitude(const RoundPlan &p, I bits, I word) {
    if constexpr (mode == RoundMode::Stochastic) {  // as drawn_steps; some bits are kept
      const I less = i_xor(i_and(word, i_set((int32_t)p.word_mask)), i_set(-1));
      return i_shr(i_add(i_and(bits, i_set(0x7fffffff)), i_shr(less, 9 + p.mantissa)), 23 - p.mantissa);
    }
    return shifted<mode>(i_and(bits, i_set(0x7fffffff)), i_set(23 - p.mantissa), i_sar(bits, 31), word);
  }
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
#if ANYBIT_512 && !ANYBIT_SIMDE
    if constexpr (mode == RoundMode::Stochastic)
      if (p.symmetric && p.clips) {  // in place; what carries into infinity is held
        const I less = i_shr(i_xor(i_and(word, i_set((int32_t)p.word_mask)), i_set(-1)), 9 + p.mantissa);
        const F y = f_held(i_float(i_and(i_add(f_bits(x), less), i_set((int32_t)(~0u << (23 - p.mantissa))))), f_set(p.largest[0]));
        return p.minus_zero ? y : f_add(y, f_zero());
      }
#endif
    return signed_value(p, i_float(i_shl(magnitude(p, f_bits(x), word), 23 - p.mantissa)), f_bits(x));
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) { return signed_code(p, magnitude(p, f_bits(x), word), f_bits(x)); }
};

template <int entries, bool only_drop> AB_INLINE I taper_entry(const RoundPlan &p, I exponent) {
  if constexpr (entries == 64 && only_drop) return i_lookup64(p.drops, exponent);
  else if constexpr (entries > 0) return i_lookup<entries>(p.taper, exponent);
  else return f_bits(f_gather((const float *)p.taper, i_and(exponent, i_set(p.entries - 1))));
}

template <int entries> AB_INLINE I taper_drop(const RoundPlan &p, I exponent) {
  const I entry = taper_entry<entries, true>(p, exponent);
  return entries == 64 ? entry : i_and(entry, i_set(31));
}

template <int entries> struct TaperedOf {  // 0: any
  template <RoundMode mode> struct Kind {
    AB_INLINE F value(const RoundPlan &p, F x, I) {
      const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff));
      I y;
      if constexpr (mode == RoundMode::NearestEven) {  // as below, without shifting down and up
        const I held = i_min(i_max(a, i_set(p.smallest)), i_set(p.biggest));
        const I drop = taper_drop<entries>(p, i_shr(held, 23)), kept = i_shlv(i_set(-1), drop), moved = i_add(held, i_set(p.origin));
        const I add = i_add(i_shr(i_xor(kept, i_set(-1)), 1), i_and(i_shrv(moved, drop), i_set(1)));
        y = i_sub(i_and(i_add(moved, add), kept), i_set(p.origin));
      } else {
        I entry;
        const I q = rounded<mode, true>(p, bits, a, &entry);
        y = i_sub(i_shlv(q, i_and(entry, i_set(31))), i_set(p.origin));
      }
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
      *entry = taper_entry<entries, only_drop>(p, exponent);
      return shifted<m>(i_add(held, i_set(p.origin)), i_and(*entry, i_set(31)), i_sar(bits, 31), i_zero());
    }
  };
};

// Codes to nearest even where `bytes` says so: what is left of the pattern and the exponent's offset, both modulo 256.
struct TaperedBytes {
  AB_INLINE I code(const RoundPlan &p, F x, I) {
    const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff)), held = i_min(i_max(a, i_set(p.smallest)), i_set(p.biggest)), exponent = i_shr(held, 23);
    const I drop = i_lookup64(p.drops, exponent), half = i_shrv(i_set(0x7fffffff), i_sub(i_set(32), drop)), moved = i_add(held, i_set(p.origin));
    const I q = i_shrv(i_add(i_add(moved, half), i_and(i_shrv(moved, drop), i_set(1))), drop);
    const I m = i_select(i_lt(a, i_set(p.zero_below[0])), i_zero(), i_add(q, i_lookup64(p.offsets, exponent))), sign = i_sar(bits, 31);
    if (p.two_complement) return i_and(i_sub(i_xor(m, sign), sign), i_set(p.code_mask));
    const I magnitude = i_and(m, i_set(p.sign_bit >= 0 ? (1 << p.sign_bit) - 1 : p.code_mask));
    if (p.sign_bit < 0) return magnitude;
    const I c = i_or(magnitude, i_and(sign, i_set(1 << p.sign_bit)));
    return p.minus_zero ? c : i_select(i_lt(i_zero(), magnitude), c, i_zero());
  }
};

// At random by up to 24 bits: r * gap < distance * 2^N. Neighbours, gaps and distances are exact in float32 (tapered.py sees to it), and so is the sign
// of the one fused operation.
template <int entries> struct DrawnTapered {
  template <class W> AB_INLINE F value(const RoundPlan &p, F x, W &word) {
    if constexpr (entries == 64) {
      // Where only parts of fractions are dropped, gaps are the same within a binade, and adding all ones less the word's upper bits carries as in shifted().
      const I bits = f_bits(x), twice_bits = i_add(bits, bits);
      if (__builtin_expect(p.smooth_span && all_within(twice_bits, p.smooth_from, p.smooth_span), 1)) {
        const I lift = i_lookup64(p.lifts, i_shr(twice_bits, 24)), dropped = i_shrv(i_set(-1), lift);
        I r;
        if constexpr (kIsUpper<W>) r = i_shl(word.half, 16);
        else r = i_and(word, i_set((int32_t)p.word_mask));
        const I sum = i_add(bits, i_sub(dropped, i_shrv(r, lift)));
        const F y = i_float(i_and(sum, i_xor(dropped, i_set(-1))));
        if constexpr (kIsUpper<W>) word.open = i_zeros(i_shlv(sum, lift), 0xffff0000u);  // what is left of the fraction, less its last place, is below 2^-16
        return p.minus_zero ? y : f_add(y, f_zero());
      }
      return anywhere(p, x, word);
    }
    return between(p, x, word);
  }
  template <class W> static __attribute__((noinline, cold)) F anywhere(const RoundPlan &p, F x, W &word) { return between(p, x, word); }
  template <class W> AB_INLINE F between(const RoundPlan &p, F x, W &word) {
    const I bits = f_bits(x);
    const Found f = found<true>(p, bits, word);
    const I y = i_or(f_bits(f_select(f.up, f.far, f.near)), i_and(bits, i_set((int32_t)0x80000000)));
    return p.minus_zero ? i_float(y) : f_add(i_float(y), f_zero());
  }
  template <class W> AB_INLINE I code(const RoundPlan &p, F x, W &word) {
    const I bits = f_bits(x);
    const Found f = found<false>(p, bits, word);
    return signed_code(p, i_select(f.up, i_add(f.rank, i_set(1)), f.rank), bits);
  }

 private:
  struct Found {
    F near, far;
    I rank;
    Mask up;
  };
  template <bool only_drop, class W> AB_INLINE Found found(const RoundPlan &p, I bits, W &word) {
    const I a = i_and(bits, i_set(0x7fffffff)), held = i_min(i_max(a, i_set(p.smallest)), i_set(p.biggest));
    const I entry = only_drop ? taper_drop<entries>(p, i_shr(held, 23)) : taper_entry<entries, false>(p, i_shr(held, 23)), drop = i_and(entry, i_set(31));
    const I q = i_shrv(i_add(held, i_set(p.origin)), drop), low = i_sub(i_shlv(q, drop), i_set(p.origin));
    const Mask below = i_lt(a, i_set(p.smallest));
    const I near = i_select(below, i_zero(), low), far = i_select(below, i_set(p.smallest), i_add(low, i_shlv(i_set(1), drop)));
    const F gap = f_sub(i_float(far), i_float(near)), distance = f_sub(i_float(i_min(a, i_set(p.biggest))), i_float(near));
    Found f;
    f.near = i_float(near), f.far = i_float(far);
    f.rank = only_drop ? q : i_select(below, i_zero(), i_add(q, i_sar(entry, 5)));
    const F part = f_mul(gap, f_set(kIsUpper<W> ? -0x1p-16f : p.minus_word)), more = f_fma(drawn(p, word), part, distance);
    f.up = f_lt(f_zero(), more);
    if constexpr (kIsUpper<W>) word.open = f_lt(f_magnitude(more), f_mul(part, f_set(-2)));
    return f;
  }
};
template <int entries> constexpr bool kTakesUpper<DrawnTapered<entries>> = true;

// ------------------------------------------------------------------------------------------------ at most 16 values
// Ranks of `count` times sixteen numbers, step by step for all of them: a search is a chain of operations that wait for each other.
template <bool parted> struct SearchOf {
  static constexpr bool kDraws = false;
  template <int count> AB_INLINE void ranks(const RoundPlan &p, const F *x, I *at) {
    if constexpr (!parted) {
#pragma GCC unroll 5
      for (int j = 0; j < count; j++) at[j] = i_rank(p.tree, p.spread, x[j]);
    } else {
      const F reach = f_set(p.reach), scale = f_set(p.part_scale), middle = f_set(kPartMiddle);
#pragma GCC unroll 5
      for (int j = 0; j < count; j++) at[j] = f_bits(f_fma(f_held(x[j], reach), scale, middle));
#pragma GCC unroll 5
      for (int j = 0; j < count; j++) at[j] = i_lookup64(p.parts, at[j]);
#pragma GCC unroll 5
      for (int j = 0; j < count; j++) at[j] = i_add_where(f_from(f_lookup16(p.ordered, at[j]), x[j]), at[j], i_set(1));
    }
  }
};

// The neighbour above for numbers that formats/stochastic.py sends there, by its own arithmetic.
static __attribute__((noinline)) void drawn_exactly(const RoundPlan &p, const float *x, const int32_t *words, int32_t *rank) {
  const double scale = (double)(1ull << p.random_bits);
  for (int j = 0; j < 16; j++) {
    const double a = p.chain[rank[j]], b = p.chain[rank[j] + 1], v = (double)x[j];
    if (rank[j] == p.last || v < a) continue;  // beyond the ends
    const bool negative = float_bits(x[j]) >> 31;
    const bool far = (double)((uint32_t)words[j] >> (32 - p.random_bits)) * (b - a) < (negative ? b - v : v - a) * scale;
    rank[j] += far != negative;
  }
}

// Zeros take their numbers' signs where elements have -0.
AB_INLINE F with_minus_zero(const RoundPlan &p, F y, F x) {
  if (!p.minus_zero) return y;
  const I bits = f_bits(y), sign = i_and(f_bits(x), i_set((int32_t)0x80000000));
  return i_float(i_select(i_lt(i_and(bits, i_set(0x7fffffff)), i_set(1)), sign, bits));
}
AB_INLINE I with_minus_zero_code(const RoundPlan &p, I c, F x) {
  if (!p.minus_zero) return c;
  const I signed_zero = i_select(i_lt(f_bits(x), i_zero()), i_set(p.minus_zero_code), c);
  return i_select(i_lt(i_xor(c, i_set(p.zero_code)), i_set(1)), signed_zero, c);  // codes are not negative
}

// At random where `p.exact`: distances from the neighbour on zero's side and gaps beyond it are exact in float32, and so is the sign of the one fused
// operation. Gaps have the signs of their numbers, and distances the same sign or, beyond the ends, what keeps the last value.
template <bool parted> struct DrawnExact {
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    const Move m(p, x, word);
    return with_minus_zero(p, f_fma_where(m.far, m.gap, f_set(p.whole_words), m.near), x);
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) {
    const Move m(p, x, word);
    const F c = f_select(m.far, f_lookup16((const float *)p.far_codes16, m.at), f_lookup16((const float *)p.near_codes16, m.at));
    return with_minus_zero_code(p, f_bits(c), x);
  }

 private:
  struct Move {
    I at;
    F near, gap;
    Mask far;
    __attribute__((always_inline)) Move(const RoundPlan &p, F x, I word) {
      SearchOf<parted>().template ranks<1>(p, &x, &at);
      near = f_lookup16(p.near16, at), gap = f_lookup16(p.gap16, at);
      far = f_lt(f_zero(), f_flip(f_nfma(drawn(p, word), gap, f_sub(x, near)), gap));
    }
  };
};

// At random, otherwise: r * gap < distance * 2^N in float32, rounded, which is wrong only where both are nearly the same; there exactly. Below zero distances
// count from the upper neighbour: the same as counting from the lower one with 2^N - r. With values, gaps and 1 - r each 2^-24 off, or less, the difference
// is by 2^-24 (3 of the largest value and 4 of the largest gap): `unsure` is 2^-21 of their sum.
template <bool parted> struct DrawnSearch {
  static constexpr bool kDraws = true;
  template <int count> AB_INLINE void ranks(const RoundPlan &p, const F *x, const I *word, I *at) {
    SearchOf<parted>().template ranks<count>(p, x, at);
    F h[count], least = f_set(p.unsure);
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) h[j] = f_sub(x[j], f_lookup16(p.near16, at[j]));
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) h[j] = f_fma(part(p, x[j], word[j]), f_lookup16(p.gap16, at[j]), h[j]);
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) least = f_size(h[j], least);
    if (__builtin_expect(i_any(f_lt(least, f_set(p.unsure))), 0)) {
#pragma GCC unroll 5
      for (int j = 0; j < count; j++) at[j] = exactly(p, x[j], word[j], at[j]);
      return;
    }
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) at[j] = i_add_where(f_lt(f_zero(), h[j]), at[j], i_set(1));
  }

 private:
  AB_INLINE F part(const RoundPlan &p, F x, I word) { return i_to_f(i_shr(i_xor(i_and(word, i_set((int32_t)p.word_mask)), i_sar(f_bits(x), 31)), 8)); }
  static __attribute__((noinline, cold)) I exactly(const RoundPlan &p, F x, I word, I at) {
    float numbers[16];
    int32_t words[16], ranks[16];
    f_store(numbers, x), i_store(words, word), i_store(ranks, at);
    drawn_exactly(p, numbers, words, ranks);
    return i_load(ranks);
  }
};

// A way to find ranks, and what they stand for. Numbers that are drawn bring a word each.
template <class Way> struct Searched {
  template <int count, class W> AB_INLINE void values(const RoundPlan &p, const F *x, W *word, F *y) {
    I at[count];
    if constexpr (Way::kDraws) Way().template ranks<count>(p, x, word, at);
    else Way().template ranks<count>(p, x, at);
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) y[j] = with_minus_zero(p, f_lookup16(p.values16, at[j]), x[j]);
  }
  template <class W> AB_INLINE F value(const RoundPlan &p, F x, W &word) {
    F y;
    values<1>(p, &x, &word, &y);
    return y;
  }
  template <class W> AB_INLINE I code(const RoundPlan &p, F x, W &word) {
    I at;
    if constexpr (Way::kDraws) Way().template ranks<1>(p, &x, &word, &at);
    else Way().template ranks<1>(p, &x, &at);
    return with_minus_zero_code(p, f_bits(f_lookup16((const float *)p.codes16, at)), x);
  }
};
// By upper halves, where no gap has zero inside (`sided`): distances from the neighbour on zero's side by the gap beyond it, in parts of 2^-16, less the half.
// What is rounded on the way is less than `side_unsure` parts, less one; inside that either neighbour may be right.
template <bool parted> struct DrawnSided {
  template <int count> AB_INLINE void values(const RoundPlan &p, const F *x, Upper *word, F *y) {
    I at[count];
    F more[count];
    by<count>(p, x, word, at, y, more);
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) y[j] = with_minus_zero(p, f_select(f_lt(f_zero(), more[j]), f_lookup16(p.side_far16, at[j]), y[j]), x[j]);
  }
  AB_INLINE F value(const RoundPlan &p, F x, Upper &word) {
    F y;
    values<1>(p, &x, &word, &y);
    return y;
  }
  AB_INLINE I code(const RoundPlan &p, F x, Upper &word) {
    I at;
    F near, more;
    by<1>(p, &x, &word, &at, &near, &more);
    const F c = f_select(f_lt(f_zero(), more), f_lookup16((const float *)p.far_codes16, at), f_lookup16((const float *)p.near_codes16, at));
    return with_minus_zero_code(p, f_bits(c), x);
  }
  struct Wholly {  // by whole words
    AB_INLINE F value(const RoundPlan &p, F x, I word) { return p.exact ? DrawnExact<parted>().value(p, x, word) : Searched<DrawnSearch<parted>>().value(p, x, word); }
    AB_INLINE I code(const RoundPlan &p, F x, I word) { return p.exact ? DrawnExact<parted>().code(p, x, word) : Searched<DrawnSearch<parted>>().code(p, x, word); }
  };

 private:
  template <int count> AB_INLINE void by(const RoundPlan &p, const F *x, Upper *word, I *at, F *near, F *more) {
    F least = f_set(p.side_unsure);
    SearchOf<parted>().template ranks<count>(p, x, at);
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) near[j] = f_lookup16(p.side_near16, at[j]);
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) more[j] = f_fms(f_sub(x[j], near[j]), f_lookup16(p.side_parts16, at[j]), i_to_f(word[j].half));
#pragma GCC unroll 5
    for (int j = 0; j < count; j++) least = f_size(more[j], least);
    word->open = f_lt(least, f_set(p.side_unsure));  // for all
  }
};
template <bool parted> constexpr bool kTakesUpper<DrawnSided<parted>> = true;
template <bool parted> struct All<DrawnSided<parted>> { using By = typename DrawnSided<parted>::Wholly; };

}  // namespace
}  // namespace ANYBIT_ISA
}  // namespace anybit
