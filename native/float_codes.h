// Codes to float32 values in registers, 64 codes (four k of sixteen outputs) at a time, without a gather. Part of linear.cc.
//
// Integers: a code's bits are put into the mantissa of a power of two in whose place they count as they are; a subtraction, exact, takes that power, the
// sign's share and the zero point off: three operations for 16 values, one shift for 32. Where joining bits takes two operations, codes of 5 bits and
// more are converted instead. Lookup: a register of 16 floats. Halves: values whose lower 16 bits
// are zero (8-bit floats, posits): tables of bytes for the upper two, put side by side. Mirrored: the same where the top bit is a sign: half a table.
// Words: four tables of bytes. Weight::source chooses (operator.cc).
#pragma once

struct Four {  // 64 values on their way
  B a, b, c, d;
};
struct Bases {  // Integers: what is subtracted where a code begins at bit 0, 8, 4 and 12 of its half of a dword; converted ones: the first
  F at[4];
};
template <int bits> constexpr bool kMerged = kLookup16 || bits <= 4;

alignas(16) static constexpr uint8_t kInPairs[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};  // of four outputs: k 0 and 1, then 2 and 3
alignas(16) static constexpr uint8_t kByK[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

constexpr int base_of(int bit) { return (bit & 4 ? 2 : 0) + (bit & 8 ? 1 : 0); }

// shift: the zero point, or zero. 2^(23 - bit) + sign + shift is a whole number below 2^24: exact.
template <int bits> AB_INLINE Bases bases_of(const Weight &w, F shift) {
  Bases b;
  if constexpr (kMerged<bits>) {
    for (int bit = 0; bit < 16; bit += 4)
      if (bits == 4 || bit % 8 == 0) b.at[base_of(bit)] = f_add(f_set((float)((1 << (23 - bit)) + w.turn)), shift);
  } else {
    b.at[0] = f_add(f_set(bits == 8 && !w.turn ? -128.0f : 0.0f), shift);
  }
  return b;
}

// What is xored to codes of Integers, one a byte: signs become plain bits; of 8 bits that are converted, plain bits become signs.
template <int bits> AB_INLINE int turned(const Weight &w) { return !kMerged<bits> && bits == 8 ? 128 - w.turn : w.turn; }

// The same for stored bytes (code_at).
template <int bits> AB_INLINE B turn_of(const Weight &w) {
  constexpr int top = bits == 6 ? 2 : bits == 3 || bits == 5 || bits == 7 ? 1 : bits;  // width of the plane with the sign
  return b_set((turned<bits>(w) >> (bits - top)) * (top == 1 ? 0xff : top == 2 ? 0x55 : top == 4 ? 0x11 : 1));
}

// `code`: one a byte; of Integers turned as above.
template <int bits, Source source> AB_INLINE Four parts_of(const Weight &w, B code) {
  const B low4 = b_set(15);
  if constexpr (source == Source::Halves) {
    code = b_lookup(code, b_table(kInPairs));
    const B low = b_and(code, low4), a = table_bytes<bits>(w.plane[2], code, low), b = table_bytes<bits>(w.plane[3], code, low);
    return {b_zip_low(a, b), b_zip_high(a, b), a, b};
  } else if constexpr (source == Source::Mirrored) {
    code = b_lookup(code, b_table(kInPairs));
    const B low = b_and(code, bits <= 4 ? b_set((1 << (bits - 1)) - 1) : low4), a = table_bytes<bits - 1>(w.plane[2], code, low);
    const B b = b_merge(b_shl<8 - bits>(code), b_set(128), table_bytes<bits - 1>(w.plane[3], code, low));
    return {b_zip_low(a, b), b_zip_high(a, b), a, b};
  } else if constexpr (source == Source::Words) {
    code = b_lookup(code, b_table(kByK));
    const B low = b_and(code, low4), a = table_bytes<bits>(w.plane[0], code, low), b = table_bytes<bits>(w.plane[1], code, low);
    const B c = table_bytes<bits>(w.plane[2], code, low), d = table_bytes<bits>(w.plane[3], code, low);
    return {b_zip_low(a, b), b_zip_high(a, b), b_zip_low(c, d), b_zip_high(c, d)};
  } else {
    if constexpr (source == Source::Integers && !kMerged<bits> && bits < 8) code = b_sub(code, b_set(w.turn));
    return {code, code, code, code};
  }
}

// k = 4 * group + j of sixteen outputs. `from`: the bit of its byte at which a code of Integers begins; `shifted`: converted ones have a base.
template <int bits, Source source, int j, int from = 0, bool shifted = true> AB_INLINE F value_of(const float *table, const Four &v, const Bases &bases) {
  if constexpr (source == Source::Lookup) {
    const I d = b_dwords(v.a);
    return f_lookup16(table, j ? i_shr(d, 8 * j) : d);
  } else if constexpr (source == Source::Integers && !kMerged<bits>) {
    const I d = b_dwords(v.a);
    const F value = i_to_f(i_sar(j < 3 ? i_shl(d, 24 - 8 * j) : d, 24));
    return shifted ? f_sub(value, bases.at[0]) : value;
  } else if constexpr (source == Source::Integers) {
    constexpr int bit = 8 * (j & 1) + from;
    const I d = b_dwords(v.a), half = j < 2 ? d : i_shr(d, 16);
    return f_sub(i_float(i_merge(half, i_set(((1 << bits) - 1) << bit), i_set(0x4b000000 - (bit << 23)))), bases.at[base_of(bit)]);
  } else if constexpr (source == Source::Words) {
    const B low = j < 2 ? v.a : v.b, high = j < 2 ? v.c : v.d;
    return i_float(b_dwords(j & 1 ? b_zip_high16(low, high) : b_zip_low16(low, high)));
  } else {
    const I d = b_dwords(j < 2 ? v.a : v.b);
    return i_float(j & 1 ? i_and(d, i_set((int32_t)0xffff0000)) : i_shl(d, 16));
  }
}
