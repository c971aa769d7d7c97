// Bindings of rounding: plans, and arrays cut into tasks for the pool. All checks are here.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "bind_round.h"
#include "pool.h"

using namespace nanobind::literals;

namespace anybit {

AB_KERNELS(RoundKernels, round_kernels)

namespace {

const RoundKernels &round_kernels_now() { return *round_kernels_of[static_cast<int>(isa())]; }

constexpr int64_t kTask = 32 * kRoundBlock;
constexpr int64_t kStreamBytes = 8 << 20;  // results larger than this go past the caches: they would not stay there
constexpr uint32_t kInfinity = 0x7f800000u;

using Floats = Array<float, 1>;
using Doubles = Array<double, 1>;
using Codes32 = Array<int32_t, 1>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyOut = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyIn = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T> std::vector<T> listed(const nb::dict &d, const char *name) {
  const auto a = nb::cast<Array<T, 1>>(d[name]);
  return std::vector<T>(a.data(), a.data() + a.shape(0));
}
template <class T, class U> void pair(const nb::dict &d, const char *name, U *out) {
  const auto v = listed<T>(d, name);
  require(v.size() == 2, name);
  out[0] = static_cast<U>(v[0]), out[1] = static_cast<U>(v[1]);
}
template <class T> T one(const nb::dict &d, const char *name) { return nb::cast<T>(d[name]); }

// The longest run of binades around 1 that drop at most their fraction. A binade's first number and the next one's are values then.
void smooth_part(RoundPlan *p) {
  const auto smooth = [&](int e) { return e << 23 >= p->smallest && (e + 1) << 23 <= p->biggest && p->drops[e % 64] <= 23 && p->drops[e % 64] >= 1; };
  int from = 127, to = 127;
  while (p->entries <= 64 && from > 1 && smooth(from - 1)) from--;
  while (p->entries <= 64 && to < 254 && smooth(to)) to++;
  if (from < to) p->smooth_from = static_cast<uint32_t>(from) << 24, p->smooth_span = (static_cast<uint32_t>(to - from) << 24) - 1;
}

void search_by_parts(RoundPlan *p) {
  int count = 0;
  for (int i = 0; i < 16; i++) {
    const int last_one = i == 15 ? 4 : __builtin_ctz(static_cast<unsigned>(i + 1));  // the level, from below, that has the i-th
    p->ordered[i] = i == 15 ? HUGE_VALF : p->tree[3 - last_one][i >> (last_one + 1)];
    if (std::isfinite(p->ordered[i])) count = i + 1, p->reach = std::max(p->reach, std::fabs(p->ordered[i]));
  }
  if (count == 0 || p->reach < 0x1p-60f || p->reach > 0x1p60f) return;
  p->part_scale = 31 / p->reach;
  uint32_t part[16];
  for (int i = 0; i < count; i++) {
    const float at = std::fma(p->ordered[i], p->part_scale, kPartMiddle);
    memcpy(&part[i], &at, 4);
    part[i] &= 63;
    if (i > 0 && part[i] <= part[i - 1]) return;
  }
  for (uint32_t at = 0; at < 64; at++) p->parts[at] = static_cast<uint8_t>(std::lower_bound(part, part + count, at) - part);
  p->parted = true;
}

// Tables of a stochastic search by upper halves. Distances are off by half a last place of the number, the neighbour and themselves, and quotients by one more.
void by_sides(RoundPlan *p) {
  double most = 0, narrowest = HUGE_VAL;
  p->sided = p->last > 0;
  for (int i = 0; i < 16; i++) {
    const bool inside = i < p->last, negative = inside && p->chain[i + 1] <= 0;
    const int low = std::min(i, p->last), high = std::min(i + 1, p->last);
    p->side_near16[i] = p->values16[negative ? high : low], p->side_far16[i] = p->values16[negative ? low : high];
    p->side_parts16[i] = 0;
    if (!inside) continue;
    const double gap = p->chain[high] - p->chain[low];
    p->side_parts16[i] = static_cast<float>((negative ? -0x1p16 : 0x1p16) / gap);
    p->sided = p->sided && (negative || p->chain[low] >= 0);
    most = std::max({most, std::fabs(p->chain[low]), std::fabs(p->chain[high])}), narrowest = std::min(narrowest, gap);
  }
  p->side_unsure = static_cast<float>(1.01 + std::ldexp(8 + 4 * most / narrowest, -8));
  p->sided = p->sided && p->side_unsure < 4;
}

void make_round(PyRound *self, nb::dict d) {
  new (self) PyRound();
  PyRound &r = *self;
  RoundPlan &p = r.plan;
  memset(&p, 0, sizeof p);
  const int kind = one<int>(d, "kind"), mode = one<int>(d, "mode");
  require(kind >= 0 && kind <= static_cast<int>(RoundKind::Bisect), "kind");
  require(mode >= 0 && mode <= static_cast<int>(RoundMode::Stochastic), "mode");
  p.kind = static_cast<RoundKind>(kind), p.mode = static_cast<RoundMode>(mode);
  p.random_bits = one<int>(d, "random_bits");
  require(p.mode != RoundMode::Stochastic || (p.random_bits >= 1 && p.random_bits <= 32), "random_bits");
  p.word_mask = p.random_bits ? ~0u << (32 - p.random_bits) : 0;
  p.whole_words = std::ldexp(1.0f, p.random_bits), p.minus_word = std::ldexp(-1.0f, -p.random_bits);
  r.width = one<int>(d, "width");
  require(r.width == 1 || r.width == 2, "width");
  r.decoded = listed<float>(d, "decoded");
  require(r.decoded.size() == (r.width == 1 ? 256u : 65536u), "decoded values fill the code's type");
  r.code_mask = one<uint32_t>(d, "codes");
  r.keep_specials = one<bool>(d, "keep_specials"), r.refuse_outside = one<bool>(d, "refuse_outside");
  r.fill = one<float>(d, "fill"), r.first = one<float>(d, "first"), r.last = one<float>(d, "last");
  const auto special_values = listed<float>(d, "special_values");
  const auto special_codes = listed<int32_t>(d, "special_codes");
  require(special_values.size() == 3 && special_codes.size() == 3, "specials");
  std::copy(special_values.begin(), special_values.end(), r.special_values);
  std::copy(special_codes.begin(), special_codes.end(), r.special_codes);
  p.minus_zero = one<bool>(d, "minus_zero");
  p.zero_code = one<int>(d, "zero_code"), p.minus_zero_code = one<int>(d, "minus_zero_code");
  if (p.kind <= RoundKind::Tapered) {
    if (p.kind == RoundKind::Tapered) {
      p.entries = one<int>(d, "entries"), p.smallest = one<int>(d, "smallest"), p.biggest = one<int>(d, "biggest"), p.origin = one<int>(d, "origin");
      require(p.mode != RoundMode::Stochastic || (p.random_bits <= 24 && one<bool>(d, "clips")), "tapered rounding is stochastic by at most 24 bits, and clips");
      require(p.entries == 16 || p.entries == 32 || p.entries == 64 || p.entries == 128, "entries");
      require(0 < p.smallest && p.smallest < p.biggest && p.origin >= 0 && int64_t{p.biggest} + p.origin < 0x70000000, "tapered range");
      pair<int32_t>(d, "zero_below", p.zero_below), pair<int32_t>(d, "out_from", p.out_from);
      const auto taper = listed<int32_t>(d, "taper");
      require(taper.size() == 128, "taper");
      for (int i = 0; i < 128; i++) p.taper[i] = taper[static_cast<size_t>(i % p.entries)];
      for (int i = 0; i < 64; i++) {
        p.drops[i] = static_cast<uint8_t>(p.taper[i] & 31), p.lifts[i] = static_cast<uint8_t>(32 - p.drops[i]);
        p.offsets[i] = static_cast<uint8_t>(p.taper[i] >> 5);
      }
      p.bytes = r.width == 1 && p.entries <= 64 && one<bool>(d, "clips");
      smooth_part(&p);
    } else {
      p.mantissa = one<int>(d, "mantissa"), p.least = one<int>(d, "least");
      require(p.mantissa >= 0 && p.mantissa <= 22 && p.least >= 1 && p.least <= 254, "mantissa and first binade");
      require(p.kind == RoundKind::Prefix || p.least > p.mantissa + 1, "steps below float32's range");
      p.cap = one<float>(d, "cap");
      require(p.kind == RoundKind::Prefix || (p.cap > 0 && p.cap <= 0x1p100f), "cap");
    }
    pair<int32_t>(d, "top", p.top), pair<float>(d, "largest", p.largest);
    pair<float>(d, "out_value", p.out_value), pair<int32_t>(d, "out_code", p.out_code);
    p.symmetric = one<bool>(d, "symmetric"), p.clips = one<bool>(d, "clips"), p.two_complement = one<bool>(d, "two_complement");
    p.sign_bit = one<int>(d, "sign_bit"), p.code_mask = static_cast<int32_t>(r.code_mask);
    require(p.sign_bit >= -1 && p.sign_bit < 16, "sign bit");
    if (p.kind == RoundKind::Steps && p.clips) {
      if (p.symmetric) p.cap = p.largest[0];
      p.even = std::max(p.largest[0], p.largest[1]) < std::ldexp(1.0f, p.least - 126);
    }
  } else if (p.kind == RoundKind::Search) {
    const auto tree = listed<float>(d, "tree");
    const auto values = listed<float>(d, "values");
    const auto codes = listed<int32_t>(d, "search_codes");
    require(tree.size() == 64 && values.size() == 16 && codes.size() == 16, "search tables");
    memcpy(p.tree, tree.data(), sizeof p.tree);
    for (int level = 0; level < 4; level++)
      for (int i = 0; i < 16; i++) p.spread[level][i] = p.tree[level][i >> (4 - level)];
    search_by_parts(&p);
    memcpy(p.values16, values.data(), sizeof p.values16);
    memcpy(p.codes16, codes.data(), sizeof p.codes16);
    if (p.mode == RoundMode::Stochastic) {
      const auto near = listed<float>(d, "near"), gaps = listed<float>(d, "gaps");
      r.chain = listed<double>(d, "chain");
      p.chain = r.chain.data(), p.unsure = one<float>(d, "unsure"), p.exact = one<bool>(d, "exact"), p.last = static_cast<int>(r.chain.size()) - 2;
      require(!p.exact || p.random_bits <= 24, "exact");
      require(near.size() == 16 && gaps.size() == 16 && p.last >= 0 && p.last < 16, "stochastic search tables");
      memcpy(p.near16, near.data(), sizeof p.near16);
      memcpy(p.gap16, gaps.data(), sizeof p.gap16);
      for (int i = 0; i < 16; i++) {
        const int above = std::min(i + 1, 15), negative = i < p.last && r.chain[static_cast<size_t>(i + 1)] <= 0;
        p.near_codes16[i] = p.codes16[negative ? above : i], p.far_codes16[i] = p.codes16[negative ? i : above];
      }
      by_sides(&p);
    }
  } else {
    r.values = listed<float>(d, "rank_values"), r.codes = listed<int32_t>(d, "rank_codes");
    r.points = listed<float>(d, "points"), r.chain = listed<double>(d, "chain");
    p.rank_values = r.values.data(), p.rank_codes = r.codes.data(), p.chain = r.chain.data();
    p.points = r.points.data(), p.point_count = static_cast<int64_t>(r.points.size());
    const size_t half = r.points.size() + 2, ranks = 2 * half;  // one more than there are: stochastic rounding may step past the last
    p.negative_ranks = static_cast<uint32_t>(half);
    require(r.values.size() == ranks && r.codes.size() == ranks && r.chain.size() == ranks, "tables by rank");
    if (p.kind == RoundKind::Buckets) {
      const auto base = listed<uint32_t>(d, "bases"), shift = listed<uint32_t>(d, "shifts"), rank = listed<uint32_t>(d, "ranks");
      const auto threshold = listed<float>(d, "thresholds");
      require(base.size() == 512 && shift.size() == 512 && rank.size() == threshold.size(), "buckets");
      for (size_t i = 0; i < 512; i++) {
        require(shift[i] <= 23 && base[i] + (size_t{1} << (23 - shift[i])) <= rank.size(), "bucket out of range");
        r.nodes.push_back({base[i], shift[i]});
      }
      for (size_t i = 0; i < rank.size(); i++) {
        const bool more = std::isfinite(threshold[i]);  // some numbers of the bucket have the next rank
        require(size_t{rank[i]} + more + (p.mode == RoundMode::Stochastic) < ranks, "rank");
        r.buckets.push_back({threshold[i], rank[i]});
      }
      p.nodes = r.nodes.data(), p.buckets = r.buckets.data();
      if (std::all_of(shift.begin(), shift.end(), [](uint32_t s) { return s >= 16; })) {
        for (uint32_t half = 0; half < 65536; half++) {
          const Node node = r.nodes[half >> 7];
          r.halves.push_back(r.buckets[node.base + ((half & 0x7f) >> (node.shift - 16))]);
        }
        p.halves = r.halves.data();
      }
    }
  }
  // An upper half decides where it has all bits that are dropped. Sums of steps have 24 bits: what is left of them below a step says how often it does not.
  p.lower = p.random_bits > 16 && !(p.kind == RoundKind::Prefix && p.mantissa >= 7);
  p.seldom = p.lower && p.random_bits <= 24 && (p.kind != RoundKind::Steps || p.mantissa <= 12);
}

struct Found {  // values that are refused: how many, and the first one's place
  int64_t count = 0, first = -1;
  void add(int64_t at) {
    if (first < 0 || at < first) first = at;
    count++;
  }
  void add(const Found &o) {
    if (o.count == 0) return;
    if (first < 0 || o.first < first) first = o.first;
    count += o.count;
  }
};

bool special(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return (bits & 0x7fffffffu) >= kInfinity;
}

// One task: numbers [from, to) in blocks. `write(at, source, count)` stores a block of finite numbers, `patch(at, which, value)` a special one (-1: one out of range).
template <class Write, class Patch>
void run_blocks(const PyRound &r, const RoundKernels &k, const float *x, int64_t from, int64_t to, Found *bad, Found *outside, Write write, Patch patch) {
  alignas(64) float held[kRoundBlock];
  int32_t marks[kRoundBlock];
  std::vector<std::pair<int64_t, float>> refused;
  for (int64_t at = from; at < to; at += kRoundBlock) {
    const int64_t count = std::min(kRoundBlock, to - at);
    const float *source = x + at;
    int64_t specials = 0;
    if (k.largest(source, count) >= kInfinity) {
      for (int64_t i = 0; i < count; i++) {
        held[i] = source[i];
        if (!special(source[i])) continue;
        if (!r.keep_specials) bad->add(at + i);
        marks[specials++] = static_cast<int32_t>(i << 2 | (std::isnan(source[i]) ? 0 : source[i] > 0 ? 1 : 2));
        held[i] = r.fill;
      }
      source = held;
    }
    refused.clear();
    if (r.refuse_outside) {
      float low, high;
      k.range(source, count, &low, &high);
      if (low < r.first || high >= r.last)
        for (int64_t i = 0; i < count; i++)
          if (source[i] < r.first || source[i] >= r.last) outside->add(at + i), refused.push_back({at + i, source[i]});
    }
    write(at, source, count);
    for (int64_t i = 0; i < specials; i++) patch(at + (marks[i] >> 2), marks[i] & 3, 0.0f);
    for (const auto &value : refused) patch(value.first, -1, value.second);
  }
}

// Cuts n numbers into tasks; the first is longer by `head`.
template <class Body> nb::tuple in_tasks(int64_t n, int64_t head, Body body) {
  const int64_t tasks = std::max<int64_t>(1, (n - head + kTask - 1) / kTask);
  std::vector<Found> bad(static_cast<size_t>(tasks)), outside(static_cast<size_t>(tasks));
  {
    nb::gil_scoped_release release;
    parallel_for(tasks, [&](int64_t t) {
      const int64_t from = t == 0 ? 0 : head + t * kTask, to = std::min(n, head + (t + 1) * kTask);
      if (head > 0 && t == 0) body(0, std::min(head, n), &bad[0], &outside[0]);  // up to where the result is aligned
      body(t == 0 ? std::min(head, n) : from, to, &bad[static_cast<size_t>(t)], &outside[static_cast<size_t>(t)]);
    });
  }
  Found all_bad, all_outside;
  for (const Found &f : bad) all_bad.add(f);
  for (const Found &f : outside) all_outside.add(f);
  return nb::make_tuple(all_bad.count, all_bad.first, all_outside.count, all_outside.first);
}

// Stores past the caches wait for the page that they go to: one touch of each of the next ones has it found while the numbers before are rounded.
void find_pages(const void *from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 4096) __builtin_prefetch(static_cast<const char *>(from) + i);
}

const Draw *drawn(const PyRound &r, const Draw &draw) { return r.plan.mode == RoundMode::Stochastic ? &draw : nullptr; }

nb::tuple round_values(const PyRound &r, Floats x, FloatsOut out, uint64_t seed, int64_t start) {
  const int64_t n = static_cast<int64_t>(x.shape(0));
  require(static_cast<int64_t>(out.shape(0)) == n, "out: length differs from x");
  require(start >= 0, "start");
  const RoundKernels &k = round_kernels_now();
  float *y = out.data();
  const float *source = x.data();
  const size_t address = reinterpret_cast<size_t>(y);
  const bool stream = n * 4 >= kStreamBytes && address % 4 == 0;
  const int64_t head = stream ? static_cast<int64_t>((64 - address % 64) % 64 / 4) : 0;
  return in_tasks(n, head, [&](int64_t from, int64_t to, Found *bad, Found *outside) {
    KeptHalves kept;
    run_blocks(
        r, k, source, from, to, bad, outside,
        [&](int64_t at, const float *s, int64_t count) {
          const Draw draw = {seed, static_cast<uint64_t>(start + at), &kept};
          if (stream) find_pages(y + at + count, 4 * std::min(kRoundBlock, n - at - count));
          k.values(r.plan, s, drawn(r, draw), count, y + at, stream && at >= head);
        },
        [&](int64_t at, int which, float value) { y[at] = which < 0 ? value : r.special_values[which]; });  // what is refused stays
  });
}

nb::tuple round_codes(const PyRound &r, Floats x, AnyOut out, uint64_t seed, int64_t start) {
  const int64_t n = static_cast<int64_t>(x.shape(0));
  require(static_cast<int64_t>(out.shape(0)) == n, "out: length differs from x");
  require(start >= 0, "start");
  require(out.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && out.dtype().bits == 8 * r.width, "out: not the codes' type");
  const RoundKernels &k = round_kernels_now();
  uint8_t *y = static_cast<uint8_t *>(out.data());
  const float *source = x.data();
  const size_t address = reinterpret_cast<size_t>(y);
  const bool stream = n * r.width >= kStreamBytes && address % static_cast<size_t>(r.width) == 0;
  const int64_t head = stream ? static_cast<int64_t>((64 - address % 64) % 64) / r.width : 0;
  return in_tasks(n, head, [&](int64_t from, int64_t to, Found *bad, Found *outside) {
    KeptHalves kept;
    run_blocks(
        r, k, source, from, to, bad, outside,
        [&](int64_t at, const float *s, int64_t count) {
          const Draw draw = {seed, static_cast<uint64_t>(start + at), &kept};
          if (stream) find_pages(y + (at + count) * r.width, r.width * std::min(kRoundBlock, n - at - count));
          k.codes(r.plan, s, drawn(r, draw), count, r.width, y + at * r.width, stream && at >= head);
        },
        [&](int64_t at, int which, float) {
          if (which < 0) return;
          const uint16_t code = static_cast<uint16_t>(r.special_codes[which]);
          memcpy(y + at * r.width, &code, static_cast<size_t>(r.width));  // little-endian, as everywhere in this module
        });
  });
}

BlockPlan block_plan(const nb::dict &d) {
  BlockPlan b;
  b.size = one<int64_t>(d, "size"), b.power_of_two = one<bool>(d, "power_of_two"), b.top = one<int>(d, "top");
  b.most = one<double>(d, "most"), b.outer = one<double>(d, "outer"), b.smallest = one<double>(d, "smallest"), b.biggest = one<double>(d, "biggest");
  b.end = one<double>(d, "end");
  b.first = one<double>(d, "first"), b.mantissa = one<int>(d, "mantissa"), b.factor = one<float>(d, "factor"), b.limit = one<double>(d, "limit");
  return b;
}

constexpr int64_t kStillCached = 16 << 20;  // bytes

// Rows of k numbers in blocks with scales. False: some scale is too large or some number not finite; what out holds is then not defined.
bool round_blocks(const PyRound &r, nb::dict d, Matrix x, nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> out, uint64_t seed) {
  BlockPlan b = block_plan(d);
  const int64_t rows = static_cast<int64_t>(x.shape(0)), k = static_cast<int64_t>(x.shape(1));
  require(static_cast<int64_t>(out.shape(0)) == rows && static_cast<int64_t>(out.shape(1)) == k, "out: shape differs from x");
  require(b.size >= 1 && b.size <= k && b.mantissa >= 0 && b.mantissa <= 23, "block");
  require(!r.keep_specials && !r.refuse_outside, "blocks refuse NaN and clip");
  const bool random = r.plan.mode == RoundMode::Stochastic;
  require(!random || b.size <= kRoundBlock, "stochastic blocks have at most 2048 numbers");
  const RoundKernels &kernels = round_kernels_now();
  b.near = rows * k >= kTask && kernels.near(r.plan, b);
  const float *source = x.data();
  float *y = out.data();
  const bool stream = rows * k * 4 >= kStreamBytes;
  const int64_t step = b.size >= kRoundBlock ? b.size : kRoundBlock / b.size * b.size;  // numbers of whole blocks that are handled together
  const int64_t pieces = (k + step - 1) / step, total = rows * pieces, each = std::max<int64_t>(1, kTask / step);
  const int64_t tasks = (total + each - 1) / each;
  // What was read last for the largest magnitude of all is still in the last-level cache: it comes first.
  const int64_t cached = std::min(tasks, kStillCached / (each * step * static_cast<int64_t>(sizeof(float))));
  std::vector<uint8_t> good(static_cast<size_t>(tasks), 1);
  {
    nb::gil_scoped_release release;
    parallel_for(tasks, [&](int64_t i) {
      const int64_t t = i < cached ? tasks - cached + i : i - cached;
      Lines lines;
      KeptHalves kept;
      for (int64_t piece = t * each, end = std::min(total, (t + 1) * each); piece < end; piece++) {
        const int64_t from = piece % pieces * step, at = piece / pieces * k + from, count = std::min(step, k - from);
        const Draw draw = {seed, static_cast<uint64_t>(at), &kept};
        if (stream) find_pages(y + at + count, 4 * std::min(step, rows * k - at - count));
        if (!kernels.blocks(r.plan, b, source + at, drawn(r, draw), count, y + at, stream ? &lines : nullptr)) {
          good[static_cast<size_t>(t)] = 0;
          return;
        }
        if (piece + 1 == end) std::copy(lines.held + 16 - lines.count, lines.held + 16, y + at + count - lines.count);
      }
    });
  }
  return std::all_of(good.begin(), good.end(), [](uint8_t g) { return g != 0; });
}

// Rows of tokens, each rounded by itself. Without fields each number by itself.
PyRounding round_tokens(nb::object self, nb::object fields) {
  const PyRound &r = nb::cast<const PyRound &>(self);
  require(r.plan.mode != RoundMode::Stochastic && !r.keep_specials && !r.refuse_outside, "tokens are rounded to nearest, refuse NaN and clip");
  PyRounding out{self, {}};
  out.rounding.plan = &r.plan;
  if (fields.is_none()) return out;
  const nb::dict d = nb::cast<nb::dict>(fields);
  out.rounding.blocks = true;
  out.rounding.block = block_plan(d);
  out.rounding.size = out.rounding.block.size;
  require(out.rounding.size >= 0 && out.rounding.block.mantissa >= 0 && out.rounding.block.mantissa <= 23, "block");
  out.rounding.second = one<bool>(d, "second");
  out.rounding.top = one<double>(d, "second_top"), out.rounding.most_short = one<double>(d, "second_short");
  return out;
}

// Rows of keys or values in codes. `scales`: how scales are stored, with a table by code for those of one byte.
PyCacheFormat cache_format(nb::object self, nb::object fields, int bits, int scale, Floats scale_table) {
  const PyRounding tokens = round_tokens(self, fields);
  const PyRound &r = nb::cast<const PyRound &>(self);
  PyCacheFormat out{self, std::make_shared<CacheFormat>()};
  CacheFormat &f = *out.format;
  require(!tokens.rounding.second, "a cache's format has one level of scales");
  require(bits == 1 || bits == 2 || bits == 4 || bits == 8 || bits == 16, "bits of a code in a page");
  require(bits == 16 ? r.width == 2 && fields.is_none() : r.width == 1 && r.code_mask < 1u << bits, "codes do not fit");
  require(scale >= 0 && scale <= static_cast<int>(CacheScale::Float32) && (scale == 0) == fields.is_none(), "scale");
  f.plan = tokens.rounding.plan, f.block = tokens.rounding.block, f.size = tokens.rounding.size, f.bits = bits;
  f.scale = static_cast<CacheScale>(scale);
  if (bits == 16) {
    f.wide = r.decoded[0x3c00] == 1.0f ? Wide::Float16 : Wide::BFloat16;
    require(f.wide == Wide::Float16 || r.decoded[0x3f80] == 1.0f, "codes of 16 bits are fp16 or bf16");
    return out;
  }
  f.integers = bits == 8;
  for (int i = 0; i < 256; i++) {
    f.table[i] = r.decoded[static_cast<size_t>(i)];
    f.integers = f.integers && f.table[i] == static_cast<float>(static_cast<int8_t>(i));
  }
  if (f.scale != CacheScale::Table) return out;
  require(scale_table.shape(0) == 256, "a scale table has 256 entries");
  std::vector<std::pair<float, int>> sorted;
  for (int i = 0; i < 256; i++) {
    f.scale_table[i] = scale_table.data()[i];
    if (std::isfinite(f.scale_table[i]) && f.scale_table[i] > 0) sorted.emplace_back(f.scale_table[i], i);
  }
  require(!sorted.empty(), "a scale has positive values");
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
  for (const auto &[value, code] : sorted) f.scale_sorted[f.scale_count] = value, f.scale_codes[f.scale_count++] = static_cast<uint8_t>(code);
  return out;
}

// Values of codes; the number of bits that do not belong to any code, or 0.
uint32_t decode_codes(const PyRound &r, AnyIn codes, FloatsOut out) {
  const int64_t n = static_cast<int64_t>(codes.shape(0));
  require(static_cast<int64_t>(out.shape(0)) == n, "out: length differs from the codes");
  require(codes.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && codes.dtype().bits == 8 * r.width, "codes: not the codes' type");
  const RoundKernels &k = round_kernels_now();
  const uint8_t *source = static_cast<const uint8_t *>(codes.data());
  float *y = out.data();
  const int64_t tasks = (n + kTask - 1) / kTask;
  std::vector<uint32_t> all(static_cast<size_t>(tasks), 0);
  {
    nb::gil_scoped_release release;
    parallel_for(tasks, [&](int64_t t) {
      const int64_t from = t * kTask, to = std::min(n, from + kTask);
      all[static_cast<size_t>(t)] = k.decode(source + from * r.width, r.width, to - from, r.decoded.data(), y + from);
    });
  }
  uint32_t any = 0;
  for (const uint32_t a : all) any |= a;
  return any & ~r.code_mask;
}

// Bits of the largest magnitude: 0x7f800000 and more are not finite.
uint32_t largest_magnitude(Floats x) {
  const RoundKernels &k = round_kernels_now();
  const int64_t n = static_cast<int64_t>(x.shape(0)), tasks = (n + kTask - 1) / kTask;
  std::vector<uint32_t> most(static_cast<size_t>(tasks), 0);
  const float *source = x.data();
  {
    nb::gil_scoped_release release;
    parallel_for(tasks, [&](int64_t t) { most[static_cast<size_t>(t)] = k.largest(source + t * kTask, std::min(kTask, n - t * kTask)); });
  }
  return tasks == 0 ? 0 : *std::max_element(most.begin(), most.end());
}

// Halves of the random words of places from `start` on, for stochastic rounding: the upper ones or, `lower`, what goes below them.
void random_halves(uint64_t seed, int64_t start, bool lower, nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  require(start >= 0, "start");
  const RoundKernels &k = round_kernels_now();
  const int64_t n = static_cast<int64_t>(out.shape(0)), tasks = (n + kTask - 1) / kTask;
  uint16_t *y = out.data();
  nb::gil_scoped_release release;
  parallel_for(tasks, [&](int64_t t) { k.halves(seed, static_cast<uint64_t>(start + t * kTask), lower, std::min(kTask, n - t * kTask), y + t * kTask); });
}

}  // namespace

void bind_round(nb::module_ &m) {
  nb::class_<PyRounding>(m, "Rounding");
  nb::class_<PyCacheFormat>(m, "CacheFormat");
  nb::class_<PyRound>(m, "Round")
      .def("__init__", &make_round, "fields"_a)
      .def("values", &round_values, "x"_a, "out"_a, "seed"_a, "start"_a)
      .def("codes", &round_codes, "x"_a, "out"_a, "seed"_a, "start"_a)
      .def("blocks", &round_blocks, "fields"_a, "x"_a, "out"_a, "seed"_a)
      .def("tokens", [](nb::handle_t<PyRound> self, nb::object fields) { return round_tokens(nb::borrow(self), fields); }, "fields"_a.none())
      .def("cache", [](nb::handle_t<PyRound> self, nb::object fields, int bits, int scale, Floats scale_table) {
        return cache_format(nb::borrow(self), fields, bits, scale, scale_table);
      }, "fields"_a.none(), "bits"_a, "scale"_a, "scale_table"_a)
      .def("decode", &decode_codes, "codes"_a, "out"_a);
  m.def("random_halves", &random_halves, "seed"_a, "start"_a, "lower"_a, "out"_a);
  m.def("largest_magnitude", &largest_magnitude, "x"_a);
}

}  // namespace anybit
