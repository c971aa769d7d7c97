// Blocks of lossless weights (escape.h) to symbols, on the lanes of one instruction set.
#pragma once
#include "escape.h"
#include "planes.h"

namespace anybit {
namespace ANYBIT_ISA {

// Symbols of one chunk of 512 codes through a table of 16; where escapes belong is noted at `places`, which has room for four more than there are.
template <int width> AB_INLINE uint16_t *chunk_symbols(const uint8_t *p, const uint8_t *table, int64_t base, uint8_t *out, uint16_t *places) {
  B g[8];
  codes_of<width>(p, g);
  const B symbols = b_table(table), last = b_set((1 << width) - 1);
  for (int i = 0; i < 8; i++) {
    b_store(out + 64 * i, b_lookup(symbols, g[i]));
    uint64_t m = b_equal(g[i], last);
    // Two or so of 64 are escapes: four are noted whether they are there or not, since a loop that ends anywhere would be mispredicted each time.
    uint16_t *const end = places + __builtin_popcountll(m);
    do {
      for (int j = 0; j < 4; j++, m &= m - 1) places[j] = (uint16_t)(base + 64 * i + __builtin_ctzll(m | uint64_t{1} << 63));
      places += 4;
    } while (__builtin_expect(m != 0, 0));
    places = end;
  }
  return places;
}

// A block's symbols to out (whole chunks) and where its low bits lie: those of chunk c at low + c * step.
struct Low { const uint8_t *at; int64_t step; };
template <int width> AB_INLINE Low symbols_with(const EscapeEntry &e, const uint8_t *p, int64_t count, int item, uint8_t *out) {
  uint8_t table[16] = {0};
  memcpy(table, e.symbols, 15);
  const int64_t step = 64 * (width + (item == 2 ? 8 : 4)), chunks = escape_chunks(count);
  uint16_t places[kEscapeBlock + 8], *end = places;
  for (int64_t c = 0; c < chunks; c++) end = chunk_symbols<width>(p + c * step, table, 512 * c, out + 512 * c, end);
  const uint8_t *const escape = p + chunks * step;
  const int64_t found = end - places, count_read = found < e.escapes ? found : e.escapes;
  for (int64_t i = 0; i < count_read; i++) out[places[i]] = escape[i];
  return {p + 64 * width, step};
}

static inline Low block_symbols(const EscapeEntry &e, const uint8_t *p, int64_t count, int item, uint8_t *out) {
  switch (e.width) {
    case 1: return symbols_with<1>(e, p, count, item, out);
    case 2: return symbols_with<2>(e, p, count, item, out);
    case 3: return symbols_with<3>(e, p, count, item, out);
    default: return symbols_with<4>(e, p, count, item, out);
  }
}

}  // namespace ANYBIT_ISA
}  // namespace anybit
