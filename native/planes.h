// Stored bits and the 512 raw codes of a chunk, one a byte, as eight groups of 64: bit planes (weight.h) and five trits a byte.
#pragma once
#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {

// ------------------------------------------------------------------------------------------------ bit planes
// Bits [from, from + width) of each byte, moved to bit `to`.
template <int width, int from, int to> AB_INLINE B field(B x) {
  const B mask = b_set(((1 << width) - 1) << to);
  if constexpr (from >= to) return b_and(b_shr<from - to>(x), mask);
  else return b_and(b_shl<to - from>(x), mask);
}

template <int width, int to> AB_INLINE void plane(const uint8_t *p, B *g) {  // or-s one bit plane into the eight groups
  if constexpr (width == 8) {
    for (int v = 0; v < 8; v++) g[v] = b_load(p + 64 * v);
  } else if constexpr (width == 4) {
    for (int v = 0; v < 4; v++) {
      B x = b_load(p + 64 * v);
      g[2 * v] = field<4, 0, to>(x), g[2 * v + 1] = field<4, 4, to>(x);
    }
  } else if constexpr (width == 2) {
    for (int v = 0; v < 2; v++) {
      B x = b_load(p + 64 * v);
      B y[4] = {field<2, 0, to>(x), field<2, 2, to>(x), field<2, 4, to>(x), field<2, 6, to>(x)};
      for (int f = 0; f < 4; f++) g[4 * v + f] = to ? b_or(g[4 * v + f], y[f]) : y[f];
    }
  } else {
    B x = b_load(p);
    B y[8] = {field<1, 0, to>(x), field<1, 1, to>(x), field<1, 2, to>(x), field<1, 3, to>(x),
              field<1, 4, to>(x), field<1, 5, to>(x), field<1, 6, to>(x), field<1, 7, to>(x)};
    for (int f = 0; f < 8; f++) g[f] = to ? b_or(g[f], y[f]) : y[f];
  }
}

template <int bits> AB_INLINE void codes_of(const uint8_t *p, B *g) {
  constexpr int first = bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
  plane<first, 0>(p, g);
  if constexpr (bits == 3) plane<1, 2>(p + 128, g);
  if constexpr (bits == 5) plane<1, 4>(p + 256, g);
  if constexpr (bits == 6 || bits == 7) plane<2, 4>(p + 256, g);
  if constexpr (bits == 7) plane<1, 6>(p + 384, g);
}

// The inverse: the bits [at, at + width) of eight groups to one plane.
template <int width, int at> AB_INLINE void pack_plane(const B *g, uint8_t *p) {
  constexpr int fields = 8 / width;
  const B mask = b_set((1 << width) - 1);
  for (int v = 0; v < width; v++) {
    B x = b_and(b_shr<at>(g[v * fields]), mask);
    if constexpr (fields > 1) x = b_or(x, b_shl<width % 8>(b_and(b_shr<at>(g[v * fields + 1]), mask)));
    if constexpr (fields > 2) {
      x = b_or(x, b_shl<2 * width % 8>(b_and(b_shr<at>(g[v * fields + 2]), mask)));
      x = b_or(x, b_shl<3 * width % 8>(b_and(b_shr<at>(g[v * fields + 3]), mask)));
    }
    if constexpr (fields > 4) {
      x = b_or(x, b_shl<4>(b_and(b_shr<at>(g[4]), mask)));
      x = b_or(x, b_shl<5>(b_and(b_shr<at>(g[5]), mask)));
      x = b_or(x, b_shl<6>(b_and(b_shr<at>(g[6]), mask)));
      x = b_or(x, b_shl<7>(b_and(b_shr<at>(g[7]), mask)));
    }
    b_store(p + 64 * v, x);
  }
}

template <int bits> AB_INLINE void pack_codes(const B *g, uint8_t *p) {
  constexpr int first = bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
  pack_plane<first, 0>(g, p);
  if constexpr (bits == 3) pack_plane<1, 2>(g, p + 128);
  if constexpr (bits == 5) pack_plane<1, 4>(g, p + 256);
  if constexpr (bits == 6 || bits == 7) pack_plane<2, 4>(g, p + 256);
  if constexpr (bits == 7) pack_plane<1, 6>(g, p + 384);
}

// ------------------------------------------------------------------------------------------------ five trits a byte
// A byte is ceil(n * 256 / 243), n the number whose ternary digits, the first on top, are five codes. 3 times it carries the first digit out and
// leaves the same for the rest: no division. Each digit costs two compares and four additions on 64 bytes; every byte decodes to digits 0 to 2.
//
// With permutes of 128 bytes a table gives a byte's first four digits, two bits each, and another the fifth.
struct TritTables {
  alignas(64) uint8_t four[256], fifth[256];
};
constexpr TritTables trit_tables() {
  TritTables t = {};
  for (int byte = 0; byte < 256; byte++) {
    int x = byte, digits[5] = {};
    for (int i = 0; i < 5; i++) digits[i] = 3 * x >> 8, x = 3 * x & 255;
    t.four[byte] = (uint8_t)(digits[0] | digits[1] << 2 | digits[2] << 4 | digits[3] << 6), t.fifth[byte] = (uint8_t)digits[4];
  }
  return t;
}
static constexpr TritTables kTritTables = trit_tables();
struct Trits {  // by name: compilers keep arrays in memory
  B four0, four1, four2, four3, fifth0, fifth1, fifth2, fifth3;
};
AB_INLINE B next_trit(B &x) {  // x + 128: the order of signed bytes is that of unsigned x, and 3 (x + 128) = 3 x + 128
  const B digit = b_sub(b_sub(b_set(0), b_above(x, -43)), b_above(x, 42));  // x >= 86, x >= 171
  x = b_add(b_add(x, x), x);
  return digit;
}

AB_INLINE Trits trits_ready() {
  if constexpr (!kByteTables) return Trits();
  const uint8_t *a = kTritTables.four, *b = kTritTables.fifth;
  return {b_load(a), b_load(a + 64), b_load(a + 128), b_load(a + 192), b_load(b), b_load(b + 64), b_load(b + 128), b_load(b + 192)};
}

AB_INLINE void scaled_trits_of(const Trits &t, B x, B *digits) {  // times 1, 4, 16, 64 and 1: no shifts
  const B four = b_pick(b_permute(t.four0, t.four1, x), b_permute(t.four2, t.four3, x), x);
  for (int i = 0; i < 4; i++) digits[i] = b_and(four, b_set(3 << 2 * i));
  digits[4] = b_pick(b_permute(t.fifth0, t.fifth1, x), b_permute(t.fifth2, t.fifth3, x), x);
}

AB_INLINE void trits_of(const Trits &t, B x, B *digits) {  // the five digits of 64 stored bytes
  if constexpr (kByteTables) {
    const B four = b_pick(b_permute(t.four0, t.four1, x), b_permute(t.four2, t.four3, x), x);
    digits[0] = field<2, 0, 0>(four), digits[1] = field<2, 2, 0>(four), digits[2] = field<2, 4, 0>(four), digits[3] = field<2, 6, 0>(four);
    digits[4] = b_pick(b_permute(t.fifth0, t.fifth1, x), b_permute(t.fifth2, t.fifth3, x), x);
  } else {
    x = b_xor(x, b_set(128));
    for (int i = 0; i < 5; i++) digits[i] = next_trit(x);
  }
}

// Groups [g0, g1) of four k of a row of tiles, each 64 bytes, to out; `vectors` are stored, groups beyond them become zero.
template <class Store> AB_INLINE void trit_groups(const uint8_t *p, int64_t vectors, int64_t g0, int64_t g1, Store store) {
  const Trits trits = trits_ready();
  for (int64_t g = g0; g < g1;) {
    const int64_t v = g / 5;
    if (g == 5 * v && g + 5 <= g1 && v < vectors) {
      B t[5];
      trits_of(trits, b_load(p + 64 * v), t);
      for (int i = 0; i < 5; i++) store(g + i - g0, t[i]);
      g += 5;
      continue;
    }
    if (v >= vectors) {
      store(g++ - g0, b_set(0));
      continue;
    }
    B t[5];
    trits_of(trits, b_load(p + 64 * v), t);
    for (int64_t i = 0; i < 5 && 5 * v + i < g1; i++)
      if (5 * v + i >= g) store(5 * v + i - g0, t[i]);
    g = 5 * v + 5;
  }
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
