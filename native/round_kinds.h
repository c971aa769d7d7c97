// What rounds sixteen numbers, by the kind of plan and the mode: `value` and `code` of each. Included by round.cc, once per ISA.
//
// Steps, operations on 16 lanes: 10 for values to nearest even, where adding a power of two whose last place is the step lets the hardware round:
//   y = (|x| + C) - C,  C = 2^(23 - mantissa) * (binade of |x|, at least the first)        exact: |x| < C and C is an even number of steps
// 14 at random by up to 24 bits (DrawnSteps); about 25 for every other mode, on the significand as an integer: q = (significand + what the mode adds) >>
// (bits that the step drops).
// Tapered: as the other modes of steps, on the whole pattern, and a permute of the exponent's table; at random as search, but exact at once.
// Search: four comparisons down a tree whose levels are permutes.
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
AB_INLINE F signed_value(const RoundPlan &p, F y, I bits) {
  F r;
  if (p.symmetric && p.clips) {
    r = i_float(i_signed(f_bits(f_min(y, f_set(p.largest[0]))), bits));
  } else {
    const Mask negative = i_lt(bits, i_zero());
    const F limit = f_select(negative, f_set(p.largest[1]), f_set(p.largest[0]));
    r = i_float(i_signed(f_bits(f_min(y, limit)), bits));
    if (!p.clips) r = f_select(f_lt(limit, y), f_select(negative, f_set(p.out_value[1]), f_set(p.out_value[0])), r);
  }
  return p.minus_zero ? r : f_add(r, f_zero());  // -0 + 0 is +0
}

// The word's upper N bits, N up to 24.
AB_INLINE F drawn(const RoundPlan &p, I word) { return i_to_f(i_shr(word, 32 - p.random_bits)); }

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
      y = f_mul(i_to_f(drawn_steps(p, c, i_and(word, i_set((int32_t)p.word_mask)))), i_float(i_sub(first, i_set(p.mantissa << 23))));  // exact
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
      e = i_max(i_shr(c, 23), i_set(p.least)), q = drawn_steps(p, c, i_and(word, i_set((int32_t)p.word_mask)));
    } else {
      q = steps_of<mode>(p, i_and(bits, i_set(0x7fffffff)), i_sar(bits, 31), word, &e);
    }
    return signed_code(p, i_add(q, i_shl(i_sub(e, i_set(p.least)), p.mantissa)), bits);
  }
};

// At random by up to 24 bits, r of them. On sets that can round towards +infinity (`upwards`; where it is a mode, `Upwards` has to live around it):
//   y = ceil(|x| / step - r 2^-N) steps      a part of a step p stays below r 2^-N, or is larger; both roundings keep the ceiling
// by adding 1.5 * 2^23 steps and taking them off again. On others |x| / step (where no step is larger than 1), its whole part, the rest, and the rest
// times 2^N are exact, and compared with r.
template <bool upwards> struct DrawnSteps {
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x), binade = binade_of(p, bits);
    F y;
    if constexpr (upwards) {
      F big;
      y = f_sub(above(p, bits, binade, word, &big), big);
    } else {
      y = f_mul(steps(p, bits, binade, word), i_float(i_sub(binade, i_set(p.mantissa << 23))));  // exact
    }
    return signed_value(p, y, bits);
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x), binade = binade_of(p, bits);
    I q;
    if constexpr (upwards) {
      F big;
      q = f_bits(above(p, bits, binade, word, &big));
      q = i_sub(q, f_bits(big));
    } else {
      q = f_to_i(steps(p, bits, binade, word));
    }
    return signed_code(p, i_add(q, i_shr(i_sub(binade, i_set(p.least << 23)), 23 - p.mantissa)), bits);
  }

 private:
  AB_INLINE F size(const RoundPlan &p, I bits) { return f_min(i_float(i_and(bits, i_set(0x7fffffff))), f_set(p.cap)); }
  AB_INLINE I binade_of(const RoundPlan &p, I bits) { return i_max(i_and(f_bits(size(p, bits)), i_set(0x7f800000)), i_set(p.least << 23)); }
  AB_INLINE F above(const RoundPlan &p, I bits, I binade, I word, F *big) {
    const F part = i_float(i_sub(binade, i_set((p.mantissa + p.random_bits) << 23)));  // a step times 2^-N
    *big = i_float(i_add(binade, i_set(((23 - p.mantissa) << 23) + 0x400000)));
    return f_add_up(f_less_up(size(p, bits), drawn(p, word), part), *big);
  }
  AB_INLINE F steps(const RoundPlan &p, I bits, I binade, I word) {
    const F count = f_mul(size(p, bits), i_float(i_sub(i_set((254 + p.mantissa) << 23), binade)));  // exact: sizes are not scaled down
    const F whole = f_trunc(count);
    return f_add_where(f_lt(drawn(p, word), f_mul(f_sub(count, whole), f_set(p.whole_words))), whole, f_set(1));
  }
};

template <class Kind> struct Mode {};
template <> struct Mode<DrawnSteps<true>> : Upwards {};

template <RoundMode mode> struct Prefix {
  AB_INLINE I magnitude(const RoundPlan &p, I bits, I word) {
    if constexpr (mode == RoundMode::Stochastic) {  // as drawn_steps; some bits are kept
      const I less = i_xor(i_and(word, i_set((int32_t)p.word_mask)), i_set(-1));
      return i_shr(i_add(i_and(bits, i_set(0x7fffffff)), i_shr(less, 9 + p.mantissa)), 23 - p.mantissa);
    }
    return shifted<mode>(i_and(bits, i_set(0x7fffffff)), i_set(23 - p.mantissa), i_sar(bits, 31), word);
  }
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    return signed_value(p, i_float(i_shl(magnitude(p, f_bits(x), word), 23 - p.mantissa)), f_bits(x));
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) { return signed_code(p, magnitude(p, f_bits(x), word), f_bits(x)); }
};

template <int entries, bool only_drop> AB_INLINE I taper_entry(const RoundPlan &p, I exponent) {
  if constexpr (entries == 64 && only_drop) return i_lookup64(p.drops, exponent);
  else if constexpr (entries > 0) return i_lookup<entries>(p.taper, exponent);
  else return f_bits(f_gather((const float *)p.taper, i_and(exponent, i_set(p.entries - 1))));
}

template <int entries> struct TaperedOf {  // 0: any
  template <RoundMode mode> struct Kind {
    AB_INLINE F value(const RoundPlan &p, F x, I) {
      const I bits = f_bits(x), a = i_and(bits, i_set(0x7fffffff));
      I y;
      if constexpr (mode == RoundMode::NearestEven) {  // as below, without shifting down and up
        const I held = i_min(i_max(a, i_set(p.smallest)), i_set(p.biggest));
        const I drop = i_and(taper_entry<entries, true>(p, i_shr(held, 23)), i_set(31)), kept = i_shlv(i_set(-1), drop), moved = i_add(held, i_set(p.origin));
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

// At random by up to 24 bits: r * gap < distance * 2^N. Neighbours, gaps and distances are exact in float32 (tapered.py sees to it), and so is the sign
// of the one fused operation.
template <int entries> struct DrawnTapered {
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    const I bits = f_bits(x);
    const Found f = found<true>(p, bits, word);
    const I y = i_or(f_bits(f_select(f.up, f.far, f.near)), i_and(bits, i_set((int32_t)0x80000000)));
    return p.minus_zero ? i_float(y) : f_add(i_float(y), f_zero());
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) {
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
  template <bool only_drop> AB_INLINE Found found(const RoundPlan &p, I bits, I word) {
    const I a = i_and(bits, i_set(0x7fffffff)), held = i_min(i_max(a, i_set(p.smallest)), i_set(p.biggest));
    const I entry = taper_entry<entries, only_drop>(p, i_shr(held, 23)), drop = i_and(entry, i_set(31));
    const I q = i_shrv(i_add(held, i_set(p.origin)), drop), low = i_sub(i_shlv(q, drop), i_set(p.origin));
    const Mask below = i_lt(a, i_set(p.smallest));
    const I near = i_select(below, i_zero(), low), far = i_select(below, i_set(p.smallest), i_add(low, i_shlv(i_set(1), drop)));
    const F gap = f_sub(i_float(far), i_float(near)), distance = f_sub(i_float(i_min(a, i_set(p.biggest))), i_float(near));
    Found f;
    f.near = i_float(near), f.far = i_float(far);
    f.rank = only_drop ? q : i_select(below, i_zero(), i_add(q, i_sar(entry, 5)));
    f.up = f_lt(f_zero(), f_fma(drawn(p, word), f_mul(gap, f_set(p.minus_word)), distance));
    return f;
  }
};

// ------------------------------------------------------------------------------------------------ at most 16 values
struct Search {
  AB_INLINE I rank(const RoundPlan &p, F x, I) {
    const I second = i_select(f_lt(x, f_set(p.tree[0][0])), i_zero(), i_set(1));
    return down(p.tree[3], x, down(p.tree[2], x, down(p.tree[1], x, second)));
  }

 private:
  AB_INLINE I down(const float *level, F x, I at) {  // to the next level: twice the index, one more from the threshold on
    const I two = i_add(at, at);
    return i_select(f_lt(x, f_lookup8(level, at)), two, i_add(two, i_set(1)));
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

// At random: r * gap < distance * 2^N in float32, rounded, which is wrong only where both are nearly the same; there exactly. Below zero distances count
// from the upper neighbour: the same as counting from the lower one with 2^N - r. With values, gaps and 1 - r each 2^-24 off, or less, the difference
// is by 2^-24 (3 of the largest value and 4 of the largest gap): `unsure` is 2^-21 of their sum.
struct DrawnSearch {
  AB_INLINE I rank(const RoundPlan &p, F x, I word) {
    const I at = Search().rank(p, x, word);
    const I r = i_shr(i_xor(i_and(word, i_set((int32_t)p.word_mask)), i_sar(f_bits(x), 31)), 8);
    const F h = f_fma(i_to_f(r), f_lookup16(p.gap16, at), f_sub(x, f_lookup16(p.near16, at)));
    const Mask near_tie = f_lt(i_float(i_and(f_bits(h), i_set(0x7fffffff))), f_set(p.unsure));
    if (__builtin_expect(i_any(near_tie), 0)) {
      float numbers[16];
      int32_t words[16], ranks[16];
      f_store(numbers, x), i_store(words, word), i_store(ranks, at);
      drawn_exactly(p, numbers, words, ranks);
      return i_load(ranks);
    }
    return i_select(f_lt(f_zero(), h), i_add(at, i_set(1)), at);
  }
};

template <class Way> struct Searched {
  AB_INLINE F value(const RoundPlan &p, F x, I word) {
    const F y = f_lookup16(p.values16, Way().rank(p, x, word));
    if (!p.minus_zero) return y;
    const I bits = f_bits(y), sign = i_and(f_bits(x), i_set((int32_t)0x80000000));
    return i_float(i_select(i_lt(i_and(bits, i_set(0x7fffffff)), i_set(1)), sign, bits));
  }
  AB_INLINE I code(const RoundPlan &p, F x, I word) {
    const I c = f_bits(f_lookup16((const float *)p.codes16, Way().rank(p, x, word)));
    if (!p.minus_zero) return c;
    const I signed_zero = i_select(i_lt(f_bits(x), i_zero()), i_set(p.minus_zero_code), c);
    return i_select(i_lt(i_xor(c, i_set(p.zero_code)), i_set(1)), signed_zero, c);  // codes are not negative
  }
};

}  // namespace
}  // namespace ANYBIT_ISA
}  // namespace anybit
