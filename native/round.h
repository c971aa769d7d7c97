// Rounding float32 arrays to an element's values and codes: what a plan holds, and the functions that round.cc gives for one ISA.
// Plans are derived from an element's values and switch points by src/anybit/kernels/rounding.py.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace anybit {

enum class RoundKind : int {
  Steps,    // equal steps in each binade of the magnitude, as minifloats, integers and fixed point have
  Prefix,   // the upper bits of a float32, as bf16 has
  Tapered,  // the upper bits of a float32, how many depends on its exponent: posits
  Search,   // at most 16 values
  Buckets,  // any values: one switch point for each bucket of leading bits
  Bisect,   // any values
};
enum class RoundMode : int { NearestEven, NearestAway, NearestZero, Zero, Up, Down, Odd, Stochastic };

constexpr float kPartMiddle = 0x1.8p23f + 32;  // its last place is 1

struct Node {  // of one sign and exponent: entry base + (fraction >> shift)
  uint32_t base, shift;
};
struct Bucket {
  float threshold;
  uint32_t rank;  // of the values below the threshold; those from it on have the next
};

constexpr int64_t kKeptHalves = 256;
struct KeptHalves {  // halves of words, upper and lower ones, that were made and not needed yet
  uint64_t first = ~(uint64_t)0;  // the place of the first one
  int64_t count = 0;
  bool lower = false;  // whether the lower ones were made
  alignas(64) uint16_t halves[2][kKeptHalves];
};
struct Draw {  // of a stochastic rounding: the place of the first number
  uint64_t seed, place;
  KeptHalves *kept;  // of numbers of the same plan and seed, or nullptr
};

struct RoundPlan {
  RoundKind kind;
  RoundMode mode;
  int random_bits;
  uint32_t word_mask;   // of a random word, its upper random_bits
  float whole_words, minus_word;  // 2^random_bits and -2^-random_bits
  bool lower;           // whether more than a word's upper half can matter
  bool seldom;          // whether the lower one does but once in many numbers
  // Steps, Prefix and Tapered. A magnitude's code is its rank; tops and outs: [0] for positive, [1] for negative values.
  int mantissa, least;  // bits; float32's exponent field of the first binade whose step is its lowest's
  int32_t top[2];
  float largest[2];     // the value of each top
  float cap;            // what magnitudes are held to before they are rounded: the largest, or something out of range in every mode
  float out_value[2];   // what a value out of range becomes
  int32_t out_code[2];
  bool symmetric, clips, minus_zero, two_complement;  // clips: out of range is the largest
  bool even;            // one step for all numbers in range; it clips
  int sign_bit;         // of the code; -1: none
  int32_t code_mask;
  // Tapered: magnitudes are held in [smallest, biggest], both bits of float32; of bits + origin the lowest `drop` are rounded off, which leaves the
  // rank less `offset`. Both by the exponent field, modulo the entries: offset << 5 | drop.
  int entries;          // 16, 32, 64 or 128
  int32_t smallest, biggest, origin;
  int32_t zero_below[2], out_from[2];  // bits of magnitudes: below, the result is 0; from there on, out of range
  alignas(64) int32_t taper[128];
  alignas(64) uint8_t drops[64];    // of the first 64 entries
  alignas(64) uint8_t lifts[64];    // 32 less that
  alignas(64) uint8_t offsets[64];  // the offsets, modulo 256
  bool bytes;                       // codes are these tables' sums, modulo 256: it has at most 64 entries, and clips
  uint32_t smooth_from, smooth_span;  // twice the bits of magnitudes in whose binades at least the exponent is kept; span 0: there are none
  // Search: thresholds in the order of a binary tree (1, 2, 4, 8 of them, each set padded to 16), values and codes in order.
  alignas(64) float tree[4][16];
  alignas(64) float spread[4][16];  // the same thresholds, each at the number of those that are known to be below
  // Where 64 equal parts of [-reach, reach] have at most one threshold each (`parted`): how many lie before the part that the low bits of
  // x * part_scale + kPartMiddle name, and the thresholds in order.
  bool parted;
  float reach, part_scale;
  alignas(64) uint8_t parts[64];
  alignas(64) float ordered[16];
  alignas(64) float values16[16];
  alignas(64) int32_t codes16[16];
  // Stochastic search: the lower neighbours (infinity for the last) and the gaps above them, times -2^-24; differences up to `unsure` go by `chain`.
  // `exact`: no gap has zero inside, distances and gaps are exact in float32, and at most 24 bits are drawn; then neighbours are those on zero's side (the
  // last is its own), gaps lead away from it, times 2^-N, and codes are those of the neighbours and of what lies beyond their gaps.
  alignas(64) float near16[16];
  alignas(64) float gap16[16];
  // `sided`: no gap has zero inside. Neighbours on zero's side, 2^16 by the gap beyond (signed), and what is beyond it (the last is its own).
  alignas(64) float side_near16[16];
  alignas(64) float side_parts16[16];
  alignas(64) float side_far16[16];
  float side_unsure;
  bool sided;
  alignas(64) int32_t near_codes16[16];
  alignas(64) int32_t far_codes16[16];
  float unsure;
  bool exact;
  int last;
  // Buckets and Bisect: by rank; those of negative numbers, which keep the sign of a zero, come `negative_ranks` later.
  const Node *nodes;
  const Bucket *buckets;
  const Bucket *halves;  // the bucket of each upper half of a float32, where that is fine enough; otherwise nullptr
  const float *points;
  int64_t point_count;
  const float *rank_values;
  const int32_t *rank_codes;
  uint32_t negative_ranks;
  const double *chain;  // stochastic: the value of each rank (by rank: twice, virtual neighbours included; search: and the virtual one above)
  int32_t zero_code, minus_zero_code;
};

// Blocks of `size` numbers along a row, one scale each: target = amax / most, or the power of two at or below amax / 2^emax; the scale is the target
// over `outer`, held in [smallest, biggest] and rounded to nearest even on a grid of `mantissa` bits from the binade `first` on; times `factor`.
struct BlockPlan {
  int64_t size;
  bool power_of_two;
  int top;  // frexp's exponent of the element's largest value
  double most, outer, smallest, biggest, end, first;  // end: targets from there on are not for this pass
  int mantissa;
  float factor;
  double limit;  // no scale may be larger
  bool near = false;  // what RoundKernels' `near` says: worth asking for many blocks
};

constexpr int64_t kRoundBlock = 2048;  // numbers that are handled together: they stay in the first-level cache

// A result that goes past the caches in whole lines, wherever it begins, one piece after the other: writing a part of a line waits for memory, so the numbers of
// the line that a piece has begun wait for the next one. The last ones are left to the caller.
struct Lines {
  int count = 0;               // numbers that wait, right before the next piece
  alignas(64) float held[16];  // which end here
};

struct RoundKernels {
  const char *isa;
  uint32_t (*largest)(const float *x, int64_t n);                      // bits of the largest magnitude: 0x7f800000 and more are not finite
  void (*range)(const float *x, int64_t n, float *low, float *high);   // of finite numbers
  // `draw`: for stochastic plans. `stream`: past the caches; out is then 64-byte aligned. Codes take `width` bytes, 1 or 2.
  void (*values)(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, float *out, bool stream);
  void (*codes)(const RoundPlan &p, const float *x, const Draw *draw, int64_t n, int width, void *out, bool stream);
  // Numbers of whole blocks (the last may be short) to their values times their scales. At most kRoundBlock numbers, or one block without draws.
  // `lines`: past the caches, by the lines of the pieces before; nullptr: through them. False: some scale is too large, or some number is not finite.
  bool (*blocks)(const RoundPlan &p, const BlockPlan &b, const float *x, const Draw *draw, int64_t n, float *out, Lines *lines);
  bool (*near)(const RoundPlan &p, const BlockPlan &b);  // whether quotients by every scale of the plan need one correction (see round.cc)
  void (*halves)(uint64_t seed, uint64_t place, int set, int64_t n, uint16_t *out);  // of the places from `place` on; see philox.h
  uint32_t (*decode)(const void *codes, int width, int64_t n, const float *table, float *out);  // returns all codes or-ed together
};

}  // namespace anybit
