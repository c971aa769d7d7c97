// A rounding plan together with the tables that it points into, as Python holds it.
#pragma once
#include <vector>

#include "bind.h"
#include "round.h"

namespace anybit {

struct PyRound {
  RoundPlan plan;
  bool keep_specials = false;  // NaN and infinities are replaced, not refused
  float fill = 0;              // what stands for them until then: never out of range
  float special_values[3] = {};  // of NaN, +inf, -inf
  int32_t special_codes[3] = {};
  bool refuse_outside = false;
  float first = 0, last = 0;  // values below `first`, or from `last` on, are out of range
  int width = 1;              // bytes of a code
  std::vector<float> decoded;
  uint32_t code_mask = 0xff;
  std::vector<Node> nodes;
  std::vector<Bucket> buckets, halves;
  std::vector<float> points, values;
  std::vector<int32_t> codes;
  std::vector<double> chain;
};

}  // namespace anybit
