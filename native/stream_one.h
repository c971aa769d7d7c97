// One row (decoding) with byte dots in int32, or the rows of one group where registers are many: a row of tiles in one go, scales and offsets made in
// registers where a block ends, once for all rows. Part of stream.h.
//
// Integers of 2 to 4 bits of one row stay where they lie in their bytes: masked, not shifted. What is so many bits up has a chain of its own, whose sum, a
// multiple of 2^up, comes down once a segment. Per 64 weights of 4 bits: a mask and a dot, and half a load and half a turn of the sign.

// Any logic of three operands is one operation; compilers would rather load an operand twice than keep it, so it is held in a register.
#if ANYBIT_512 && !ANYBIT_SIMDE
constexpr bool kThreeWay = true;
AB_INLINE B held(B a) {
  __asm__("" : "+v"(a.v));
  return a;
}
#else
constexpr bool kThreeWay = false;
AB_INLINE B held(B a) { return a; }
#endif

// How much of a chunk a segment is: half of it, all, or several.
enum class Span { Half, Whole, Several };

// How the numbers of a tile row on a grid of blocks come: from memory, where scale_rows has made them, or from their codes, with the same operations.
enum class From { Made, Singles, Halves, Brains, Bytes, Signed, Fours, Exponents, Minis };  // fp32, fp16, bf16; integers; two blocks a byte, unsigned

static From from_of(const Scale &s, float factor, Span span) {
  const int factors = (s.each > 0) + (s.whole != 1.0f) + (factor != 1.0f);
  if (s.rows != 1 || factors > (s.kind == ScaleKind::Mini ? 2 : 1)) return From::Made;
  if (s.each && (span == Span::Several || (span == Span::Half && s.each % 2))) return From::Made;
  if (s.kind == ScaleKind::Float32) return From::Singles;
  if (s.kind == ScaleKind::Float16) return From::Halves;
  if (s.kind == ScaleKind::BFloat16) return From::Brains;
  if (s.kind == ScaleKind::Integer) return s.paired ? (s.has_sign ? From::Made : From::Fours) : s.has_sign ? From::Signed : From::Bytes;
  return s.paired ? From::Made : s.kind == ScaleKind::Exponent ? From::Exponents : s.kind == ScaleKind::Mini ? From::Minis : From::Made;
}

// Numbers are asked for so many bytes before they are read: their lines come too seldom for hardware to run ahead of them.
constexpr int64_t kNumbersAhead = 2048;

template <From from> struct Numbers {
  static constexpr int kBytes = from == From::Singles ? 64 : from == From::Halves || from == From::Brains ? 32 : from == From::Fours ? 8 : 16;  // of a block
  const Scale *of = nullptr;
  const uint8_t *at = nullptr;
  int64_t tile = 0, n = 0, first = 0;  // `first`: the block that `at` begins with
  F by = f_zero(), also = f_zero();  // factors: of the second level as long as it is the same, of the tensor
  I flip = i_zero();  // the sign bit of integers
  Mini mini;

  Numbers(const Scale &s, int64_t row_of_tiles, int64_t outputs, float factor) : of(&s), tile(row_of_tiles), n(outputs), mini(s) {
    const int64_t columns = s.paired ? (s.columns + 1) / 2 : s.columns;
    at = s.data + tile * columns * 16 * scale_width(s.kind);
    const float whole = s.whole != 1.0f ? s.whole : factor;
    by = f_set(s.each ? 1.0f : whole);
    also = f_set(s.each ? whole : s.whole != 1.0f ? factor : 1.0f);
    if (s.has_sign) flip = i_set(1 << (s.bits - 1));
  }
  Numbers(const float *made, int64_t first_made) : at((const uint8_t *)made), first(first_made) {}

  AB_LAMBDA void enter(int64_t owner) {  // those that follow are of this number of the second level
    if constexpr (from == From::Made) return;
    const Grid &s = of->second;
    if (of->each && s.rows == 1) __builtin_prefetch(s.data + (tile * s.columns + owner) * 16 * scale_width(s.kind) + kNumbersAhead / 2, 0, 2);
    if (of->each) by = s.rows == 1 && s.kind == ScaleKind::Float16 ? f_load_half(s.data + (tile * s.columns + owner) * 32) : grid_row(s, tile, owner, n);
  }
  AB_LAMBDA F of_code(I code) const { return f_mul(i_to_f(code), by); }
  AB_LAMBDA F operator()(int64_t b) const {
    if constexpr (from != From::Made) __builtin_prefetch(at + kBytes * b + kNumbersAhead, 0, 2);
    if constexpr (from == From::Made) return f_load((const float *)at + 16 * (b - first));
    if constexpr (from == From::Singles) return f_mul(f_load((const float *)(at + 64 * b)), by);
    if constexpr (from == From::Halves) return f_mul(f_load_half(at + 32 * b), by);
    if constexpr (from == From::Brains) return f_mul(f_load_bf16(at + 32 * b), by);
    if constexpr (from == From::Fours) return of_code(b & 1 ? i_shr(i_load_u8(at + 8 * (b - 1)), 4) : i_and(i_load_u8(at + 8 * b), i_set(15)));
    const I code = i_load_u8(at + 16 * b);
    if constexpr (from == From::Bytes) return of_code(code);
    if constexpr (from == From::Signed) return of_code(i_sub(i_xor(code, flip), flip));
    if constexpr (from == From::Exponents) return f_mul(exponent_of(code), by);
    return f_mul(f_mul(mini(code), by), also);
  }
};

// Places that codes are left at.
template <int bits, Path path, Span span>
constexpr int kPlaces = !kWideDot || kSignedDot || path != Path::Codes ? 1 : bits == 4 ? 2 : bits == 3 && kThreeWay ? 2 : bits == 2 && span != Span::Half ? 4 : 1;
template <int bits> constexpr int place_of(int at) { return bits == 3 ? at / 4 : bits == 4 ? at % 2 : at % 4; }
template <int bits> constexpr int turn_of(int at) { return bits == 3 ? at % 4 : bits == 4 ? at / 2 : at / 4; }  // among those of its place

// What is loaded of a chunk of integers, or put together for two groups at once; compilers would rather load twice.
template <int bits, Span span> struct Pieces {
  static constexpr int places = kPlaces<bits, Path::Codes, span>;
  static constexpr bool threes = bits == 3 && places == 2, joined = kThreeWay && (bits == 5 || bits == 6);
  B x[8];

  // Groups `at` and `at` + 4 of 3-bit codes in the halves of a byte; bits 3 and 7 are other codes'.
  template <int at> AB_LAMBDA B two_threes(B low, B high, B top) {
    const B two = b_choose(b_set(15), at ? b_shr<2 * at>(low) : low, at < 2 ? b_shl<at < 2 ? 4 - 2 * at : 0>(high) : b_shr<at < 2 ? 0 : 2 * at - 4>(high));
    return held(b_choose(b_set(0x33), two, at < 2 ? b_shl<at < 2 ? 2 - at : 0>(top) : b_shr<at < 2 ? 0 : at - 2>(top)));
  }

  AB_LAMBDA void load(const uint8_t *p, const Decode &by) {
    if constexpr (threes) {
      const B low = held(b_load(p)), high = held(b_load(p + 64)), top = held(b_load(p + 128));
      x[0] = two_threes<0>(low, high, top), x[1] = two_threes<1>(low, high, top), x[2] = two_threes<2>(low, high, top), x[3] = two_threes<3>(low, high, top);
    } else if constexpr (joined) {
      for (int i = 0; i < 4; i++) x[i] = held(b_load(p + 64 * i));
      for (int v = 0; v < bits - 4; v++) {  // of the bits above the fourth, those that lie four apart
        const B above = held(b_load(p + 64 * (4 + v)));
        for (int i = 0; i < (bits == 6 ? 2 : 4); i++) x[4 + 2 * v + i] = b_and(b_xor(above, by.turn), b_set((bits == 6 ? 0x33 : 0x11) << (bits - 4) * i));
      }
    } else if constexpr (places > 1) {
      for (int i = 0; i < bits; i++) x[i] = b_xor(b_load(p + 64 * i), by.turn);
    }
  }
  // Group `at`, its sign turned, at its place.
  template <int at> AB_LAMBDA B group(const uint8_t *p, const Decode &by) const {
    if constexpr (threes) return b_and(b_xor(x[at % 4], by.low), b_set(at / 4 ? 0x70 : 0x07));
    else if constexpr (joined) return b_choose(b_set(15), at % 2 ? b_shr<4>(x[at / 2]) : x[at / 2], above<at>());
    else if constexpr (places == 2) return b_and(x[at / 2], b_set(at % 2 ? 0xf0 : 0x0f));
    else if constexpr (places == 4) return b_and(x[at / 4], b_set(3 << 2 * (at % 4)));
    else return code_at<bits, at, true>(p, by.turn);
  }
  template <int at> AB_LAMBDA B above() const {  // the bits above the fourth of group `at`, in their places; below them anything
    constexpr int from = bits == 6 ? at % 4 * 2 : at;
    const B plane = x[bits == 6 ? 4 + at / 4 * 2 + at % 2 : 4 + at % 4];
    if constexpr (from > 4) return b_shr<from - 4>(plane);
    else if constexpr (from < 4) return b_shl<4 - from>(plane);
    else return plane;
  }
};

// The dots of one segment.
template <int bits, Path path, Span span, int rows> struct One {
  static constexpr bool codes = path == Path::Codes && rows == 1;
  static constexpr int places = kPlaces<bits, path, span>;
  static constexpr int chains = span == Span::Several ? (places == 4 ? 1 : 2) : places > 1 || span == Span::Half ? 1 : 2;  // of each place
  C sum[places][chains];
  Pieces<bits, span> pieces;
  Dots<bits, path, rows> dots;

  AB_LAMBDA void load(const uint8_t *p, const Decode &by) {
    if constexpr (codes) pieces.load(p, by);
  }

  AB_LAMBDA void begin(const int32_t *start) {
    if constexpr (!codes) return anybit::ANYBIT_ISA::begin(dots, start);
    for (int i = 0; i < places; i++)
      for (int c = 0; c < chains; c++) sum[i][c] = i == 0 && c == 0 ? c_from(i_set(*start)) : c_zero();
  }
  template <int at, int end> AB_LAMBDA void add(const Weight &w, const Decode &by, const uint8_t *p, const int8_t *q) {
    if constexpr (!codes) {
      add_groups<bits, path, rows, at, end>(w, by, p, q, dots);
    } else if constexpr (at < end) {
      C &c = places == 1 ? sum[0][at % chains] : sum[places == 1 ? 0 : place_of<bits>(at)][turn_of<bits>(at) % chains];
      c = c_step_at(c, pieces.template group<at>(p, by), q + 4 * at);
      add<at + 1, end>(w, by, p, q);
    }
  }
  AB_LAMBDA I total(int r) const {
    if constexpr (!codes) return anybit::ANYBIT_ISA::total(dots, r, i_zero());
    I all = i_zero();
    for (int i = places - 1; i >= 0; i--) {
      I here = c_end(i_zero(), sum[i][0]);
      if (chains > 1) here = c_end(here, sum[i][chains - 1]);
      all = i == places - 1 ? here : i_add(here, i_sar(all, bits == 2 ? 2 : 4));
    }
    return all;
  }
};

// Segments [s0, s1), which begin with a chunk, at `p`.
struct Row {
  const uint8_t *p;
  const int8_t *q;
  const float *scale, *lift;  // of the segments, each of all rows: as they lie
  const int32_t *start, *total;
  int64_t tile, s0, s1, first;  // `first`: the block that numbers made before begin with
};

// Where results go: `rows` rows of y, stride apart, and what is added to each or nullptr.
struct Results {
  int64_t rows;
  const float *bias;
  float *y;
  int64_t stride;
};

// One row: a function of its own, as what compilers made of the one below for one row read 7 to 10 % less out of memory with scales made before.
template <int bits, Path path, Span span, From from, Extra extra>
static F one_row(const Weight &w, const Row &a, Numbers<from> scales, Numbers<from> offsets, F acc) {
  constexpr bool shifted = extra == Extra::Offsets;
  const Decode by = decode_of<bits, path>(w);
  const uint8_t *p = a.p;
  const int8_t *q = a.q;
  const float *const scale = a.scale, *const lift = a.lift;
  const int32_t *const start = a.start;
  const auto settle = [&](int64_t s, int64_t block, I dot) AB_LAMBDA {
    if (from == From::Made ? w.zero != nullptr : extra == Extra::Any) dot = i_sub(dot, i_mul(zero_row(w, a.tile, block), i_set(a.total[s])));
    acc = f_fma(i_to_f(dot), f_mul(f_set(scale[s]), scales(block)), acc);
    if (shifted) acc = f_fma(f_set(lift[s]), offsets(block), acc);
  };
  One<bits, path, span, 1> one;
  const int64_t each = from != From::Made && w.scale.each ? w.scale.each : a.s1 - a.s0;
  for (int64_t first = a.s0, owner = 0; first < a.s1; first += each, owner++) {
    const int64_t end = first + each < a.s1 ? first + each : a.s1;
    scales.enter(owner);
    if (shifted) offsets.enter(owner);
    for (int64_t s = first; s < end;) {
      if constexpr (span == Span::Several) {
        const Segment &seg = w.segments[s];
        one.begin(start + s);
        for (int64_t left = seg.g1 - seg.g0; left > 0; left -= 8, p += 64 * bits, q += 32) {
          ask<kSparse<bits, path, 1>, 64 * bits>(p);
          one.load(p, by);
          one.template add<0, 8>(w, by, p, q);
        }
        settle(s++, seg.block, one.total(0));
      } else {
        ask<kSparse<bits, path, 1>, 64 * bits>(p);
        one.begin(start + s);
        one.load(p, by);
        one.template add<0, span == Span::Half ? 4 : 8>(w, by, p, q);
        settle(s, s, one.total(0));
        s++;
        if constexpr (span == Span::Half) {
          if (s == end) break;
          one.begin(start + s);
          one.template add<4, 8>(w, by, p, q);
          settle(s, s, one.total(0));
          s++;
        }
        p += 64 * bits, q += 32;
      }
    }
  }
  return acc;
}

template <int bits, Path path, Span span, From from, Extra extra, int rows>
static void few_rows(const Weight &w, const Row &a, Numbers<from> scales, Numbers<from> offsets, float *state) {
  constexpr bool shifted = extra == Extra::Offsets;
  const Decode by = decode_of<bits, path>(w);
  const uint8_t *p = a.p;
  const int8_t *q = a.q;
  const float *const scale = a.scale, *const lift = a.lift;
  const int32_t *const start = a.start;
  One<bits, path, span, rows> one;
  F acc[rows];
  for (int r = 0; r < rows; r++) acc[r] = f_zero();
  const auto settle = [&](int64_t s, int64_t block) AB_LAMBDA {
    const F sw = scales(block), off = shifted ? offsets(block) : f_zero();
    const I zero = extra == Extra::Any ? zero_row(w, a.tile, block) : i_zero();
    for (int r = 0; r < rows; r++) {
      I dot = one.total(r);
      if (extra == Extra::Any) dot = i_sub(dot, i_mul(zero, i_set(a.total[s * rows + r])));
      acc[r] = f_fma(i_to_f(dot), f_mul(f_set(scale[s * rows + r]), sw), acc[r]);
      if (shifted) acc[r] = f_fma(f_set(lift[s * rows + r]), off, acc[r]);
    }
  };
  const int64_t each = w.scale.each ? w.scale.each : a.s1 - a.s0;
  for (int64_t first = a.s0, owner = 0; first < a.s1; first += each, owner++) {
    const int64_t end = first + each < a.s1 ? first + each : a.s1;
    scales.enter(owner);
    if (shifted) offsets.enter(owner);
    for (int64_t s = first; s < end;) {
      if constexpr (span == Span::Several) {
        const Segment &seg = w.segments[s];
        one.begin(start + s * rows);
        for (int64_t left = seg.g1 - seg.g0; left > 0; left -= 8, p += 64 * bits, q += 32 * rows) {
          ask<kSparse<bits, path, rows>, 64 * bits>(p);
          one.load(p, by);
          one.template add<0, 8>(w, by, p, q);
        }
        settle(s++, seg.block);
      } else {
        ask<kSparse<bits, path, rows>, 64 * bits>(p);
        one.begin(start + s * rows);
        one.load(p, by);
        one.template add<0, span == Span::Half ? 4 : 8>(w, by, p, q);
        settle(s, s);
        s++;
        if constexpr (span == Span::Half) {
          if (s == end) break;
          one.begin(start + s * rows);
          one.template add<4, 8>(w, by, p, q);
          settle(s, s);
          s++;
        }
        p += 64 * bits, q += 32 * rows;
      }
    }
  }
  for (int r = 0; r < rows; r++) f_store(state + 16 * r, acc[r]);
}

// Tiles [t0, t1), all of a row of the weight in one go. What one tile has to do before it reads and after keeps a core from asking for the next one's bytes
// (a call for each took a third of the time of 4,096 k of int4@32), so it is little.
template <int bits, Path path, int rows, Span span, From from, Extra extra = Extra::None>
static void one_late(const Weight &w, Row a, int64_t t0, int64_t t1, const Results &to) {
  constexpr bool shifted = extra == Extra::Offsets;
  const int64_t tile_bytes = w.chunks * 64 * bits;
  a.p = w.codes + t0 * tile_bytes;
  for (a.tile = t0; a.tile < t1; a.tile++, a.p += tile_bytes) {
    const Numbers<from> scales(w.scale, a.tile, w.n, w.step);
    const Numbers<from> offsets = shifted ? Numbers<from>(w.offset, a.tile, w.n, 1.0f) : scales;
    float state[16 * rows];
    const int64_t n0 = a.tile * 16, count = w.n - n0 < 16 ? w.n - n0 : 16;
    if constexpr (rows == 1) {
      const F sum = one_row<bits, path, span, from, extra>(w, a, scales, offsets, f_zero());
      if (count == 16) {
        f_store(to.y + n0, to.bias ? f_add(sum, f_load(to.bias + n0)) : sum);
        continue;
      }
      f_store(state, sum);
    } else {
      few_rows<bits, path, span, from, extra, rows>(w, a, scales, offsets, state);
    }
    finish_tile(state, 16, to.rows, to.bias ? to.bias + n0 : nullptr, count, to.y + n0, to.stride);
  }
}

static Span span_of(const Weight &w) { return w.block == 16 && w.blocks > 1 ? Span::Half : w.block == 32 ? Span::Whole : Span::Several; }

// Whole rows of tiles, or nullptr.
using Late = void (*)(const Weight &, Row, int64_t, int64_t, const Results &);
template <int bits, Path path, int rows, Span span, Extra extra = Extra::None> static Late floats_late(From from) {
  if constexpr (rows == 1 && path == Path::Codes && extra == Extra::None)
    if (from == From::Singles) return one_late<bits, path, rows, span, From::Singles>;
  if (from == From::Halves) return one_late<bits, path, rows, span, From::Halves, extra>;
  return from == From::Brains ? one_late<bits, path, rows, span, From::Brains, extra> : nullptr;
}
template <int bits, Path path, int rows> static Late late_of(const Weight &w) {
  const Span span = span_of(w);
  const From from = from_of(w.scale, w.step, span);
  if constexpr (rows > 4 && kPairs<path> && bits == 8) return nullptr;  // registers belong to tables of 256 entries
  if (from == From::Made || (w.zero && w.has_offset) || (w.has_offset && (from_of(w.offset, 1.0f, span) != from || w.offset.each != w.scale.each))) return nullptr;
  constexpr bool codes = path == Path::Codes && bits > 1, bytes = path == Path::Bytes && bits == 4;
  if (w.zero) {
    if constexpr (codes && (bits <= 4 || bits == 8)) {
      if (span == Span::Several) return floats_late<bits, path, rows, Span::Several, Extra::Any>(from);
      if (span == Span::Whole) return floats_late<bits, path, rows, Span::Whole, Extra::Any>(from);
    }
    return nullptr;
  }
  if constexpr (codes || bytes || kPairs<path>) {
    if (span == Span::Several) return w.has_offset ? nullptr : floats_late<bits, path, rows, Span::Several>(from);
  }
  if constexpr (kPairs<path> && (bits == 6 || bits == 8)) {
    if (span == Span::Whole && !w.has_offset && from == From::Exponents) return one_late<bits, path, rows, Span::Whole, From::Exponents>;
  }
  if constexpr (codes || bytes) {
    if (span == Span::Whole && !w.has_offset) {
      if (const Late late = floats_late<bits, path, rows, Span::Whole>(from)) return late;
      if (from == From::Exponents) return one_late<bits, path, rows, Span::Whole, From::Exponents>;
    }
    if (span == Span::Half && !w.has_offset) {
      if (const Late late = floats_late<bits, path, rows, Span::Half>(from)) return late;
      if (from == From::Minis) return one_late<bits, path, rows, Span::Half, From::Minis>;
    }
  }
  if constexpr (codes) {
    if (span == Span::Whole && w.has_offset) {
      if (const Late late = floats_late<bits, path, rows, Span::Whole, Extra::Offsets>(from)) return late;
      if (from == From::Bytes) return one_late<bits, path, rows, Span::Whole, From::Bytes, Extra::Offsets>;
    }
    if (span == Span::Half) {
      if (from == From::Signed && !w.has_offset) return one_late<bits, path, rows, Span::Half, From::Signed>;
      if (from == From::Fours && w.has_offset) return one_late<bits, path, rows, Span::Half, From::Fours, Extra::Offsets>;
    }
  }
  return nullptr;
}

// A panel, its scales and offsets made before: [blocks][16].
using Panelled = F (*)(const Weight &, const Row &, const float *, const float *, F);
template <int bits, Path path> static F one_panel(const Weight &w, const Row &a, const float *scales, const float *offsets, F acc) {
  const Numbers<From::Made> s(scales, a.first), o(offsets, a.first);
  if (span_of(w) == Span::Half)
    return w.has_offset ? one_row<bits, path, Span::Half, From::Made, Extra::Offsets>(w, a, s, o, acc) : one_row<bits, path, Span::Half, From::Made, Extra::None>(w, a, s, o, acc);
  return w.has_offset ? one_row<bits, path, Span::Several, From::Made, Extra::Offsets>(w, a, s, o, acc) : one_row<bits, path, Span::Several, From::Made, Extra::None>(w, a, s, o, acc);
}
