// Codes chosen column by column with feedback of their errors: one block of columns of GPTQ's loop, or of a sweep of coordinate descent.
// src/anybit/methods/feedback.py is its definition, and gives the same bits.
#pragma once
#include <stdint.h>

#include "round.h"

namespace anybit {

// Arrays of a block of `count` columns lie column by column: [count][n], n the rows of the weight.
struct FeedbackPlan {
  const RoundPlan *round;
  const float *decoded;    // by code, 256 at least
  bool few;                // codes are below 16
  int width;               // bytes of a code
  int64_t n, count;
  const float *base;       // targets without what happens in this block
  const float *weight;
  const float *coupling;   // [count][count]: row j is what error j does to the others
  const float *second;     // the same for targets, or nullptr; then errors are those of the targets
  bool full;               // errors of later columns count too (from the sweep before)
  const float *scale;      // [blocks][n]: of each block and row; zero and offset likewise, or nullptr
  const float *zero, *offset;
  const int32_t *column;   // [count]: block
  bool whole_zero;         // zero points are subtracted from rounded numbers and values
  float symmetric;         // ratios end there on both sides; negative: they do not
  float *error;            // in (full) and out
  float *moved;            // out: the targets; nullptr without `second`
  const float *cost;       // [count] or nullptr
  float *loss;             // [n], out: of each row the sum over these columns, in their order, of cost (target - value)^2
  uint8_t *codes;          // out
  float half;              // of the distance between any two neighbours among an element's values, where all are alike; or 0
  uint64_t *near;          // out, [count][ceil(n / 64)]: a bit for each row whose code would change if its target were kNear farther from its value; or nullptr
};

// Of |target| + |weight| (+ |offset|, + |zero scale| of zero points that are not whole): some times what float32 sums of thousands of columns are off by.
constexpr float kNear = 0x1p-20f;

constexpr int64_t kFeedbackRows = 64;
constexpr int64_t kFeedbackColumns = 256;  // count at most: their errors stay in the second-level cache

struct FeedbackKernels {
  // Rows [first, first + rows) of all columns; rows <= kFeedbackRows. `held`: 2 kFeedbackColumns kFeedbackRows floats, 64-byte aligned.
  void (*run)(const FeedbackPlan &p, int64_t first, int64_t rows, float *held);
  // out[i * stride + r] = in[r * k + order[i]] for i < k and r < rows <= 16.
  void (*columnwise)(const float *in, int64_t rows, int64_t k, const int64_t *order, float *out, int64_t stride);
  // Row i of H's lower triangle with its channels in an order: out[j] = xtx[index[i]][index[j]] / mean for j <= i.
  void (*ordered)(const float *xtx, const int64_t *index, double mean, int64_t k, int64_t i, double *out);
  // Row i of the unit upper triangular A, in float32: out[j] = lower[k-1-i][k-1-j] / lower[k-1-j][k-1-j] for j >= i. `diagonal`: of the latter, by j.
  void (*unit)(const double *lower, const double *diagonal, int64_t k, int64_t i, float *out);
};

}  // namespace anybit
