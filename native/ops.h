// The operators of a transformer block beside the matrix product, for one ISA. What each computes, to the last bit, is written in
// src/anybit/reference/ops.py; here are the shapes. Kernels check nothing: the caller does.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "weight.h"

namespace anybit {

constexpr int64_t kTileKeys = 64;   // keys whose softmax is taken together; a cache page holds as many
constexpr int64_t kMostExperts = 1024;  // that a router chooses among
constexpr int64_t kSpanTiles = 8;   // tiles merged into one span

// The state of one query's softmax: [0] maximum, [1] sum, [2] 1 if any key was seen, else 0; weighted values from kStateHead on.
constexpr int64_t kStateHead = 16;

struct Query {
  const float *q;     // [dim], already rotated
  float *state;       // [kStateHead + padded dim], 0 at [2] before the first span
  int64_t first, end; // sees the keys at positions [first, end)
};

struct Attend {  // queries that share one key head, over the tiles [tile0, tile1) of one span
  const float *const *keys;    // by tile: [4][dim][16], 16 keys side by side
  const float *const *values;  // by tile: [64][padded]
  int64_t tile0, tile1;
  int64_t dim, padded;         // padded: dim rounded up to 16, values beyond dim zero
  float scale;
  const Query *queries;
  int64_t count;
  float *buffer;  // attend_floats(padded)
  const Pattern *pattern;  // sums of patterns in the place of both products; nullptr: multiplication
};

struct OpsKernels {
  const char *isa;
  // y = x / rms(x) * weight for rows [m0, m1). Returns the first row whose mean square is not finite, or -1.
  int64_t (*rmsnorm)(const float *x, int64_t stride, int64_t n, const float *weight, float eps, int64_t m0, int64_t m1, float *y, int64_t y_stride);
  void (*add)(float *x, const float *y, float factor, int64_t n);  // x + y, or fma(factor, y, x) when the factor is not 1
  void (*swiglu)(const float *gate, const float *up, int64_t n, float *y);
  void (*exp)(const float *x, int64_t n, float *y);
  void (*rope_table)(int64_t position, const float *inverse, int64_t half, float factor, float *cos, float *sin);
  void (*rotate)(float *x, int64_t half, const float *cos, const float *sin);
  bool (*finite)(const float *x, int64_t n);
  size_t (*attend_floats)(int64_t padded);
  void (*attend)(const Attend &a);                                  // merges the span into each query's state
  void (*merge)(float *state, const float *later, int64_t padded);  // state with the state of later keys
  void (*finish)(const float *state, int64_t dim, float *out);
  int64_t (*argmax)(const float *logits, int64_t n);  // the first of the largest; -1 if any is not finite
  void (*weights)(const float *logits, int64_t n, float top, float temperature, float *e);  // exp((x - top) / temperature)
  // The `count` experts with the largest of n finite logits (of equal ones, the first), ascending, and their weights: softmax over all n, or if
  // `renormalise`, over those. e: n floats to work in.
  void (*route)(const float *logits, int64_t n, int64_t count, bool renormalise, float *e, int32_t *chosen, float *weights);
  double (*logsumexp)(const float *logits, int64_t n);
  double (*divergence)(const float *reference, const float *logits, int64_t n, double reference_lse, double lse);
};

}  // namespace anybit
