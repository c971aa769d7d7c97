// Sums over blocks, compiled once per ISA. Per eight numbers: a division, the rounding by the element's plan, two conversions to float64, and a
// multiplication and an addition a sum.
#include "sums.h"

#include "isa.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors wider than the set's registers never cross a call

namespace anybit {
namespace ANYBIT_ISA {

extern const RoundKernels round_kernels;

namespace {

typedef double D8 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));

AB_INLINE D8 wide(const float *p) {
  F8 v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, D8);
}
AB_INLINE D8 load(const double *p) {
  D8 v;
  memcpy(&v, p, sizeof v);
  return v;
}
typedef int64_t I8 __attribute__((vector_size(64)));
typedef uint64_t U8 __attribute__((vector_size(64)));  // where sums may wrap
AB_INLINE D8 as_double(const I8 &v) { return (D8)v; }

// x^p of eight numbers, none negative, p from 0.1 to 10; less than 2^-1020 becomes 0, 2^1023 and more infinity, as infinity and NaN do. x = 2^k m, m from sqrt(1/2) on:
//   log2 m = 2 / ln 2 (s + s^3 / 3 + s^5 / 5 ...), s = (m - 1) / (m + 1), |s| < 0.172: the first term left out, s^17 / 17, is below 1e-14
//   2^f = 1 + f ln 2 + (f ln 2)^2 / 2! ..., |f| <= 1/2: the first term left out, (ln 2 / 2)^13 / 13!, is below 2e-16
AB_INLINE D8 power(const D8 &x, double p) {
  const I8 one = I8{} + 1, bits = (I8)x, fraction = bits & 0xfffffffffffff;
  I8 k = (bits >> 52) - 1023;
  D8 m = as_double(fraction | (int64_t)1023 << 52);
  const I8 high = m > 1.4142135623730951;  // all ones where it is
  k += high & one, m = as_double((I8)m - (high & (int64_t)1 << 52));
  const D8 s = (m - 1.0) / (m + 1.0), z = s * s;
  D8 a = D8{} + 1.0 / 15;
  a = a * z + 1.0 / 13, a = a * z + 1.0 / 11, a = a * z + 1.0 / 9, a = a * z + 1.0 / 7, a = a * z + 1.0 / 5, a = a * z + 1.0 / 3, a = a * z + 1.0;
  const D8 y = (__builtin_convertvector(k, D8) + s * a * 2.8853900817779268) * p;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
  const D8 whole = (y + magic) - magic, f = (y - whole) * 0.6931471805599453;
  D8 e = D8{} + 1.0 / 479001600;
  e = e * f + 1.0 / 39916800, e = e * f + 1.0 / 3628800, e = e * f + 1.0 / 362880, e = e * f + 1.0 / 40320, e = e * f + 1.0 / 5040, e = e * f + 1.0 / 720;
  e = e * f + 1.0 / 120, e = e * f + 1.0 / 24, e = e * f + 1.0 / 6, e = e * f + 0.5, e = e * f + 1.0, e = e * f + 1.0;
  const I8 normal = (whole > -1021.0) & (x > 0.0), large = (whole >= 1023.0) | ~(x < __builtin_inf());
  const D8 found = as_double((I8)((U8)e + ((U8)__builtin_convertvector(whole, I8) << 52)) & normal);
  return large ? D8{} + __builtin_inf() : found;
}

AB_INLINE double folded(const D8 &v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

template <Sums what> struct Terms {
  static constexpr int count = kSums[static_cast<int>(what)];
  D8 sum[count] = {};
  __attribute__((always_inline)) void clear() {
    for (int i = 0; i < count; i++) sum[i] = D8{};
  }
  __attribute__((always_inline)) void add(const D8 &w, const D8 &y, const D8 &t, double unit, double exponent) {  // Loss and Power: t is the value
    if constexpr (what == Sums::Loss) {
      const D8 e = y - t;
      sum[0] += e * e * w;
    } else if constexpr (what == Sums::Power) {
      const D8 e = (y - t) / unit;
      sum[0] += power(as_double((I8)e & 0x7fffffffffffffff), exponent) * w;
    } else {
      const D8 wt = w * t;
      if constexpr (what == Sums::Pairs) {
        const D8 wy = w * y;
        sum[0] += w, sum[1] += wt, sum[2] += wy, sum[3] += wt * t, sum[4] += wt * y, sum[5] += wy * y;
      } else {
        sum[0] += wt * t, sum[1] += wt * y;
      }
    }
  }
};

// `count` numbers of one block.
template <Sums what, bool weighted> AB_INLINE void add(Terms<what> *terms, const double *w, const float *y, const float *t, int64_t count, double unit, double exponent) {
  const D8 ones = D8{} + 1.0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) terms->add(weighted ? load(w + i) : ones, wide(y + i), wide(t + i), unit, exponent);
  if (i == count) return;
  float rest[2][8] = {};  // what is not there weighs nothing
  double weights[8] = {};
  for (int j = 0; i + j < count; j++) rest[0][j] = y[i + j], rest[1][j] = t[i + j], weights[j] = weighted ? w[i + j] : 1.0;
  terms->add(load(weights), wide(rest[0]), wide(rest[1]), unit, exponent);
}

// `count` numbers of one block: what they are without `before`, and their ratios.
AB_INLINE void ratios(const SumsPlan &p, int64_t block, const float *x, int64_t count, float *y, float *ratio) {
  const float divisor = p.scale[block] == 0 ? __builtin_inff() : p.scale[block], end = p.end;
  const float before = p.before ? p.before[block] : 0, offset = p.offset ? p.offset[block] : 0;
  for (int64_t i = 0; i < count; i++) {
    y[i] = p.before ? x[i] - before : x[i];
    const float r = (p.offset ? y[i] - offset : y[i]) / divisor;
    ratio[i] = r < -end ? -end : r > end ? end : r;
  }
}

template <Sums what> AB_INLINE void placed(const SumsPlan &p, int64_t block, int64_t count, float *t) {
  if constexpr (what == Sums::Loss || what == Sums::Power) {
    const float scale = p.scale[block], offset = p.offset ? p.offset[block] : 0;
    for (int64_t i = 0; i < count; i++) t[i] = p.offset ? t[i] * scale + offset : t[i] * scale;
  }
}

template <Sums what, bool weighted> void run(const SumsPlan &p, int64_t first, int64_t count) {
  alignas(64) float y[kRoundBlock], ratio[kRoundBlock], t[kRoundBlock];
  constexpr int sums = Terms<what>::count;
  const int64_t together = p.size <= kRoundBlock ? kRoundBlock / p.size : 1;
  for (int64_t b = first; b < first + count; b += together) {
    const int64_t some = first + count - b < together ? first + count - b : together;
    Terms<what> terms;
    for (int64_t from = 0; from < p.size; from += kRoundBlock) {  // one turn, but for blocks longer than that
      const int64_t each = p.size - from < kRoundBlock ? p.size - from : kRoundBlock;
      for (int64_t j = 0; j < some; j++) ratios(p, b + j, p.x + (b + j) * p.size + from, each, y + j * each, ratio + j * each);
      round_kernels.values(*p.round, ratio, nullptr, some * each, t, false);
      for (int64_t j = 0; j < some; j++) {
        placed<what>(p, b + j, each, t + j * each);
        if (from == 0) terms.clear();
        add<what, weighted>(&terms, weighted ? p.weight + ((b + j) * p.size + from) % p.period : nullptr, y + j * each, t + j * each, each,
                            what == Sums::Power ? p.unit[b + j] : 1.0, p.power);
        if (from + each == p.size)
          for (int i = 0; i < sums; i++) p.out[(b + j) * sums + i] = folded(terms.sum[i]);
      }
    }
  }
}

template <Sums what> void weighed(const SumsPlan &p, int64_t first, int64_t count) {
  if (p.weight) run<what, true>(p, first, count);
  else run<what, false>(p, first, count);
}

void blocks(const SumsPlan &p, int64_t first, int64_t count) {
  switch (p.what) {
    case Sums::Pairs: return weighed<Sums::Pairs>(p, first, count);
    case Sums::Scales: return weighed<Sums::Scales>(p, first, count);
    case Sums::Loss: return weighed<Sums::Loss>(p, first, count);
    case Sums::Power: return weighed<Sums::Power>(p, first, count);
  }
}

void ends(const float *x, int64_t size, int64_t count, float *low, float *high) {
  alignas(64) float lows[16], highs[16], wrongs[16];
  for (int64_t b = 0; b < count; b++, x += size) {
    float least = __builtin_inff(), most = -__builtin_inff(), wrong = 0;  // zero, or NaN from the first number on that is not finite
    int64_t i = 0;
    if (size >= 16) {
      F l = f_load(x), h = l, w = f_mul(l, f_zero());
      for (i = 16; i + 16 <= size; i += 16) {
        const F v = f_load(x + i);
        l = f_min(l, v), h = f_max(h, v), w = f_fma(v, f_zero(), w);
      }
      f_store(lows, l), f_store(highs, h), f_store(wrongs, w);
      for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++) {
          lows[j] = lows[j + half] < lows[j] ? lows[j + half] : lows[j], highs[j] = highs[j + half] > highs[j] ? highs[j + half] : highs[j];
          wrongs[j] += wrongs[j + half];
        }
      least = lows[0], most = highs[0], wrong = wrongs[0];
    }
    for (; i < size; i++) {
      least = x[i] < least ? x[i] : least, most = x[i] > most ? x[i] : most;
      wrong += x[i] * 0.0f;
    }
    const bool finite = wrong == 0;
    low[b] = finite ? least : __builtin_nanf(""), high[b] = finite ? most : __builtin_nanf("");
  }
}

uint32_t values(const uint8_t *codes, const float *table, bool few, int64_t size, int64_t count, const float *scale, const float *zero,
                const float *offset, float *out) {
  uint32_t any = 0;
  I seen = i_set(0);
  for (int64_t b = 0; b < count; b++, codes += size, out += size) {
    const F s = f_set(scale[b]), z = f_set(zero ? zero[b] : 0.0f), o = f_set(offset ? offset[b] : 0.0f);
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) {
      const I code = i_load_u8(codes + i);
      seen = i_or(seen, code);
      F v = few ? f_lookup16(table, code) : f_gather(table, code);
      if (zero) v = f_sub(v, z);
      v = f_mul(v, s);
      if (offset) v = f_add(v, o);
      f_store(out + i, v);
    }
    for (; i < size; i++) {
      any |= codes[i];
      float v = table[codes[i]];
      if (zero) v = v - zero[b];
      v = v * scale[b];
      out[i] = offset ? v + offset[b] : v;
    }
  }
  alignas(64) int32_t lanes[16];
  i_store(lanes, seen);
  for (int j = 0; j < 16; j++) any |= (uint32_t)lanes[j];
  return any;
}

AB_INLINE void places(const CodesPlan &p, int64_t block, const float *x, int64_t count, float *ratio) {
  const float divisor = p.scale[block] == 0 ? __builtin_inff() : p.scale[block], end = p.end, most = 3.4028234663852886e38f;
  const float offset = p.offset ? p.offset[block] : 0, zero = p.zero ? p.zero[block] : 0;
  for (int64_t i = 0; i < count; i++) {
    float r = (p.offset ? x[i] - offset : x[i]) / divisor;
    r = r < -end ? -end : r > end ? end : r;
    if (p.zero) {
      r = (p.whole ? __builtin_rintf(r) : r) + zero;
      r = r < -most ? -most : r > most ? most : r;
    }
    ratio[i] = r;
  }
}

void codes(const CodesPlan &p, int64_t first, int64_t count) {
  alignas(64) float ratio[kRoundBlock];
  const int64_t together = p.size <= kRoundBlock ? kRoundBlock / p.size : 1;
  for (int64_t b = first; b < first + count; b += together) {
    const int64_t some = first + count - b < together ? first + count - b : together;
    for (int64_t from = 0; from < p.size; from += kRoundBlock) {  // one turn, but for blocks longer than that
      const int64_t each = p.size - from < kRoundBlock ? p.size - from : kRoundBlock, at = b * p.size + from;
      for (int64_t j = 0; j < some; j++) places(p, b + j, p.x + at + j * p.size, each, ratio + j * each);
      round_kernels.codes(*p.round, ratio, nullptr, some * each, p.width, p.out + at * p.width, false);
    }
  }
}

}  // namespace

extern const SumsKernels sums_kernels;
const SumsKernels sums_kernels = {blocks, ends, values, codes};

}  // namespace ANYBIT_ISA
}  // namespace anybit
