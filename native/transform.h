// Transforms of rows, and int8 codes with a scale that was given: the functions that transform.cc gives for one ISA.
#pragma once
#include "weight.h"

namespace anybit {

struct TransformKernels {
  void (*scale)(const float *x, const float *by, int64_t k, float *out);
  void (*shift)(const float *x, const float *by, int64_t k, float *out);
  // In place: rows of blocks of b = 2^n numbers by the Hadamard matrix over sqrt(b).
  void (*hadamard)(float *x, int64_t k, int64_t block);
  void (*add)(const float *x, int64_t n, float *y);  // y + x
  // As LinearKernels.quantize, with one scale for all.
  int64_t (*quantize)(const Weight &w, float by, const float *x, int64_t stride, int64_t m0, int64_t m1, int64_t group, int8_t *q, int16_t *q16, float *scale,
                      int32_t *total);
};

}  // namespace anybit
