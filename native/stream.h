// A few rows (decoding, small batches): stored bits to dots in registers, without a panel between. Part of linear.cc.
//
// For segments that begin with a chunk of 32 k, and for blocks of 16, two of which fill a chunk. Where byte dots are summed in int32 (kWideDot) any
// kind of table runs here; on the others codes of up to 4 bits whose sums of four groups fit int16.
//
// Per chunk of 32 k and 16 outputs: 64 * bits bytes read; about 2 operations a group to part the codes, 1 to look a byte up (two bytes for
// int16 tables), then one byte dot a row and byte.

// Codes: t + bias is the code, its sign bit turned. Doubles: twice the code (binary, odd integers). Bytes: from a table. Pairs: its two unsigned bytes
// from two tables. Mirrored: the two bytes of |t|, the sign given to the input.
enum class Path { Codes, Doubles, Bytes, Pairs, Mirrored };

// Every line of what lies `ahead` bytes on is asked for, to the second-level cache: to the first, one thread read up to a quarter less from memory.
template <int ahead, int bytes> AB_INLINE void ask_lines(const uint8_t *p) {
#pragma GCC unroll 8
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + ahead + i, 0, 2);
}

// One row of whole fields takes
// so few operations a byte that a core waits for enough bytes at a time by itself: one line of each chunk will do, which has the next page's address ready and
// hardware, which ends at a page, begin there. Other kernels ask for every line.
template <int bits, Path path, int rows> constexpr bool kSparse = path == Path::Codes && rows == 1 && (bits == 8 || bits == 4);
template <bool sparse, int bytes> AB_INLINE void ask(const uint8_t *p) {
  if constexpr (sparse) __builtin_prefetch(p + 8192, 0, 2);
  else ask_lines<4096, bytes>(p);
}

template <int bits> constexpr int kTopPlane = bits == 6 ? 2 : bits == 3 || bits == 5 || bits == 7 ? 1 : bits;  // width of the plane with the sign

// Group `at` of a chunk, of one plane; `turn` is xored to the stored bytes. Without a mask, bits beyond the code are of other codes.
template <int width, int at, int to, bool masked = true> AB_INLINE B plane_at(const uint8_t *p, B turn) {
  constexpr int fields = 8 / width, from = at % fields * width;
  const B x = b_xor(b_load(p + 64 * (at / fields)), turn);
  if constexpr (width == 8) return x;
  else if constexpr (masked) return field<width, from, to>(x);
  else return b_shr<from>(x);
}

// The same moved to bit `to`, without a mask.
template <int width, int at, int to> AB_INLINE B moved_at(const uint8_t *p, B turn) {
  constexpr int fields = 8 / width, from = at % fields * width;
  const B x = b_xor(b_load(p + 64 * (at / fields)), turn);
  if constexpr (from >= to) return b_shr<from - to>(x);
  else return b_shl<to - from>(x);
}

template <int bits, int at, bool masked = true, int up = 0> AB_INLINE B code_at(const uint8_t *p, B turn) {  // shifted `up`
  const B none = b_set(0);
  if constexpr (!masked && bits == 3) {  // planes are joined by one operation: what a plane holds beyond its bits is chosen away or never looked at
    return b_choose(b_set(3), moved_at<2, at, 0>(p, none), moved_at<1, at, 2>(p + 128, turn));
  } else if constexpr (!masked && bits == 5) {
    return b_choose(b_set(15), moved_at<4, at, 0>(p, none), moved_at<1, at, 4>(p + 256, turn));
  } else if constexpr (!masked && bits == 6) {
    return b_choose(b_set(15), moved_at<4, at, 0>(p, none), moved_at<2, at, 4>(p + 256, turn));
  } else if constexpr (!masked && bits == 7) {
    return b_choose(b_set(15), moved_at<4, at, 0>(p, none), b_choose(b_set(0x30), moved_at<2, at, 4>(p + 256, none), moved_at<1, at, 6>(p + 384, turn)));
  } else if constexpr (bits == 3) {
    return b_or(plane_at<2, at, up>(p, none), plane_at<1, at, 2 + up>(p + 128, turn));
  } else if constexpr (bits == 5) {
    return b_or(plane_at<4, at, 0>(p, none), plane_at<1, at, 4>(p + 256, turn));
  } else if constexpr (bits == 6) {
    return b_or(plane_at<4, at, 0>(p, none), plane_at<2, at, 4>(p + 256, turn));
  } else if constexpr (bits == 7) {
    return b_or(b_or(plane_at<4, at, 0>(p, none), plane_at<2, at, 4>(p + 256, none)), plane_at<1, at, 6>(p + 384, turn));
  } else {
    return plane_at<bits, at, up, masked>(p, turn);
  }
}

// The bytes that codes stand for. Tables repeat (weight.h), so that bits beyond a code do not matter where a permute reads six of them, nor the sign in
// tables of magnitudes; one register of them stays loaded.
template <int bits, bool sizes> AB_INLINE B held_table(const uint8_t *table) {
  if constexpr (kByteTables && bits - sizes <= 6) return b_load(table);
  else return b_table(table);
}
template <int bits, bool sizes> AB_INLINE B bytes_of(const uint8_t *table, B held, B code) {
  if constexpr (kByteTables && bits - sizes <= 6) return b_permute64(held, code);
  else if constexpr (kByteTables) return bits - sizes == 7 ? b_lookup128(table, code) : table_bytes<8>(table, code, code);
  else if constexpr (bits <= 4) return b_lookup(held, code);
  else return table_bytes<bits - sizes>(table, code, b_and(code, b_set(15)));
}

// Running dots of `rows` rows; one row gets several chains where a byte dot takes longer than parting the next one's codes.
template <Path path> constexpr bool kPairs = path == Path::Pairs || path == Path::Mirrored;
template <int bits, Path path, int rows> struct Dots {
  static constexpr bool pairs = kPairs<path>;
  static constexpr int chains = rows > 1 || !kWideDot ? 1 : bits <= 3 && !pairs ? 4 : 2;
  C lo[rows][chains], hi[rows][chains];
};

template <int bits, Path path, int rows> AB_INLINE void begin(Dots<bits, path, rows> &d, const int32_t *starts) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < Dots<bits, path, rows>::chains; c++) {
      d.lo[r][c] = kWideDot && path != Path::Mirrored && c == 0 ? c_from(i_set(starts[r])) : c_zero();
      if (Dots<bits, path, rows>::pairs) d.hi[r][c] = c_zero();
    }
}

template <int bits, Path path, int rows> AB_INLINE I total(const Dots<bits, path, rows> &d, int r, I sum) {
  if constexpr (kWideDot && Dots<bits, path, rows>::chains == 1 && !Dots<bits, path, rows>::pairs) return c_end(sum, d.lo[r][0]);
  for (int c = 0; c < Dots<bits, path, rows>::chains; c++) sum = c_end(sum, d.lo[r][c]);
  if constexpr (Dots<bits, path, rows>::pairs) {
    I high = i_zero();
    for (int c = 0; c < Dots<bits, path, rows>::chains; c++) high = c_end(high, d.hi[r][c]);
    sum = i_add(sum, i_shl(high, 8));
  }
  return sum;
}

struct Decode {  // registers that stay: what is xored to stored bytes, and tables (of integers of 3 bits: what is xored to two in a byte)
  B turn, low, high;
};
template <int bits, Path path> AB_INLINE Decode decode_of(const Weight &w) {
  constexpr int top = kTopPlane<bits>;
  if constexpr (path == Path::Codes) {
    const B two = b_set(w.flip * 0x11);
    return {b_set((w.flip >> (bits - top)) * (top == 1 ? 0xff : top == 2 ? 0x55 : top == 4 ? 0x11 : 1)), two, two};
  }
  constexpr bool sized = path == Path::Mirrored;
  return {b_set(0), held_table<bits, sized>(sized ? w.size_low : w.low), held_table<bits, sized>(sized ? w.size_high : w.high)};
}

// Groups [at, end) of the chunk at p; q: the rows' codes of the chunk, four of each row in turn.
template <int bits, Path path, int rows, int at, int end>
AB_INLINE void add_groups(const Weight &w, const Decode &by, const uint8_t *p, const int8_t *q, Dots<bits, path, rows> &d) {
  if constexpr (at < end) {
    constexpr int chain = at % Dots<bits, path, rows>::chains;
    constexpr bool plain = path == Path::Codes || path == Path::Doubles;
    const B code = code_at<bits, at, plain || !kByteTables, path == Path::Doubles>(p, by.turn);
    if constexpr (plain) {
      for (int r = 0; r < rows; r++) d.lo[r][chain] = c_step_at(d.lo[r][chain], code, q + 4 * (rows * at + r));
    } else {
      if constexpr (path == Path::Bytes) {
        const B t = bytes_of<bits, false>(w.low, by.low, code);
        for (int r = 0; r < rows; r++) d.lo[r][chain] = c_step_at(d.lo[r][chain], t, q + 4 * (rows * at + r));
      } else {
        constexpr bool sized = path == Path::Mirrored;
        const B lo = bytes_of<bits, sized>(sized ? w.size_low : w.low, by.low, code), hi = bytes_of<bits, sized>(sized ? w.size_high : w.high, by.high, code);
        const B sign = b_shl<8 - bits>(code);
        for (int r = 0; r < rows; r++) {
          B four = q_four(q + 4 * (rows * at + r));
          if (sized) four = b_negate(four, sign);
          d.lo[r][chain] = c_step(d.lo[r][chain], lo, four);
          d.hi[r][chain] = c_step(d.hi[r][chain], hi, four);
        }
      }
    }
    add_groups<bits, path, rows, at + 1, end>(w, by, p, q, d);
  }
}

// Sums of the rows: in registers where there are enough, otherwise in memory, as registers belong to the dots.
template <Path path, int rows> struct Sums {
  static constexpr bool held = rows == 1 || (kManyRegisters && (!kPairs<path> || rows <= 4));
  F acc[held ? rows : 1];
  float *state;

  AB_LAMBDA void load(float *from) {
    state = from;
    if constexpr (held)
      for (int r = 0; r < rows; r++) acc[r] = f_load(state + 16 * r);
  }
  AB_LAMBDA void settle(const Ends &e, bool full, const I *dots, int64_t segment, int64_t side_at) {
    for (int r = 0; r < rows; r++) {
      const F old = held ? acc[held ? r : 0] : f_load(state + 16 * r);
      const F next = full ? settled<Extra::Any>(e, dots[r], r, segment, side_at, old) : settled<Extra::None>(e, dots[r], r, segment, side_at, old);
      if constexpr (held) acc[r] = next;
      else f_store(state + 16 * r, next);
    }
    if constexpr (!held) AB_KEEP_IN_MEMORY();
  }
  AB_LAMBDA void store() const {
    if constexpr (held)
      for (int r = 0; r < rows; r++) f_store(state + 16 * r, acc[r]);
  }
};

template <int bits, Path path, int rows>
static void stream(const Weight &w, const Panel &panel, const uint8_t *codes, const Side &side, const Input &in, const Shares &shares, int64_t row, float *state) {
  const Ends ends = ends_of(w, side, in, shares, row);
  const bool full = extra_of(w) != Extra::None;
  const int8_t *const q0 = in.q + row * w.codes_length;
  const bool short_chain = !kWideDot && w.chain < 8;
  const Decode by = decode_of<bits, path>(w);
  Sums<path, rows> sums;
  sums.load(state);
  Dots<bits, path, rows> d;
  I sum[rows];
  if (w.block == 16 && w.blocks > 1) {  // two segments a chunk; the last may have no second, or be short
    const uint8_t *p = codes;
    for (int64_t s = panel.s0; s < panel.s1; s += 2, p += 64 * bits) {
      ask<kSparse<bits, path, rows>, 64 * bits>(p);
      const int8_t *q = q0 + 16 * rows * s;
      begin(d, ends.starts + rows * s);
      add_groups<bits, path, rows, 0, 4>(w, by, p, q, d);
      for (int r = 0; r < rows; r++) sum[r] = total(d, r, kWideDot ? i_zero() : i_set(ends.starts[rows * s + r]));
      sums.settle(ends, full, sum, s, 16 * (s - side.first));
      if (s + 1 == panel.s1) break;
      begin(d, ends.starts + rows * (s + 1));
      add_groups<bits, path, rows, 4, 8>(w, by, p, q, d);
      for (int r = 0; r < rows; r++) sum[r] = total(d, r, kWideDot ? i_zero() : i_set(ends.starts[rows * (s + 1) + r]));
      sums.settle(ends, full, sum, s + 1, 16 * (s + 1 - side.first));
    }
    sums.store();
    return;
  }
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment &seg = w.segments[s];
    const uint8_t *p = codes + (seg.g0 / 8 - panel.c0) * 64 * bits;
    const int8_t *q = q0 + rows * seg.at;
    if (!kWideDot)
      for (int r = 0; r < rows; r++) sum[r] = i_set(ends.starts[rows * s + r]);
    begin(d, ends.starts + rows * s);
    for (int64_t left = seg.g1 - seg.g0; left > 0; left -= 8, p += 64 * bits, q += 32 * rows) {
      ask<kSparse<bits, path, rows>, 64 * bits>(p);
      add_groups<bits, path, rows, 0, 4>(w, by, p, q, d);
      if (!kWideDot && short_chain) {
        for (int r = 0; r < rows; r++) sum[r] = total(d, r, sum[r]);
        begin(d, ends.starts);
      }
      add_groups<bits, path, rows, 4, 8>(w, by, p, q, d);
      if (!kWideDot) {
        for (int r = 0; r < rows; r++) sum[r] = total(d, r, sum[r]);
        begin(d, ends.starts);
      }
    }
    if (kWideDot)
      for (int r = 0; r < rows; r++) sum[r] = total(d, r, i_zero());
    sums.settle(ends, full, sum, s, 16 * (seg.block - side.first));
  }
  sums.store();
}

// Digits [from, to) of 64 stored bytes; q: the rows' codes from the first of them on. One row has a chain for each digit; of permuted digits it leaves
// them where they are, times 4^i, and brings the sums down.
template <int rows> constexpr int kTritChains = rows > 1 || !kWideDot ? 1 : 5;
template <int rows> constexpr bool kScaledTrits = kByteTables && kTritChains<rows> == 5;
template <int rows, int from, int to> AB_INLINE void add_trits(const Trits &trits, const uint8_t *p, const int8_t *q, C *c) {
  B t[5];
  if constexpr (kScaledTrits<rows>) scaled_trits_of(trits, b_load(p), t);
  else trits_of(trits, b_load(p), t);
  for (int i = from; i < to; i++)
    for (int r = 0; r < rows; r++) c[r + i % kTritChains<rows>] = c_step_at(c[r + i % kTritChains<rows>], t[i], q + 4 * (rows * (i - from) + r));
}

// The same for any from and to, those at an end of the vector without a detour: the ends of a segment.
template <int rows> AB_INLINE void add_trits(const Trits &trits, const uint8_t *p, int64_t from, int64_t to, const int8_t *q, C *c) {
  if (to == 5) {
    if (from == 1) return add_trits<rows, 1, 5>(trits, p, q, c);
    if (from == 2) return add_trits<rows, 2, 5>(trits, p, q, c);
    if (from == 3) return add_trits<rows, 3, 5>(trits, p, q, c);
    return add_trits<rows, 4, 5>(trits, p, q, c);
  }
  if (from == 0) {
    if (to == 1) return add_trits<rows, 0, 1>(trits, p, q, c);
    if (to == 2) return add_trits<rows, 0, 2>(trits, p, q, c);
    if (to == 3) return add_trits<rows, 0, 3>(trits, p, q, c);
    return add_trits<rows, 0, 4>(trits, p, q, c);
  }
  for (; from < to; from++, q += 4 * rows) {
    if (from == 1) add_trits<rows, 1, 2>(trits, p, q, c);
    else if (from == 2) add_trits<rows, 2, 3>(trits, p, q, c);
    else add_trits<rows, 3, 4>(trits, p, q, c);
  }
}

// Five trits a byte: vectors of 20 k lie over the ends of segments, which begin at multiples of 4; such a vector is decoded on both sides.
template <int rows>
static void stream_trits(const Weight &w, const Panel &panel, const uint8_t *codes, const Side &side, const Input &in, const Shares &shares, int64_t row, float *state) {
  const Ends ends = ends_of(w, side, in, shares, row);
  const bool full = extra_of(w) != Extra::None;
  const int64_t g = w.segments[panel.s0].g0, most = kWideDot ? INT64_MAX : w.chain;
  const int8_t *const q0 = in.q + row * w.codes_length;
  const Trits trits = trits_ready();
  constexpr int chains = kTritChains<rows>;
  Sums<Path::Codes, rows> sums;
  sums.load(state);
  const uint8_t *p = codes + 64 * (g / 5);
  int64_t digit = g % 5;
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment &seg = w.segments[s];
    const int8_t *q = q0 + rows * seg.at;
    I sum[rows];
    for (int r = 0; r < rows; r++) sum[r] = i_set(ends.starts[rows * s + r]);
    for (int64_t left = seg.g1 - seg.g0; left > 0;) {
      int64_t run = left < most ? left : most;
      left -= run;
      C c[rows * chains];
      for (int r = 0; r < rows * chains; r++) c[r] = c_zero();
      while (run > 0) {
        if (digit == 0) {
          for (; run >= 5; run -= 5, p += 64, q += 20 * rows) {
            __builtin_prefetch(p + 2048);  // five digits of a line take as long as reading it: here the first level serves better
            add_trits<rows, 0, 5>(trits, p, q, c);
          }
          if (run == 0) break;
        }
        const int64_t to = digit + run < 5 ? digit + run : 5;
        add_trits<rows>(trits, p, digit, to, q, c);
        q += 4 * rows * (to - digit), run -= to - digit, digit = to % 5, p += to == 5 ? 64 : 0;
      }
      for (int r = 0; r < rows; r++)
        for (int i = 0; i < chains; i++) sum[r] = kScaledTrits<rows> && i % 4 ? i_add(sum[r], i_sar(c_end(i_zero(), c[r + i]), 2 * i)) : c_end(sum[r], c[r + i]);
    }
    sums.settle(ends, full, sum, s, 16 * (seg.block - side.first));
  }
  sums.store();
}

#include "stream_one.h"

using Stream = void (*)(const Weight &, const Panel &, const uint8_t *, const Side &, const Input &, const Shares &, int64_t, float *);
template <int bits, Path path, int rows> constexpr Stream stream_if() {
  if constexpr ((kWideDot || bits <= 4) && (path != Path::Mirrored || bits > 1) && (path != Path::Doubles || bits <= 4)) return stream<bits, path, rows>;
  else return nullptr;
}
struct OneRow {
  Panelled panel = nullptr;
  Late (*late)(const Weight &) = nullptr;
};
template <int bits, Path path, int rows> constexpr OneRow one_if() {
  if constexpr ((path == Path::Mirrored && bits == 1) || (path == Path::Doubles && bits > 4)) return {};
  else if constexpr (rows == 1) return {one_panel<bits, path>, late_of<bits, path, 1>};
  else return {nullptr, late_of<bits, path, rows>};
}
template <Path path, int rows>
const OneRow kOne[9] = {{}, one_if<1, path, rows>(), one_if<2, path, rows>(), one_if<3, path, rows>(), one_if<4, path, rows>(),
                        one_if<5, path, rows>(), one_if<6, path, rows>(), one_if<7, path, rows>(), one_if<8, path, rows>()};

template <Path path, int rows>
const Stream kStream[9] = {nullptr, stream_if<1, path, rows>(), stream_if<2, path, rows>(), stream_if<3, path, rows>(), stream_if<4, path, rows>(),
                           stream_if<5, path, rows>(), stream_if<6, path, rows>(), stream_if<7, path, rows>(), stream_if<8, path, rows>()};

template <int rows> static Stream stream_for(const Weight &w) {
  if constexpr (rows > 0) {
    if (w.trits) return stream_trits<rows>;
  }
  if constexpr (rows > 1 || (rows == 1 && !kWideDot)) {
    if (w.kind == Kind::Unsigned8 && w.doubled) return kStream<Path::Doubles, rows>[w.bits];
    if (w.kind == Kind::Unsigned8) return w.affine ? kStream<Path::Codes, rows>[w.bits] : kStream<Path::Bytes, rows>[w.bits];
  }
  if constexpr (rows > 1 && kWideDot) {
    const bool whole = kByteTables && w.bits < 8;  // one permute has all of the table: a sign for every row's input costs more
    if (w.kind == Kind::Wide16) return w.sized && !whole ? kStream<Path::Mirrored, rows>[w.bits] : kStream<Path::Pairs, rows>[w.bits];
  }
  return nullptr;
}

// Why a weight's few rows need panels on this instruction set; nullptr: they do not.
static const char *why_panels(const Weight &w) {
  if (kStreamRows == 0) return "plain C++ has no registers for it";
  if (w.trits ? w.block % 4 && w.blocks > 1 : w.block % 32 && w.block != 16 && w.blocks > 1)
    return w.trits ? "blocks begin inside a group of 4 k" : "blocks begin inside a chunk of 32 k";
  if (kWideDot) return nullptr;
  if (w.kind == Kind::Wide16) return "int16 tables need dots of bytes in 32 bits, which this set does not have";
  if (w.kind == Kind::Signed8) return "8-bit numbers are read as they lie";
  if (!w.trits && w.bits > 4) return "tables of more than 16 entries take as long as a panel without dots of bytes in 32 bits";
  return !w.trits && w.chain < 4 ? "sums of four groups leave 16 bits" : nullptr;
}

// One row where byte dots are wide, or the rows of one group where registers are many too.
template <int rows> static OneRow one_for(const Weight &w) {
  const bool whole = rows > 1 && kByteTables && w.bits < 8;  // as in stream_for
  if (w.kind == Kind::Wide16) return w.sized && !whole ? kOne<Path::Mirrored, rows>[w.bits] : kOne<Path::Pairs, rows>[w.bits];
  return w.doubled ? kOne<Path::Doubles, rows>[w.bits] : w.affine ? kOne<Path::Codes, rows>[w.bits] : kOne<Path::Bytes, rows>[w.bits];
}
static OneRow one_of(const Weight &w, const Input &in, int64_t rows) {
  if constexpr (kStreamRows > 0 && kWideDot) {
    if (rows > in.group || w.trits || why_panels(w)) return {};
    if (in.group == 1) return one_for<1>(w);
    if constexpr (kManyRegisters) {
      if (in.group == 4) return one_for<4>(w);
      if (in.group == 8) return one_for<8>(w);
    }
  }
  return {};
}

// Rows that are streamed, one group of them after the other over a panel's stored bits, which stay in the first-level cache: up to four groups parting
// codes again hides behind the dots and costs less than storing bytes; beyond, panels serve as well or better (bench/matmul.py, M = 9 to 128).
constexpr int64_t kStreamMost = kStreamRows > 1 ? 4 * kStreamRows : kStreamRows;
static_assert(kStreamRows <= 1 || kStreamRows == kRowsInt, "more rows than a group's lie in groups of kRowsInt");

// What streams `rows` rows, or nullptr: they need panels. A group may hold rows of zeros after them.
static Stream stream_of(const Weight &w, const Input &in, int64_t rows) {
  if (in.group > kStreamRows || (in.group == 1 ? rows > 1 : rows > kStreamMost) || why_panels(w)) return nullptr;
  if (in.group == 1) return stream_for<kStreamRows ? 1 : 0>(w);
  if constexpr (kStreamRows >= 4)
    if (in.group == 4) return stream_for<4>(w);
  return stream_for<kStreamRows>(w);
}

static int64_t stream_rows(int64_t rows) { return rows == 1 || rows > kStreamRows ? rows : rows <= 4 ? 4 : 8; }
