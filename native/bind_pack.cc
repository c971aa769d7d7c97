// Bindings of packing and of lossless codes. All checks are here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "bind.h"
#include "escape.h"
#include "pack.h"
#include "pool.h"

using namespace nanobind::literals;

namespace anybit {

AB_KERNELS(PackKernels, pack_kernels)

const PackKernels &pack_kernels() { return *pack_kernels_of[static_cast<int>(isa())]; }

// An index of lossless codes against their bytes: every offset, width and count. Throws std::invalid_argument with what is wrong where.
void check_escapes(const EscapeShape &shape, const uint8_t *index, const uint8_t *codes, int64_t bytes) {
  const auto fail = [](int64_t block, const char *what) { throw std::invalid_argument("block " + std::to_string(block) + " of the lossless codes " + what); };
  int64_t at = 0;
  for (int64_t b = 0; b < shape.blocks; b++) {
    const EscapeEntry e = escape_entry(index + b * kEscapeEntry);
    if (e.width > 4) fail(b, "has a width beyond 4");
    if (e.offset != at) fail(b, "does not begin where the block before it ends");
    if (e.escapes > escape_chunks(shape.size(b)) * 512 || (e.width == 0 && e.escapes)) fail(b, "has more escapes than codes");
    at += escape_bytes(e, shape.size(b), shape.item);
    if (at > bytes) fail(b, "ends beyond the stored bytes");
  }
  require(at == bytes, "the lossless codes have bytes after their last block");
  const PackKernels &kernels = pack_kernels();
  std::atomic<int64_t> bad{INT64_MAX};
  parallel_for((shape.blocks + 63) / 64, [&](int64_t u) {
    for (int64_t b = 64 * u; b < std::min(shape.blocks, 64 * u + 64); b++) {
      const uint8_t *entry = index + b * kEscapeEntry;
      const EscapeEntry e = escape_entry(entry);
      if (kernels.escapes(codes + e.offset, entry, shape.size(b), shape.item) == e.escapes) continue;
      for (int64_t seen = bad.load(); b < seen && !bad.compare_exchange_weak(seen, b);) {
      }
    }
  });
  if (bad.load() != INT64_MAX) fail(bad.load(), "has another number of escapes than its index says");
}

namespace {

using Halves = Array<uint16_t, 1>;
using Words = Array<uint32_t, 1>;
using Codes = Array<uint8_t, 2>;
using Codes16 = Array<uint16_t, 2>;
using Codes32 = Array<uint32_t, 2>;
constexpr int64_t kWork = 1 << 18;  // codes that a task packs at least

template <class Body> void by_rows(int64_t rows, int64_t k, Body body) {
  const int64_t per = std::max<int64_t>(1, kWork / std::max<int64_t>(1, k));
  nb::gil_scoped_release release;
  parallel_for((rows + per - 1) / per, [&](int64_t u) {
    for (int64_t r = u * per; r < std::min(rows, (u + 1) * per); r++) body(r);
  });
}

// A new array of bytes that a weight keeps for long. From 2 MiB on it lies on a boundary of that size in a mapping of its own, which the system may
// serve by large pages: two threads then read 20 to 25 % more a second than from small ones (Zen 4). Nothing is rounded up but to a small page.
nb::object lasting(size_t dimensions, const size_t *shape, uint8_t **data) {
#ifdef MADV_HUGEPAGE
  constexpr size_t large = size_t{1} << 21;
  const size_t small = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_t bytes = 1;
  for (size_t i = 0; i < dimensions; i++) bytes *= shape[i];
  bytes = (bytes + small - 1) / small * small;
  void *const got = bytes < large ? MAP_FAILED : mmap(nullptr, bytes + large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got != MAP_FAILED) {
    const size_t before = (large - reinterpret_cast<uintptr_t>(got) % large) % large;
    uint8_t *const base = static_cast<uint8_t *>(got) + before;
    if (before) munmap(got, before);
    munmap(base + bytes, large - before);  // what is asked for and not granted costs nothing: errors do not matter here
    madvise(base, bytes, MADV_HUGEPAGE);
    struct Mapping {
      void *base;
      size_t bytes;
    };
    nb::capsule owner(new Mapping{base, bytes}, [](void *p) noexcept {
      munmap(static_cast<Mapping *>(p)->base, static_cast<Mapping *>(p)->bytes);
      delete static_cast<Mapping *>(p);
    });
    *data = base;
    return nb::cast(nb::ndarray<nb::numpy, uint8_t>(base, dimensions, shape, owner));
  }
#endif
  return array(dimensions, shape, data);
}

nb::object pack_tiles(Codes codes, int bits) {  // bits 0: five trits a byte
  require(bits >= 0 && bits <= 8, "bits must be 1 to 8, or 0 for trits");
  const int64_t n = static_cast<int64_t>(codes.shape(0)), k = static_cast<int64_t>(codes.shape(1)), tiles = (n + 15) / 16;
  const int64_t pieces = bits ? (k + 31) / 32 : (k + 19) / 20, piece = 64 * (bits ? bits : 1);
  const size_t shape[3] = {static_cast<size_t>(tiles), static_cast<size_t>(pieces), static_cast<size_t>(piece)};
  uint8_t *out;
  nb::object result = lasting(3, shape, &out);
  const PackKernels &kernels = pack_kernels();
  const uint8_t *from = codes.data();
  by_rows(tiles, 16 * k, [&](int64_t t) {
    const int64_t rows = std::min<int64_t>(16, n - 16 * t);
    if (bits) kernels.pack_tile(bits, from + 16 * t * k, k, rows, k, out + t * pieces * piece);
    else kernels.pack_trits(from + 16 * t * k, k, rows, k, out + t * pieces * piece);
  });
  return result;
}

nb::object unpack_tiles(Bytes stored, int bits, int64_t n, int64_t k) {
  require(bits >= 0 && bits <= 8, "bits must be 1 to 8, or 0 for trits");
  require(n >= 0 && k >= 0 && n <= (int64_t{1} << 31) && k <= (int64_t{1} << 31), "n and k must be 0 to 2^31");
  const int64_t tiles = (n + 15) / 16, pieces = bits ? (k + 31) / 32 : (k + 19) / 20, piece = 64 * (bits ? bits : 1);
  require(static_cast<int64_t>(stored.shape(0)) == tiles * pieces * piece, "codes: byte count differs from the layout");
  const size_t shape[2] = {static_cast<size_t>(n), static_cast<size_t>(k)};
  uint8_t *out;
  nb::object result = array(2, shape, &out);
  const PackKernels &kernels = pack_kernels();
  const uint8_t *from = stored.data();
  by_rows(tiles, 16 * k, [&](int64_t t) {
    const int64_t rows = std::min<int64_t>(16, n - 16 * t);
    if (bits) kernels.unpack_tile(bits, from + t * pieces * piece, rows, k, out + 16 * t * k, k);
    else kernels.unpack_trits(from + t * pieces * piece, rows, k, out + 16 * t * k, k);
  });
  return result;
}

// ------------------------------------------------------------------------------------------------ blocks of other containers
using Longs = Array<int64_t, 1>;
using Planes = Array<int64_t, 2>;
using Terms = Array<int64_t, 3>;
constexpr int64_t kBlockCodes = 256;  // codes of a row that are taken out at once

// Rows of blocks: where row i of the result begins, which is row order[i] of the file.
struct BlockRows {
  const uint8_t *from;
  int64_t rows, width, bytes, blocks;
  const int64_t *order;
  BlockRows(const Codes &data, int64_t bytes, const std::optional<Longs> &order) : from(data.data()), rows(static_cast<int64_t>(data.shape(0))),
        width(static_cast<int64_t>(data.shape(1))), bytes(bytes), blocks(bytes > 0 ? width / bytes : 0), order(order ? order->data() : nullptr) {
    require(bytes > 0 && width > 0 && width % bytes == 0, "a row is no whole number of blocks");
    if (!order) return;
    const int64_t count = static_cast<int64_t>(order->shape(0));
    for (int64_t i = 0; i < count; i++) require(order->data()[i] >= 0 && order->data()[i] < rows, "a row that does not exist");
    rows = count;
  }
  const uint8_t *row(int64_t i) const { return from + (order ? order[i] : i) * width; }
};

std::vector<FieldPlane> planes_of(const Planes &fields, int64_t bytes, int64_t weights, int bits) {
  require(fields.shape(0) >= 1 && fields.shape(1) == 4, "a plane is offset, width, group, up");
  std::vector<FieldPlane> planes;
  for (size_t i = 0; i < fields.shape(0); i++) {
    const int64_t *p = fields.data() + 4 * i;
    require(p[1] == 1 || p[1] == 2 || p[1] == 4 || p[1] == 8, "fields of a plane have 1, 2, 4 or 8 bits");
    require(p[3] >= 0 && p[3] + p[1] <= bits && p[2] >= 1 && p[2] <= weights && weights % (p[2] * (8 / p[1])) == 0, "a plane does not fill its codes");
    require(p[1] < 8 || p[2] % 8 == 0, "bytes come in groups of 8");
    require(p[0] >= 0 && p[0] <= bytes && p[0] + weights * p[1] / 8 <= bytes, "a plane ends beyond its block");
    planes.push_back({p[0], static_cast<int>(p[1]), static_cast<int>(p[2]), static_cast<int>(p[3])});
  }
  return planes;
}

// Numbers of a block, each the xor of its terms and `flip`, tiled: [n/16][blocks * numbers][16], or two a byte.
struct Term {
  int32_t byte, shift, mask, up;
};
struct Numbers {
  std::vector<Term> terms;
  int64_t count, each, flip, stored;  // stored: columns
  int item;
  bool paired, word, run;  // word: one little-endian 16-bit field; run: the same bits of an even number of bytes in a row
  uint8_t *out;

  template <int terms_each> uint32_t value(const uint8_t *block, int64_t v) const {
    uint32_t x = static_cast<uint32_t>(flip);
    const Term *p = terms.data() + v * (terms_each ? terms_each : each);
    for (int64_t i = 0; i < (terms_each ? terms_each : each); i++) x ^= static_cast<uint32_t>(block[p[i].byte] >> p[i].shift & p[i].mask) << p[i].up;
    return x;
  }

  // Row o of a tile: `blocks` blocks of `bytes` bytes.
  template <int terms_each> void take(const uint8_t *block, int64_t bytes, int64_t blocks, int64_t o, uint8_t *tile) const {
    uint8_t *p = tile + o * item;
    if (word) {
      for (int64_t b = 0; b < blocks; b++, block += bytes, p += 32) {
        const uint16_t x = static_cast<uint16_t>((block[terms[0].byte] | block[terms[1].byte] << 8) ^ flip);
        memcpy(p, &x, 2);
      }
    } else if (paired && run) {
      const int shift = terms[0].shift, mask = terms[0].mask;
      for (int64_t b = 0; b < blocks; b++, block += bytes) {
        const uint8_t *q = block + terms[0].byte;
        for (int64_t v = 0; v < count; v += 2, p += 16)
          *p = static_cast<uint8_t>(((q[v] >> shift & mask) ^ flip) | ((q[v + 1] >> shift & mask) ^ flip) << 4);
      }
    } else if (paired) {
      for (int64_t b = 0, column = 0; b < blocks; b++, block += bytes)
        for (int64_t v = 0; v < count; v++, column++) {
          const uint32_t x = value<terms_each>(block, v);
          if (column & 1) *p = static_cast<uint8_t>(*p | x << 4), p += 16;
          else *p = static_cast<uint8_t>(x);
        }
    } else if (item == 1) {
      for (int64_t b = 0; b < blocks; b++, block += bytes)
        for (int64_t v = 0; v < count; v++, p += 16) *p = static_cast<uint8_t>(value<terms_each>(block, v));
    } else {
      for (int64_t b = 0; b < blocks; b++, block += bytes)
        for (int64_t v = 0; v < count; v++, p += 32) {
          const uint16_t x = static_cast<uint16_t>(value<terms_each>(block, v));
          memcpy(p, &x, 2);
        }
    }
  }

  void tile(const BlockRows &rows, int64_t t) const {
    uint8_t *const to = out + t * stored * 16 * item;
    const int64_t here = std::min<int64_t>(16, rows.rows - 16 * t);
    if (here < 16) std::fill_n(to, stored * 16 * item, uint8_t{0});
    for (int64_t o = 0; o < here; o++) {
      const uint8_t *block = rows.row(16 * t + o);
      if (each == 1) take<1>(block, rows.bytes, rows.blocks, o, to);
      else if (each == 2) take<2>(block, rows.bytes, rows.blocks, o, to);
      else take<0>(block, rows.bytes, rows.blocks, o, to);
    }
  }
};

nb::object numbers_of(const BlockRows &rows, const Terms &terms, int64_t flip, int item, bool paired, Numbers *numbers) {
  require(item == 1 || item == 2, "numbers are 1 or 2 bytes each");
  require(terms.shape(0) >= 1 && terms.shape(1) >= 1 && terms.shape(2) == 4, "a term is byte, shift, bits, up");
  const int64_t width = paired ? 4 : 8 * item;
  require((!paired || item == 1) && flip >= 0 && flip < int64_t{1} << width, "numbers of at most their width");
  numbers->count = static_cast<int64_t>(terms.shape(0)), numbers->each = static_cast<int64_t>(terms.shape(1));
  for (int64_t i = 0; i < numbers->count * numbers->each; i++) {
    const int64_t *p = terms.data() + 4 * i;
    require(p[0] >= 0 && p[0] < rows.bytes && p[1] >= 0 && p[2] >= 0 && p[1] + p[2] <= 8 && p[3] >= 0 && p[3] + p[2] <= width, "a term lies beyond its block or its number");
    numbers->terms.push_back({static_cast<int32_t>(p[0]), static_cast<int32_t>(p[1]), (1 << p[2]) - 1, static_cast<int32_t>(p[3])});
  }
  const Term *t = numbers->terms.data();
  numbers->word = item == 2 && numbers->count == 1 && numbers->each == 2 && t[0].mask == 255 && t[0].up == 0 && t[1].mask == 255 && t[1].up == 8;
  numbers->run = numbers->each == 1 && numbers->count % 2 == 0;
  for (int64_t i = 0; i < numbers->count; i++)
    numbers->run = numbers->run && t[i].byte == t[0].byte + i && t[i].shift == t[0].shift && t[i].mask == t[0].mask && t[i].up == 0;
  numbers->flip = flip, numbers->item = item, numbers->paired = paired;
  const int64_t columns = rows.blocks * numbers->count;
  numbers->stored = paired ? (columns + 1) / 2 : columns;
  const size_t shape[3] = {static_cast<size_t>((rows.rows + 15) / 16), static_cast<size_t>(numbers->stored), 16};
  if (item == 1) return array(3, shape, &numbers->out);
  uint16_t *wide;
  nb::object result = array(3, shape, &wide);
  numbers->out = reinterpret_cast<uint8_t *>(wide);
  return result;
}

// Codes and numbers of another container's blocks, straight to the tile layout; `parts`: (terms, flip, item, paired) of each. (codes, parts)
nb::object block_tiles(Codes data, int64_t bytes, int64_t weights, Planes fields, int flip, int bits, std::vector<std::tuple<Terms, int64_t, int, bool>> parts,
                       std::optional<Longs> order) {
  const BlockRows rows(data, bytes, order);
  require(bits >= 1 && bits <= 8 && flip >= 0 && flip < 1 << bits, "codes have 1 to 8 bits");
  require(weights >= 32 && weights <= kBlockCodes && weights % 32 == 0, "a block has 32 to 256 weights, a multiple of 32");
  const std::vector<FieldPlane> planes = planes_of(fields, bytes, weights, bits);
  std::vector<Numbers> numbers(parts.size());
  nb::list made;
  for (size_t i = 0; i < parts.size(); i++) {
    const auto &[terms, turned, item, paired] = parts[i];
    made.append(numbers_of(rows, terms, turned, item, paired, &numbers[i]));
  }
  const int64_t tiles = (rows.rows + 15) / 16, k = rows.blocks * weights, run = kBlockCodes / weights;
  const size_t shape[3] = {static_cast<size_t>(tiles), static_cast<size_t>(k / 32), static_cast<size_t>(64 * bits)};
  uint8_t *out;
  nb::object result = lasting(3, shape, &out);
  const PackKernels &kernels = pack_kernels();
  by_rows(tiles, 16 * k, [&](int64_t t) {
    uint8_t codes[16 * kBlockCodes];
    const int64_t count = std::min<int64_t>(16, rows.rows - 16 * t);
    for (int64_t b = 0; b < rows.blocks; b += run) {
      const int64_t some = std::min(run, rows.blocks - b);
      for (int64_t o = 0; o < count; o++) {
        const uint8_t *from = rows.row(16 * t + o) + b * bytes;
        for (int64_t i = 0; i < run * bytes; i += 64) __builtin_prefetch(from + run * bytes + i);  // sixteen short pieces in turns: hardware does not ask
        kernels.block_codes(planes.data(), static_cast<int>(planes.size()), flip, from, bytes, some, weights, codes + o * kBlockCodes);
      }
      kernels.pack_tile(bits, codes, kBlockCodes, count, some * weights, out + (t * k + b * weights) / 32 * 64 * bits);
    }
    for (const Numbers &n : numbers) n.tile(rows, t);
  });
  return nb::make_tuple(result, made);
}

// Codes of up to 32 bits through a 64-bit window: for widths beyond 8, which no kernel reads.
template <class T> void pack_wide(int bits, const T *codes, int64_t k, uint8_t *out) {
  uint64_t window = 0;
  int held = 0;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int64_t i = 0; i < k; i++) {
    window |= (codes[i] & mask) << held;
    for (held += bits; held >= 8; held -= 8, window >>= 8) *out++ = static_cast<uint8_t>(window);
  }
  if (held > 0) *out = static_cast<uint8_t>(window);
}

template <class T> void unpack_wide(int bits, const uint8_t *stored, int64_t k, T *codes) {
  uint64_t window = 0;
  int held = 0;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  for (int64_t i = 0; i < k; i++, window >>= bits, held -= bits) {
    for (; held < bits; held += 8) window |= static_cast<uint64_t>(*stored++) << held;
    codes[i] = static_cast<T>(window & mask);
  }
}

template <class T> nb::object pack_rows(Array<T, 2> codes, int bits) {
  require(bits >= 1 && bits <= static_cast<int>(8 * sizeof(T)), "bits must be 1 to those of the codes' type");
  const int64_t rows = static_cast<int64_t>(codes.shape(0)), k = static_cast<int64_t>(codes.shape(1)), width = (k * bits + 7) / 8;
  const size_t shape[2] = {static_cast<size_t>(rows), static_cast<size_t>(width)};
  uint8_t *out;
  nb::object result = array(2, shape, &out);
  const PackKernels &kernels = pack_kernels();
  const T *from = codes.data();
  by_rows(rows, k, [&](int64_t r) {
    if constexpr (sizeof(T) == 1) kernels.pack_row(bits, from + r * k, k, out + r * width);
    else pack_wide(bits, from + r * k, k, out + r * width);
  });
  return result;
}

template <class T> nb::object unpack_some(Codes stored, int bits, int64_t k) {
  const int64_t rows = static_cast<int64_t>(stored.shape(0)), width = (k * bits + 7) / 8;
  const size_t shape[2] = {static_cast<size_t>(rows), static_cast<size_t>(k)};
  T *out;
  nb::object result = array(2, shape, &out);
  const PackKernels &kernels = pack_kernels();
  const uint8_t *from = stored.data();
  by_rows(rows, k, [&](int64_t r) {
    if constexpr (sizeof(T) == 1) kernels.unpack_row(bits, from + r * width, k, out + r * k);
    else unpack_wide(bits, from + r * width, k, out + r * k);
  });
  return result;
}

nb::object unpack_rows(Codes stored, int bits, int64_t k) {  // uint8, uint16 or uint32 by bits
  require(bits >= 1 && bits <= 32, "bits must be 1 to 32");
  require(k >= 0 && k <= (int64_t{1} << 48) && static_cast<int64_t>(stored.shape(1)) == (k * bits + 7) / 8, "codes: byte count differs from the layout");
  if (bits <= 8) return unpack_some<uint8_t>(stored, bits, k);
  return bits <= 16 ? unpack_some<uint16_t>(stored, bits, k) : unpack_some<uint32_t>(stored, bits, k);
}

// ------------------------------------------------------------------------------------------------ lossless
EscapeShape escape_shape(int64_t count, int64_t run, int item) {
  require(item == 1 || item == 2, "codes must be 1 or 2 bytes each");
  require(count >= 1 && count <= (int64_t{1} << 46) && run >= 1 && count % run == 0, "the codes are no whole number of runs");
  return EscapeShape(count, run, item);
}

nb::object encode(Bytes codes, int item, int64_t run) {  // (codes, index)
  require(item == 1 || item == 2, "codes must be 1 or 2 bytes each");
  const EscapeShape shape = escape_shape(static_cast<int64_t>(codes.shape(0)) / item, run, item);
  std::vector<uint8_t> room(codes.shape(0));
  std::vector<int64_t> sizes(static_cast<size_t>(shape.blocks));
  const size_t index_shape[2] = {static_cast<size_t>(shape.blocks), static_cast<size_t>(kEscapeEntry)};
  uint8_t *index, *out;
  nb::object index_array = array(2, index_shape, &index);
  const PackKernels &kernels = pack_kernels();
  const uint8_t *from = codes.data();
  by_rows(shape.blocks, kEscapeBlock, [&](int64_t b) {
    const int64_t at = shape.first(b) * item;
    sizes[static_cast<size_t>(b)] = kernels.encode(from + at, shape.size(b), item, room.data() + at, index + b * kEscapeEntry);
  });
  int64_t total = 0;
  for (int64_t b = 0; b < shape.blocks; total += sizes[static_cast<size_t>(b)], b++)
    for (int i = 0; i < 6; i++) index[b * kEscapeEntry + i] = static_cast<uint8_t>(total >> 8 * i);
  const size_t length = static_cast<size_t>(total);
  nb::object result = array(1, &length, &out);
  for (int64_t b = 0; b < shape.blocks; b++) {
    const size_t size = static_cast<size_t>(sizes[static_cast<size_t>(b)]);
    std::copy_n(room.data() + shape.first(b) * item, size, out);
    out += size;
  }
  return nb::make_tuple(result, index_array);
}

void check(Bytes codes, Codes index, int item, int64_t count, int64_t run) {
  const EscapeShape shape = escape_shape(count, run, item);
  require(static_cast<int64_t>(index.shape(0)) == shape.blocks && index.shape(1) == static_cast<size_t>(kEscapeEntry), "index: its size differs from the layout");
  check_escapes(shape, index.data(), codes.data(), static_cast<int64_t>(codes.shape(0)));
}

template <class T> nb::object decode_all(const Bytes &codes, const Codes &index, const EscapeShape &shape) {
  const size_t count = static_cast<size_t>(shape.count);
  T *out;
  nb::object result = array(1, &count, &out);
  const PackKernels &kernels = pack_kernels();
  const uint8_t *from = codes.data(), *entries = index.data();
  by_rows(shape.blocks, kEscapeBlock, [&](int64_t b) {
    const uint8_t *entry = entries + b * kEscapeEntry;
    kernels.decode(from + escape_entry(entry).offset, entry, shape.size(b), shape.item, reinterpret_cast<uint8_t *>(out + shape.first(b)));
  });
  return result;
}

nb::object decode(Bytes codes, Codes index, int item, int64_t count, int64_t run) {
  check(codes, index, item, count, run);
  const EscapeShape shape = escape_shape(count, run, item);
  return item == 1 ? decode_all<uint8_t>(codes, index, shape) : decode_all<uint16_t>(codes, index, shape);
}

}  // namespace

void bind_pack(nb::module_ &m) {
  m.def("pack_tiles", &pack_tiles, "codes"_a, "bits"_a);
  m.def("unpack_tiles", &unpack_tiles, "stored"_a, "bits"_a, "n"_a, "k"_a);
  m.def("pack_rows", &pack_rows<uint8_t>, "codes"_a, "bits"_a);
  m.def("pack_rows", &pack_rows<uint16_t>, "codes"_a, "bits"_a);
  m.def("pack_rows", &pack_rows<uint32_t>, "codes"_a, "bits"_a);
  m.def("unpack_rows", &unpack_rows, "stored"_a, "bits"_a, "k"_a);
  m.def("block_tiles", &block_tiles, "data"_a, "bytes"_a, "weights"_a, "fields"_a, "flip"_a, "bits"_a, "parts"_a, "order"_a.none() = nb::none());
  m.def("escape_encode", &encode, "codes"_a, "item"_a, "run"_a);
  m.def("escape_check", &check, "codes"_a, "index"_a, "item"_a, "count"_a, "run"_a);
  m.def("escape_decode", &decode, "codes"_a, "index"_a, "item"_a, "count"_a, "run"_a);
}

}  // namespace anybit
