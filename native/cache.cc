// Tiles of quantized keys and values to floats; compiled once per ISA. Sixteen codes a step: a load, a shift and a mask, a table of 16 entries in a
// register (up to 4 bits), a conversion (8-bit integers) or a gather (other codes of 8 bits), one multiplication.
#include "cache.h"

#include "isa.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

template <int bits> AB_INLINE F code_values(const CacheFormat &f, I code) {
  if constexpr (bits <= 4) return f_lookup16(f.table, i_and(code, i_set((1 << bits) - 1)));
  else if (f.integers) return i_to_f(i_sub(i_xor(code, i_set(128)), i_set(128)));
  else return f_gather(f.table, code);
}
AB_INLINE F wide_values(const CacheFormat &f, const uint8_t *p) { return f.wide == Wide::Float16 ? f_load_half(p) : f_load_bf16(p); }

template <int bits> static void keys_of(const CacheFormat &f, const uint8_t *codes, const float *scales, int64_t dim, int64_t size, float *out) {
  constexpr int per = 8 / bits;
  const int64_t vectors = (dim + per - 1) / per, blocks = (dim + size - 1) / size;
  for (int64_t g = 0; g < 4; g++, out += 16 * dim)
    for (int64_t c = 0; c < vectors; c++) {
      const I byte = i_load_u8(codes + 16 * (g * vectors + c));
      for (int t = 0; t < per && c * per + t < dim; t++) {
        const int64_t d = c * per + t;
        const F v = code_values<bits>(f, i_shr(byte, t * bits));
        f_store(out + 16 * d, scales ? f_mul(v, f_load(scales + 16 * (g * blocks + d / size))) : v);
      }
    }
}

static void keys(const CacheFormat &f, const uint8_t *codes, const float *scales, int64_t dim, int64_t size, float *out) {
  if (f.bits == 16) {
    for (int64_t i = 0; i < 4 * dim; i++) f_store(out + 16 * i, wide_values(f, codes + 32 * i));
    return;
  }
  if (f.bits == 1) return keys_of<1>(f, codes, scales, dim, size, out);
  if (f.bits == 2) return keys_of<2>(f, codes, scales, dim, size, out);
  if (f.bits == 4) return keys_of<4>(f, codes, scales, dim, size, out);
  keys_of<8>(f, codes, scales, dim, size, out);
}

template <int bits>
static void values_of(const CacheFormat &f, const uint8_t *codes, const float *scales, int64_t dim, int64_t padded, int64_t size, float *out) {
  constexpr int per = 8 / bits;
  const int64_t all = padded / 16, vectors = (all + per - 1) / per, blocks = (dim + size - 1) / size;
  float line[16];
  for (int64_t token = 0; token < 64; token++, out += padded)
    for (int64_t c = 0; c < vectors; c++) {
      const I byte = i_load_u8(codes + 16 * (token * vectors + c));
      for (int t = 0; t < per && c * per + t < all; t++) {
        const int64_t d = 16 * (c * per + t);
        F v = code_values<bits>(f, i_shr(byte, t * bits));
        if (scales) {
          const float *s = scales + token * blocks;
          if (size % 16 == 0) {
            v = f_mul(v, f_set(s[d / size]));
          } else {
            for (int64_t j = 0; j < 16; j++) line[j] = d + j < dim ? s[(d + j) / size] : 0.0f;
            v = f_mul(v, f_load(line));
          }
        }
        if (d + 16 > dim) {  // what lies beyond is zero
          f_store(line, v);
          for (int64_t j = dim - d; j < 16; j++) line[j] = 0.0f;
          v = f_load(line);
        }
        f_store(out + d, v);
      }
    }
}

static void values(const CacheFormat &f, const uint8_t *codes, const float *scales, int64_t dim, int64_t padded, int64_t size, float *out) {
  if (f.bits == 16) {
    for (int64_t i = 0; i < 4 * padded; i++) f_store(out + 16 * i, wide_values(f, codes + 32 * i));
    return;
  }
  if (f.bits == 1) return values_of<1>(f, codes, scales, dim, padded, size, out);
  if (f.bits == 2) return values_of<2>(f, codes, scales, dim, padded, size, out);
  if (f.bits == 4) return values_of<4>(f, codes, scales, dim, padded, size, out);
  values_of<8>(f, codes, scales, dim, padded, size, out);
}

static void rotate(float *keys, int64_t dim, const float *cos, const float *sin) {
  const int64_t half = dim / 2;
  for (int64_t g = 0; g < 4; g++, keys += 16 * dim, cos += 16 * half, sin += 16 * half)
    for (int64_t i = 0; i < half; i++) {
      const F a = f_load(keys + 16 * i), b = f_load(keys + 16 * (i + half)), c = f_load(cos + 16 * i), s = f_load(sin + 16 * i);
      f_store(keys + 16 * i, f_fma(a, c, f_sub(f_set(-0.0f), f_mul(b, s))));
      f_store(keys + 16 * (i + half), f_fma(b, c, f_mul(a, s)));
    }
}

}  // namespace

extern const CacheKernels cache_kernels;
const CacheKernels cache_kernels = {keys, values, rotate};

}  // namespace ANYBIT_ISA
}  // namespace anybit
