// One row with float activations: stored bits to products in registers, four tiles of outputs side by side, without a panel between. Part of linear.cc.
//
// An output is one chain of fmas (docs/contract.md), so four tiles are what keeps the fma units busy. 16 weights cost a shift, a look-up and an fma
// where a register holds the table; a byte of the table is enough where the values are integers.

// Lookup: codes of up to 4 bits, 16 floats in a register or two. Integers: codes of 5 to 8 bits that are integers. Halves: values whose lower 16 bits
// are zero (8-bit floats, posits): their upper bytes from two tables of bytes. Dense: stored 16-bit floats.
enum class Source { Lookup, Integers, Unsigned, Halves, BFloat16, Float16 };

struct FloatStream {
  const uint8_t *codes[kFloatTiles];          // of k0
  alignas(64) uint8_t low[256], high[256];    // Halves: bits 16 to 23 and 24 to 31 of each code's value
};

template <int bits> AB_INLINE B half_bytes(const uint8_t *table, B code) {
  if constexpr (bits <= 6) return b_lookup64(table, code);
  else if constexpr (bits == 7) return b_lookup128(table, code);
  else return b_pick(b_lookup128(table, code), b_lookup128(table + 128, code), code);
}

template <Source source, int j> AB_INLINE F float_of(const float *table, B a, B b) {  // k = 4 * group + j of sixteen outputs
  const I d = b_dwords(a);
  if constexpr (source == Source::Lookup) return f_lookup16(table, j ? i_shr(d, 8 * j) : d);
  else if constexpr (source == Source::Integers) return i_to_f(i_sar(j < 3 ? i_shl(d, 24 - 8 * j) : d, 24));
  else if constexpr (source == Source::Unsigned) return i_to_f(j < 3 ? i_and(i_shr(d, 8 * j), i_set(255)) : i_shr(d, 24));
  else return b_halves<j>(a, b);
}

template <Source source, int tiles, bool zeros, int j> AB_INLINE void add_float(const float *table, const float *x, const B *a, const B *b, const F *z, F *part) {
  const F v = f_set(x[j]);
  for (int t = 0; t < tiles; t++) {
    const F value = float_of<source, j>(table, a[t], b[t]);
    part[t] = f_fma(v, zeros ? f_sub(value, z[t]) : value, part[t]);
  }
}

// Groups [at, end) of a chunk, whose codes lie at `from` of each tile.
template <int bits, Source source, int tiles, bool zeros, int at, int end>
AB_INLINE void add_floats(const Weight &w, const FloatStream &s, int64_t from, const float *x, const F *z, F *part) {
  if constexpr (at < end) {
    B a[tiles], b[tiles];
    for (int t = 0; t < tiles; t++) {
      const B code = code_at<bits, at, source != Source::Lookup || bits == 3>(s.codes[t] + from, b_set(0));
      if constexpr (source == Source::Halves) a[t] = half_bytes<bits>(s.low, code), b[t] = half_bytes<bits>(s.high, code);
      else a[t] = b[t] = source == Source::Integers && bits < 8 ? b_sub(b_xor(code, b_set(w.sign)), b_set(w.sign)) : code;
    }
    add_float<source, tiles, zeros, 0>(w.table, x + 4 * at, a, b, z, part);
    add_float<source, tiles, zeros, 1>(w.table, x + 4 * at, a, b, z, part);
    add_float<source, tiles, zeros, 2>(w.table, x + 4 * at, a, b, z, part);
    add_float<source, tiles, zeros, 3>(w.table, x + 4 * at, a, b, z, part);
    add_floats<bits, source, tiles, zeros, at + 1, end>(w, s, from, x, z, part);
  }
}

template <int bits, Source source, bool zeros> static void stream_floats(const Weight &w, const Input &in, const FloatSpan &a, const FloatStream &s) {
  constexpr int tiles = kFloatTiles;
  F part[tiles], z[tiles];
  for (int t = 0; t < tiles; t++) part[t] = f_load(a.state + t * a.state_tile + 16), z[t] = f_zero();
  const float *const x = in.x + a.row * in.stride;
  const int64_t size = w.block, first = a.k0 / size;
  int64_t block = first, limit = (block + 1) * size < w.k ? (block + 1) * size : w.k;
  const auto open = [&]() AB_LAMBDA {
    if (zeros)
      for (int t = 0; t < tiles; t++) z[t] = i_to_f(zero_row(w, a.tile + t, block));
  };
  const auto close = [&]() AB_LAMBDA {
    for (int t = 0; t < tiles; t++) {
      const int64_t side = t * a.side_tile + 16 * (block - first);
      float *const sum = a.state + t * a.state_tile;
      F acc = f_fma(part[t], f_load(a.scales + side), f_load(sum));
      if (a.offsets) acc = f_fma(f_set(in.sums[a.row * w.blocks + block]), f_load(a.offsets + side), acc);
      f_store(sum, acc), part[t] = f_zero();
    }
    block++, limit = limit + size < w.k ? limit + size : w.k;
    if (block < w.blocks) open();
  };
  open();
  int64_t k = a.k0;
  for (int64_t from = 0; k + 32 <= a.k1; k += 32, from += 64 * bits) {
    for (int t = 0; t < tiles; t++) ask<64 * bits>(s.codes[t] + from - kAhead / 2);
    add_floats<bits, source, tiles, zeros, 0, 4>(w, s, from, x + k, z, part);
    if (k + 16 == limit) close();
    add_floats<bits, source, tiles, zeros, 4, 8>(w, s, from, x + k, z, part);
    if (k + 32 == limit) close();
  }
  if (k < a.k1) {  // the last chunk is short
    float values[tiles][512];
    for (int t = 0; t < tiles; t++) panel_float<bits>(w, w.table, s.codes[t] + (k - a.k0) / 32 * 64 * bits, 1, values[t]);
    for (int64_t i = 0; k < a.k1; i++) {
      for (int t = 0; t < tiles; t++) part[t] = f_fma(f_set(x[k]), f_sub(f_load(values[t] + 16 * i), z[t]), part[t]);
      if (++k == limit) close();
    }
  }
  for (int t = 0; t < tiles; t++) f_store(a.state + t * a.state_tile + 16, part[t]);
}

// Stored 16-bit floats: one block along all of k, scale 1.
template <bool half> static void stream_dense(const Weight &w, const Input &in, const FloatSpan &a, const FloatStream &s) {
  constexpr int tiles = kFloatTiles;
  F part[tiles];
  for (int t = 0; t < tiles; t++) part[t] = f_load(a.state + t * a.state_tile + 16);
  const float *const x = in.x + a.row * in.stride;
  for (int64_t k = a.k0, from = 0; k < a.k1; k++, from += 32) {
    const F v = f_set(x[k]);
    for (int t = 0; t < tiles; t++) {
      const uint8_t *p = s.codes[t] + from;
      if (from % 64 == 0) __builtin_prefetch(p + kAhead / 2);
      part[t] = f_fma(v, half ? f_load_half(p) : f_load_bf16(p), part[t]);
    }
  }
  for (int t = 0; t < tiles; t++) {
    float *const state = a.state + t * a.state_tile;
    if (a.k1 == w.k) f_store(state, f_fma(part[t], f_load(a.scales + t * a.side_tile), f_load(state)));
    else f_store(state + 16, part[t]);
  }
}

using StreamFloat = void (*)(const Weight &, const Input &, const FloatSpan &, const FloatStream &);
template <Source source, bool zeros, int from, int to, int bits> constexpr StreamFloat float_if() {
  if constexpr (bits >= from && bits <= to && (source != Source::Halves || kByteTables)) return stream_floats<bits, source, zeros>;
  else return nullptr;
}
#define AB_FLOATS(source, from, to, zeros)                                                                                                          \
  {nullptr, float_if<source, zeros, from, to, 1>(), float_if<source, zeros, from, to, 2>(), float_if<source, zeros, from, to, 3>(),                \
   float_if<source, zeros, from, to, 4>(), float_if<source, zeros, from, to, 5>(), float_if<source, zeros, from, to, 6>(),                         \
   float_if<source, zeros, from, to, 7>(), float_if<source, zeros, from, to, 8>()}
const StreamFloat kLookup[2][9] = {AB_FLOATS(Source::Lookup, 1, 4, false), AB_FLOATS(Source::Lookup, 1, 4, true)};
const StreamFloat kIntegers[2][9] = {AB_FLOATS(Source::Integers, 5, 8, false), AB_FLOATS(Source::Integers, 5, 8, true)};
const StreamFloat kHalves[9] = AB_FLOATS(Source::Halves, 5, 8, false);

// What streams one row of four tiles; nullptr and why not: it needs a panel. Fills in the tables that it reads.
static StreamFloat stream_float_of(const Weight &w, FloatStream &s, const char **why) {
  *why = "stored floats are read as they lie";
  if (w.dense == Dense::Float32) return nullptr;
  *why = "codes share bytes in a way that only a panel undoes";
  if (w.index || w.trits) return nullptr;
  if (w.dense != Dense::None) return w.dense == Dense::Float16 ? stream_dense<true> : stream_dense<false>;
  *why = "blocks begin inside half a chunk of 32 k";
  if (w.block % 16 && w.blocks > 1) return nullptr;
  const bool zeros = w.zero;
  if (w.bits <= 4) return kLookup[zeros][w.bits];
  const int count = 1 << w.bits, top = count / 2;
  bool integers = true, halves = !zeros;
  const bool negative = w.table[count - 1] < 0;
  for (int c = 0; c < count; c++) {
    const uint32_t u = float_bits(w.table[c]);
    integers = integers && w.table[c] == (float)(negative && c >= top ? c - count : c);
    halves = halves && !(u & 0xffff);
    s.low[c] = (uint8_t)(u >> 16), s.high[c] = (uint8_t)(u >> 24);
  }
  if (integers && (negative || w.bits < 8)) return kIntegers[zeros][w.bits];
  if (integers && w.bits == 8) return zeros ? stream_floats<8, Source::Unsigned, true> : stream_floats<8, Source::Unsigned, false>;
  *why = kByteTables ? "its table is of floats with more than 16 bits" : "this set has no permutes of 64 bytes";
  for (int c = count; c < 64; c++) s.low[c] = s.low[c % count], s.high[c] = s.high[c % count];
  return halves ? kHalves[w.bits] : nullptr;
}
