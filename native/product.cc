// Products that are no multiplications: y[m, n] from x[m, k] and w[n, k] where x * w is another function of the two; compiled once per ISA.
//
// Patterns (L-Mul, shift): the sum of two float32 bit patterns less an offset. A panel of a tile row is decoded to floats, as linear.cc does, and
// becomes two numbers a weight: its whole pattern less the offset, and the magnitude that x must exceed for the product to be a normal number.
// Then one integer addition is the signed product: three operations for 16 outputs (compare, add, add where), where fma takes one. Numbers
// beyond 2^63, whose sums could leave the exponents, take `pattern_product`.
//
// Lookup: int32 entries by the codes of x and w. Rows of at most 16 entries and at most two bytes are shuffles: a panel's codes lie by k, sixteen
// outputs each, so that the entries of four k (each with its own row of the table) are one shuffle of 64 bytes; bytes are summed in 16 bits
// (at most 128 of a place in a block of 512 k: exact) and at a block's end in int32. Larger tables are gathered.
//
// Numerics (docs/contract.md): p = fl(p + product), k ascending, terms in their order, then acc = fma(p, sw, acc) a weight block; lookup sums are
// exact in int32 inside an activation block, then acc = fma(float(dot), fl(sx * sw), acc).
#include "weight.h"

#include "isa.h"

#include "pattern.h"

namespace anybit {
namespace ANYBIT_ISA {

extern const PanelKernels panel_kernels;  // linear.cc

namespace {

constexpr int64_t kRowBlock = 512;  // rows that share one decoded panel
constexpr int64_t kTiles = 4;       // tiles side by side for one row
constexpr int32_t kMostUsual = 0x5f000000;  // 2^63: no product of two such numbers overflows
constexpr int kRowsPattern = kRowsFloat < 8 ? 4 : 8, kRowsLookup = 4;  // registers for sums, weights, thresholds and one product

// ------------------------------------------------------------------------------------------------ patterns
static bool beyond(I most) {
  int32_t t[16];
  i_store(t, most);
  for (int j = 0; j < 16; j++)
    if (t[j] > kMostUsual) return true;
  return false;
}

static void patterns(const Pattern &p, const float *x, int64_t k, float *out, uint8_t *wide) {
  for (int64_t k0 = 0; k0 < k; k0 += kPatternPanel) {
    const int64_t k1 = k0 + kPatternPanel < k ? k0 + kPatternPanel : k;
    I most = i_zero();
    for (int64_t i = k0; i < k1; i += 16) {
      const int64_t count = k1 - i < 16 ? k1 - i : 16;
      float t[16] = {0};
      memcpy(t, x + i, sizeof(float) * (size_t)count);
      F v = f_load(t);
      if (p.mantissa < 23) {
        v = round_pattern(v, p);
        f_store(t, v);
        memcpy(out + i, t, sizeof(float) * (size_t)count);
      }
      most = i_max(most, i_and(f_bits(v), i_set(kMagnitude)));
    }
    wide[k0 / kPatternPanel] = beyond(most);
  }
}

struct Span {  // rows x tiles over k in [k0, k1)
  int64_t k0, k1, row;
  const int32_t *panel;  // [tiles][terms][kPatternPanel][32]: patterns less the offset, thresholds
  float *state;         // [tiles][rows of the block][32]: 16 sums, then 16 partial sums of the open block
  int64_t state_tile;   // floats from one tile's state to the next
  const float *scales, *offsets;  // [tiles][blocks of the panel][16], the first block being k0 / block; offsets may be nullptr
  int64_t side_tile;    // floats from one tile's scales to the next
};

template <int rows, int tiles, bool wide> static void add_rows(const Weight &w, const Input &in, const Span &a) {
  F part[tiles][rows];
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) part[t][r] = f_load(a.state + t * a.state_tile + 32 * r + 16);
  const Product &rule = *in.product;
  const int64_t stride = in.stride, size = w.block, first = a.k0 / size, terms = rule.terms ? rule.terms : 1, panel_tile = terms * kPatternPanel * 32;
  const float *const x = in.x + a.row * stride;
  const I offset = i_set(rule.pattern.offset);
  for (int64_t k = a.k0, block = first; k < a.k1; block++) {
    const int64_t limit = (block + 1) * size < w.k ? (block + 1) * size : w.k, end = limit < a.k1 ? limit : a.k1;
    const int32_t *p = a.panel + (k - a.k0) * 32;
    for (; k < end; k++, p += 32) {
      const int32_t *from = p;
      for (int64_t term = 0; term < terms; term++, from += kPatternPanel * 32)
        for (int t = 0; t < tiles; t++) {
          const I base = i_load(from + t * panel_tile), least = i_load(from + t * panel_tile + 16);
          for (int r = 0; r < rows; r++) {
            const F v = f_set(x[r * stride + k]);
            if constexpr (wide) {
              part[t][r] = f_add(part[t][r], pattern_product(v, i_float(i_add(base, offset)), rule.pattern));
            } else {
              const I bits = f_bits(v);
              part[t][r] = f_add_where(i_lt(least, i_and(bits, i_set(kMagnitude))), part[t][r], i_float(i_add(base, bits)));
            }
          }
        }
    }
    if (k < limit) break;  // the block goes on in the next panel
    for (int t = 0; t < tiles; t++) {
      const int64_t side = t * a.side_tile + 16 * (block - first);
      const F sw = f_load(a.scales + side);
      for (int r = 0; r < rows; r++) {
        float *sum = a.state + t * a.state_tile + 32 * r;
        F acc = f_fma(part[t][r], sw, f_load(sum));
        if (a.offsets) acc = f_fma(f_set(in.sums[(a.row + r) * w.blocks + block]), f_load(a.offsets + side), acc);
        f_store(sum, acc), part[t][r] = f_zero();
      }
    }
    AB_KEEP_IN_MEMORY();
  }
  for (int t = 0; t < tiles; t++)
    for (int r = 0; r < rows; r++) f_store(a.state + t * a.state_tile + 32 * r + 16, part[t][r]);
}

template <int rows, int tiles> AB_INLINE void add_with(bool wide, const Weight &w, const Input &in, const Span &a) {
  if (wide) add_rows<rows, tiles, true>(w, in, a);
  else add_rows<rows, tiles, false>(w, in, a);
}

template <int rows> AB_INLINE void add_some(int64_t count, bool wide, const Weight &w, const Input &in, const Span &a) {
  if constexpr (rows > 0) {
    if (count == rows) add_with<rows, 1>(wide, w, in, a);
    else add_some<rows - 1>(count, wide, w, in, a);
  }
}

// One term's operands of a tile row, k in [k0, k1), zero points taken off and rounded: out[k1 - k0][32]. True: some lie beyond the usual range.
static bool operands(const Weight &w, const Product &rule, int64_t term, int64_t tile, int64_t k0, int64_t k1, const float *zeros, float *floats, int32_t *out) {
  const float *from = panel_kernels.floats(w, rule.terms ? rule.term_tables + 256 * term : w.table, tile, k0, k1, floats);
  const I offset = i_set(rule.pattern.offset), low = i_set(kSmallest - 1), high = i_set(rule.pattern.offset + kSmallest - 1), never = i_set(kInfinite);
  I most = i_zero();
  const int64_t first = k0 / w.block;
  for (int64_t k = k0; k < k1; k++, from += 16, out += 32) {
    F v = f_load(from);
    if (w.zero) v = f_sub(v, f_load(zeros + 16 * (k / w.block - first)));
    if (rule.pattern.mantissa < 23) v = round_pattern(v, rule.pattern);
    const I b = i_and(f_bits(v), i_set(kMagnitude));
    i_store(out, i_sub(f_bits(v), offset));
    i_store(out + 16, f_bits(f_select(i_lt(low, b), i_float(i_max(i_sub(high, b), low)), i_float(never))));
    most = i_max(most, b);
  }
  return beyond(most);
}

static int64_t side_floats(const Weight &w) {  // floats that the scales of one tile need: the most blocks that a panel touches
  const int64_t most = kPatternPanel / w.block + 2;
  return 16 * (most < w.blocks ? most : w.blocks);
}

static void multiply_patterns(const Weight &w, const Input &in, const float *bias, int64_t tile, int64_t tiles, int64_t m0, int64_t m1, float *y, int64_t stride, float *buffer) {
  const Product &rule = *in.product;
  const int64_t rows = m1 - m0, terms = rule.terms ? rule.terms : 1, panel_tile = terms * kPatternPanel * 32, state_tile = rows * 32, side = side_floats(w);
  int32_t *const panel = (int32_t *)buffer;
  float *const floats = buffer + kTiles * panel_tile, *const scales = floats + kPatternPanel * 16, *const offsets = w.has_offset ? scales + kTiles * side : nullptr;
  float *const zeros = scales + 2 * kTiles * side, *const state = zeros + side;
  const int64_t wide_row = (w.k + kPatternPanel - 1) / kPatternPanel;
  memset(state, 0, sizeof(float) * (size_t)(tiles * state_tile));
  for (int64_t k0 = 0; k0 < w.k; k0 += kPatternPanel) {
    const int64_t k1 = k0 + kPatternPanel < w.k ? k0 + kPatternPanel : w.k, b0 = k0 / w.block, b1 = (k1 - 1) / w.block + 1;
    bool wide = false;
    for (int64_t t = 0; t < tiles; t++) {
      panel_kernels.sides(w, tile + t, b0, b1, w.float_step, scales + t * side, offsets ? offsets + t * side : nullptr, zeros);
      for (int64_t term = 0; term < terms; term++)
        wide = operands(w, rule, term, tile + t, k0, k1, zeros, floats, panel + t * panel_tile + term * kPatternPanel * 32) || wide;
    }
    const uint8_t *outside = in.wide + m0 * wide_row + k0 / kPatternPanel;
    if (rows == 1 && tiles == kTiles) {
      add_with<1, kTiles>(wide || *outside, w, in, {k0, k1, m0, panel, state, state_tile, scales, offsets, side});
      continue;
    }
    for (int64_t t = 0; t < tiles; t++) {
      Span a = {k0, k1, m0, panel + t * panel_tile, state + t * state_tile, state_tile, scales + t * side, offsets ? offsets + t * side : nullptr, side};
      for (int64_t r = 0; r < rows; r += kRowsPattern, a.row += kRowsPattern, a.state += 32 * kRowsPattern) {
        const int64_t count = rows - r < kRowsPattern ? rows - r : kRowsPattern;
        bool some = wide;
        for (int64_t i = r; i < r + count; i++) some = some || outside[i * wide_row];
        add_some<kRowsPattern>(count, some, w, in, a);
      }
    }
  }
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t n0 = (tile + t) * 16, count = w.n - n0 < 16 ? w.n - n0 : 16;
    panel_kernels.finish(state + t * state_tile, 32, rows, bias ? bias + n0 : nullptr, count, y + m0 * stride + n0, stride);
  }
}

// ------------------------------------------------------------------------------------------------ lookup
// Segments of a panel for `rows` rows. codes: [groups from c0 on][4 k][16 outputs].
template <int rows, int planes> static void shuffle_rows(const Weight &w, const Panel &panel, const uint8_t *codes, const float *sws, int64_t first, const Input &in, int64_t row, float *state) {
  const Product &rule = *in.product;
  const int mask = (1 << rule.act_bits) - 1;
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment &seg = w.segments[s];
    const uint8_t *p = codes + (seg.g0 - panel.c0 * 8) * 64;
    const int8_t *q = in.q + row * w.codes_length + seg.at;
    H even[planes][rows], odd[planes][rows];
    for (int b = 0; b < planes; b++)
      for (int r = 0; r < rows; r++) even[b][r] = odd[b][r] = h_zero();
    for (int64_t g = seg.g0; g < seg.g1; g++, p += 64, q += 4) {
      const B code = b_load(p);
      for (int r = 0; r < rows; r++) {
        const int8_t *x = q + r * w.codes_length;
        const int64_t at[4] = {16 * (x[0] & mask), 16 * (x[1] & mask), 16 * (x[2] & mask), 16 * (x[3] & mask)};
        for (int b = 0; b < planes; b++) {
          const uint8_t *t = rule.rows[b];
          const B v = b_lookup(b_four(t + at[0], t + at[1], t + at[2], t + at[3]), code);
          even[b][r] = h_even(even[b][r], v), odd[b][r] = h_odd(odd[b][r], v);
        }
      }
    }
    const F sw = f_load(sws + 16 * (seg.block - first));
    for (int r = 0; r < rows; r++) {
      I dot = i_add(h_end(even[0][r], odd[0][r]), i_set((int32_t)(rule.least * (seg.k1 - seg.k0))));
      if constexpr (planes == 2) dot = i_add(dot, i_shl(h_end(even[1][r], odd[1][r]), 8));
      const F sx = f_set(in.scale[(row + r) * w.segment_count + s]);
      f_store(state + 16 * r, f_fma(i_to_f(dot), f_mul(sx, sw), f_load(state + 16 * r)));
    }
    AB_KEEP_IN_MEMORY();
  }
}

template <int rows> static void gather_rows(const Weight &w, const Panel &panel, const uint8_t *codes, const float *sws, int64_t first, const Input &in, int64_t row, float *state) {
  const Product &rule = *in.product;
  const int mask = (1 << rule.act_bits) - 1;
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment &seg = w.segments[s];
    const uint8_t *p = codes + (seg.k0 - panel.c0 * 32) * 16;
    const int8_t *q = in.q + row * w.codes_length + seg.at + (seg.k0 - 4 * seg.g0);
    I sum[rows];
    for (int r = 0; r < rows; r++) sum[r] = i_zero();
    for (int64_t k = seg.k0; k < seg.k1; k++, p += 16, q++) {
      const I code = i_load_u8(p);
      for (int r = 0; r < rows; r++) sum[r] = i_add(sum[r], i_gather(rule.table + ((int64_t)(q[r * w.codes_length] & mask) << rule.weight_bits), code));
    }
    const F sw = f_load(sws + 16 * (seg.block - first));
    for (int r = 0; r < rows; r++) {
      const F sx = f_set(in.scale[(row + r) * w.segment_count + s]);
      f_store(state + 16 * r, f_fma(i_to_f(sum[r]), f_mul(sx, sw), f_load(state + 16 * r)));
    }
    AB_KEEP_IN_MEMORY();
  }
}

template <int rows> AB_INLINE void look_up(const Weight &w, const Panel &panel, const uint8_t *codes, const float *sws, int64_t first, const Input &in, int64_t row, float *state) {
  if (in.product->planes == 1) shuffle_rows<rows, 1>(w, panel, codes, sws, first, in, row, state);
  else if (in.product->planes == 2) shuffle_rows<rows, 2>(w, panel, codes, sws, first, in, row, state);
  else gather_rows<rows>(w, panel, codes, sws, first, in, row, state);
}

static int64_t most_blocks(const Weight &w) {  // that a panel touches
  int64_t most = 1;
  for (const Panel *p = w.panels, *end = p + w.panel_count; p < end; p++) {
    const int64_t count = w.segments[p->s1 - 1].block - w.segments[p->s0].block + 1;
    most = count > most ? count : most;
  }
  return most;
}

static void multiply_lookup(const Weight &w, const Input &in, const float *bias, int64_t tile, int64_t m0, int64_t m1, float *y, int64_t stride, float *buffer) {
  const int64_t rows = m1 - m0;
  float *const state = buffer, *const sws = state + kRowBlock * 16;
  uint8_t *const bytes = (uint8_t *)(sws + most_blocks(w) * 16);
  memset(state, 0, sizeof(float) * (size_t)(rows * 16));
  for (const Panel *p = w.panels, *end = p + w.panel_count; p < end; p++) {
    const int64_t b0 = w.segments[p->s0].block, b1 = w.segments[p->s1 - 1].block + 1, groups = (p->c1 - p->c0) * 8;
    panel_kernels.sides(w, tile, b0, b1, w.step, sws, nullptr, nullptr);
    panel_kernels.codes(w, tile, p->c0, p->c1, bytes);
    for (int64_t g = 0; g < groups; g++) b_store(bytes + 64 * g, b_by_k(b_load(bytes + 64 * g)));
    int64_t r = 0;
    for (; r + kRowsLookup <= rows; r += kRowsLookup) look_up<kRowsLookup>(w, *p, bytes, sws, b0, in, m0 + r, state + 16 * r);
    for (; r < rows; r++) look_up<1>(w, *p, bytes, sws, b0, in, m0 + r, state + 16 * r);
  }
  const int64_t n0 = tile * 16, count = w.n - n0 < 16 ? w.n - n0 : 16;
  panel_kernels.finish(state, 16, rows, bias ? bias + n0 : nullptr, count, y + m0 * stride + n0, stride);
}

// ------------------------------------------------------------------------------------------------ the table of this ISA
static size_t scratch_bytes(const Weight &w, const Input &in) {
  const int64_t rows = in.m < kRowBlock ? in.m : kRowBlock;
  if (!in.product->lookup) {
    const int64_t terms = in.product->terms ? in.product->terms : 1;
    return sizeof(float) * (size_t)(kTiles * (terms * kPatternPanel * 32 + 2 * side_floats(w) + rows * 32) + kPatternPanel * 16 + side_floats(w));
  }
  int64_t chunks = 0;
  for (const Panel *p = w.panels, *end = p + w.panel_count; p < end; p++) chunks = p->c1 - p->c0 > chunks ? p->c1 - p->c0 : chunks;
  return (size_t)(kRowBlock * 64 + most_blocks(w) * 64 + chunks * 512);
}

static void multiply(const Weight &w, const Input &in, const float *bias, int64_t t0, int64_t t1, float *y, int64_t stride, void *scratch) {
  for (int64_t m0 = 0; m0 < in.m; m0 += kRowBlock) {
    const int64_t m1 = m0 + kRowBlock < in.m ? m0 + kRowBlock : in.m;
    if (in.product->lookup) {
      for (int64_t t = t0; t < t1; t++) multiply_lookup(w, in, bias, t, m0, m1, y, stride, (float *)scratch);
    } else {
      const int64_t side = m1 - m0 == 1 ? kTiles : 1;
      for (int64_t t = t0; t < t1; t += side) multiply_patterns(w, in, bias, t, t1 - t < side ? t1 - t : side, m0, m1, y, stride, (float *)scratch);
    }
  }
}

}  // namespace

extern const ProductKernels product_kernels;
const ProductKernels product_kernels = {patterns, multiply, scratch_bytes};

}  // namespace ANYBIT_ISA
}  // namespace anybit
