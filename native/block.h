// A decoder-only transformer as one native call: embedding, blocks, final norm, head, for any mix of sequences.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "around.h"
#include "ops.h"

namespace anybit {

const OpsKernels &ops();  // of the instruction set in use

// Where the keys and values of each layer lie in a page of 64 tokens: a key head's
// tile [4][dim][16] (16 tokens side by side, so that a score needs no sum across lanes), then its values [64][padded].
struct CacheShape {
  struct Layer {
    int64_t heads, dim, padded, at;
  };
  std::vector<Layer> layers;
  int64_t floats = 0;
  void add(int64_t heads, int64_t dim);
};

// Keys and values of one sequence. Pages are shared between forks and copied before they are written.
class Cache {
 public:
  Cache(std::shared_ptr<const CacheShape> shape, bool long_rope) : shape_(shape), long_rope_(long_rope) {}
  int64_t length() const { return length_; }
  bool long_rope() const { return long_rope_; }
  int64_t bytes() const { return static_cast<int64_t>(pages_.size()) * shape_->floats * 4; }
  const CacheShape *shape() const { return shape_.get(); }
  void truncate(int64_t length);
  void reserve(int64_t length);  // pages up to `length` exist, and those from the current length on belong to this cache alone
  void advance(int64_t length) { length_ = length; }
  float *page(int64_t index) const { return pages_[static_cast<size_t>(index)].get(); }

 private:
  std::shared_ptr<const CacheShape> shape_;
  bool long_rope_;
  int64_t length_ = 0;
  std::vector<std::shared_ptr<float>> pages_;
};

struct RopePlan {
  int64_t half = 0;
  float scale = 1.0f;
  std::vector<float> inverse, inverse_long;  // the latter for sequences planned to be long; may be empty
};

struct LayerPlan {
  int64_t heads = 0, kv_heads = 0, dim = 0, window = 0;  // window 0: none
  int64_t rope = 0, inner = 0;
  float eps = 0.0f, residual = 1.0f;
  const float *mixer_norm = nullptr, *mlp_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  LinearUse q, k, v, o, gate, up, down;
};

struct Sequence {
  Cache *cache;
  int64_t row, rows;  // its rows of this call
};

// Where a value stopped being finite. layer -1: in the head. what nullptr: nowhere.
struct Fault {
  int64_t layer = 0, row = 0;
  const char *what = nullptr;
  const char *fault = "is not finite";
};

class Decoder {
 public:
  int64_t vocab = 0, width = 0;
  float eps = 0.0f;
  const Weight *embedding = nullptr;
  const float *norm = nullptr;
  LinearUse head;
  const Pattern *attention = nullptr;  // takes the place of multiplication in q k^T and p v; nullptr: multiplication
  std::vector<RopePlan> ropes;
  std::vector<LayerPlan> layers;
  std::shared_ptr<CacheShape> cache_shape = std::make_shared<CacheShape>();

  // Appends the tokens to the caches. Logits of every row, or of each sequence's last row, into out [rows, vocab]. After a fault the caches
  // hold what they held before.
  Fault forward(const int32_t *ids, const std::vector<Sequence> &sequences, bool all_logits, float *out);

 private:
  struct Run;
  std::mutex mutex_;
  Workspace activations_, inputs_;
};

}  // namespace anybit
