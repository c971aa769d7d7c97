// Drawing tokens from logits with counter-based random numbers.
#pragma once
#include <stdint.h>

#include "ops.h"

namespace anybit {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four words from a counter and a key.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

// Uniform in [0, 1), a multiple of 2^-53: words 0 and 1 of Philox at counter (position, 0), key seed.
double uniform(uint64_t seed, uint64_t position);

struct Choice {
  float temperature = 0.0f;  // 0: the largest logit, the first of equals
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0, min_p = 0.0;
  uint64_t seed = 0;
};

// The token for `position`, or -1 if a logit is not finite. Throws std::bad_alloc.
int64_t choose(const OpsKernels &ops, const float *logits, int64_t n, const Choice &choice, uint64_t position);

}  // namespace anybit
