// What runs around a product in the same call: transforms of its input, the input rounded to a format, branches added to the result, transforms
// of that. Numerics: docs/contract.md, "Around a product"; src/anybit/reference/around.py is the slow definition. Plain data: the binding checks it.
#pragma once
#include <vector>

#include "operator.h"
#include "round.h"
#include "transform.h"

namespace anybit {

struct Transform {
  enum class Kind : int { Scale, Shift, Permute, Hadamard, Rotate };
  Kind kind;
  const float *data = nullptr;    // Scale, Shift: [k]; Hadamard: signs [k] (1 or -1), or nullptr
  const int64_t *index = nullptr;  // Permute: [k]
  int64_t block = 0;               // Hadamard (a power of two), Rotate: divides k
  std::vector<const Weight *> rotations;  // Rotate: transposed, dense float32 [block, block]: one for all blocks, or one each
};

struct Steps {
  int64_t k = 0;
  std::vector<Transform> list;
};

// Rounds a token's numbers to a format, one token at a time.
struct Rounding {
  const RoundPlan *plan = nullptr;
  bool blocks = false;     // with scales as `block` says (its size is at most a row); otherwise each number by itself
  BlockPlan block = {};
  int64_t size = 0;        // numbers that share a scale; 0: a row
  bool second = false;     // block.outer and factor are the token's: its largest magnitude over `most`, over `top`, in float32
  double top = 1.0, most_short = 0.0;  // of the first level: what the second brings the largest scale to, and what that may become by rounding
};

// How a linear layer's input is made of the float32 rows that come. Layers with the same plan share what they need of it.
struct InputPlan {
  const Steps *steps = nullptr;      // nullptr: none
  std::vector<int64_t> cleared;      // then these columns are +0 for the main weight
  float scale = 0.0f;                // int8 codes with this one scale; 0: a scale for each block of each token
  const Rounding *rounding = nullptr;  // float activations that are rounded to a format first
  const Rounding *residual = nullptr;  // the same with scales of its own, for what is left of a rounded input
};

struct Branch {
  enum class Kind : int { LowRank, Columns, Residual };
  Kind kind;
  const Weight *a = nullptr, *b = nullptr;  // LowRank: [r, k] and [n, r]; the others: a [n, columns]
  std::vector<int64_t> index;               // columns, for the others
  std::vector<int64_t> at, segment;         // Residual, of an int8 input: where a column's code and scale lie
};

struct LinearUse {
  const Weight *weight = nullptr;
  const float *bias = nullptr;
  Act act = Act::Float;
  const Product *product = nullptr;  // nullptr: multiplication
  const InputPlan *input = nullptr;  // nullptr: float32 rows as they come
  std::vector<Branch> branches;
  const Steps *post = nullptr;
};

struct Problem {
  int64_t row = -1;            // -1: none
  const char *what = nullptr;  // nullptr: the input
  const char *fault = "is not finite";
};

// Rows [m, k] that lie `stride` apart through `steps`: a new array in the workspace [m, steps.k]. Gives it, or what went wrong.
const float *transformed(const Steps &steps, const float *x, int64_t stride, int64_t m, Workspace &workspace, Problem *problem);
// One token's k numbers to their format's values. False: one is not finite, or a scale is beyond its element.
bool rounded(const Rounding &r, const float *x, int64_t k, float *out);
// outs[i] [m, n of weight i] = layer i of x [m, k]; layers that can share an input do. Nothing of the workspace is needed afterwards.
Problem project(const LinearUse *const *uses, float *const *outs, int count, const float *x, int64_t m, Workspace &workspace);

const TransformKernels &transform_kernels_now();

}  // namespace anybit
