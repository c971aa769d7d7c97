// linear: y[m, n] = x[m, k] w[n, k]^T (+ bias) for coded and dense weights; compiled once per ISA.
//
// Two stages. A panel of a tile row (16 outputs, about 512 k) is decoded from its stored bits into a buffer that stays in the first-level cache:
// bytes for Unsigned8 / Signed8, int16 pairs for Wide16, floats for the float path. Then every row of the input runs over the panel in register
// blocks. Decoding reads each stored byte once per 512 rows; a decode step of one token reads nothing but stored bytes.
//
// Numerics (docs/contract.md): integer dots are exact in int32 inside an activation block (|t| * 127 * 512 < 2^31); outside,
// acc = fma(float(dot), fl(sx * sw), acc), blocks ascending, one chain an output. Float path: p = fma(x, t, p) ascending inside a weight block,
// acc = fma(p, sw, acc). No result depends on how rows, tiles or threads are cut.
#include "weight.h"

#include "isa.h"
#include "planes.h"
#include "ranks.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

constexpr int64_t kRowBlock = 512;   // rows that share one decoded panel
constexpr int64_t kFloatPanel = kEscapeBlock / 16;  // 256, k of a float panel: 16 KiB a tile
constexpr int64_t kFloatTiles = 4;    // tiles side by side when few rows would leave the fma units waiting

// ------------------------------------------------------------------------------------------------ scales
AB_INLINE int scale_width(ScaleKind kind) { return kind == ScaleKind::Float32 ? 4 : kind == ScaleKind::Float16 || kind == ScaleKind::BFloat16 ? 2 : 1; }

AB_INLINE float scale_one(const Grid &s, int64_t at) {
  switch (s.kind) {
    case ScaleKind::One: return 1.0f;
    case ScaleKind::Float32: { float f; memcpy(&f, s.data + 4 * at, 4); return f; }
    case ScaleKind::Float16: return half_float((uint32_t)(s.data[2 * at] | s.data[2 * at + 1] << 8));
    case ScaleKind::BFloat16: return bits_float((uint32_t)(s.data[2 * at] | s.data[2 * at + 1] << 8) << 16);
    default: return s.table[s.data[at]];
  }
}

// A number times its factors, one rounding each.
template <int factors> AB_INLINE F times(F v, const F *by) {
  for (int i = 0; i < factors; i++) v = f_mul(v, by[i]);
  return v;
}

template <int factors, class Read> AB_INLINE void wide_run(const Grid &s, int64_t tile, int64_t b0, int64_t b1, const F *by, float *out, Read read) {
  const int64_t step = 16 * scale_width(s.kind);
  const uint8_t *p = s.data + (tile * s.columns + b0) * step;
  for (int64_t b = b0; b < b1; b++, p += step, out += 16) f_store(out, times<factors>(read(p), by));
}

// Of codes in bytes, or in halves of bytes: decode(code) gives the numbers of sixteen outputs.
template <int factors, class Decode> AB_INLINE void code_run(const Grid &s, int64_t tile, int64_t b0, int64_t b1, const F *by, float *out, Decode decode) {
  if (!s.paired) {
    const uint8_t *p = s.data + (tile * s.columns + b0) * 16;
    for (int64_t b = b0; b < b1; b++, p += 16, out += 16) f_store(out, times<factors>(decode(i_load_u8(p)), by));
    return;
  }
  const uint8_t *p = s.data + (tile * ((s.columns + 1) / 2) + b0 / 2) * 16;
  const I low = i_set(15);
  int64_t b = b0;
  if (b & 1) f_store(out, times<factors>(decode(i_shr(i_load_u8(p), 4)), by)), b++, p += 16, out += 16;
  for (; b + 2 <= b1; b += 2, p += 16, out += 32) {
    const I both = i_load_u8(p);
    f_store(out, times<factors>(decode(i_and(both, low)), by));
    f_store(out + 16, times<factors>(decode(i_shr(both, 4)), by));
  }
  if (b < b1) f_store(out, times<factors>(decode(i_and(i_load_u8(p), low)), by));
}

AB_INLINE F exponent_of(I code) { return i_float(i_max(i_shl(code, 23), i_set(0x00400000))); }  // code 0 is 2^-127

struct Mini {  // exponent and mantissa bits moved to float32's place, bias corrected by an exact product: subnormals too
  I size = i_zero();
  F shift = f_zero();
  int up = 0, top = 31;
  Mini() = default;
  explicit Mini(const Grid &s) : size(i_set((1 << (s.bits - s.has_sign)) - 1)), shift(f_set(s.factor)), up(23 - s.mantissa), top(s.has_sign ? s.bits - 1 : 31) {}
  AB_LAMBDA F operator()(I code) const { return i_float(i_or(f_bits(f_mul(i_float(i_shl(i_and(code, size), up)), shift)), i_shl(i_shr(code, top), 31))); }
};

// Tiled numbers of tile row `tile` in blocks [b0, b1), times their factors: out[b1 - b0][16].
template <int factors> static void grid_run(const Grid &s, int64_t tile, int64_t b0, int64_t b1, const F *by, float *out) {
  switch (s.kind) {
    case ScaleKind::One: return wide_run<factors>(s, tile, b0, b1, by, out, [](const uint8_t *) AB_LAMBDA { return f_set(1.0f); });
    case ScaleKind::Float32: return wide_run<factors>(s, tile, b0, b1, by, out, [](const uint8_t *p) AB_LAMBDA { return f_load((const float *)p); });
    case ScaleKind::Float16: return wide_run<factors>(s, tile, b0, b1, by, out, [](const uint8_t *p) AB_LAMBDA { return f_load_half(p); });
    case ScaleKind::BFloat16: return wide_run<factors>(s, tile, b0, b1, by, out, [](const uint8_t *p) AB_LAMBDA { return f_load_bf16(p); });
    case ScaleKind::Exponent: return code_run<factors>(s, tile, b0, b1, by, out, [](I x) AB_LAMBDA { return exponent_of(x); });
    case ScaleKind::Mini: {
      const Mini mini(s);
      return code_run<factors>(s, tile, b0, b1, by, out, [=](I x) AB_LAMBDA { return mini(x); });
    }
    case ScaleKind::Integer: {
      if (!s.has_sign) return code_run<factors>(s, tile, b0, b1, by, out, [](I x) AB_LAMBDA { return i_to_f(x); });
      const I flip = i_set(1 << (s.bits - 1));
      return code_run<factors>(s, tile, b0, b1, by, out, [=](I x) AB_LAMBDA { return i_to_f(i_sub(i_xor(x, flip), flip)); });
    }
    default:
      if (s.paired) return code_run<factors>(s, tile, b0, b1, by, out, [&](I x) AB_LAMBDA { return f_lookup16(s.table, x); });
      return code_run<factors>(s, tile, b0, b1, by, out, [&](I x) AB_LAMBDA { return f_gather(s.table, x); });
  }
}

static void grid_times(const Grid &s, int64_t tile, int64_t b0, int64_t b1, int factors, const F *by, float *out) {
  switch (factors) {
    case 0: return grid_run<0>(s, tile, b0, b1, by, out);
    case 1: return grid_run<1>(s, tile, b0, b1, by, out);
    case 2: return grid_run<2>(s, tile, b0, b1, by, out);
    default: return grid_run<3>(s, tile, b0, b1, by, out);
  }
}

// Numbers of block b for the sixteen outputs of a tile row, however many rows share one.
static F grid_row(const Grid &s, int64_t tile, int64_t b, int64_t n) {
  if (s.rows == 0) return f_set(scale_one(s, b));
  if (s.rows == 1 && s.kind == ScaleKind::Float16) return f_load_half(s.data + (tile * s.columns + b) * 32);
  float t[16];
  if (s.rows == 1) {
    grid_run<0>(s, tile, b, b + 1, nullptr, t);
  } else {
    const int64_t last = n - 1 - tile * 16;
    for (int64_t o = 0; o < 16; o++) t[o] = scale_one(s, (tile * 16 + (o < last ? o : last)) / s.rows * s.columns + b);
  }
  return f_load(t);
}

// Scales of tile row `tile` in blocks [b0, b1), the other levels and `factor` multiplied in: out[b1 - b0][16].
static void scale_rows(const Scale &s, int64_t tile, int64_t b0, int64_t b1, int64_t n, float factor, float *out) {
  F by[3];
  int factors = s.each > 0;  // products with 1 are exact: left out
  if (s.whole != 1.0f) by[factors++] = f_set(s.whole);
  if (factor != 1.0f) by[factors++] = f_set(factor);
  for (int64_t b = b0, end = b1; b < b1; b = end) {
    if (s.each) {
      const int64_t owner = b / s.each;
      by[0] = grid_row(s.second, tile, owner, n);
      end = (owner + 1) * s.each < b1 ? (owner + 1) * s.each : b1;
    }
    if (s.rows == 1) {
      grid_times(s, tile, b, end, factors, by, out + 16 * (b - b0));
      continue;
    }
    for (int64_t i = b; i < end; i++) {
      F v = grid_row(s, tile, i, n);
      for (int j = 0; j < factors; j++) v = f_mul(v, by[j]);
      f_store(out + 16 * (i - b0), v);
    }
  }
}

// What a stretch of blocks multiplies, adds and subtracts, ready for use: [blocks][16] each.
struct Side {
  int64_t first;  // the block that the arrays start with
  float *scale, *offset;
  int32_t *shift;  // integer path: zero points
};

AB_INLINE I zero_row(const Weight &w, int64_t tile, int64_t b) {
  const I flip = i_set(w.zero_flip);
  return i_sub(i_xor(i_load_u8(w.zero + (tile * w.blocks + b) * 16), flip), flip);
}

// ------------------------------------------------------------------------------------------------ raw codes -> table values
// A table of 2^bits bytes: 16 entries a shuffle by the low four bits, then the higher bits choose between the shuffles' results, pair by pair.
template <int bits> AB_INLINE B table_bytes(const uint8_t *table, B code, B low) {
  if constexpr (bits <= 4) {
    return b_lookup(b_table(table), low);
  } else if constexpr (kByteTables && bits <= 7) {
    return bits == 7 ? b_lookup128(table, code) : b_lookup64(table, code);
  } else if constexpr (kByteTables) {
    return b_pick(b_lookup128(table, code), b_lookup128(table + 128, code), code);
  } else {
    const B a = table_bytes<bits - 1>(table, code, low), b = table_bytes<bits - 1>(table + (1 << (bits - 1)), code, low);
    return b_pick(a, b, b_shl<8 - bits>(code));
  }
}

template <int bits> static void panel_bytes(const Weight &w, const uint8_t *p, int64_t chunks, uint8_t *out) {
  const B flip = b_set(w.flip);
  for (int64_t c = 0; c < chunks; c++, p += 64 * bits, out += 512) {
    B g[8];
    codes_of<bits>(p, g);
    if (w.affine) for (int i = 0; i < 8; i++) b_store(out + 64 * i, b_xor(g[i], flip));
    else for (int i = 0; i < 8; i++) b_store(out + 64 * i, table_bytes<bits>(w.low, g[i], b_and(g[i], b_set(15))));
  }
}

template <int bits> static void panel_wide(const Weight &w, const uint8_t *p, int64_t chunks, uint8_t *out) {
  const B index = b_set(bits <= 4 ? (1 << (bits - 1)) - 1 : 15);  // a half table's index
  for (int64_t c = 0; c < chunks; c++, p += 64 * bits, out += 1024) {
    B g[8];
    codes_of<bits>(p, g);
    for (int i = 0; i < 8; i++) {
      const B low = b_and(g[i], b_set(15));
      if constexpr (kWideDot) {  // low bytes, then high bytes, both unsigned
        b_store(out + 128 * i, table_bytes<bits>(w.low, g[i], low));
        b_store(out + 128 * i + 64, table_bytes<bits>(w.high, g[i], low));
      } else if (w.mirrored) {  // sign and magnitude: half the table
        const B sign = b_sign(b_shl<8 - bits>(g[i]));
        w_store_signed(out + 128 * i, table_bytes<bits - 1>(w.low, g[i], b_and(low, index)), table_bytes<bits - 1>(w.high, g[i], b_and(low, index)), sign);
      } else {
        w_store(out + 128 * i, table_bytes<bits>(w.low, g[i], low), table_bytes<bits>(w.high, g[i], low));
      }
    }
  }
}

#include "float_codes.h"

// By any table, which lies in memory if it has more than 16 entries.
template <int bits> static void panel_float(const Weight &, const float *table, const uint8_t *p, int64_t chunks, float *out) {
  const I byte = i_set(255);
  for (int64_t c = 0; c < chunks; c++, p += 64 * bits) {
    B g[8];
    codes_of<bits>(p, g);
    for (int i = 0; i < 8; i++) {
      const I d = b_dwords(g[i]);
      for (int j = 0; j < 4; j++, out += 16) {  // dword o of a group holds output o: its byte j is k = 4 * group + j
        if constexpr (bits <= 4) f_store(out, f_lookup16(table, i_shr(d, 8 * j)));
        else f_store(out, f_gather(table, i_and(i_shr(d, 8 * j), byte)));
      }
    }
  }
}

// By the weight's own table.
template <int bits, Source source> static void panel_source(const Weight &w, const float *, const uint8_t *p, int64_t chunks, float *out) {
  const Bases bases = bases_of<bits>(w, f_zero());
  const B turn = b_set(turned<bits>(w));
  for (int64_t c = 0; c < chunks; c++, p += 64 * bits) {
    B g[8];
    codes_of<bits>(p, g);
#pragma GCC unroll 1
    for (int i = 0; i < 8; i++, out += 64) {
      const Four v = parts_of<bits, source>(w, source == Source::Integers ? b_xor(g[i], turn) : g[i]);
      f_store(out, value_of<bits, source, 0>(w.table, v, bases)), f_store(out + 16, value_of<bits, source, 1>(w.table, v, bases));
      f_store(out + 32, value_of<bits, source, 2>(w.table, v, bases)), f_store(out + 48, value_of<bits, source, 3>(w.table, v, bases));
    }
  }
}

// Ternary codes 0 .. 2 are -1 .. 1 with a bias of 1: the bytes of the panel as they come.
static void trit_panel(const Weight &w, int64_t tile, int64_t c0, int64_t c1, uint8_t *out) {
  const int64_t vectors = (w.k + 19) / 20;
  trit_groups(w.codes + tile * vectors * 64, vectors, 8 * c0, 8 * c1, [&](int64_t g, B code) AB_LAMBDA { b_store(out + 64 * g, code); });
}

static void trit_panel_float(const Weight &w, const float *table, int64_t tile, int64_t c0, int64_t c1, float *out) {
  const int64_t vectors = (w.k + 19) / 20;
  trit_groups(w.codes + tile * vectors * 64, vectors, 8 * c0, 8 * c1, [&](int64_t g, B code) AB_LAMBDA {
    const I d = b_dwords(code);
    for (int j = 0; j < 4; j++) f_store(out + 64 * g + 16 * j, f_lookup16(table, i_and(i_shr(d, 8 * j), i_set(3))));
  });
}

// One block of lossless bfloat16 weights: symbols are exponents, low bits sign and mantissa.
static void escape_panel(const Weight &w, int64_t tile, int64_t k0, int64_t k1, float *out) {
  const EscapeEntry e = escape_entry(w.index + (tile * ((w.k + kFloatPanel - 1) / kFloatPanel) + k0 / kFloatPanel) * kEscapeEntry);
  const int64_t count = 16 * (k1 - k0);
  const uint8_t *p = w.codes + e.offset;
  if (!e.width) {
    for (int64_t i = 0; i < count; i += 16) f_store(out + i, f_load_bf16(p + 2 * i));
    return;
  }
  alignas(64) uint8_t symbols[kEscapeBlock];
  const Low low = block_symbols(e, p, count, 2, symbols);
  const I sign = i_set(128), rest = i_set(127);
  for (int64_t i = 0; i < count; i += 16) {
    const I s = i_load_u8(low.at + i / 512 * low.step + i % 512), high = i_shl(i_load_u8(symbols + i), 23);
    f_store(out + i, i_float(i_or(i_or(i_shl(i_and(s, sign), 24), i_shl(i_and(s, rest), 16)), high)));
  }
}

using PanelBytes = void (*)(const Weight &, const uint8_t *, int64_t, uint8_t *);
using PanelFloat = void (*)(const Weight &, const float *, const uint8_t *, int64_t, float *);
#define AB_BITS(f) {nullptr, f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>}
const PanelBytes kPanelBytes[9] = AB_BITS(panel_bytes);
const PanelBytes kPanelWide[9] = AB_BITS(panel_wide);
const PanelFloat kPanelFloat[9] = AB_BITS(panel_float);
template <int bits, Source source> constexpr PanelFloat panel_if() {
  if constexpr (bits > 4 && source == Source::Words && kByteTables) return panel_source<bits, source>;
  else if constexpr (bits > 4 && (source == Source::Halves || source == Source::Mirrored) && kFloatPlanes) return panel_source<bits, source>;
  else if constexpr (bits > (kLookup16 ? 4 : 2) && source == Source::Integers) return panel_source<bits, source>;
  else return panel_float<bits>;
}
#define AB_BITS_SOURCE(source) \
  {nullptr, panel_if<1, source>(), panel_if<2, source>(), panel_if<3, source>(), panel_if<4, source>(), panel_if<5, source>(), panel_if<6, source>(), \
   panel_if<7, source>(), panel_if<8, source>()}
const PanelFloat kPanelSource[5][9] = {AB_BITS_SOURCE(Source::Lookup), AB_BITS_SOURCE(Source::Integers), AB_BITS_SOURCE(Source::Mirrored),
                                       AB_BITS_SOURCE(Source::Halves), AB_BITS_SOURCE(Source::Words)};

// ------------------------------------------------------------------------------------------------ integer path
// `count` groups of four k of `rows` rows; q: a group's codes of one row stand beside the next row's, `step` bytes a group.
template <int rows, int count> AB_INLINE void unsigned_steps(C *c, const uint8_t *p, const int8_t *q, int64_t step) {
#pragma GCC unroll 4
  for (int i = 0; i < count; i++, q += step) {
    const B t = b_load(p + 64 * i);
    for (int r = 0; r < rows; r++) c[r] = c_step_at(c[r], t, q + 4 * r);
  }
}

// One chain: `run` groups summed in the narrow accumulators, then into sum. Moves p and q on.
template <int rows> AB_INLINE int64_t unsigned_chain(I *sum, int64_t run, const uint8_t *&p, const int8_t *&q, int64_t step) {
  C c[rows];
  for (int r = 0; r < rows; r++) c[r] = c_zero();
  int64_t left = run;
  for (; left >= 4; left -= 4, p += 256, q += 4 * step) unsigned_steps<rows, 4>(c, p, q, step);
  for (; left > 0; left--, p += 64, q += step) unsigned_steps<rows, 1>(c, p, q, step);
  for (int r = 0; r < rows; r++) sum[r] = c_end(sum[r], c[r]);
  return run;
}

template <int rows, int count> AB_INLINE void signed_steps(I *sum, const uint8_t *p, const int8_t *q, int64_t step) {
#pragma GCC unroll 4
  for (int i = 0; i < count; i++, q += step) {
    const B t = b_load(p + 64 * i);
    for (int r = 0; r < rows; r++) sum[r] = signed_dot(sum[r], t, q_four(q + 4 * r));
  }
}

// What rows add to every tile, as their scales lie.
struct Shares {
  const int32_t *starts;  // what dots of t + bias begin with, -bias * total
  const float *lifts;     // what offsets are multiplied by, fl(scale * float(total)); nullptr without offsets
};

// What the end of a segment reads: scales, sums and corrections of some rows of a group.
struct Ends {
  const float *scales;                  // of the input: [segments][group], from the first of these rows on
  const int32_t *totals, *starts;       // the same: sums of its codes; shares
  const float *lifts;
  int64_t group;
  const float *sws, *offsets;           // of the weight [blocks][16], and its offsets or nullptr
  const int32_t *shifts;                // zero points [blocks][16] or nullptr
};

AB_INLINE Ends ends_of(const Weight &w, const Side &side, const Input &in, const Shares &shares, int64_t row) {
  const int64_t at = row / in.group * in.group * w.segment_count + row % in.group;
  return {in.scale + at, in.total + at, shares.starts + at, w.has_offset ? shares.lifts + at : nullptr, in.group, side.scale, w.has_offset ? side.offset : nullptr,
          w.zero ? side.shift : nullptr};
}

enum class Extra { None, Offsets, Any };  // what comes to a scaled dot: nothing, an offset, zero points or offsets
static Extra extra_of(const Weight &w) { return w.zero ? Extra::Any : w.has_offset ? Extra::Offsets : Extra::None; }

// One segment's dots of row r added to its sums: acc = fma(float(dot), fl(sx * sw), acc).
template <Extra extra> AB_INLINE F settled(const Ends &e, I dot, int r, int64_t segment, int64_t side_at, F acc) {
  const int64_t at = segment * e.group + r;
  if (extra == Extra::Any && e.shifts) dot = i_sub(dot, i_mul(i_load(e.shifts + side_at), i_set(e.totals[at])));
  acc = f_fma(i_to_f(dot), f_mul(f_set(e.scales[at]), f_load(e.sws + side_at)), acc);
  if (extra == Extra::Offsets || (extra == Extra::Any && e.offsets)) acc = f_fma(f_set(e.lifts[at]), f_load(e.offsets + side_at), acc);
  return acc;
}

// One segment of a panel: dots of `rows` rows.
template <int rows, Kind kind>
AB_INLINE void segment_dots(const Weight &w, const Segment &seg, const int32_t *start, const uint8_t *p, const int8_t *q, const int16_t *q16, int64_t step, I *sum) {
  int64_t left = seg.g1 - seg.g0;
  if constexpr (kind == Kind::Wide16 && kWideDot) {  // t + bias = low + 256 high: two dots of unsigned bytes
    C lo[rows], hi[rows];
    for (int r = 0; r < rows; r++) lo[r] = c_from(i_set(start[r])), hi[r] = c_zero();
    for (; left > 0; left--, q += step, p += 128) {
      const B low = b_load(p), high = b_load(p + 64);
      for (int r = 0; r < rows; r++) {
        const B four = q_four(q + 4 * r);
        lo[r] = c_step(lo[r], low, four), hi[r] = c_step(hi[r], high, four);
      }
    }
    for (int r = 0; r < rows; r++) sum[r] = c_end(i_shl(c_end(i_zero(), hi[r]), 8), lo[r]);
  } else if constexpr (kind == Kind::Wide16) {
    W wide[rows];
    for (int r = 0; r < rows; r++) wide[r] = w_zero();
    for (; left > 0; left--, q16 += 4, p += 128)
      for (int r = 0; r < rows; r++) wide[r] = w_step(wide[r], p, q16 + r * w.codes_length);
    for (int r = 0; r < rows; r++) sum[r] = w_end(wide[r]);
  } else if constexpr (kind == Kind::Signed8) {
    for (int r = 0; r < rows; r++) sum[r] = i_set(start[r]);
    for (; left >= 4; left -= 4, p += 256, q += 4 * step) signed_steps<rows, 4>(sum, p, q, step);
    for (; left > 0; left--, p += 64, q += step) signed_steps<rows, 1>(sum, p, q, step);
  } else if constexpr (kWideDot) {
    C c[rows];
    for (int r = 0; r < rows; r++) c[r] = c_from(i_set(start[r]));
    for (; left >= 4; left -= 4, p += 256, q += 4 * step) unsigned_steps<rows, 4>(c, p, q, step);
    for (; left > 0; left--, p += 64, q += step) unsigned_steps<rows, 1>(c, p, q, step);
    for (int r = 0; r < rows; r++) sum[r] = c_end(i_zero(), c[r]);
  } else {
    for (int r = 0; r < rows; r++) sum[r] = i_set(start[r]);
    while (left > 0) left -= unsigned_chain<rows>(sum, left < w.chain ? left : w.chain, p, q, step);
  }
}

// A panel's segments for `rows` rows of a group. `held`: sums stay in registers, for short blocks; otherwise registers belong to the dots.
template <int rows, Kind kind, Extra extra, bool held>
static void dot_rows(const Weight &w, const Panel &panel, const uint8_t *bytes, const Side &side, const Input &in, const Shares &shares, int64_t row, float *state) {
  const Ends ends = ends_of(w, side, in, shares, row);
  const int64_t step = 4 * in.group, group = kind == Kind::Wide16 ? 128 : 64;
  const int8_t *const codes = in.q + row / in.group * in.group * w.codes_length + 4 * (row % in.group);
  const int16_t *const codes16 = in.q16 + row * w.codes_length;
  F acc[rows];
  if (held)
    for (int r = 0; r < rows; r++) acc[r] = f_load(state + 16 * r);
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment &seg = w.segments[s];
    const int64_t side_at = 16 * (seg.block - side.first);
    I sum[rows];
    segment_dots<rows, kind>(w, seg, ends.starts + s * ends.group, bytes + (seg.g0 - panel.c0 * 8) * group, codes + seg.at * in.group, codes16 + seg.at, step, sum);
    for (int r = 0; r < rows; r++) {
      if (held) acc[r] = settled<extra>(ends, sum[r], r, s, side_at, acc[r]);
      else f_store(state + 16 * r, settled<extra>(ends, sum[r], r, s, side_at, f_load(state + 16 * r)));
    }
    if (!held) AB_KEEP_IN_MEMORY();
  }
  if (held)
    for (int r = 0; r < rows; r++) f_store(state + 16 * r, acc[r]);
}

// The same for unsigned bytes in int32, full groups of kRowsInt rows and segments [s0, s1) of as many groups of four k each (`groups`, or a multiple of 8 if 0):
// all of it lies one after the other, so nothing is looked up and addresses are constants.
template <int rows, Extra extra, int groups>
static void dot_blocks(const Weight &w, const Panel &panel, int64_t s1, const uint8_t *bytes, const Side &side, const Input &in, const Shares &shares, int64_t row, float *state) {
  const Ends ends = ends_of(w, side, in, shares, row);
  const Segment &first = w.segments[panel.s0];
  const int8_t *q = in.q + row / kRowsInt * kRowsInt * w.codes_length + 4 * (row % kRowsInt) + first.at * kRowsInt;
  const uint8_t *p = bytes + (first.g0 - panel.c0 * 8) * 64;
  const int64_t count = groups ? groups : first.g1 - first.g0;
  F acc[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) acc[r] = f_load(state + 16 * r);
  for (int64_t s = panel.s0; s < s1; s++) {
    const int32_t *const starts = ends.starts + s * kRowsInt;
    C c[rows];
    for (int r = 0; r < rows; r++) c[r] = c_from(i_set(starts[r]));
    constexpr int at_once = groups ? groups : 8;
    for (int64_t left = count; left > 0; left -= at_once, p += 64 * at_once, q += 4 * kRowsInt * at_once) {
#pragma GCC unroll 8
      for (int i = 0; i < at_once; i++) {
        const B t = b_load(p + 64 * i);
        for (int r = 0; r < rows; r++) c[r] = c_step_at(c[r], t, q + 4 * kRowsInt * i + 4 * r);
      }
    }
    const int64_t side_at = 16 * (w.segments[s].block - side.first);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) acc[r] = settled<extra>(ends, c_end(i_zero(), c[r]), r, s, side_at, acc[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) f_store(state + 16 * r, acc[r]);
}

// Segments of a panel from its first on that are as long as that, if whole blocks of 16 make them.
static int64_t even_segments(const Weight &w, const Panel &panel) {
  const int64_t groups = w.segments[panel.s0].g1 - w.segments[panel.s0].g0;
  if (groups != 4 && groups % 8) return panel.s0;
  int64_t s = panel.s0;
  while (s < panel.s1 && w.segments[s].g1 - w.segments[s].g0 == groups) s++;
  return s;
}

template <int rows, Extra extra>
static void dot_even(const Weight &w, const Panel &panel, int64_t s1, const uint8_t *bytes, const Side &side, const Input &in, const Shares &shares, int64_t row, float *state) {
  const int64_t groups = w.segments[panel.s0].g1 - w.segments[panel.s0].g0;
  if (groups == 4) dot_blocks<rows, extra, 4>(w, panel, s1, bytes, side, in, shares, row, state);
  else if (groups == 8) dot_blocks<rows, extra, 8>(w, panel, s1, bytes, side, in, shares, row, state);
  else dot_blocks<rows, extra, 0>(w, panel, s1, bytes, side, in, shares, row, state);
}

template <int rows, Kind kind>
AB_INLINE void dot_with(const Weight &w, const Panel &p, int64_t even, const uint8_t *b, const Side &side, const Input &in, const Shares &shares, int64_t row, float *state) {
  constexpr bool held = kManyRegisters && !(kind == Kind::Wide16 && rows > 4);
  const Extra extra = extra_of(w);
  if constexpr (kind == Kind::Unsigned8 && kWideDot && kManyRegisters && rows > 1) {
    if (even > p.s0) {
      if (extra == Extra::Any) dot_even<rows, Extra::Any>(w, p, even, b, side, in, shares, row, state);
      else if (extra == Extra::Offsets) dot_even<rows, Extra::Offsets>(w, p, even, b, side, in, shares, row, state);
      else dot_even<rows, Extra::None>(w, p, even, b, side, in, shares, row, state);
      if (even == p.s1) return;
      const Panel rest = {even, p.s1, p.c0, p.c1};
      return dot_rows<rows, kind, Extra::Any, held>(w, rest, b, side, in, shares, row, state);
    }
  }
  if (held && w.block <= 64) {
    if (extra == Extra::Any) dot_rows<rows, kind, Extra::Any, held>(w, p, b, side, in, shares, row, state);
    else if (extra == Extra::Offsets) dot_rows<rows, kind, Extra::Offsets, held>(w, p, b, side, in, shares, row, state);
    else dot_rows<rows, kind, Extra::None, held>(w, p, b, side, in, shares, row, state);
  } else {
    if (extra != Extra::None) dot_rows<rows, kind, Extra::Any, false>(w, p, b, side, in, shares, row, state);
    else dot_rows<rows, kind, Extra::None, false>(w, p, b, side, in, shares, row, state);
  }
}

// All rows over a panel, while the bytes [ahead, ahead + length) that come next are asked for. The last block may run over rows of zeros.
template <Kind kind>
static void dot_all(const Weight &w, const Panel &p, const uint8_t *bytes, const Side &side, const Input &in, const Shares &shares, int64_t m0, int64_t m1, float *state,
                    const uint8_t *ahead, int64_t length) {
  constexpr int rows = kind == Kind::Wide16 ? kRowsWide : kRowsInt, half = rows / 2;
  const int64_t share = (length * rows / (m1 - m0) + 127) / 64 * 64;
  const int64_t even = in.group == kRowsInt ? even_segments(w, p) : p.s0;
  for (int64_t row = m0; row < m1; ahead += share, length -= share) {
    for (int64_t i = 0; i < (length < share ? length : share); i += 64) __builtin_prefetch(ahead + i);
    float *const at = state + (row - m0) * 16;
    if (in.group == 1) dot_with<1, kind>(w, p, even, bytes, side, in, shares, row, at), row++;
    else if (m1 - row > half && in.group >= rows) dot_with<rows, kind>(w, p, even, bytes, side, in, shares, row, at), row += rows;
    else dot_with<half, kind>(w, p, even, bytes, side, in, shares, row, at), row += half;
  }
}

// Results of one tile row: sums (`step` floats from row to row) plus bias into y, `count` of 16 outputs.
static void finish_tile(const float *sums, int64_t step, int64_t rows, const float *bias, int64_t count, float *y, int64_t stride) {
  float line[16] = {0};
  if (bias) memcpy(line, bias, sizeof(float) * count);
  const F b = f_load(line);
  for (int64_t r = 0; r < rows; r++, sums += step, y += stride) {
    const F v = bias ? f_add(f_load(sums), b) : f_load(sums);
    if (count == 16) {
      f_store(y, v);
    } else {
      f_store(line, v);
      memcpy(y, line, sizeof(float) * count);
    }
  }
}

#include "stream.h"

// ------------------------------------------------------------------------------------------------ float path
// Rows x tiles accumulators over k in [k0, k1). state: per tile and row 16 sums, then 16 partial sums of the open block.
struct FloatSpan {
  int64_t k0, k1, tile, row;
  const float *x;       // of k0: [k][group], the rows from `row` on first
  int64_t group;
  const float *panel;   // [tiles][panel_k][16]
  int64_t panel_tile;   // floats from one tile's panel to the next
  float *state;         // [tiles][rows of the block][32]
  int64_t state_tile;   // floats from one tile's state to the next
  const float *scales;  // [tiles][blocks of the panel][16], the first block being k0 / block; the same of offsets
  const float *offsets;
  int64_t side_tile;    // floats from one tile's scales to the next
  int64_t count;        // of rows
};

// The end of block `block`: acc = fma(part, sw, acc), then the offset.
AB_INLINE F closed(const Weight &w, const Input &in, const FloatSpan &a, int r, int64_t block, int64_t side, F part, F sw, F acc) {
  acc = f_fma(part, sw, acc);
  return a.offsets ? f_fma(f_set(in.sums[(a.row + r) * w.blocks + block]), f_load(a.offsets + side), acc) : acc;
}

// Products accumulate in registers; sums too where there are registers for them.
template <int rows, int tiles> static void fma_rows(const Weight &w, const Input &in, const FloatSpan &a) {
  constexpr bool held = kManyRegisters && rows * tiles <= kRowsFloat;
  F part[tiles][rows], acc[held ? tiles : 1][held ? rows : 1];
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) {
      part[t][r] = f_load(a.state + t * a.state_tile + 32 * r + 16);
      if constexpr (held) acc[t][r] = f_load(a.state + t * a.state_tile + 32 * r);
    }
  const int64_t group = a.group, panel_tile = a.panel_tile, size = w.block, first = a.k0 / size;
  const float *x = a.x, *p = a.panel;
  for (int64_t k = a.k0, block = first; k < a.k1; block++) {
    const int64_t limit = (block + 1) * size < w.k ? (block + 1) * size : w.k, end = limit < a.k1 ? limit : a.k1;
    if (w.zero) {
      F z[tiles];
      for (int t = 0; t < tiles; t++) z[t] = i_to_f(zero_row(w, a.tile + t, block));
      for (; k < end; k++, p += 16, x += group)
        for (int t = 0; t < tiles; t++) {
          const F v = f_sub(f_load(p + t * panel_tile), z[t]);
          for (int r = 0; r < rows; r++) part[t][r] = f_fma(f_set(x[r]), v, part[t][r]);
        }
    } else {
      for (; k < end; k++, p += 16, x += group)
        for (int t = 0; t < tiles; t++) {
          const F v = f_load(p + t * panel_tile);
          for (int r = 0; r < rows; r++) part[t][r] = f_fma(f_set(x[r]), v, part[t][r]);
        }
    }
    if (k < limit) break;  // the block goes on in the next panel
    for (int t = 0; t < tiles; t++) {
      const int64_t side = t * a.side_tile + 16 * (block - first);
      const F sw = f_load(a.scales + side);
      for (int r = 0; r < rows; r++) {
        if constexpr (held) {
          acc[t][r] = closed(w, in, a, r, block, side, part[t][r], sw, acc[t][r]);
        } else {
          float *sum = a.state + t * a.state_tile + 32 * r;
          f_store(sum, closed(w, in, a, r, block, side, part[t][r], sw, f_load(sum)));
        }
        part[t][r] = f_zero();
      }
    }
    if (!held) AB_KEEP_IN_MEMORY();
  }
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) {
      f_store(a.state + t * a.state_tile + 32 * r + 16, part[t][r]);
      if constexpr (held) f_store(a.state + t * a.state_tile + 32 * r, acc[t][r]);
    }
}

template <int rows> AB_INLINE void fma_some(const Weight &w, const Input &in, const FloatSpan &a) {  // a.count rows of one tile
  if constexpr (rows > 0) {
    if (a.count == rows) fma_rows<rows, 1>(w, in, a);
    else fma_some<rows - 1>(w, in, a);
  }
}

// Float values of k in [k0, k1) (k0 a multiple of 32) of one tile row: [k1 - k0][16]. `table`: w.table for products, w.values for exact values.
static const float *float_panel(const Weight &w, const float *table, int64_t tile, int64_t k0, int64_t k1, float *out) {
  if (w.dense == Dense::Float32) return (const float *)w.codes + (tile * w.k + k0) * 16;
  if (w.index) return escape_panel(w, tile, k0, k1, out), out;
  if (w.trits) return trit_panel_float(w, table, tile, k0 / 32, (k1 + 31) / 32, out), out;
  if (w.dense != Dense::None) {
    const uint8_t *p = w.codes + (tile * w.k + k0) * 32;
    for (int64_t i = 0; i < k1 - k0; i++, p += 32) f_store(out + 16 * i, w.dense == Dense::Float16 ? f_load_half(p) : f_load_bf16(p));
    return out;
  }
  (table == w.table ? kPanelSource[(int)w.source] : kPanelFloat)[w.bits](w, table, w.codes + (tile * w.chunks + k0 / 32) * 64 * w.bits, (k1 - k0 + 31) / 32, out);
  return out;
}

#include "stream_float.h"

static int64_t float_side(const Weight &w) {  // floats that the scales of one tile need: the most blocks that a float panel touches
  const int64_t most = kFloatPanel / w.block + 2;
  return 16 * (most < w.blocks ? most : w.blocks);
}

// Rows [m0, m1) over `tiles` tiles. Few rows, which are one group, over as many tiles as kTilesFor says go from stored bits to products in registers.
static void multiply_float(const Weight &w, const Input &in, const float *bias, int64_t tile, int64_t tiles, int64_t m0, int64_t m1, float *y, int64_t stride, float *buffer) {
  const int64_t group = in.group, rows = m1 - m0, panel_tile = kFloatPanel * 16, state_tile = (rows + group - 1) / group * group * 32, side = float_side(w);
  float *const scales = buffer + kFloatTiles * panel_tile, *const offsets = w.has_offset ? scales + kFloatTiles * side : nullptr;
  float *const state = scales + 2 * kFloatTiles * side;
  memset(state, 0, sizeof(float) * tiles * state_tile);
  const bool few = tiles == few_tiles(in);
  const char *why;
  const StreamFloat streamed = few ? stream_float_of(w, group, &why) : nullptr;
  for (int64_t k0 = 0; k0 < w.k; k0 += kFloatPanel) {
    const int64_t k1 = k0 + kFloatPanel < w.k ? k0 + kFloatPanel : w.k, b0 = k0 / w.block, b1 = (k1 - 1) / w.block + 1;
    const float *panel = buffer;
    int64_t step = panel_tile;
    FloatCodes codes;
    if (streamed) {
      if (w.trits)
        for (int64_t t = 0; t < tiles; t++) {
          uint8_t *digits = (uint8_t *)(buffer + t * panel_tile);
          trit_panel(w, tile + t, k0 / 32, (k1 + 31) / 32, digits);
          codes.at[t] = digits;
        }
      else for (int64_t t = 0; t < tiles; t++)
        codes.at[t] = w.codes + (w.dense != Dense::None ? ((tile + t) * w.k + k0) * 32 : ((tile + t) * w.chunks + k0 / 32) * 64 * w.bits);
    } else if (w.dense == Dense::Float32) panel = float_panel(w, w.table, tile, k0, k1, buffer), step = w.k * 16;
    else for (int64_t t = 0; t < tiles; t++) float_panel(w, w.table, tile + t, k0, k1, buffer + t * panel_tile);
    for (int64_t t = 0; t < tiles; t++) {
      if (w.dense != Dense::None) f_store(scales + t * side, f_set(1.0f));
      else scale_rows(w.scale, tile + t, b0, b1, w.n, w.float_step, scales + t * side);
      if (offsets) scale_rows(w.offset, tile + t, b0, b1, w.n, 1.0f, offsets + t * side);
    }
    FloatSpan a = {k0, k1, tile, m0, in.lanes + (group > 1 ? m0 * w.k + k0 * group : m0 * in.stride + k0), group, panel, step, state, state_tile, scales, offsets, side, rows};
    if (streamed) {
      streamed(w, in, a, codes);
    } else if (few) {
      few_by_panel(group, w, in, a);
    } else {
      for (int64_t t = 0; t < tiles; t++)
        for (int64_t r = 0; r < rows; r += a.count) {
          const int64_t row = m0 + r, in_group = row % group;
          a.count = group - in_group < rows - r ? group - in_group : rows - r;
          if (a.count > kRowsFloat) a.count = kRowsFloat;
          a.tile = tile + t, a.row = row, a.panel = panel + t * step, a.state = state + t * state_tile + 32 * r, a.scales = scales + t * side;
          if (offsets) a.offsets = offsets + t * side;
          a.x = in.lanes + (group > 1 ? (row - in_group) * w.k + k0 * group + in_group : row * in.stride + k0);
          fma_some<kRowsFloat>(w, in, a);
        }
    }
  }
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t n0 = (tile + t) * 16, count = w.n - n0 < 16 ? w.n - n0 : 16;
    finish_tile(state + t * state_tile, 32, rows, bias ? bias + n0 : nullptr, count, y + m0 * stride + n0, stride);
  }
}

static int64_t panel_blocks(const Weight &w) {  // the most blocks that a panel touches
  int64_t most = 1;
  for (const Panel *p = w.panels, *end = p + w.panel_count; p < end; p++) {
    const int64_t count = w.segments[p->s1 - 1].block - w.segments[p->s0].block + 1;
    most = count > most ? count : most;
  }
  return most;
}

// How the tiles of a call run, found once for all of them.
struct Ways {
  Stream streamed;
  OneRow one;
  Late late;
  int64_t most;  // floats of a panel's scales
};
static Ways ways_of(const Weight &w, const Input &in, int64_t rows) {
  const OneRow one = one_of(w, in, rows);
  return {stream_of(w, in, rows), one, one.late ? one.late(w) : nullptr, panel_blocks(w) * 16};
}

static Row row_of(const Weight &w, const Input &in, const Shares &shares, int64_t m0) {
  const int64_t ends = m0 * w.segment_count;
  return {w.codes, in.q + m0 * w.codes_length, in.scale + ends, w.has_offset ? shares.lifts + ends : nullptr, shares.starts + ends, in.total + ends, 0, 0, w.segment_count, 0};
}

static void multiply_integer(const Weight &w, const Input &in, const Shares &shares, const Ways &ways, const float *bias, int64_t tile, int64_t m0, int64_t m1, float *y,
                             int64_t stride, float *buffer) {
  const int64_t rows = m1 - m0, most = ways.most;
  float *state = buffer;
  Side side = {0, state + kRowBlock * 16, state + kRowBlock * 16 + most, (int32_t *)(state + kRowBlock * 16 + 2 * most)};
  uint8_t *bytes = (uint8_t *)(state + kRowBlock * 16 + 3 * most);
  memset(state, 0, sizeof(float) * 16 * (size_t)((rows + in.group - 1) / in.group * in.group));
  const int64_t n0 = tile * 16, count = w.n - n0 < 16 ? w.n - n0 : 16;
  Row line = row_of(w, in, shares, m0);
  line.tile = tile;
  const bool direct = w.bits == 8 && w.affine && w.flip == 0;  // the stored bytes are the panel
  for (const Panel *p = w.panels, *end = p + w.panel_count; p < end; p++) {
    const uint8_t *codes = w.codes + (w.trits ? tile * ((w.k + 19) / 20) * 64 : (tile * w.chunks + p->c0) * 64 * w.bits);
    const int64_t b0 = w.segments[p->s0].block, b1 = w.segments[p->s1 - 1].block + 1, length = (p->c1 - p->c0) * (w.trits ? 104 : 64 * w.bits);
    side.first = b0;
    scale_rows(w.scale, tile, b0, b1, w.n, w.step, side.scale);
    if (w.has_offset) scale_rows(w.offset, tile, b0, b1, w.n, 1.0f, side.offset);
    if (w.zero) for (int64_t b = b0; b < b1; b++) i_store(side.shift + 16 * (b - b0), zero_row(w, tile, b));
    if (ways.one.panel) {
      line.p = codes, line.q = in.q + m0 * w.codes_length + w.segments[p->s0].at, line.s0 = p->s0, line.s1 = p->s1, line.first = b0;
      f_store(state, ways.one.panel(w, line, side.scale, side.offset, f_load(state)));
    } else if (ways.streamed) {
      for (int64_t row = m0; row < m1; row += in.group) ways.streamed(w, *p, codes, side, in, shares, row, state + (row - m0) * 16);
    } else if (w.kind == Kind::Wide16) {
      kPanelWide[w.bits](w, codes, p->c1 - p->c0, bytes);
      dot_all<Kind::Wide16>(w, *p, bytes, side, in, shares, m0, m1, state, codes + length, length);
    } else {
      if (w.trits) trit_panel(w, tile, p->c0, p->c1, bytes);
      else if (!direct) kPanelBytes[w.bits](w, codes, p->c1 - p->c0, bytes);
      const uint8_t *from = direct ? codes : bytes;
      if (!kWideDot && w.kind == Kind::Signed8) dot_all<kWideDot ? Kind::Unsigned8 : Kind::Signed8>(w, *p, from, side, in, shares, m0, m1, state, codes + length, length);
      else dot_all<Kind::Unsigned8>(w, *p, from, side, in, shares, m0, m1, state, codes + length, length);
    }
  }
  finish_tile(state, 16, rows, bias ? bias + n0 : nullptr, count, y + m0 * stride + n0, stride);
}

// ------------------------------------------------------------------------------------------------ the table of this ISA
static int64_t group(int64_t m, bool integer) {
  if (!integer) return few_floats(m);
  return m > kStreamRows && m > 1 ? kRowsInt : stream_rows(m);
}
static int64_t start_count(const Weight &w, const Input &in, int64_t rows) { return ((rows + in.group - 1) / in.group * in.group * w.segment_count + 15) / 16 * 16; }

// Of rows [m0, m1) and of those that fill up their last group, to be read as all rows' are. Writes `start_count` numbers of each kind.
static Shares shares_of(const Weight &w, const Input &in, int64_t m0, int64_t m1, int32_t *starts, float *lifts) {
  const int64_t from = m0 * w.segment_count, count = (m1 - m0 + in.group - 1) / in.group * in.group * w.segment_count;
  const int32_t *total = in.total + from;
  const I factor = i_set(-w.bias);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) i_store(starts + i, i_mul(i_load(total + i), factor));
  for (; i < count; i++) starts[i] = -w.bias * total[i];
  if (!w.has_offset) return {starts - from, nullptr};
  const float *scale = in.scale + from;
  for (i = 0; i + 16 <= count; i += 16) f_store(lifts + i, f_mul(f_load(scale + i), i_to_f(i_load(total + i))));
  for (; i < count; i++) lifts[i] = scale[i] * (float)total[i];
  return {starts - from, lifts - from};
}

static int64_t streams(const Weight &w, bool integer, const char **why) {
  if (integer) return (*why = why_panels(w)) ? 0 : kStreamMost;
  return stream_float_of(w, kStreamFloat, why) ? kStreamFloat : stream_float_of(w, 1, why) ? 1 : 0;
}

static size_t scratch_bytes(const Weight &w, const Input &in) {
  const int64_t rows = in.m < kRowBlock ? in.m : kRowBlock;
  if (!in.integer) return sizeof(float) * (size_t)(kFloatTiles * (kFloatPanel * 16 + 2 * float_side(w) + (rows + in.group - 1) / in.group * in.group * 32));
  int64_t chunks = 0;
  for (const Panel *p = w.panels, *end = p + w.panel_count; p < end; p++) chunks = p->c1 - p->c0 > chunks ? p->c1 - p->c0 : chunks;
  return (size_t)(kRowBlock * 64 + panel_blocks(w) * 192 + chunks * (w.kind == Kind::Wide16 ? 1024 : 512) + (w.has_offset ? 8 : 4) * start_count(w, in, rows));
}

static void multiply(const Weight &w, const Input &in, const float *bias, int64_t t0, int64_t t1, float *y, int64_t stride, void *scratch) {
  const int64_t most = kRowBlock / in.group * in.group, few = in.integer ? 1 : few_tiles(in), side = few ? few : 1;
  for (int64_t m0 = 0; m0 < in.m; m0 += most) {
    const int64_t m1 = m0 + most < in.m ? m0 + most : in.m;
    if (in.integer) {
      const int64_t count = start_count(w, in, m1 - m0);
      float *const lifts = (float *)((int32_t *)scratch + count), *const rest = w.has_offset ? lifts + count : lifts;
      const Shares shares = shares_of(w, in, m0, m1, (int32_t *)scratch, lifts);
      const Ways ways = ways_of(w, in, m1 - m0);
      if (ways.late) ways.late(w, row_of(w, in, shares, m0), t0, t1, {m1 - m0, bias, y + m0 * stride, stride});
      else
        for (int64_t t = t0; t < t1; t++) multiply_integer(w, in, shares, ways, bias, t, m0, m1, y, stride, rest);
    } else {
      for (int64_t t = t0; t < t1; t += side) multiply_float(w, in, bias, t, t1 - t < side ? t1 - t : side, m0, m1, y, stride, (float *)scratch);
    }
  }
}

static int64_t quantize(const Weight &w, float most_code, const float *x, int64_t stride, int64_t m0, int64_t m1, int64_t group, int8_t *q, int16_t *q16, float *scale,
                        int32_t *total) {
  const int64_t count = w.segment_count;
  int8_t line[2 * 512 + 64];  // codes of a segment: at most 512, and what fills up groups of four
  const float inverse = 1.0f / most_code;
  for (int64_t m = m0; m < m1; m++) {
    int8_t *const row = q + m / group * group * w.codes_length + 4 * (m % group);
    float *const scales = scale + m / group * group * count + m % group;
    int32_t *const totals = total + m / group * group * count + m % group;
    for (int64_t s = 0; s < count; s++) {
      const Segment &seg = w.segments[s];
      const float *p = x + m * stride + seg.k0;
      const int64_t length = seg.k1 - seg.k0, whole = length / 16 * 16;
      float tail[16] = {0};
      for (int64_t i = whole; i < length; i++) tail[i - whole] = p[i];
      I top = i_and(f_bits(f_load(tail)), i_set(0x7fffffff));  // absolute values order as integers; NaN and Inf come out on top
      for (int64_t i = 0; i < whole; i += 16) top = i_max(top, i_and(f_bits(f_load(p + i)), i_set(0x7fffffff)));
      int32_t lanes[16], most = 0;
      i_store(lanes, top);
      for (int j = 0; j < 16; j++) most = lanes[j] > most ? lanes[j] : most;
      if (most >= 0x7f800000) return m;
      const float amax = bits_float((uint32_t)most);
      const int64_t fours = seg.g1 - seg.g0;
      int8_t *const codes = group == 1 ? row + seg.at : line;
      memset(codes, 0, (size_t)(4 * fours));
      if (amax < 0x1p-120f) {  // most_code / amax would overflow: counts as zero
        scales[s * group] = 0.0f, totals[s * group] = 0;
      } else {
        int8_t *const out = codes + seg.k0 - 4 * seg.g0;
        const F r = f_set(most_code / amax);
        I sum = i_zero();
        for (int64_t i = 0; i < whole; i += 16) {
          const I v = f_to_i(f_mul(f_load(p + i), r));
          sum = i_add(sum, v);
          i_store_i8(out + i, v);
        }
        if (whole < length) {
          const I v = f_to_i(f_mul(f_load(tail), r));
          int8_t t[16];
          i_store_i8(t, v);
          sum = i_add(sum, v);
          for (int64_t i = whole; i < length; i++) out[i] = t[i - whole];
        }
        i_store(lanes, sum);
        int32_t all = 0;
        for (int j = 0; j < 16; j++) all += lanes[j];
        scales[s * group] = amax * inverse, totals[s * group] = all;
      }
      if (group > 1)
        for (int64_t i = 0; i < fours; i++) memcpy(row + (seg.at + 4 * i) * group, line + 4 * i, 4);
      if (q16)
        for (int64_t i = 0; i < 4 * fours; i++) q16[m * w.codes_length + seg.at + i] = codes[i];
    }
  }
  return -1;
}

// Sums of x over each weight block, ascending from 0; finds non-finite values too (sums == nullptr: only that).
static int64_t row_sums(const Weight &w, const float *x, int64_t stride, int64_t m0, int64_t m1, float *sums) {
  for (int64_t m = m0; m < m1; m++) {
    const float *p = x + m * stride;
    I top = i_zero();
    int64_t k = 0;
    for (; k + 16 <= w.k; k += 16) top = i_max(top, i_and(f_bits(f_load(p + k)), i_set(0x7fffffff)));
    int32_t lanes[16], most = 0;
    i_store(lanes, top);
    for (int j = 0; j < 16; j++) most = lanes[j] > most ? lanes[j] : most;
    for (; k < w.k; k++) {
      const int32_t v = (int32_t)(float_bits(p[k]) & 0x7fffffffu);
      most = v > most ? v : most;
    }
    if (most >= 0x7f800000) return m;
    if (sums)
      for (int64_t b = 0; b < w.blocks; b++) {
        float sum = 0.0f;
        const int64_t end = (b + 1) * w.block < w.k ? (b + 1) * w.block : w.k;
        for (int64_t i = b * w.block; i < end; i++) sum = sum + p[i];
        sums[m * w.blocks + b] = sum;
      }
  }
  return -1;
}

// ------------------------------------------------------------------------------------------------ for product.cc
template <int bits> static void panel_codes(const uint8_t *p, int64_t chunks, uint8_t *out) {
  for (int64_t c = 0; c < chunks; c++, p += 64 * bits, out += 512) {
    B g[8];
    codes_of<bits>(p, g);
    for (int i = 0; i < 8; i++) b_store(out + 64 * i, g[i]);
  }
}
using PanelCodes = void (*)(const uint8_t *, int64_t, uint8_t *);
const PanelCodes kPanelCodes[9] = AB_BITS(panel_codes);

static void codes(const Weight &w, int64_t tile, int64_t c0, int64_t c1, uint8_t *out) {
  kPanelCodes[w.bits](w.codes + (tile * w.chunks + c0) * 64 * w.bits, c1 - c0, out);
}

static void sides(const Weight &w, int64_t tile, int64_t b0, int64_t b1, float step, float *scales, float *offsets, float *zeros) {
  if (w.dense != Dense::None) {
    f_store(scales, f_set(1.0f));
    return;
  }
  scale_rows(w.scale, tile, b0, b1, w.n, step, scales);
  if (w.has_offset && offsets) scale_rows(w.offset, tile, b0, b1, w.n, 1.0f, offsets);
  if (w.zero && zeros)
    for (int64_t b = b0; b < b1; b++) f_store(zeros + 16 * (b - b0), i_to_f(zero_row(w, tile, b)));
}

// Values of a tile's rows (of one alone where `only` is it), a panel at a time: then turned row by row, each in one piece. Column by column they would
// fall on lines of the cache that lie a row apart, which for most k share one place there.
static void dequantize(const Weight &w, int64_t tile, int64_t only, float *out, int64_t stride, void *scratch) {
  float *buffer = (float *)scratch;
  const int64_t first = only >= 0 ? only - tile * 16 : 0, count = only >= 0 ? 1 : w.n - tile * 16 < 16 ? w.n - tile * 16 : 16;
  float line[16];
  for (int64_t k0 = 0; k0 < w.k; k0 += kFloatPanel) {
    const int64_t k1 = k0 + kFloatPanel < w.k ? k0 + kFloatPanel : w.k;
    const float *panel = float_panel(w, w.values, tile, k0, k1, buffer);
    for (int64_t k = k0; w.dense == Dense::None && k < k1;) {
      const int64_t block = k / w.block, end = (block + 1) * w.block < k1 ? (block + 1) * w.block : k1;
      F off = f_zero(), z = f_zero();
      scale_rows(w.scale, tile, block, block + 1, w.n, 1.0f, line);
      const F sw = f_load(line);
      if (w.has_offset) scale_rows(w.offset, tile, block, block + 1, w.n, 1.0f, line), off = f_load(line);
      if (w.zero) z = i_to_f(zero_row(w, tile, block));
      for (; k < end; k++) {
        F v = f_load(buffer + (k - k0) * 16);
        if (w.zero) v = f_sub(v, z);
        v = f_mul(v, sw);
        if (w.has_offset) v = f_add(v, off);
        f_store(buffer + (k - k0) * 16, v);
      }
    }
    for (int64_t o = 0; o < count; o++) {
      const float *from = panel + first + o;
      float *to = out + o * stride + k0;
      for (int64_t k = 0; k < k1 - k0; k++) to[k] = from[16 * k];
    }
  }
}

}  // namespace

extern const LinearKernels linear_kernels;
extern const PanelKernels panel_kernels;
const PanelKernels panel_kernels = {float_panel, codes, sides, finish_tile};
#define AB_TEXT(x) #x
#define AB_NAME(x) AB_TEXT(x)
const LinearKernels linear_kernels = {AB_NAME(ANYBIT_ISA), group, kWideDot, kSignedDot, quantize, row_sums, multiply, scratch_bytes, dequantize, streams};

}  // namespace ANYBIT_ISA
}  // namespace anybit
