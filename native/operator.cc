#include "operator.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "around.h"
#include "pool.h"

namespace anybit {

AB_KERNELS(LinearKernels, linear_kernels)
AB_KERNELS(ProductKernels, product_kernels)

namespace {

// One activation block: the weight's block up to 512, else 128 restarting at every weight block (docs/contract.md).
int64_t activation_block(int64_t block) { return block <= 512 ? block : 128; }

// What the float table of codes is like, and its bytes.
void find_source(Weight *w) {
  const int count = 1 << w->bits, top = count / 2;
  uint32_t u[256];
  memcpy(u, w->table, sizeof u);
  const auto not_a_number = [](uint32_t x) { return (x & 0x7fffffffu) > 0x7f800000u; };
  const bool negative = w->table[count - 1] < 0;
  bool integers = w->bits > 2, mirrored = true, halves = true;
  for (int c = 0; c < count; c++) {
    integers = integers && w->table[c] == static_cast<float>(negative && c >= top ? c - count : c) && u[c] != 0x80000000u;
    mirrored = mirrored && u[c % top] < 0x80000000u && (c < top || u[c] == (u[c - top] | 0x80000000u) || (not_a_number(u[c]) && not_a_number(u[c - top])));
    halves = halves && !(u[c] & 0xffff);
  }
  for (int c = 0; c < std::max(count, 64); c++)
    for (int i = 0; i < 4; i++) w->plane[i][c] = static_cast<uint8_t>(u[c % count] >> 8 * i);
  w->turn = integers && negative ? top : 0;
  w->source = integers ? Source::Integers : w->bits <= 4 ? Source::Lookup : !halves ? Source::Words : mirrored ? Source::Mirrored : Source::Halves;
}

// Rows [m0, m1) of x side by side in groups: [groups][k][group].
void put_side_by_side(const float *x, int64_t stride, int64_t m0, int64_t m1, int64_t k, int64_t group, float *out) {
  for (int64_t m = m0; m < m1; m += group) {
    float *const to = out + m * k;
    const int64_t rows = std::min(group, m1 - m);
    for (int64_t k0 = 0; k0 < k; k0 += 64)  // so many k of a group stay in the first-level cache
      for (int64_t r = 0; r < group; r++)
        for (int64_t i = k0; i < std::min(k, k0 + 64); i++) to[i * group + r] = r < rows ? x[(m + r) * stride + i] : 0.0f;
  }
}

}  // namespace

void OwnedWeight::finish(const int32_t *integers) {
  kernels = linear_kernels_of[static_cast<int>(isa())];
  products = product_kernels_of[static_cast<int>(isa())];
  tiles = (n + 15) / 16;
  chunks = (k + 31) / 32;
  if (block == 0 || block > k) block = k;
  blocks = (k + block - 1) / block;
  if (dense == Dense::None) find_source(this);
  if (!integers) return;

  const int64_t step_k = activation_block(block);
  int64_t at = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t end = std::min((b + 1) * block, k);
    for (int64_t k0 = b * block; k0 < end; k0 += step_k) {
      const int64_t k1 = std::min(k0 + step_k, end), g0 = k0 / 4, g1 = (k1 + 3) / 4;
      segment_list.push_back({k0, k1, g0, g1, at, b});
      at += 4 * (g1 - g0);
    }
  }
  codes_length = (at + 31) / 32 * 32;  // whole chunks, filled up with zeros
  codes_length += codes_length % 128 == 0 ? 64 : 0;  // rows of inputs a power of two apart would share cache sets
  segments = segment_list.data();
  segment_count = static_cast<int64_t>(segment_list.size());
  for (int64_t s = 0, first = 0; s < segment_count; s++) {  // cut where a chunk of 32 ends, at 512 k or soon after
    const int64_t c0 = segments[first].k0 / 32, k1 = segments[s].k1, span = k1 - 32 * c0;
    if (s + 1 == segment_count || (span >= 512 && k1 % 32 == 0) || span >= 2048) {
      panel_list.push_back({first, s + 1, c0, (k1 + 31) / 32});
      first = s + 1;
    }
  }
  panels = panel_list.data();
  panel_count = static_cast<int64_t>(panel_list.size());

  const int count = 1 << bits, top = count / 2;
  affine = true;
  sign = integers[count - 1] < 0 ? top : 0;
  int lo = integers[0], hi = integers[0];
  mirrored = true;
  doubled = bits <= 4;
  for (int c = 0; c < count; c++) {
    doubled = doubled && integers[c] == integers[0] + 2 * c;
    mirrored = mirrored && integers[c] == -integers[c ^ top];
    affine = affine && integers[c] == (c ^ sign) - sign;
    lo = std::min(lo, integers[c]);
    hi = std::max(hi, integers[c]);
  }
  const bool wide_dot = kernels->wide_dot, signed_dot = kernels->signed_dot;
  if (signed_dot && hi - lo <= 255) {  // as bytes of -128 to 127
    kind = Kind::Unsigned8;
    bias = hi - lo > 127 ? -128 - lo : affine ? sign : -lo;
  } else if (hi - lo <= (wide_dot ? 255 : 129)) {
    kind = Kind::Unsigned8;
    bias = affine ? sign : -lo;
  } else if (hi - lo <= 255) {
    kind = Kind::Signed8;
    const int centre = lo < -128 || hi > 127 ? lo + 128 : 0;
    bias = -centre;
  } else {
    kind = Kind::Wide16;
    affine = false;
    bias = signed_dot ? -128 : wide_dot ? 32768 : 0;  // both bytes signed, both unsigned
    sized = mirrored && wide_dot && !signed_dot && bits > 1;
    for (int c = 0; c < top; c++) sized = sized && integers[c] >= 0;
  }
  // An affine table is read off the code: t + bias = code ^ flip, as an unsigned or a signed byte.
  if (affine) flip = kind == Kind::Unsigned8 && !(signed_dot && bits == 8) ? sign : sign ? 0 : 128;
  chain = kind == Kind::Wide16 ? 1 : std::max(1, 32767 / (2 * 127 * std::max(1, hi + bias)));
  for (int c = 0; c < std::max(count, 64); c++) {  // fewer entries repeat: shuffles read 16, permutes 64
    const uint32_t t = static_cast<uint32_t>(integers[c % count] + bias);
    low[c] = static_cast<uint8_t>(t);
    high[c] = static_cast<uint8_t>((signed_dot ? t + 128 : t) >> 8);  // t = high * 256 + low, low signed
  }
  for (int c = 0; sized && c < 128; c++) {
    size_low[c] = static_cast<uint8_t>(integers[c % top]);
    size_high[c] = static_cast<uint8_t>(integers[c % top] >> 8);
  }
}

void Workspace::Free::operator()(void *p) const { free(p); }

void *Workspace::take(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  total_ += bytes;
  if (blocks_.empty() || used_ + bytes > size_) {
    size_ = std::max<size_t>(bytes, 1 << 16);
    used_ = 0;
    void *p = aligned_alloc(64, size_);
    if (!p) throw std::bad_alloc();
    blocks_.emplace_back(p);
  }
  void *p = static_cast<char *>(blocks_.back().get()) + used_;
  used_ += bytes;
  return p;
}

void Workspace::reset() {
  if (blocks_.size() > 1) {  // next time one block will do
    blocks_.clear();
    size_ = used_ = 0;
    const size_t all = total_;
    total_ = 0;
    take(all);
  }
  used_ = total_ = 0;
}

bool same_input(const Weight &a, Act act_a, const Weight &b, Act act_b) {
  if (a.k != b.k || act_a != act_b) return false;
  if (act_a != Act::Float) return a.segment_count > 0 && b.segment_count > 0 && a.block == b.block;
  return a.has_offset == b.has_offset && (!a.has_offset || a.block == b.block);
}

// Places of the codes that no k has read the row of the table that no activation has, which is zero.
static void mask_padding(const Weight &w, int bits, int64_t m, int8_t *q) {
  const int8_t none = static_cast<int8_t>(-(1 << (bits - 1)));
  for (int64_t s = 0; s < w.segment_count; s++) {
    const Segment &seg = w.segments[s];
    for (int64_t k = 4 * seg.g0; k < 4 * seg.g1; k++) {
      if (k == seg.k0) k = seg.k1;
      if (k >= 4 * seg.g1) break;
      for (int64_t r = 0; r < m; r++) q[r * w.codes_length + seg.at + k - 4 * seg.g0] = none;
    }
  }
}

int64_t prepare(const Weight &w, Act act, bool wide, const float *x, int64_t stride, int64_t m, Workspace &workspace, Input *input,
                const Product *product, float fixed) {
  *input = Input();
  input->product = product;
  input->m = m;
  input->x = x;
  input->stride = stride;
  const int64_t group = product ? 1 : std::max<int64_t>(1, w.kernels->group(m, act != Act::Float));  // of no rows too
  const int64_t least = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, w.k)), per = (least + group - 1) / group * group, units = (m + per - 1) / per;
  std::atomic<int64_t> bad{INT64_MAX};
  const auto note = [&bad](int64_t row) {
    int64_t seen = bad.load();
    while (row >= 0 && row < seen && !bad.compare_exchange_weak(seen, row)) {
    }
  };
  if (act != Act::Float) {
    const float most = act == Act::Int8 ? 127.0f : 7.0f;
    const int64_t groups = (m + group - 1) / group, whole = m / group;
    const size_t row = static_cast<size_t>(group * w.codes_length), ends = static_cast<size_t>(group * w.segment_count);
    const size_t codes = static_cast<size_t>(groups) * row, count = static_cast<size_t>(groups) * ends;
    int8_t *q = static_cast<int8_t *>(workspace.take(codes));
    int16_t *q16 = wide && !w.kernels->wide_dot ? static_cast<int16_t *>(workspace.take(2 * codes)) : nullptr;
    float *scale = static_cast<float *>(workspace.take(4 * count));
    int32_t *total = static_cast<int32_t *>(workspace.take(4 * count));
    size_t used = 0;
    if (w.segment_count) {
      const Segment &last = w.segments[w.segment_count - 1];
      used = static_cast<size_t>(group * (last.at + 4 * (last.g1 - last.g0)));
    }
    for (int64_t i = 0; i < whole; i++) memset(q + static_cast<size_t>(i) * row + used, 0, row - used);
    if (whole < groups) {
      memset(q + static_cast<size_t>(whole) * row, 0, row);
      memset(scale + static_cast<size_t>(whole) * ends, 0, 4 * ends);
      memset(total + static_cast<size_t>(whole) * ends, 0, 4 * ends);
      if (q16) memset(q16 + static_cast<size_t>(whole) * row, 0, 2 * row);
    }
    parallel_for(units, [&](int64_t u) {
      const int64_t first = u * per, end = std::min(m, first + per);
      note(fixed > 0.0f ? transform_kernels_now().quantize(w, fixed, x, stride, first, end, group, q, q16, scale, total)
                        : w.kernels->quantize(w, most, x, stride, first, end, group, q, q16, scale, total));
    });
    input->integer = true, input->group = group;
    input->q = q, input->q16 = q16, input->scale = scale, input->total = total;
    if (product && product->lookup) mask_padding(w, product->act_bits, m, q);
  } else {
    const int64_t whole = (m + group - 1) / group * group;
    float *sums = w.has_offset ? static_cast<float *>(workspace.take(static_cast<size_t>(4 * whole * w.blocks))) : nullptr;
    float *lanes = group > 1 ? static_cast<float *>(workspace.take(static_cast<size_t>(4 * whole * w.k))) : nullptr;
    if (sums) memset(sums + m * w.blocks, 0, static_cast<size_t>(4 * (whole - m) * w.blocks));
    parallel_for(units, [&](int64_t u) {
      const int64_t first = u * per, end = std::min(m, first + per);
      note(w.kernels->row_sums(w, x, stride, first, end, sums));
      if (lanes) put_side_by_side(x, stride, first, end, w.k, group, lanes);
    });
    input->sums = sums, input->group = group, input->lanes = lanes ? lanes : x;
    if (product && bad.load() == INT64_MAX) {
      const Pattern &pattern = product->pattern;
      const int64_t panels = (w.k + kPatternPanel - 1) / kPatternPanel;
      uint8_t *outside = static_cast<uint8_t *>(workspace.take(static_cast<size_t>(m * panels)));
      float *rounded = pattern.mantissa < 23 ? static_cast<float *>(workspace.take(static_cast<size_t>(4 * m * w.k))) : nullptr;
      parallel_for(units, [&](int64_t u) {
        for (int64_t r = u * per; r < std::min(m, (u + 1) * per); r++)
          w.products->patterns(pattern, x + r * stride, w.k, rounded ? rounded + r * w.k : nullptr, outside + r * panels);
      });
      input->wide = outside;
      if (rounded) input->x = rounded, input->stride = w.k;
    }
  }
  return bad.load() == INT64_MAX ? -1 : bad.load();
}

void multiply(const Weight &w, const Input &input, const float *bias, float *y, int64_t stride) {
  const size_t bytes = input.product ? w.products->scratch_bytes(w, input) : w.kernels->scratch_bytes(w, input);
  // A unit is some rows of tiles: enough work to pay for taking it (about 64k products), few enough that threads end together.
  const int64_t work = std::max<int64_t>(1, w.k * 16 * input.m);
  int64_t per = std::max<int64_t>((65536 + work - 1) / work, w.tiles / (8 * threads()));
  per = std::max<int64_t>(4, (per + 3) / 4 * 4);
  if (w.tiles <= 4 * threads()) per = std::max<int64_t>(1, (65536 + work - 1) / work);
  std::atomic<bool> failed{false};
  parallel_for((w.tiles + per - 1) / per, [&](int64_t u) {
    void *memory = scratch(bytes);
    if (!memory) {
      failed.store(true);
      return;
    }
    const auto run = input.product ? w.products->multiply : w.kernels->multiply;
    run(w, input, bias, u * per, std::min(w.tiles, (u + 1) * per), y, stride, memory);
  });
  if (failed.load()) throw std::bad_alloc();
}

void rows_of(const Weight &w, const int64_t *rows, int64_t count, float *out) {
  void *memory = scratch(256 * 16 * sizeof(float));
  if (!memory) throw std::bad_alloc();
  for (int64_t i = 0; i < count; i++) w.kernels->dequantize(w, rows[i] / 16, rows[i], out + i * w.k, w.k, memory);
}

void all_rows(const Weight &w, float *out) {
  std::atomic<bool> failed{false};
  parallel_for(w.tiles, [&](int64_t t) {
    void *memory = scratch(256 * 16 * sizeof(float));
    if (memory) w.kernels->dequantize(w, t, -1, out + t * 16 * w.k, w.k, memory);
    else failed.store(true);
  });
  if (failed.load()) throw std::bad_alloc();
}

}  // namespace anybit
