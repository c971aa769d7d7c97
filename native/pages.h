// The cache of keys and values: pages of 64 tokens, shared between forks, in float32 or in a number format (cache.h).
#pragma once
#include <memory>
#include <vector>

#include "cache.h"
#include "ops.h"

namespace anybit {

// Where the keys and values of each layer lie in a page of 64 tokens. Of each key head: keys, their scales, values, their scales, each part at a
// multiple of 64 bytes. In float32 a key tile is [4][dim][16] (16 tokens side by side, so that a score needs no sum across lanes) and values are
// [64][padded]; cache.h says how codes lie.
struct CacheShape {
  struct Layer {
    int64_t heads, dim, padded;
    int64_t at, head;                              // bytes to the layer, from head to head
    int64_t key_scales, values, value_scales;      // bytes from the head's keys
  };
  std::vector<Layer> layers;
  int64_t bytes = 0;
  std::shared_ptr<const CacheFormat> keys, values;  // nullptr: float32
  bool turned = true;  // keys are stored as rotary embedding turned them; otherwise they are turned when they are read
  // Tiles that a query sees in float32 as well: those that begin below `sinks`, and of the `window` tiles up to its own. Their pages, of keys that
  // have been turned, lie beside the others; nullptr: there are none.
  int64_t sinks = 0, window = 0;
  std::shared_ptr<CacheShape> exact;
  bool sees_exact(int64_t own, int64_t tile) const { return exact && (tile * kTileKeys < sinks || tile > own - window); }
  void add(int64_t heads, int64_t dim);
};

// Keys and values of one sequence. Pages are shared between forks and copied before they are written.
class Cache {
 public:
  Cache(std::shared_ptr<const CacheShape> shape, bool long_rope) : shape_(shape), long_rope_(long_rope) {}
  int64_t length() const { return length_; }
  bool long_rope() const { return long_rope_; }
  int64_t bytes() const;
  const CacheShape *shape() const { return shape_.get(); }
  bool holds(int64_t length) const;  // what is needed to go on from there: float32 tiles that a later window left are gone
  void truncate(int64_t length);
  void reserve(int64_t length);  // pages up to `length` exist, and those from the current length on belong to this cache alone
  void advance(int64_t length);
  uint8_t *page(int64_t index) const { return pages_[static_cast<size_t>(index)].get(); }
  uint8_t *exact(int64_t index) const { return exact_[static_cast<size_t>(index)].get(); }  // nullptr: none

 private:
  std::shared_ptr<const CacheShape> shape_;
  bool long_rope_;
  int64_t length_ = 0;
  static void own(std::vector<std::shared_ptr<uint8_t>> &pages, size_t index, int64_t bytes);
  std::vector<std::shared_ptr<uint8_t>> pages_, exact_;
};

// One head's key and value at a slot of a page whose layer and head begin at `place`. False: a scale is beyond what its element holds.
bool put(const CacheShape &shape, const CacheShape::Layer &layer, uint8_t *place, int64_t slot, const float *key, const float *value);
// Floats that reading a tile of one head may need, and the tile's keys and values: in the page, or decoded into `buffer`.
int64_t tile_floats(const CacheShape &shape, const CacheShape::Layer &layer);
void tile(const CacheShape &shape, const CacheShape::Layer &layer, const uint8_t *place, const float *cos, const float *sin, float *buffer,
          const float **keys, const float **values);

}  // namespace anybit
