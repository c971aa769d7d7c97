// Keys and values in a number format: how a head's vector becomes codes and scales in a page, and a page's tile floats again.
//
// A page holds 64 tokens; for each key head the codes of keys, their scales, the codes of values, theirs, each part at a multiple of 64 bytes:
//   keys    a code of s = 1, 2, 4 or 8 bits (the next of these): [4][dim / (8 / s)][16]; byte j of vector c of the 16 tokens g holds, in bits
//           [t s, t s + s), dim c * (8 / s) + t of token 16 g + j. Of 16 bits: [4][dim][16]. Scales: [4][blocks][16]
//   values  [64][padded / 16 / (8 / s)][16]; byte j of vector c of a token: dim 16 (c * (8 / s) + t) + j. Of 16 bits: [64][padded]. Scales: [64][blocks]
// Numerics (docs/contract.md): value = fl(table[code] * scale).
#pragma once
#include "round.h"

namespace anybit {

enum class Wide : int { None, Float16, BFloat16 };                    // codes of 16 bits
enum class CacheScale : int { None, Table, Float16, BFloat16, Float32 };  // how a scale is stored; Table: one byte

struct CacheFormat {
  const RoundPlan *plan = nullptr;
  BlockPlan block = {};          // of a format with scales
  int64_t size = 0;              // numbers that share a scale; 0: a head's vector
  int bits = 8;                  // that a code takes: 1, 2, 4, 8 or 16
  Wide wide = Wide::None;
  bool integers = false;         // codes are two's complement integers of 8 bits
  CacheScale scale = CacheScale::None;
  alignas(64) float table[256] = {};        // by code
  alignas(64) float scale_table[256] = {};
  int scale_count = 0;           // positive values of scale_table, ascending, and their codes
  float scale_sorted[256] = {};
  uint8_t scale_codes[256] = {};
};

struct CacheKernels {
  // A tile's keys of one head, [4][dim][16], from codes and decoded scales [4][blocks][16] (nullptr: none).
  void (*keys)(const CacheFormat &f, const uint8_t *codes, const float *scales, int64_t dim, int64_t size, float *out);
  // A tile's values of one head, [64][padded]; scales [64][blocks].
  void (*values)(const CacheFormat &f, const uint8_t *codes, const float *scales, int64_t dim, int64_t padded, int64_t size, float *out);
  // Turns keys [4][dim][16] by cosines and sines [4][dim / 2][16].
  void (*rotate)(float *keys, int64_t dim, const float *cos, const float *sin);
};

}  // namespace anybit
