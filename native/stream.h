// A few rows (decoding, small batches): stored bits to dots in registers, without a panel between. Part of linear.cc.
//
// For segments that begin with a chunk of 32 k, and for blocks of 16, two of which fill a chunk. Where byte dots are summed in int32 (kWideDot) any
// kind of table runs here; on the others codes of up to 4 bits whose sums of four groups fit int16.
//
// Per chunk of 32 k and 16 outputs: 64 * bits bytes read; about 2 operations a group to part the codes, 1 to look a byte up (two bytes for
// int16 tables), then one byte dot a row and byte.

// Bytes: t + bias in one byte. Pairs: t + bias in two unsigned bytes. Mirrored: |t| in two unsigned bytes, the sign given to the input.
enum class Path { Bytes, Pairs, Mirrored };

template <int bits> AB_INLINE B size_bytes(const uint8_t *table, B code, B low) {  // tables of magnitudes, repeated to 128 entries: the sign bit does not matter
  if constexpr (bits <= 4) return b_lookup(b_table(table), low);
  else if constexpr (kByteTables) return bits == 8 ? b_lookup128(table, code) : b_lookup64(table, code);
  else return table_bytes<bits - 1>(table, code, low);
}

// Running dots of `rows` rows; one row gets several chains, because a byte dot takes longer than the next one waits.
template <Path path, int rows> struct Dots {
  static constexpr int chains = rows > 1 ? 1 : path == Path::Bytes ? 4 : 2;
  C lo[rows][chains], hi[rows][chains];
};

template <Path path, int rows> AB_INLINE void clear(Dots<path, rows> &d) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < Dots<path, rows>::chains; c++) {
      d.lo[r][c] = c_zero();
      if (path != Path::Bytes) d.hi[r][c] = c_zero();
    }
}

template <Path path, int rows> AB_INLINE I total(const Dots<path, rows> &d, int r, I sum) {
  for (int c = 0; c < Dots<path, rows>::chains; c++) sum = c_end(sum, d.lo[r][c]);
  if constexpr (path != Path::Bytes) {
    I high = i_zero();
    for (int c = 0; c < Dots<path, rows>::chains; c++) high = c_end(high, d.hi[r][c]);
    sum = i_add(sum, i_shl(high, 8));
  }
  return sum;
}

// Groups [from, from + count) of a chunk; q: the first row's codes of group `from`, others `stride` further.
template <int bits, Path path, int rows, int from, int count>
AB_INLINE void add_groups(const Weight &w, const B *g, const int8_t *q, int64_t stride, B flip, Dots<path, rows> &d) {
#pragma GCC unroll 8
  for (int i = 0; i < count; i++) {
    const B code = g[from + i], low = bits <= 4 ? code : b_and(code, b_set(15));
    constexpr int chains = Dots<path, rows>::chains;
    if constexpr (path == Path::Bytes) {
      const B t = w.affine ? b_xor(code, flip) : table_bytes<bits>(w.low, code, low);
      for (int r = 0; r < rows; r++) d.lo[r][i % chains] = c_step(d.lo[r][i % chains], t, q_four(q + r * stride + 4 * i));
    } else {
      const bool sized = path == Path::Mirrored;
      const B lo = sized ? size_bytes<bits>(w.size_low, code, low) : table_bytes<bits>(w.low, code, low);
      const B hi = sized ? size_bytes<bits>(w.size_high, code, low) : table_bytes<bits>(w.high, code, low);
      const B sign = b_shl<8 - bits>(code);
      for (int r = 0; r < rows; r++) {
        B four = q_four(q + r * stride + 4 * i);
        if (sized) four = b_negate(four, sign);
        d.lo[r][i % chains] = c_step(d.lo[r][i % chains], lo, four);
        d.hi[r][i % chains] = c_step(d.hi[r][i % chains], hi, four);
      }
    }
  }
}

template <Path path, int rows>
AB_INLINE void settle_rows(const Ends &e, int extra, const I *dots, int64_t segment, int64_t side_at, F *held, float *state) {
  for (int r = 0; r < rows; r++) {
    const F acc = rows == 1 ? *held : f_load(state + 16 * r);
    const F next = extra == 0 ? settled<Extra::None>(e, dots[r], r, segment, side_at, acc)
                   : extra == 1 ? settled<Extra::Bias>(e, dots[r], r, segment, side_at, acc)
                                : settled<Extra::Full>(e, dots[r], r, segment, side_at, acc);
    if (rows == 1) *held = next;
    else f_store(state + 16 * r, next);
  }
  if (rows > 1) AB_KEEP_IN_MEMORY();  // sums stay in memory: registers belong to the dots
}

template <int bits, Path path, int rows>
static void stream(const Weight &w, const Panel &panel, const uint8_t *codes, const Side &side, const Input &in, int64_t row, float *state) {
  Ends ends = ends_of(w, side, in, row);
  if (path == Path::Mirrored) ends.bias = 0;  // magnitudes have none
  const int extra = w.zero || w.has_offset ? 2 : ends.bias ? 1 : 0;
  const int64_t stride = w.codes_length;
  const int8_t *const q0 = in.q + row * stride;
  const bool short_chain = !kWideDot && w.chain < 8;
  const B flip = b_set(w.flip);
  F held = rows == 1 ? f_load(state) : f_zero();
  Dots<path, rows> d;
  I sum[rows];
  B g[8];
  int8_t pad[rows * 32];
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment *seg = w.segments + s;
    const uint8_t *p = codes + (seg->g0 / 8 - panel.c0) * 64 * bits;
    const int8_t *q = q0 + seg->at;
    if (w.block == 16 && w.blocks > 1) {  // two segments a chunk; the last may have no second, or be short: its codes are zero from there on
      codes_of<bits>(p, g);
      for (int half = 0;; half++, s++, seg++) {
        q = q0 + seg->at;
        int64_t step = stride;
        if (seg->g1 - seg->g0 < 4) {
          memset(pad, 0, sizeof pad);
          for (int r = 0; r < rows; r++) memcpy(pad + 32 * r, q + r * stride, (size_t)(4 * (seg->g1 - seg->g0)));
          q = pad, step = 32;
        }
        clear(d);
        if (half) add_groups<bits, path, rows, 4, 4>(w, g, q, step, flip, d);
        else add_groups<bits, path, rows, 0, 4>(w, g, q, step, flip, d);
        for (int r = 0; r < rows; r++) sum[r] = total(d, r, i_zero());
        settle_rows<path, rows>(ends, extra, sum, s, 16 * (seg->block - side.first), &held, state);
        if (half == 1 || s + 1 == panel.s1) break;
      }
      continue;
    }
    for (int r = 0; r < rows; r++) sum[r] = i_zero();
    clear(d);
    for (int64_t left = seg->g1 - seg->g0; left > 0; left -= 8, p += 64 * bits, q += 32) {
      const int8_t *from = q;
      int64_t step = stride;
      if (left < 8) {
        memset(pad, 0, sizeof pad);
        for (int r = 0; r < rows; r++) memcpy(pad + 32 * r, q + r * stride, (size_t)(4 * left));
        from = pad, step = 32;
      }
      codes_of<bits>(p, g);
      add_groups<bits, path, rows, 0, 4>(w, g, from, step, flip, d);
      if (!kWideDot && short_chain) {
        for (int r = 0; r < rows; r++) sum[r] = total(d, r, sum[r]);
        clear(d);
      }
      add_groups<bits, path, rows, 4, 4>(w, g, from + 16, step, flip, d);
      if (!kWideDot) {
        for (int r = 0; r < rows; r++) sum[r] = total(d, r, sum[r]);
        clear(d);
      }
    }
    if (kWideDot)
      for (int r = 0; r < rows; r++) sum[r] = total(d, r, i_zero());
    settle_rows<path, rows>(ends, extra, sum, s, 16 * (seg->block - side.first), &held, state);
  }
  if (rows == 1) f_store(state, held);
}

// One row of five trits a byte: digits go to the dots as they come, vectors of 20 k over the ends of segments, which begin at multiples of 4.
template <Extra extra> static void stream_trits(const Weight &w, const Panel &panel, const uint8_t *codes, const Side &side, const Input &in, int64_t row, float *state) {
  const Ends ends = ends_of(w, side, in, row);
  const int8_t *const q0 = in.q + row * w.codes_length;
  const int64_t g = w.segments[panel.s0].g0, most = kWideDot ? INT64_MAX : w.chain;
  const B flip = b_set(128);
  F held = f_load(state);
  const uint8_t *p = codes + 64 * (g / 5);
  int digit = (int)(g % 5);
  B x = flip;
  if (digit) {
    x = b_xor(b_load(p), flip), p += 64;
    for (int i = 0; i < digit; i++) next_trit(x);
  }
  for (int64_t s = panel.s0; s < panel.s1; s++) {
    const Segment &seg = w.segments[s];
    const int8_t *q = q0 + seg.at;
    I sum = i_zero();
    for (int64_t left = seg.g1 - seg.g0; left > 0;) {
      int64_t run = left < most ? left : most;
      left -= run;
      C c = c_zero();
      while (run > 0) {
        if (digit == 0) x = b_xor(b_load(p), flip), p += 64;
        if (digit == 0 && run >= 5) {
          for (int i = 0; i < 5; i++) c = c_step(c, next_trit(x), q_four(q + 4 * i));
          q += 20, run -= 5;
          continue;
        }
        c = c_step(c, next_trit(x), q_four(q));
        q += 4, run--, digit = digit == 4 ? 0 : digit + 1;
      }
      sum = c_end(sum, c);
    }
    held = settled<extra>(ends, sum, 0, s, 16 * (seg.block - side.first), held);
  }
  f_store(state, held);
}

using Stream = void (*)(const Weight &, const Panel &, const uint8_t *, const Side &, const Input &, int64_t, float *);
template <int bits, Path path, int rows> constexpr Stream stream_if() {
  if constexpr ((kWideDot || bits <= 4) && (path != Path::Mirrored || bits > 1)) return stream<bits, path, rows>;
  else return nullptr;
}
template <Path path, int rows>
const Stream kStream[9] = {nullptr, stream_if<1, path, rows>(), stream_if<2, path, rows>(), stream_if<3, path, rows>(), stream_if<4, path, rows>(),
                           stream_if<5, path, rows>(), stream_if<6, path, rows>(), stream_if<7, path, rows>(), stream_if<8, path, rows>()};

template <int rows> static Stream stream_for(const Weight &w) {
  if constexpr (rows > 0)
    if (w.kind == Kind::Unsigned8) return kStream<Path::Bytes, rows>[w.bits];
  if constexpr (rows > 0 && kWideDot) {
    if (w.kind == Kind::Wide16) return w.sized ? kStream<Path::Mirrored, rows>[w.bits] : kStream<Path::Pairs, rows>[w.bits];
  }
  return nullptr;
}

// What streams the last `rows` rows, or nullptr: they need panels. Inputs have rows of zeros after the last one, up to stream_rows(rows).
static Stream stream_of(const Weight &w, int64_t rows) {
  if (w.trits) {
    if (rows > 1 || w.kind != Kind::Unsigned8 || (w.block % 4 && w.blocks > 1)) return nullptr;
    return w.zero || w.has_offset ? stream_trits<Extra::Full> : stream_trits<Extra::Bias>;
  }
  if (rows > kStreamRows || (w.block % 32 && w.block != 16 && w.blocks > 1)) return nullptr;
  if (!kWideDot && (w.bits > 4 || w.chain < 4)) return nullptr;
  if (rows == 1) return stream_for<kStreamRows ? 1 : 0>(w);
  if constexpr (kStreamRows >= 4)
    if (rows <= 4) return stream_for<4>(w);
  return stream_for<kStreamRows>(w);
}

static int64_t stream_rows(int64_t rows) { return rows == 1 || rows > kStreamRows ? rows : rows <= 4 ? 4 : 8; }
