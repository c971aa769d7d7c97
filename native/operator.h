// The linear operator as other native code uses it: prepare an input once, multiply it with every weight of the same geometry.
#pragma once
#include <memory>
#include <vector>

#include "isas.h"
#include "weight.h"

namespace anybit {

// A weight with the arrays that it owns; `kernels` and all derived fields are filled by finish().
struct OwnedWeight : Weight {
  std::vector<Segment> segment_list;
  std::vector<Panel> panel_list;
  // Derives segments, panels, kind, bias and chain from n, k, bits, block and the integer table (nullptr: dense or float only).
  void finish(const int32_t *integers);
};

// Memory that a sequence of operators reuses. Pointers stay valid until reset().
class Workspace {
 public:
  void *take(size_t bytes);  // 64-byte aligned; throws std::bad_alloc
  void reset();

 private:
  struct Free { void operator()(void *p) const; };
  std::vector<std::unique_ptr<void, Free>> blocks_;
  size_t size_ = 0, used_ = 0, total_ = 0;
};

enum class Act : int { Float = 0, Int8 = 1, Int4 = 2 };  // Int4: for lookup products alone

bool same_input(const Weight &a, Act act_a, const Weight &b, Act act_b);  // may share one prepared input, with the same product
// Prepares x [m, k] (rows `stride` floats apart). `wide`: some weight that shares this input is Wide16. Returns the first row that holds a non-finite
// value, or -1. The float path keeps the pointer x. `product` (nullptr: multiplication) is kept too. `fixed`: the scale of all int8 codes; 0: one each.
int64_t prepare(const Weight &w, Act act, bool wide, const float *x, int64_t stride, int64_t m, Workspace &workspace, Input *input,
                const Product *product = nullptr, float fixed = 0.0f);
// y[m, n] (rows `stride` apart) = input weight^T + bias (may be nullptr), on the pool.
void multiply(const Weight &w, const Input &input, const float *bias, float *y, int64_t stride);
// out[i, k] = exact float32 values of row rows[i].
void rows_of(const Weight &w, const int64_t *rows, int64_t count, float *out);
void all_rows(const Weight &w, float *out);  // [n, k]

}  // namespace anybit
