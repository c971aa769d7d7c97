// Lossless weights: the high bits of a code (a float's exponent) as its rank among its block's most frequent ones, with escapes; the low bits as they are.
//
// A block is up to 4,096 codes. Its entry in the index has 24 bytes, little-endian: offset of its bytes (6), escapes (2), width w (1), symbols by rank
// (15). w = 0: the codes as they are. w = 1 .. 4: chunks of 512 codes (the last one filled up with rank 0), each 64 * w bytes of ranks in bit planes
// (weight.h) and 64 * 8 (16-bit codes) or 64 * 4 (8-bit codes) of low bits; then one byte for each code of rank 2^w - 1, in order: its symbol.
//   bf16:        symbol = exponent (8 bits),        low = sign, mantissa (8 bits)
//   8-bit codes: symbol = the 4 bits below the sign, low = sign, last 3 bits
// Blocks follow each other without gaps, and start anew at each run (a row of tiles), so that any run is decoded alone.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace anybit {

constexpr int64_t kEscapeBlock = 4096, kEscapeEntry = 24;

struct EscapeEntry {
  int64_t offset;
  int escapes, width;
  const uint8_t *symbols;  // 15 of them
};

inline EscapeEntry escape_entry(const uint8_t *p) {
  int64_t offset = 0;
  for (int i = 5; i >= 0; i--) offset = offset << 8 | p[i];
  return {offset, p[6] | p[7] << 8, p[8], p + 9};
}

inline int64_t escape_chunks(int64_t count) { return (count + 511) / 512; }
inline int64_t escape_planes(int64_t count, int item, int width) { return escape_chunks(count) * 64 * (width + (item == 2 ? 8 : 4)); }
inline int64_t escape_bytes(const EscapeEntry &e, int64_t count, int item) {
  return e.width == 0 ? count * item : escape_planes(count, item, e.width) + e.escapes;
}

// How `count` codes, `run` of them to a run, are cut into blocks.
struct EscapeShape {
  int64_t count, run, per_run, blocks;
  int item;  // bytes of a code: 1 or 2
  EscapeShape(int64_t count, int64_t run, int item)
      : count(count), run(run), per_run((run + kEscapeBlock - 1) / kEscapeBlock), blocks(count / run * per_run), item(item) {}
  int64_t first(int64_t block) const { return block / per_run * run + block % per_run * kEscapeBlock; }
  int64_t size(int64_t block) const {
    const int64_t left = run - block % per_run * kEscapeBlock;
    return left < kEscapeBlock ? left : kEscapeBlock;
  }
};

// An index against the stored bytes: every offset, width and count. Throws std::invalid_argument with what is wrong where (bind_pack.cc).
void check_escapes(const EscapeShape &shape, const uint8_t *index, const uint8_t *codes, int64_t bytes);

}  // namespace anybit
