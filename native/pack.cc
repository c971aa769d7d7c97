// Packing and unpacking of codes; compiled once per ISA. Per 512 codes of a chunk: 128 moves of four codes (16 rows side by side), eight loads and
// the shifts of its planes, so about four codes a cycle. Tails go through a zeroed buffer.
#include "pack.h"

#include "isa.h"
#include "planes.h"
#include "ranks.h"

namespace anybit {
namespace ANYBIT_ISA {
namespace {

// ------------------------------------------------------------------------------------------------ rows of codes <-> groups of 16 outputs x 4 k
AB_INLINE void gather(const uint8_t *codes, int64_t stride, int64_t rows, int64_t k, int64_t k0, int groups, uint8_t *out) {
  if (rows == 16 && k0 + 4 * groups <= k) {
    for (int o = 0; o < 16; o++)
      for (int g = 0; g < groups; g++) memcpy(out + 64 * g + 4 * o, codes + o * stride + k0 + 4 * g, 4);
    return;
  }
  memset(out, 0, (size_t)(64 * groups));
  for (int64_t o = 0; o < rows; o++)
    for (int64_t i = 0; i < 4 * groups && k0 + i < k; i++) out[64 * (i / 4) + 4 * o + i % 4] = codes[o * stride + k0 + i];
}

AB_INLINE void scatter(const uint8_t *in, int64_t rows, int64_t k, int64_t k0, int groups, uint8_t *codes, int64_t stride) {
  if (rows == 16 && k0 + 4 * groups <= k) {
    for (int o = 0; o < 16; o++)
      for (int g = 0; g < groups; g++) memcpy(codes + o * stride + k0 + 4 * g, in + 64 * g + 4 * o, 4);
    return;
  }
  for (int64_t o = 0; o < rows; o++)
    for (int64_t i = 0; i < 4 * groups && k0 + i < k; i++) codes[o * stride + k0 + i] = in[64 * (i / 4) + 4 * o + i % 4];
}

template <int bits> static void pack_tile_of(const uint8_t *codes, int64_t stride, int64_t rows, int64_t k, uint8_t *out) {
  alignas(64) uint8_t buffer[512];
  for (int64_t k0 = 0; k0 < k; k0 += 32, out += 64 * bits) {
    gather(codes, stride, rows, k, k0, 8, buffer);
    B g[8];
    for (int i = 0; i < 8; i++) g[i] = b_load(buffer + 64 * i);
    pack_codes<bits>(g, out);
  }
}

template <int bits> static void unpack_tile_of(const uint8_t *stored, int64_t rows, int64_t k, uint8_t *codes, int64_t stride) {
  alignas(64) uint8_t buffer[512];
  for (int64_t k0 = 0; k0 < k; k0 += 32, stored += 64 * bits) {
    B g[8];
    codes_of<bits>(stored, g);
    for (int i = 0; i < 8; i++) b_store(buffer + 64 * i, g[i]);
    scatter(buffer, rows, k, k0, 8, codes, stride);
  }
}

#define AB_WIDTHS(f) {nullptr, f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>}
using PackTile = void (*)(const uint8_t *, int64_t, int64_t, int64_t, uint8_t *);
using UnpackTile = void (*)(const uint8_t *, int64_t, int64_t, uint8_t *, int64_t);
const PackTile kPackTile[9] = AB_WIDTHS(pack_tile_of);
const UnpackTile kUnpackTile[9] = AB_WIDTHS(unpack_tile_of);

static void pack_tile(int bits, const uint8_t *codes, int64_t stride, int64_t rows, int64_t k, uint8_t *out) { kPackTile[bits](codes, stride, rows, k, out); }
static void unpack_tile(int bits, const uint8_t *stored, int64_t rows, int64_t k, uint8_t *codes, int64_t stride) {
  kUnpackTile[bits](stored, rows, k, codes, stride);
}

// ------------------------------------------------------------------------------------------------ five trits a byte
static void pack_trits(const uint8_t *codes, int64_t stride, int64_t rows, int64_t k, uint8_t *out) {
  alignas(64) uint8_t t[5 * 64];
  for (int64_t k0 = 0; k0 < k; k0 += 20, out += 64) {
    gather(codes, stride, rows, k, k0, 5, t);
    for (int i = 0; i < 320; i++) t[i] = t[i] > 2 ? 2 : t[i];
    for (int i = 0; i < 64; i++) {
      const uint32_t n = (((t[i] * 3u + t[64 + i]) * 3 + t[128 + i]) * 3 + t[192 + i]) * 3 + t[256 + i];
      out[i] = (uint8_t)((n * 256 + 242) / 243);
    }
  }
}

static void unpack_trits(const uint8_t *stored, int64_t rows, int64_t k, uint8_t *codes, int64_t stride) {
  alignas(64) uint8_t t[5 * 64];
  for (int64_t k0 = 0; k0 < k; k0 += 20, stored += 64) {
    trit_groups(stored, 1, 0, 5, [&](int64_t g, B x) AB_LAMBDA { b_store(t + 64 * g, x); });
    scatter(t, rows, k, k0, 5, codes, stride);
  }
}

// ------------------------------------------------------------------------------------------------ rows as streams of bits: eight codes are `bits` bytes
AB_INLINE uint64_t load64(const uint8_t *p) { uint64_t x; memcpy(&x, p, 8); return x; }
AB_INLINE void store64(uint8_t *p, uint64_t x) { memcpy(p, &x, 8); }

template <int bits> AB_INLINE uint64_t squeeze(uint64_t x) {  // a code in each byte -> side by side: neighbours meet, then pairs, then fours
  constexpr uint64_t one = 0x0101010101010101u * ((1u << bits) - 1), two = 0x0001000100010001u * ((1u << bits) - 1);
  constexpr uint64_t pair = 0x0000000100000001u * ((1u << 2 * bits) - 1), four = (uint64_t{1} << 4 * bits) - 1;
  x &= one;
  x = (x & two) | (x >> (8 - bits) & two << bits);
  x = (x & pair) | (x >> (16 - 2 * bits) & pair << 2 * bits);
  return (x & four) | (x >> (32 - 4 * bits) & four << 4 * bits);
}

template <int bits> AB_INLINE uint64_t spread(uint64_t x) {
  if constexpr (bits == 1)  // bit i of byte i; adding 128 less that bit sets the top bit where it is set, and carries no further
    return ((((x & 0xff) * 0x0101010101010101u & 0x8040201008040201u) + 0x00406070787c7e7fu) >> 7) & 0x0101010101010101u;
  constexpr uint64_t one = 0x0101010101010101u * ((1u << bits) - 1), pair = 0x0000000100000001u * ((1u << 2 * bits) - 1);
  constexpr uint64_t two = 0x0001000100010001u * ((1u << bits) - 1), four = (uint64_t{1} << 4 * bits) - 1;
  x = (x & four) | (x & four << 4 * bits) << (32 - 4 * bits);
  x = (x & pair) | (x & pair << 2 * bits) << (16 - 2 * bits);
  return ((x & two) | (x & two << bits) << (8 - bits)) & one;
}

template <int bits> static void pack_row_of(const uint8_t *codes, int64_t k, uint8_t *out) {
  if constexpr (bits == 8) {
    memcpy(out, codes, (size_t)k);
  } else {
    const uint8_t *const end = out + (k * bits + 7) / 8;
    for (; k >= 8 && end - out >= 8; k -= 8, codes += 8, out += bits) store64(out, squeeze<bits>(load64(codes)));  // writes ahead, never past the row
    for (; k > 0; k -= 8, codes += 8, out += bits) {
      uint8_t last[8] = {0};
      memcpy(last, codes, (size_t)(k < 8 ? k : 8));
      store64(last, squeeze<bits>(load64(last)));
      memcpy(out, last, (size_t)(end - out < bits ? end - out : bits));
    }
  }
}

template <int bits> static void unpack_row_of(const uint8_t *stored, int64_t k, uint8_t *codes) {
  if constexpr (bits == 8) {
    memcpy(codes, stored, (size_t)k);
  } else {
    const uint8_t *const end = stored + (k * bits + 7) / 8;
    for (; k >= 8 && end - stored >= 8; k -= 8, codes += 8, stored += bits) store64(codes, spread<bits>(load64(stored)));
    for (; k > 0; k -= 8, codes += 8, stored += bits) {
      uint8_t last[8] = {0};
      memcpy(last, stored, (size_t)(end - stored < bits ? end - stored : bits));
      store64(last, spread<bits>(load64(last)));
      memcpy(codes, last, (size_t)(k < 8 ? k : 8));
    }
  }
}

using PackRow = void (*)(const uint8_t *, int64_t, uint8_t *);
const PackRow kPackRow[9] = AB_WIDTHS(pack_row_of);
const PackRow kUnpackRow[9] = AB_WIDTHS(unpack_row_of);

static void pack_row(int bits, const uint8_t *codes, int64_t k, uint8_t *out) { kPackRow[bits](codes, k, out); }
static void unpack_row(int bits, const uint8_t *stored, int64_t k, uint8_t *codes) { kUnpackRow[bits](stored, k, codes); }

// ------------------------------------------------------------------------------------------------ blocks of other containers
// As many codes at a time as lie side by side, by shifts of 64-bit lanes. group 0: any.
template <int bytes> struct Lanes {
  typedef uint64_t V __attribute__((vector_size(bytes)));
};
template <> struct Lanes<8> {
  typedef uint64_t V;
};

template <int width, int group, bool first> static void add_plane(const FieldPlane &p, uint64_t start, const uint8_t *from, int64_t bytes, int64_t blocks, int64_t weights,
                                                                  uint8_t *__restrict codes) {
  constexpr int together = group > 32 ? 32 : group < 8 ? 8 : group;
  using V = typename Lanes<together>::V;
  constexpr uint64_t mask = 0x0101010101010101u * ((1u << width) - 1);
  const int64_t side = group ? group : p.group;
  const int up = p.up;
  for (int64_t b = 0; b < blocks; b++, from += bytes) {
    const uint8_t *q = from + p.offset;
    for (int64_t i = 0; i < weights; i += side * (8 / width), q += side) {
      if constexpr (group >= 8) {
        for (int j = 0; j < group; j += together) {
          V stored;
          memcpy(&stored, q + j, together);
#pragma GCC unroll 8
          for (int f = 0; f < 8 / width; f++) {
            uint8_t *const to = codes + f * group + j;
            V x = (stored >> f * width & mask) << up, old;
            if constexpr (first) old = V{} + start;
            else memcpy(&old, to, together);
            x ^= old;
            memcpy(to, &x, together);
          }
        }
        codes += group * (8 / width);
      } else {
        for (int f = 0; f < 8 / width; f++, codes += side)
          for (int64_t j = 0; j < side; j++) codes[j] = (uint8_t)((first ? (uint8_t)start : codes[j]) ^ (q[j] >> f * width & ((1 << width) - 1)) << up);
      }
    }
  }
}

template <int width> static void add_stream(const FieldPlane &p, uint64_t start, bool first, const uint8_t *from, int64_t bytes, int64_t blocks, int64_t weights,
                                            uint8_t *codes) {
  for (int64_t b = 0; b < blocks; b++, from += bytes) {
    const uint8_t *q = from + p.offset;
    for (int64_t i = 0; i < weights; i += 8, q += width, codes += 8) {
      uint64_t x = 0;
      memcpy(&x, q, width);
      store64(codes, (first ? start : load64(codes)) ^ spread<width>(x) << p.up);
    }
  }
}

template <int width, bool first> static void add_fields(const FieldPlane &p, uint64_t start, const uint8_t *from, int64_t bytes, int64_t blocks, int64_t weights, uint8_t *codes) {
  switch (p.group) {
    case 1: return add_stream<width>(p, start, first, from, bytes, blocks, weights, codes);
    case 8: return add_plane<width, 8, first>(p, start, from, bytes, blocks, weights, codes);
    case 16: return add_plane<width, 16, first>(p, start, from, bytes, blocks, weights, codes);
    case 32: return add_plane<width, 32, first>(p, start, from, bytes, blocks, weights, codes);
    case 64: return add_plane<width, 64, first>(p, start, from, bytes, blocks, weights, codes);
    default: return add_plane<width, 0, first>(p, start, from, bytes, blocks, weights, codes);
  }
}

template <bool first> static void add_field(const FieldPlane &p, uint64_t start, const uint8_t *from, int64_t bytes, int64_t blocks, int64_t weights, uint8_t *codes) {
  switch (p.width) {
    case 1: return add_fields<1, first>(p, start, from, bytes, blocks, weights, codes);
    case 2: return add_fields<2, first>(p, start, from, bytes, blocks, weights, codes);
    case 4: return add_fields<4, first>(p, start, from, bytes, blocks, weights, codes);
    default: return add_plane<8, 8, first>(p, start, from, bytes, blocks, weights, codes);
  }
}

static void block_codes(const FieldPlane *planes, int count, int flip, const uint8_t *from, int64_t bytes, int64_t blocks, int64_t weights, uint8_t *codes) {
  const uint64_t start = 0x0101010101010101u * (uint64_t)flip;
  add_field<true>(planes[0], start, from, bytes, blocks, weights, codes);
  for (int i = 1; i < count; i++) add_field<false>(planes[i], start, from, bytes, blocks, weights, codes);
}

// ------------------------------------------------------------------------------------------------ lossless blocks
// Symbols and low bits of whole chunks; codes past `size` are not read.
static void split(const uint8_t *codes, int64_t size, int item, uint8_t *symbols, uint8_t *low) {
  if (item == 2) {
    for (int64_t i = 0; i < size; i++) {
      uint16_t v;
      memcpy(&v, codes + 2 * i, 2);
      symbols[i] = (uint8_t)(v >> 7), low[i] = (uint8_t)((v >> 8 & 128) | (v & 127));
    }
  } else {
    for (int64_t i = 0; i < size; i++) symbols[i] = codes[i] >> 3 & 15, low[i] = (uint8_t)((codes[i] >> 4 & 8) | (codes[i] & 7));
  }
}

template <int width> static void put_ranks(const uint8_t *ranks, uint8_t *out) {
  B g[8];
  for (int i = 0; i < 8; i++) g[i] = b_load(ranks + 64 * i);
  pack_codes<width>(g, out);
}

static int64_t encode(const uint8_t *codes, int64_t size, int item, uint8_t *out, uint8_t *entry) {
  alignas(64) uint8_t symbols[kEscapeBlock], low[kEscapeBlock] = {0};
  split(codes, size, item, symbols, low);
  int32_t counts[4][256] = {};  // four, so that equal neighbours do not wait for each other
  for (int64_t i = 0; i < size; i++) counts[i & 3][symbols[i]]++;
  for (int s = 0; s < 256; s++) counts[0][s] += counts[1][s] + counts[2][s] + counts[3][s];
  uint8_t order[15];
  int64_t covered[16] = {0};
  for (int r = 0; r < 15; r++) {  // the most frequent that is left; the lowest among equals
    int best = 0;
    for (int s = 1; s < 256; s++) best = counts[0][s] > counts[0][best] ? s : best;
    order[r] = (uint8_t)best, covered[r + 1] = covered[r] + (counts[0][best] > 0 ? counts[0][best] : 0), counts[0][best] = -1;
  }
  int width = 0;
  int64_t bytes = size * item;
  for (int w = 1; w <= 4; w++) {
    const int64_t cost = escape_planes(size, item, w) + size - covered[(1 << w) - 1];
    if (cost < bytes) width = w, bytes = cost;
  }
  const int64_t escapes = width ? size - covered[(1 << width) - 1] : 0;
  memset(entry + 6, 0, 18);
  entry[6] = (uint8_t)escapes, entry[7] = (uint8_t)(escapes >> 8), entry[8] = (uint8_t)width;
  if (!width) {
    memcpy(out, codes, (size_t)bytes);
    return bytes;
  }
  const int last = (1 << width) - 1;
  memcpy(entry + 9, order, (size_t)last);
  uint8_t rank_of[256];
  memset(rank_of, last, 256);
  for (int r = 0; r < last; r++) rank_of[order[r]] = (uint8_t)r;
  uint8_t *tail = out + escape_planes(size, item, width);
  for (int64_t c = 0; c < escape_chunks(size); c++) {
    alignas(64) uint8_t ranks[512] = {0};
    const int64_t count = size - 512 * c < 512 ? size - 512 * c : 512;
    for (int64_t i = 0; i < count; i++) {
      const uint8_t s = symbols[512 * c + i];
      ranks[i] = rank_of[s];
      if (ranks[i] == last) *tail++ = s;
    }
    switch (width) {
      case 1: put_ranks<1>(ranks, out); break;
      case 2: put_ranks<2>(ranks, out); break;
      case 3: put_ranks<3>(ranks, out); break;
      default: put_ranks<4>(ranks, out); break;
    }
    out += 64 * width;
    if (item == 2) memcpy(out, low + 512 * c, 512), out += 512;
    else put_ranks<4>(low + 512 * c, out), out += 256;
  }
  return bytes;
}

static void decode(const uint8_t *stored, const uint8_t *entry, int64_t size, int item, uint8_t *codes) {
  const EscapeEntry e = escape_entry(entry);
  if (!e.width) {
    memcpy(codes, stored, (size_t)(size * item));
    return;
  }
  alignas(64) uint8_t symbols[kEscapeBlock];
  const Low low = block_symbols(e, stored, size, item, symbols);
  for (int64_t c = 0; c < escape_chunks(size); c++) {
    const uint8_t *p = low.at + c * low.step, *s = symbols + 512 * c;
    const int64_t count = size - 512 * c < 512 ? size - 512 * c : 512;
    if (item == 2) {
      alignas(64) uint16_t line[512];
      for (int i = 0; i < 512; i++) line[i] = (uint16_t)((p[i] & 128) << 8 | s[i] << 7 | (p[i] & 127));
      memcpy(codes + 1024 * c, line, (size_t)(2 * count));
    } else {
      alignas(64) uint8_t line[512];
      B g[8];
      codes_of<4>(p, g);
      for (int i = 0; i < 8; i++) b_store(line + 64 * i, g[i]);
      for (int i = 0; i < 512; i++) line[i] = (uint8_t)((line[i] & 8) << 4 | (s[i] & 15) << 3 | (line[i] & 7));
      memcpy(codes + 512 * c, line, (size_t)count);
    }
  }
}

template <int width> static int64_t count_last(const uint8_t *p, int64_t chunks, int64_t step) {
  const B last = b_set((1 << width) - 1);
  int64_t total = 0;
  for (int64_t c = 0; c < chunks; c++, p += step) {
    B g[8];
    codes_of<width>(p, g);
    for (int i = 0; i < 8; i++) total += __builtin_popcountll(b_equal(g[i], last));
  }
  return total;
}

static int64_t escapes(const uint8_t *stored, const uint8_t *entry, int64_t size, int item) {
  const int64_t chunks = escape_chunks(size), step = 64 * (entry[8] + (item == 2 ? 8 : 4));
  switch (entry[8]) {
    case 0: return 0;
    case 1: return count_last<1>(stored, chunks, step);
    case 2: return count_last<2>(stored, chunks, step);
    case 3: return count_last<3>(stored, chunks, step);
    default: return count_last<4>(stored, chunks, step);
  }
}

}  // namespace

extern const PackKernels pack_kernels;
const PackKernels pack_kernels = {pack_tile, unpack_tile, pack_trits, unpack_trits, pack_row, unpack_row, block_codes, encode, decode, escapes};

}  // namespace ANYBIT_ISA
}  // namespace anybit
