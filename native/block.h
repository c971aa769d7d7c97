// A decoder-only transformer as one native call: embedding, blocks, final norm, head, for any mix of sequences.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "around.h"
#include "pages.h"

namespace anybit {

const OpsKernels &ops();  // of the instruction set in use

struct RopePlan {
  int64_t half = 0;
  float scale = 1.0f;
  std::vector<float> inverse, inverse_long;  // the latter for sequences planned to be long; may be empty
  // For keys that are turned when they are read: cosines and sines by tile, [4][half][16], of both sets of frequencies.
  std::vector<float> cos[2], sin[2];
};

struct ExpertPlan {
  LinearUse gate, up, down;
};

struct LayerPlan {
  int64_t heads = 0, kv_heads = 0, dim = 0, window = 0;  // window 0: none
  int64_t rope = 0, inner = 0;  // inner: of one MLP
  float eps = 0.0f, residual = 1.0f;
  const float *mixer_norm = nullptr, *mlp_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  LinearUse q, k, v, o;
  std::vector<ExpertPlan> mlps;  // one, or with a router the experts that it chooses among
  LinearUse router;
  int64_t chosen = 0;       // experts of a token; 0: no router
  bool renormalise = false;  // their weights add up to 1
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
