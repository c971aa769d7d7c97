// What choosing scales asks of blocks: their ends, and in searches what numbers come to once they are rounded under a candidate scale.
#pragma once
#include <stdint.h>

#include "round.h"

namespace anybit {

enum class Sums : int { Pairs, Scales, Loss, Power };  // how many sums a block: 6, 2, 1, 1
constexpr int kSums[] = {6, 2, 1, 1};

// Numbers x of blocks of `size` one after the other, all finite. With y = x - before, t = rounded(held((y - offset) / scale)), w the weight, in float64:
//   Pairs   w, w t, w y, (w t) t, (w t) y, (w y) y
//   Scales  (w t) t, (w t) y
//   Loss    w (x - v)^2, v = fl(fl(t scale) + offset), or fl(t scale) without an offset
//   Power   w |(x - v) / unit|^power, the power to a relative error of 1e-11 and the same everywhere (see `power` in sums.cc)
// A number goes to the sum of its place in the block modulo 8; those are added as ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
struct SumsPlan {
  const RoundPlan *round;
  Sums what;
  int64_t size;
  const float *x;
  const float *scale;           // [blocks]; 0: ratios are 0
  const float *offset, *before; // [blocks] or nullptr
  const double *weight;         // [period] or nullptr (ones); period is a multiple of size
  int64_t period;
  float end;                    // ratios are held to -end .. end
  const double *unit;           // [blocks], for Power, as is:
  double power;                 // 0.1 to 10
  double *out;                  // [blocks][kSums]
};

// Codes of numbers in blocks, all finite: with y = x - offset, r = y / scale held to -end .. end, rounded(zero ? (whole ? rint(r) : r) + zero : r).
struct CodesPlan {
  const RoundPlan *round;
  int width;                            // bytes of a code
  int64_t size;
  const float *x;
  const float *scale, *zero, *offset;   // [blocks]; the last two may be nullptr. Scale 0: ratios are 0
  bool whole;
  float end;
  uint8_t *out;
};

struct SumsKernels {
  void (*blocks)(const SumsPlan &p, int64_t first, int64_t count);
  // The least and the largest number of each of `count` blocks; NaN twice where one is not finite.
  void (*ends)(const float *x, int64_t size, int64_t count, float *low, float *high);
  // fl(fl(fl(table[code] - zero) * scale) + offset) of the codes of `count` blocks, one scale each; zero and offset likewise, or nullptr. `table`: 256
  // numbers; `few`: no code is above 15. Returns all codes or-ed together.
  uint32_t (*values)(const uint8_t *codes, const float *table, bool few, int64_t size, int64_t count, const float *scale, const float *zero,
                     const float *offset, float *out);
  void (*codes)(const CodesPlan &p, int64_t first, int64_t count);
};

}  // namespace anybit
