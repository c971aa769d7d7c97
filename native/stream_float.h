// A few rows with float activations: stored bits to products in registers, without a panel between. Part of linear.cc.
//
// An output is one chain of fmas (docs/contract.md) and an fma takes four cycles, so one row runs over four tiles of outputs side by side and four
// rows over one. What float_codes.h makes of 64 codes serves all rows: the more rows, the less it costs.

template <int rows> constexpr int kTilesFor = rows == 1 ? kFloatTiles : rows == 2 ? (kManyRegisters ? kFloatTiles : 2) : 1;

// How many rows of an input of m stand side by side: few rows all, filled up to what is streamed; else as evenly as register blocks allow.
static int64_t few_floats(int64_t m) {
  if (m <= kStreamFloat) return m <= 2 ? m : m <= 4 ? 4 : 8;
  const int64_t blocks = (m + kRowsFloat - 1) / kRowsFloat;
  return (m + blocks - 1) / blocks;
}

// Over how many tiles the input's rows run at once, if they are few: 0 if not.
static int64_t few_tiles(const Input &in) {
  if (in.m > in.group || in.group > kStreamFloat) return 0;
  return in.group == 1 ? kTilesFor<1> : in.group == 2 ? kTilesFor<2> : in.group == 4 ? kTilesFor<4> : in.group == 8 ? kTilesFor<8> : 0;
}

// Tiles lie a power of two apart, so that what is asked for of four would push each other out of the first-level cache (8-bit integers: a third).
constexpr int kFloatAhead = 2048;

struct FloatCodes {
  const uint8_t *at[kFloatTiles];  // of k0
};

template <int bits, Source source, int rows, int tiles, bool zeros, int from, int j>
AB_INLINE void add_float(const Weight &w, const float *x, const Four *v, const Bases *bases, const F *z, F part[tiles][rows]) {
  for (int t = 0; t < tiles; t++) {
    F value = value_of<bits, source, j, from, zeros>(w.table, v[t], bases[zeros ? t : 0]);
    if constexpr (zeros && source != Source::Integers) value = f_sub(value, z[t]);
    for (int r = 0; r < rows; r++) part[t][r] = f_fma(f_set(x[j * rows + r]), value, part[t][r]);
  }
}

// Groups [at, end) of a chunk, whose codes lie at `offset` of each tile's.
template <int bits, Source source, int rows, int tiles, bool zeros, int at, int end>
AB_INLINE void add_floats(const Weight &w, B turn, const FloatCodes &codes, int64_t offset, const float *x, const Bases *bases, const F *z, F part[tiles][rows]) {
  if constexpr (at < end) {
    constexpr bool in_place = source == Source::Integers && bits == 4;
    constexpr int from = in_place ? at % 2 * 4 : 0;
    Four v[tiles];
    for (int t = 0; t < tiles; t++) {
      const uint8_t *p = codes.at[t] + offset;
      if constexpr (in_place) v[t] = parts_of<bits, source>(w, b_xor(b_load(p + 64 * (at / 2)), turn));
      else v[t] = parts_of<bits, source>(w, code_at<bits, at, source == Source::Integers && !kMerged<bits>>(p, turn));
    }
    const float *const four = x + 4 * rows * at;
    add_float<bits, source, rows, tiles, zeros, from, 0>(w, four, v, bases, z, part);
    add_float<bits, source, rows, tiles, zeros, from, 1>(w, four, v, bases, z, part);
    add_float<bits, source, rows, tiles, zeros, from, 2>(w, four, v, bases, z, part);
    add_float<bits, source, rows, tiles, zeros, from, 3>(w, four, v, bases, z, part);
    add_floats<bits, source, rows, tiles, zeros, at + 1, end>(w, turn, codes, offset, x, bases, z, part);
  }
}

template <int bits, Source source, int rows, bool zeros> static void stream_floats(const Weight &w, const Input &in, const FloatSpan &a, const FloatCodes &codes) {
  constexpr int tiles = kTilesFor<rows>;
  F part[tiles][rows], z[tiles];
  Bases bases[zeros ? tiles : 1];
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) part[t][r] = f_load(a.state + t * a.state_tile + 32 * r + 16);
  const float *const x = a.x - rows * a.k0;
  const B turn = source == Source::Integers ? turn_of<bits>(w) : b_set(0);
  const int64_t size = w.block, first = a.k0 / size;
  int64_t block = first, limit = (block + 1) * size < w.k ? (block + 1) * size : w.k;
  const auto open = [&]() AB_LAMBDA {
    for (int t = 0; t < tiles; t++) {
      z[t] = zeros && w.zero ? i_to_f(zero_row(w, a.tile + t, block)) : f_zero();
      if (source == Source::Integers && (zeros || t == 0)) bases[zeros ? t : 0] = bases_of<bits>(w, z[t]);
    }
  };
  const auto close = [&]() AB_LAMBDA {
    for (int t = 0; t < tiles; t++) {
      const int64_t side = t * a.side_tile + 16 * (block - first);
      const F sw = f_load(a.scales + side);
      for (int r = 0; r < rows; r++) {
        float *const sum = a.state + t * a.state_tile + 32 * r;
        f_store(sum, closed(w, in, a, r, block, side, part[t][r], sw, f_load(sum)));
        part[t][r] = f_zero();
      }
    }
    AB_KEEP_IN_MEMORY();
    block++, limit = limit + size < w.k ? limit + size : w.k;
    if (zeros && block < w.blocks) open();
  };
  open();
  int64_t k = a.k0;
  for (int64_t from = 0; k + 32 <= a.k1; k += 32, from += 64 * bits) {
    for (int t = 0; t < tiles; t++) ask_lines<kFloatAhead, 64 * bits>(codes.at[t] + from);
    add_floats<bits, source, rows, tiles, zeros, 0, 4>(w, turn, codes, from, x + rows * k, bases, z, part);
    if (k + 16 == limit) close();
    add_floats<bits, source, rows, tiles, zeros, 4, 8>(w, turn, codes, from, x + rows * k, bases, z, part);
    if (k + 32 == limit) close();
  }
  if (k < a.k1) {  // the last chunk is short
    float values[tiles][512];
    for (int t = 0; t < tiles; t++) panel_if<bits, source>()(w, w.table, codes.at[t] + (k - a.k0) / 32 * 64 * bits, 1, values[t]);
    for (int64_t i = 0; k < a.k1; i++) {
      for (int t = 0; t < tiles; t++) {
        const F value = f_sub(f_load(values[t] + 16 * i), z[t]);
        for (int r = 0; r < rows; r++) part[t][r] = f_fma(f_set(x[rows * k + r]), value, part[t][r]);
      }
      if (++k == limit) close();
    }
  }
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) f_store(a.state + t * a.state_tile + 32 * r + 16, part[t][r]);
}

// Stored 16-bit floats: one block along all of k, scale 1.
template <bool half, int rows> static void stream_dense(const Weight &w, const Input &, const FloatSpan &a, const FloatCodes &codes) {
  constexpr int tiles = kTilesFor<rows>;
  F part[tiles][rows];
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) part[t][r] = f_load(a.state + t * a.state_tile + 32 * r + 16);
  const float *x = a.x;
  for (int64_t k = a.k0, from = 0; k < a.k1; k++, from += 32, x += rows)
    for (int t = 0; t < tiles; t++) {
      const uint8_t *p = codes.at[t] + from;
      if (from % 64 == 0) ask_lines<kFloatAhead, 64>(p);
      const F value = half ? f_load_half(p) : f_load_bf16(p);
      for (int r = 0; r < rows; r++) part[t][r] = f_fma(f_set(x[r]), value, part[t][r]);
    }
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) {
      float *const state = a.state + t * a.state_tile + 32 * r;
      if (a.k1 == w.k) f_store(state, f_fma(part[t][r], f_load(a.scales + t * a.side_tile), f_load(state)));
      else f_store(state + 16, part[t][r]);
    }
}

using StreamFloat = void (*)(const Weight &, const Input &, const FloatSpan &, const FloatCodes &);
// Zero points belong to integers; without permutes of 64 bytes, tables of more than 16 entries are too much code to repeat for every group.
template <int bits, Source source, int rows, bool zeros> constexpr StreamFloat float_if() {
  constexpr bool fits = source == Source::Lookup ? bits <= 4 || (bits == 8 && !zeros) : source == Source::Integers ? bits >= 3 : kByteTables && bits >= 5 && !zeros;
  if constexpr (!fits || !kFloatPlanes) return nullptr;
  else if constexpr (source == Source::Integers && bits <= 4 && kLookup16) return stream_floats<bits, Source::Lookup, rows, zeros>;
  else if constexpr (source == Source::Mirrored && bits < 8) return stream_floats<bits, Source::Halves, rows, zeros>;  // one permute has all of the table
  else return stream_floats<bits, source, rows, zeros>;
}
template <Source source, int rows, bool zeros>
const StreamFloat kStreamFloats[9] = {nullptr, float_if<1, source, rows, zeros>(), float_if<2, source, rows, zeros>(), float_if<3, source, rows, zeros>(),
                                      float_if<4, source, rows, zeros>(), float_if<5, source, rows, zeros>(), float_if<6, source, rows, zeros>(),
                                      float_if<7, source, rows, zeros>(), float_if<8, source, rows, zeros>()};

template <int rows> static StreamFloat stream_floats_of(const Weight &w) {
  if constexpr (rows > kStreamFloat || !kFloatPlanes) return nullptr;
  else {
    if (w.dense != Dense::None) return w.dense == Dense::Float16 ? stream_dense<true, rows> : stream_dense<false, rows>;
    if (w.trits) return kStreamFloats<Source::Lookup, rows, false>[8];  // their digits come as bytes
    switch (w.source) {
      case Source::Lookup: return w.zero ? kStreamFloats<Source::Lookup, rows, true>[w.bits] : kStreamFloats<Source::Lookup, rows, false>[w.bits];
      case Source::Integers:  // unsigned bytes that are converted are shifted
        return w.zero || (!kMerged<8> && w.bits == 8 && !w.turn) ? kStreamFloats<Source::Integers, rows, true>[w.bits] : kStreamFloats<Source::Integers, rows, false>[w.bits];
      case Source::Mirrored: return kStreamFloats<Source::Mirrored, rows, false>[w.bits];
      case Source::Halves: return kStreamFloats<Source::Halves, rows, false>[w.bits];
      default: return kStreamFloats<Source::Words, rows, false>[w.bits];
    }
  }
}

// What streams a group of rows over as many tiles as kTilesFor says; nullptr and why not: it needs panels.
static StreamFloat stream_float_of(const Weight &w, int64_t rows, const char **why) {
  *why = "plain C++ has no registers for it";
  if (!kFloatPlanes) return nullptr;
  *why = "stored floats are read as they lie";
  if (w.dense == Dense::Float32) return nullptr;
  *why = "codes share bytes in a way that only a panel undoes";
  if (w.index || (w.trits && w.zero)) return nullptr;
  *why = "blocks begin inside half a chunk of 32 k";
  if (w.block % 16 && w.blocks > 1) return nullptr;
  *why = "this set has no permutes of 64 bytes";
  return rows == 1 ? stream_floats_of<1>(w) : rows == 2 ? stream_floats_of<2>(w) : rows == 4 ? stream_floats_of<4>(w) : stream_floats_of<8>(w);
}

// The same rows and tiles by a panel.
static void few_by_panel(int64_t rows, const Weight &w, const Input &in, const FloatSpan &a) {
  if (rows == 1) fma_rows<1, kTilesFor<1>>(w, in, a);
  else if (rows == 2) fma_rows<2, kTilesFor<2>>(w, in, a);
  else if (rows == 4) fma_rows<4, kTilesFor<4>>(w, in, a);
  else fma_rows<8, kTilesFor<8>>(w, in, a);
}
