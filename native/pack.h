// Packing of codes into the layouts and back, for one instruction set. Codes are one byte each unless said otherwise. Nothing is checked here.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace anybit {

// Fields of `width` bits of a block's codes: `group` bytes hold their lowest fields' codes one after the other, then those of the fields above, then
// come the next bytes. They are bits [up, up + width) of a code.
struct FieldPlane {
  int64_t offset;  // bytes into the block
  int width, group, up;
};

struct PackKernels {
  // One row of tiles (`rows` of 16 outputs exist, `stride` bytes apart) to its chunks of 64 * bits bytes (weight.h), and back. bits 1 .. 8.
  void (*pack_tile)(int bits, const uint8_t *codes, int64_t stride, int64_t rows, int64_t k, uint8_t *out);
  void (*unpack_tile)(int bits, const uint8_t *stored, int64_t rows, int64_t k, uint8_t *codes, int64_t stride);
  // The same with five ternary codes a byte: vectors of 64 bytes, 20 k each (planes.h). Code 3 is stored as 2, which means the same.
  void (*pack_trits)(const uint8_t *codes, int64_t stride, int64_t rows, int64_t k, uint8_t *out);
  void (*unpack_trits)(const uint8_t *stored, int64_t rows, int64_t k, uint8_t *codes, int64_t stride);
  // One row as a little-endian stream of bits. bits 1 .. 8.
  void (*pack_row)(int bits, const uint8_t *codes, int64_t k, uint8_t *out);
  void (*unpack_row)(int bits, const uint8_t *stored, int64_t k, uint8_t *codes);
  // `blocks` blocks of `bytes` bytes, each of `weights` codes (a multiple of 8) that are their planes put together, xor `flip`.
  void (*block_codes)(const FieldPlane *planes, int count, int flip, const uint8_t *from, int64_t bytes, int64_t blocks, int64_t weights, uint8_t *codes);
  // One block of lossless codes (escape.h). encode fills the entry but for its offset, and returns the bytes written (at most size * item).
  int64_t (*encode)(const uint8_t *codes, int64_t size, int item, uint8_t *out, uint8_t *entry);
  void (*decode)(const uint8_t *stored, const uint8_t *entry, int64_t size, int item, uint8_t *codes);
  int64_t (*escapes)(const uint8_t *stored, const uint8_t *entry, int64_t size, int item);  // how many codes have the last rank
};

const PackKernels &pack_kernels();  // of the instruction set in use

}  // namespace anybit
