// Codes chosen column by column with feedback of their errors: one block of columns of GPTQ's loop, or of a sweep of coordinate descent.
// src/anybit/methods/feedback.py is its definition, and gives the same bits.
#pragma once
#include <stdint.h>

#include "round.h"

namespace anybit {

// Arrays of a block of `count` columns lie column by column: [count][n], n the rows of the weight.
struct FeedbackPlan {
  const RoundPlan *round;
  const float *decoded;    // by code
  int width;               // bytes of a code
  int64_t n, count;
  const float *base;       // targets without what happens in this block
  const float *weight;
  const float *coupling;   // [count][count]: row j is what error j does to the others
  const float *second;     // the same for targets, or nullptr; then errors are those of the targets
  bool full;               // errors of later columns count too (from the sweep before)
  const float *scale;      // [rows of blocks][blocks]; zero and offset likewise, or nullptr
  const float *zero, *offset;
  int64_t blocks;
  const int32_t *row;      // [n]: row of blocks
  const int32_t *column;   // [count]: block
  bool whole_zero;         // zero points are subtracted from rounded numbers and values
  float symmetric;         // ratios end there on both sides; negative: they do not
  float *error;            // in (full) and out
  float *moved;            // out: the targets
  uint8_t *codes;          // out
};

constexpr int64_t kFeedbackRows = 64;
constexpr int64_t kFeedbackColumns = 256;  // count at most: their errors stay in the second-level cache

struct FeedbackKernels {
  // Rows [first, first + rows) of all columns; rows <= kFeedbackRows. `held`: 2 kFeedbackColumns kFeedbackRows floats, 64-byte aligned.
  void (*run)(const FeedbackPlan &p, int64_t first, int64_t rows, float *held);
};

}  // namespace anybit
