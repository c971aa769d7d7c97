// Sums of float32 bit patterns in the place of products: sixteen lanes, any operands. Included after isa.h, once per ISA.
#pragma once
#include "weight.h"

namespace anybit {
namespace ANYBIT_ISA {

constexpr int32_t kSmallest = 0x00800000, kInfinite = 0x7f800000, kMagnitude = 0x7fffffff;

// Both operands rounded already (`round_pattern`): sign(x) xor sign(w), |x| + |w| - offset, zero below 2^-126 or if one operand is, at most
// `most`; NaN if w is not finite. x is finite. 16 operations.
AB_INLINE F pattern_product(F x, F w, const Pattern &p) {
  const I xs = f_bits(x), ws = f_bits(w), a = i_and(xs, i_set(kMagnitude)), b = i_and(ws, i_set(kMagnitude));
  const int32_t back = kInfinite - p.offset;  // sums are taken less kInfinite, so that no pair of patterns leaves int32
  const I sum = i_min(i_add(a, i_sub(b, i_set(kInfinite))), i_set(p.most - back));
  const F value = i_float(i_or(i_add(sum, i_set(back)), i_and(i_xor(xs, ws), i_set(~kMagnitude))));
  const F some = f_select(i_lt(i_set(kSmallest - 1), i_min(a, b)), f_select(i_lt(i_set(kSmallest - 1 - back), sum), value, f_zero()), f_zero());
  return f_select(i_lt(i_set(kInfinite - 1), b), i_float(i_set(0x7fc00000)), some);
}

// An operand as the rule sees it: zero below 2^-126; rounded to nearest, ties to even, at most the largest number of so many mantissa bits.
AB_INLINE F round_pattern(F x, const Pattern &p) {
  const I bits = f_bits(x), a = i_and(bits, i_set(kMagnitude));
  I r = a;
  if (p.mantissa < 23) {
    const int drop = 23 - p.mantissa;
    r = i_add(i_add(a, i_set((1 << (drop - 1)) - 1)), i_and(i_shr(a, drop), i_set(1)));
    r = i_min(i_shl(i_shr(r, drop), drop), i_set(kInfinite - (1 << drop)));
  }
  const F value = i_float(i_or(r, i_and(bits, i_set(~kMagnitude))));
  const F some = f_select(i_lt(i_set(kSmallest - 1), a), value, f_zero());
  return f_select(i_lt(i_set(kInfinite - 1), a), x, some);
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
