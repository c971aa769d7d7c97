#include "sample.h"

#include <algorithm>
#include <vector>

namespace anybit {

void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = static_cast<uint32_t>(b), c2 = n2, c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;  // golden ratio and sqrt(3) - 1, as published
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

double uniform(uint64_t seed, uint64_t position) {
  const uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  const uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t out[4];
  philox(counter, key, out);
  return (static_cast<double>(out[0] >> 5) * 67108864.0 + static_cast<double>(out[1] >> 6)) * 0x1p-53;
}

int64_t choose(const OpsKernels &ops, const float *logits, int64_t n, const Choice &choice, uint64_t position) {
  const int64_t best = ops.argmax(logits, n);
  if (best < 0 || choice.temperature == 0.0f) return best;
  std::vector<float> weight(static_cast<size_t>(n));
  ops.weights(logits, n, logits[best], choice.temperature, weight.data());

  std::vector<int32_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  const auto of = [&](int32_t id) { return static_cast<double>(weight[static_cast<size_t>(id)]); };
  if ((choice.top_k > 0 && choice.top_k < n) || choice.top_p < 1.0) {  // the most probable first, the lower id of equals
    const auto before = [logits](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    if (choice.top_k > 0 && choice.top_k < n) {
      std::nth_element(order.begin(), order.begin() + choice.top_k, order.end(), before);
      order.resize(static_cast<size_t>(choice.top_k));
    }
    if (choice.top_p < 1.0) {
      std::sort(order.begin(), order.end(), before);
      double total = 0.0, sum = 0.0;
      for (int32_t id : order) total += of(id);
      size_t kept = 0;
      while (kept < order.size() && (kept == 0 || sum < choice.top_p * total)) sum += of(order[kept++]);
      order.resize(kept);
    }
    std::sort(order.begin(), order.end());
  }
  if (choice.min_p > 0.0)  // the most probable token has weight 1
    order.erase(std::remove_if(order.begin(), order.end(), [&](int32_t id) { return of(id) < choice.min_p; }), order.end());
  double total = 0.0;
  for (int32_t id : order) total += of(id);
  const double target = uniform(choice.seed, position) * total;
  double sum = 0.0;
  for (int32_t id : order) {
    sum += of(id);
    if (target < sum) return id;
  }
  return order.back();  // rounding kept the sum just below
}

}  // namespace anybit
