// Pages: allocation, and one token's codes and scales in and out. Rounding is round.cc's, tiles are decoded by cache.cc.
#include "pages.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "isas.h"

namespace anybit {

AB_KERNELS(CacheKernels, cache_kernels)
AB_KERNELS(RoundKernels, round_kernels)

namespace {

constexpr int64_t kMostDim = 4096;

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t size_of(const CacheFormat &f, int64_t dim) { return f.size ? f.size : dim; }
int64_t blocks_of(const CacheFormat &f, int64_t dim) { return f.scale == CacheScale::None ? 0 : (dim + size_of(f, dim) - 1) / size_of(f, dim); }
int64_t scale_width(const CacheFormat &f) {
  return f.scale == CacheScale::None ? 0 : f.scale == CacheScale::Table ? 1 : f.scale == CacheScale::Float32 ? 4 : 2;
}
int64_t key_bytes(const CacheFormat *f, int64_t dim) {
  if (!f) return kTileKeys * dim * 4;
  return f->bits == 16 ? kTileKeys * dim * 2 : kTileKeys * ((dim * f->bits + 7) / 8);
}
int64_t value_bytes(const CacheFormat *f, int64_t padded) {
  if (!f) return kTileKeys * padded * 4;
  return f->bits == 16 ? kTileKeys * padded * 2 : kTileKeys * ((padded / 16 * f->bits + 7) / 8) * 16;
}
int64_t scale_bytes(const CacheFormat *f, int64_t dim) { return f ? kTileKeys * blocks_of(*f, dim) * scale_width(*f) : 0; }

float half_value(uint16_t h) {
  const int e = h >> 10 & 31, m = h & 1023;
  const float v = e == 31 ? (m ? NAN : INFINITY) : e ? std::ldexp(static_cast<float>(1024 + m), e - 25) : std::ldexp(static_cast<float>(m), -24);
  return h & 0x8000 ? -v : v;
}
uint16_t half_code(float v) {  // of a positive value that is one
  int e;
  const float m = std::frexp(v, &e);
  if (e + 14 > 0) return static_cast<uint16_t>((e + 14) << 10 | (static_cast<int>(std::ldexp(m, 11)) & 1023));
  return static_cast<uint16_t>(std::ldexp(v, 24));
}

void put_scale(const CacheFormat &f, float scale, uint8_t *p) {
  if (f.scale == CacheScale::Float32) {
    memcpy(p, &scale, 4);
  } else if (f.scale == CacheScale::Table) {
    const float *end = f.scale_sorted + f.scale_count, *at = std::lower_bound(f.scale_sorted, end, scale);
    *p = f.scale_codes[std::min<int64_t>(at - f.scale_sorted, f.scale_count - 1)];
  } else {
    uint32_t bits;
    memcpy(&bits, &scale, 4);
    const uint16_t code = f.scale == CacheScale::Float16 ? half_code(scale) : static_cast<uint16_t>(bits >> 16);
    memcpy(p, &code, 2);
  }
}

void get_scales(const CacheFormat &f, const uint8_t *p, int64_t count, float *out) {
  if (f.scale == CacheScale::Float32) memcpy(out, p, static_cast<size_t>(4 * count));
  for (int64_t i = 0; i < count; i++) {
    uint16_t code;
    if (f.scale == CacheScale::Table) {
      out[i] = f.scale_table[p[i]];
    } else if (f.scale != CacheScale::Float32) {
      memcpy(&code, p + 2 * i, 2);
      const uint32_t bits = static_cast<uint32_t>(code) << 16;
      if (f.scale == CacheScale::Float16) out[i] = half_value(code);
      else memcpy(out + i, &bits, 4);
    }
  }
}

// The scale of a block whose largest magnitude is `amax`, as round.cc chooses it for one level; NaN where there is none.
float scale_of(const BlockPlan &b, float amax) {
  double target;
  if (b.power_of_two) {
    int e;
    std::frexp(static_cast<double>(amax), &e);
    target = amax > 0 ? std::ldexp(1.0, e - b.top) : 0.0;
  } else {
    target = static_cast<double>(amax) / b.most;
  }
  const double held = std::min(std::max(target, b.smallest), b.biggest);
  int e;
  std::frexp(held, &e);
  const double step = std::ldexp(std::max(std::ldexp(1.0, e - 1), b.first), -b.mantissa);
  const float scale = static_cast<float>(std::nearbyint(held / step) * step);
  return target >= b.end || static_cast<double>(scale) > b.limit ? NAN : scale;
}

// Codes and scales of a head's vector. False: some scale is too large.
bool encode(const CacheFormat &f, const float *x, int64_t dim, int32_t *codes, float *scales) {
  const RoundKernels &kernels = *round_kernels_of[static_cast<int>(isa())];
  alignas(64) float held[kMostDim];
  const float *from = x;
  if (f.scale != CacheScale::None) {
    const int64_t size = size_of(f, dim);
    for (int64_t at = 0, b = 0; at < dim; at += size, b++) {
      const int64_t end = std::min(dim, at + size);
      const uint32_t most = kernels.largest(x + at, end - at);
      float amax;
      memcpy(&amax, &most, 4);
      scales[b] = scale_of(f.block, amax);
      if (std::isnan(scales[b])) return false;
      const float by = scales[b] == 0.0f ? INFINITY : scales[b];
      for (int64_t i = at; i < end; i++) held[i] = x[i] / by;
    }
    from = held;
  }
  for (int64_t at = 0; at < dim; at += kRoundBlock) kernels.codes(*f.plan, from + at, nullptr, std::min(kRoundBlock, dim - at), codes + at);
  return true;
}

void put_bits(uint8_t *p, int64_t which, int bits, int32_t code) {
  const int shift = static_cast<int>(which) * bits, mask = ((1 << bits) - 1) << shift;
  *p = static_cast<uint8_t>((*p & ~mask) | (code << shift & mask));
}

}  // namespace

void CacheShape::add(int64_t heads, int64_t dim) {
  const int64_t padded = (dim + 15) / 16 * 16;
  Layer layer{heads, dim, padded, bytes, 0, 0, 0, 0};
  layer.key_scales = aligned(key_bytes(keys.get(), dim));
  layer.values = layer.key_scales + aligned(scale_bytes(keys.get(), dim));
  layer.value_scales = layer.values + aligned(value_bytes(values.get(), padded));
  layer.head = layer.value_scales + aligned(scale_bytes(values.get(), dim));
  layers.push_back(layer);
  bytes += heads * layer.head;
  if (exact) exact->add(heads, dim);
}

int64_t Cache::bytes() const {
  int64_t all = static_cast<int64_t>(pages_.size()) * shape_->bytes;
  for (const auto &page : exact_) all += page ? shape_->exact->bytes : 0;
  return all;
}

bool Cache::holds(int64_t length) const {
  if (!shape_->exact || length >= length_) return true;
  for (int64_t tile = 0; tile * kTileKeys < length; tile++)
    if (shape_->sees_exact(length / kTileKeys, tile) && !exact(tile)) return false;
  return true;
}

void Cache::truncate(int64_t length) {
  length_ = std::min(length_, length);
  pages_.resize(static_cast<size_t>((length_ + kTileKeys - 1) / kTileKeys));
  if (shape_->exact) exact_.resize(pages_.size());
}

void Cache::own(std::vector<std::shared_ptr<uint8_t>> &pages, size_t index, int64_t bytes) {
  if (pages.size() <= index) pages.resize(index + 1);
  std::shared_ptr<uint8_t> &held = pages[index];
  if (held && held.use_count() == 1) return;
  std::shared_ptr<uint8_t> page(static_cast<uint8_t *>(aligned_alloc(64, static_cast<size_t>(bytes))), free);
  if (!page) throw std::bad_alloc();
  if (held) memcpy(page.get(), held.get(), static_cast<size_t>(bytes));
  else memset(page.get(), 0, static_cast<size_t>(bytes));
  held = page;
}

void Cache::reserve(int64_t length) {
  const int64_t needed = (length + kTileKeys - 1) / kTileKeys;
  for (int64_t i = length_ / kTileKeys; i < needed; i++) {
    own(pages_, static_cast<size_t>(i), shape_->bytes);
    if (shape_->exact && shape_->sees_exact(i, i)) own(exact_, static_cast<size_t>(i), shape_->exact->bytes);
  }
  if (shape_->exact) exact_.resize(pages_.size());
}

void Cache::advance(int64_t length) {
  length_ = length;
  for (int64_t i = 0; shape_->exact && i < static_cast<int64_t>(exact_.size()); i++)
    if (!shape_->sees_exact(length / kTileKeys, i)) exact_[static_cast<size_t>(i)].reset();
}

bool put(const CacheShape &shape, const CacheShape::Layer &layer, uint8_t *place, int64_t slot, const float *key, const float *value) {
  const int64_t dim = layer.dim, group = slot / 16, lane = slot % 16;
  int32_t codes[kMostDim];
  float scales[kMostDim];
  if (const CacheFormat *f = shape.keys.get()) {
    if (!encode(*f, key, dim, codes, scales)) return false;
    if (f->bits == 16) {
      for (int64_t i = 0; i < dim; i++) {
        const uint16_t code = static_cast<uint16_t>(codes[i]);
        memcpy(place + 2 * (16 * (group * dim + i) + lane), &code, 2);
      }
    } else {
      const int64_t per = 8 / f->bits, vectors = (dim + per - 1) / per;
      for (int64_t i = 0; i < dim; i++) put_bits(place + 16 * (group * vectors + i / per) + lane, i % per, f->bits, codes[i]);
    }
    const int64_t blocks = blocks_of(*f, dim), width = scale_width(*f);
    for (int64_t b = 0; b < blocks; b++) put_scale(*f, scales[b], place + layer.key_scales + width * (16 * (group * blocks + b) + lane));
  } else {
    float *keys = reinterpret_cast<float *>(place);
    for (int64_t i = 0; i < dim; i++) keys[(group * dim + i) * 16 + lane] = key[i];
  }
  uint8_t *to = place + layer.values;
  if (const CacheFormat *f = shape.values.get()) {
    if (!encode(*f, value, dim, codes, scales)) return false;
    const int64_t per = f->bits == 16 ? 1 : 8 / f->bits, vectors = (layer.padded / 16 + per - 1) / per;
    for (int64_t i = 0; i < dim; i++) {
      const uint16_t code = static_cast<uint16_t>(codes[i]);
      if (f->bits == 16) memcpy(to + 2 * (slot * layer.padded + i), &code, 2);
      else put_bits(to + 16 * (slot * vectors + i / 16 / per) + i % 16, i / 16 % per, f->bits, codes[i]);
    }
    const int64_t blocks = blocks_of(*f, dim), width = scale_width(*f);
    for (int64_t b = 0; b < blocks; b++) put_scale(*f, scales[b], place + layer.value_scales + width * (slot * blocks + b));
  } else {
    memcpy(to + 4 * slot * layer.padded, value, sizeof(float) * static_cast<size_t>(dim));
  }
  return true;
}

int64_t tile_floats(const CacheShape &shape, const CacheShape::Layer &layer) {
  int64_t count = 0;
  if (shape.keys || !shape.turned) count += kTileKeys * layer.dim;
  if (shape.values) count += kTileKeys * layer.padded;
  return count;
}

void tile(const CacheShape &shape, const CacheShape::Layer &layer, const uint8_t *place, const float *cos, const float *sin, float *buffer,
          const float **keys, const float **values) {
  const CacheKernels &kernels = *cache_kernels_of[static_cast<int>(isa())];
  float scales[kTileKeys * 256];
  std::vector<float> more;
  const auto decoded = [&](const CacheFormat &f, const uint8_t *p) -> const float * {
    if (f.scale == CacheScale::None) return nullptr;
    const int64_t count = kTileKeys * blocks_of(f, layer.dim);
    float *out = scales;
    if (count > kTileKeys * 256) more.resize(static_cast<size_t>(count)), out = more.data();
    get_scales(f, p, count, out);
    return out;
  };
  *keys = reinterpret_cast<const float *>(place);
  if (shape.keys || !shape.turned) {
    if (const CacheFormat *f = shape.keys.get()) kernels.keys(*f, place, decoded(*f, place + layer.key_scales), layer.dim, size_of(*f, layer.dim), buffer);
    else memcpy(buffer, place, sizeof(float) * static_cast<size_t>(kTileKeys * layer.dim));
    if (!shape.turned) kernels.rotate(buffer, layer.dim, cos, sin);
    *keys = buffer;
    buffer += kTileKeys * layer.dim;
  }
  *values = reinterpret_cast<const float *>(place + layer.values);
  if (const CacheFormat *f = shape.values.get()) {
    kernels.values(*f, place + layer.values, decoded(*f, place + layer.value_scales), layer.dim, layer.padded, size_of(*f, layer.dim), buffer);
    *values = buffer;
  }
}

}  // namespace anybit
