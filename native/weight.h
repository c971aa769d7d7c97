// A weight matrix [n, k] as the kernels see it, and an input prepared for it. Plain data: the binding checks everything, kernels check nothing.
//
// Coded weights lie in tiles of 16 outputs x 4 k ("tile16x4"), 32 k a chunk, chunks of a row of tiles one after the other:
//   codes  [n/16][k/32][64 * bits bytes]; a chunk is its bit planes, lowest bits first: 1 -> (1), 2 -> (2), 3 -> (2,1), 4 -> (4), 5 -> (4,1),
//          6 -> (4,2), 7 -> (4,2,1), 8 -> (8). A plane of width w is w vectors of 64 bytes; byte 4*o + j of vector v holds, in bits
//          [f*w, f*w + w), output o at k = 32*chunk + v*(32/w) + 4*f + j.
//   scale  one a row:       [n/16][k/block][16] in the stored width, padding rows zero
//          one for R rows:  [n/R][k/block];     one in all: [1]
//          of up to 4 bits: [n/16][ceil(k/block / 2)][16] bytes, the codes of blocks 2 p in their low halves, of 2 p + 1 in their high ones
//   second, the scales of scales: one a row [n/16][columns][16] in the stored width, others as above
//   zero   [n/16][k/block][16] raw codes, one byte each
// Ternary codes may lie five a byte ("base3"): [n/16][k/20][64]; byte 4*o + j of vector v holds output o at k = 20*v + 4*f + j, f = 0 .. 4 (planes.h).
// Dense weights lie as [n/16][k][16] ("tile16x1"), bfloat16 also lossless ("escape"): blocks of 256 k of a row of tiles (escape.h).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace anybit {

enum class Kind : int { Unsigned8, Signed8, Wide16, Float };  // how integer dots are made; Float: no integer path (dense)
enum class Dense : int { None, Float32, Float16, BFloat16 };
enum class ScaleKind : int { One, Float32, Float16, BFloat16, Exponent, Mini, Integer, Table };

// Where the values of the float path come from (float_codes.h).
enum class Source : int { Lookup, Integers, Mirrored, Halves, Words };

struct Grid {  // codes of numbers on a grid of blocks
  ScaleKind kind = ScaleKind::One;
  const uint8_t *data = nullptr;
  int64_t rows = 1;               // rows that share one: 1 = tiled by 16; 0 = one in all
  int64_t columns = 0;            // blocks along k
  bool paired = false;            // tiled, two blocks a byte
  int bits = 0, mantissa = 0;     // Mini, Integer: width, mantissa bits
  float factor = 1.0f;            // Mini: 2^(127 - bias)
  bool has_sign = false;          // Mini, Integer: the top bit is a sign
  float table[256] = {};          // Table: decoded values; kept too for every kind of at most 8 bits
};

struct Scale : Grid {
  Grid second;           // scales of these scales, if `each` > 0
  int64_t each = 0;      // blocks along k that share one of `second`
  float whole = 1.0f;    // the last level: one for the whole tensor
};

struct Segment {  // one activation block: k in [k0, k1), four-k groups [g0, g1), its codes at q + at
  int64_t k0, k1, g0, g1, at, block;
};
struct Panel {  // segments [s0, s1) lie inside chunks [c0, c1)
  int64_t s0, s1, c0, c1;
};

struct Weight {
  int64_t n = 0, k = 0, tiles = 0, chunks = 0;
  int bits = 0;
  Dense dense = Dense::None;
  const uint8_t *codes = nullptr;
  bool trits = false;                // codes lie five a byte
  const uint8_t *index = nullptr;    // lossless: an entry for each 256 k of each row of tiles
  int64_t block = 0, blocks = 0;  // weight block along k, and how many
  Scale scale, offset;
  bool has_offset = false;
  const uint8_t *zero = nullptr;
  int zero_flip = 0;   // two's complement zero points: sign bit
  float step = 1.0f;        // integer path: value = t * step
  float float_step = 1.0f;  // float path: value = table * float_step
  Kind kind = Kind::Float;
  bool affine = false;  // codes are integers: no table
  bool doubled = false;   // t = 2 code + t[0], at most 4 bits
  bool mirrored = false;  // t[c + half] = -t[c]: the top bit is a sign
  int sign = 0;         // affine: the sign bit of two's complement, 0 for unsigned
  int flip = 0;         // affine: code ^ flip is what the panel holds
  int bias = 0;         // the panel holds t + bias
  int chain = 1;        // AVX2: how many four-k groups fit an int16 pair sum
  alignas(64) uint8_t low[256] = {}, high[256] = {};  // t + bias as one byte, or as the bytes of an int16
  bool sized = false;   // mirrored, and the codes without their top bit mean t >= 0: these hold the bytes of |t|, repeated to 128 codes
  alignas(64) uint8_t size_low[128] = {}, size_high[128] = {};
  alignas(64) float table[256] = {};                  // float path: integer t as float, or the exact values (step 1)
  Source source = Source::Lookup;                     // what the table is like
  int turn = 0;                                       // Integers: the sign bit of two's complement, 0 for unsigned
  alignas(64) uint8_t plane[4][256] = {};             // the table's bytes, least significant first; fewer than 64 codes repeat
  alignas(64) float values[256] = {};                 // exact values, for dequantization
  const Segment *segments = nullptr;
  const Panel *panels = nullptr;
  int64_t segment_count = 0, panel_count = 0;
  int64_t codes_length = 0;  // int8 codes of one prepared row: whole chunks, zero after the last segment's
  const struct LinearKernels *kernels = nullptr;  // of the ISA that kind, bias and chain were chosen for
  const struct ProductKernels *products = nullptr;  // of the same
};

// What takes the place of multiplication (docs/products.md). Pattern: of float32 bit patterns, |x| + |w| - offset; a magnitude below 2^-126 counts
// as zero, a larger one than `most` becomes `most`.
struct Pattern {
  int mantissa = 23;            // operands are rounded to so many mantissa bits first
  int32_t offset = 0x3f800000;  // of patterns: the exponent bias, less what the rule adds
  int32_t most = 0x7f7fffff;
};
struct Product {
  bool lookup = false;  // a table's entries instead of sums of patterns
  Pattern pattern;
  int terms = 0;                         // weights as sums of so many terms, each multiplied by itself; 0: as they are
  const float *term_tables = nullptr;    // [terms][256]
  int act_bits = 0, weight_bits = 0;     // lookup: widths of the two codes
  const int32_t *table = nullptr;        // [2^act_bits][2^weight_bits]; the row of the most negative code is never read
  int planes = 0;                        // bytes of an entry less `least`, if it has at most two and a row at most 16 entries; else 0
  int32_t least = 0;
  const uint8_t *rows[2] = {};           // those bytes: [2^act_bits][16]; zero in the row of the most negative code
};

struct Input {  // m rows prepared for weights of one geometry
  int64_t m = 0;
  const Product *product = nullptr;
  const uint8_t *wide = nullptr;  // patterns: [m, panels of kPatternPanel], 1 where sums of patterns may leave the range
  const float *x = nullptr;  // float path: [m, stride]
  int64_t stride = 0;
  const float *sums = nullptr;  // float path with offsets: [m, blocks], m filled up to whole groups
  bool integer = false;
  // Rows stand in groups of `group`, side by side; the last group is filled up with zeros. One row a group: plain rows.
  int64_t group = 1;
  const float *lanes = nullptr;    // float path: [groups][k][group]; one row a group: x
  const int8_t *q = nullptr;       // [groups][codes_length / 4][group][4]
  const int16_t *q16 = nullptr;    // [m, codes_length]: the same codes, for Wide16 where dots are not wide
  const float *scale = nullptr;    // [groups][segments][group]
  const int32_t *total = nullptr;  // the same
};

// Where a row's code at `at` of its plain row, and its scale of a segment, stand in groups of rows.
inline int64_t row_code(const Weight &w, const Input &input, int64_t row, int64_t at) {
  return row / input.group * input.group * w.codes_length + at / 4 * 4 * input.group + row % input.group * 4 + at % 4;
}
inline int64_t row_scale(const Weight &w, const Input &input, int64_t row, int64_t segment) {
  return row / input.group * input.group * w.segment_count + segment * input.group + row % input.group;
}

constexpr int64_t kPatternPanel = 128;  // k of a panel of patterns: a multiple of 32

// The functions that linear.cc gives for one ISA.
struct LinearKernels {
  const char *isa;
  int64_t (*group)(int64_t m, bool integer);  // how many rows of an input of m stand side by side
  bool wide_dot;  // any u8 x s8 product sum is exact (dpbusd); otherwise the unsigned side must stay <= 129
  bool signed_dot;  // the weight's bytes are signed (sdot)
  // Codes (|q| <= most_code) of rows [m0, m1) into the input's arrays. Returns the first row with a non-finite value, or -1.
  int64_t (*quantize)(const Weight &w, float most_code, const float *x, int64_t stride, int64_t m0, int64_t m1, int64_t group, int8_t *q, int16_t *q16, float *scale,
                      int32_t *total);
  int64_t (*row_sums)(const Weight &w, const float *x, int64_t stride, int64_t m0, int64_t m1, float *sums);
  // y[m, n0..] = input x weight^T (+ bias) for tiles [t0, t1); scratch holds scratch_bytes(w, input).
  void (*multiply)(const Weight &w, const Input &in, const float *bias, int64_t t0, int64_t t1, float *y, int64_t stride, void *scratch);
  size_t (*scratch_bytes)(const Weight &w, const Input &in);
  // float32 values of tile row t: out[r, k] for its 16 rows, those at or beyond n left out; `only` >= 0: just that row.
  void (*dequantize)(const Weight &w, int64_t tile, int64_t only, float *out, int64_t stride, void *scratch);
  // Up to how many rows go from stored bits to products in registers; 0, and why not: all go by panels.
  int64_t (*streams)(const Weight &w, bool integer, const char **why);
};

// Parts of linear.cc that product.cc shares, for one ISA.
struct PanelKernels {
  // Float values [k1 - k0][16] of one tile row by `table` (whole chunks of 32 k), k0 a multiple of 32. May return stored floats instead of `out`.
  const float *(*floats)(const Weight &w, const float *table, int64_t tile, int64_t k0, int64_t k1, float *out);
  void (*codes)(const Weight &w, int64_t tile, int64_t c0, int64_t c1, uint8_t *out);  // raw codes of chunks: [c1 - c0][8][64], as stored
  // [b1 - b0][16] each: scales times `step`, offsets and zero points where the weight has them (nullptr: not wanted).
  void (*sides)(const Weight &w, int64_t tile, int64_t b0, int64_t b1, float step, float *scales, float *offsets, float *zeros);
  void (*finish)(const float *sums, int64_t step, int64_t rows, const float *bias, int64_t count, float *y, int64_t stride);
};

// The functions that product.cc gives for one ISA.
struct ProductKernels {
  // Rounds x to the pattern's mantissa (out may be x) and notes in wide[(k + kPatternPanel - 1) / kPatternPanel] where sums may leave the range.
  void (*patterns)(const Pattern &p, const float *x, int64_t k, float *out, uint8_t *wide);
  void (*multiply)(const Weight &w, const Input &in, const float *bias, int64_t t0, int64_t t1, float *y, int64_t stride, void *scratch);
  size_t (*scratch_bytes)(const Weight &w, const Input &in);
};

}  // namespace anybit
