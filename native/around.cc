// Rows on their way to a product and from it: which arrays are made, what layers share, how rows are cut for the pool. Arithmetic on rows is in
// transform.cc, round.cc and linear.cc; what stands here is gathering, one subtraction and one division a number.
#include "around.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

#include "pool.h"

namespace anybit {

AB_KERNELS(TransformKernels, transform_kernels)
AB_KERNELS(RoundKernels, round_kernels)

const TransformKernels &transform_kernels_now() { return *transform_kernels_of[static_cast<int>(isa())]; }

namespace {

const RoundKernels &round_kernels_now() { return *round_kernels_of[static_cast<int>(isa())]; }

float *floats(Workspace &workspace, int64_t count) { return static_cast<float *>(workspace.take(sizeof(float) * static_cast<size_t>(count))); }

// Runs body(row) for each row, some rows a task. body gives false for a row that is refused: the first such row, or -1.
template <class Body> int64_t each_row(int64_t m, int64_t k, Body &&body) {
  const int64_t per = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, k));
  std::atomic<int64_t> bad{INT64_MAX};
  parallel_for((m + per - 1) / per, [&](int64_t u) {
    for (int64_t r = u * per; r < std::min(m, (u + 1) * per); r++)
      if (!body(r))
        for (int64_t seen = bad.load(); r < seen && !bad.compare_exchange_weak(seen, r);) {
        }
  });
  return bad.load() == INT64_MAX ? -1 : bad.load();
}

constexpr const char *kTransformed = "the transformed input";

// One step of a row, from `in` to `out`, which may be the same but for a permutation.
void step(const Transform &t, const TransformKernels &kernels, const float *in, int64_t k, float *out) {
  switch (t.kind) {
    case Transform::Kind::Scale: return kernels.scale(in, t.data, k, out);
    case Transform::Kind::Shift: return kernels.shift(in, t.data, k, out);
    case Transform::Kind::Permute:
      for (int64_t i = 0; i < k; i++) out[i] = in[t.index[i]];
      return;
    case Transform::Kind::Hadamard:
      if (t.data) kernels.scale(in, t.data, k, out);
      else if (in != out) memcpy(out, in, sizeof(float) * static_cast<size_t>(k));
      return kernels.hadamard(out, k, t.block);
    case Transform::Kind::Rotate: return;
  }
}

// x [m, k] by the rotation's blocks into out [m, k]; x lies `stride` apart.
int64_t rotate(const Transform &t, const float *x, int64_t stride, int64_t m, int64_t k, float *out, Workspace &workspace) {
  const int64_t count = k / t.block;
  Input input;
  if (t.rotations.size() == 1 && stride == k) {  // the same for every block: blocks are rows
    const Weight &w = *t.rotations[0];
    const int64_t bad = prepare(w, Act::Float, false, x, t.block, m * count, workspace, &input);
    if (bad < 0) multiply(w, input, nullptr, out, t.block);
    return bad < 0 ? -1 : bad / count;
  }
  int64_t first = -1;
  for (int64_t i = 0; i < count; i++) {
    const Weight &w = *t.rotations[t.rotations.size() == 1 ? 0 : static_cast<size_t>(i)];
    const int64_t bad = prepare(w, Act::Float, false, x + i * t.block, stride, m, workspace, &input);
    if (bad < 0) multiply(w, input, nullptr, out + i * t.block, k);
    else first = first < 0 ? bad : std::min(first, bad);
  }
  return first;
}

const float *gathered(const std::vector<int64_t> &index, const float *x, int64_t k, int64_t m, Workspace &workspace) {
  const int64_t s = static_cast<int64_t>(index.size());
  float *out = floats(workspace, m * s);
  each_row(m, s, [&](int64_t r) {
    for (int64_t i = 0; i < s; i++) out[r * s + i] = x[r * k + index[static_cast<size_t>(i)]];
    return true;
  });
  return out;
}

// What is left of x where it was rounded, of some columns: x less its value there, one rounding each.
const float *left_over(const Branch &b, const Input &input, const Weight &w, const float *x, const float *values, int64_t k, int64_t m, Workspace &workspace) {
  const int64_t s = static_cast<int64_t>(b.index.size());
  float *out = floats(workspace, m * s);
  each_row(m, s, [&](int64_t r) {
    for (int64_t i = 0; i < s; i++) {
      const size_t at = static_cast<size_t>(i);
      const int64_t column = b.index[at];
      float value;
      if (values) value = values[r * k + column];
      else value = input.scale[row_scale(w, input, r, b.segment[at])] * static_cast<float>(input.q[row_code(w, input, r, b.at[at])]);
      out[r * s + i] = x[r * k + column] - value;
    }
    return true;
  });
  return out;
}

Problem round_rows(const Rounding &r, const float *x, int64_t k, int64_t m, float *out) {
  const int64_t bad = each_row(m, k, [&](int64_t row) { return rounded(r, x + row * k, k, out + row * k); });
  if (bad < 0) return {};
  const bool whole = round_kernels_now().largest(x + bad * k, k) < 0x7f800000u;
  if (whole) return {bad, "the input, rounded to its format,", "needs a scale that the format does not hold"};
  return {bad, nullptr};
}

// A float product that nobody shares: z [m, n] = x [m, k] w^T.
int64_t times(const Weight &w, const float *x, int64_t m, float *z, Workspace &workspace) {
  Input input;
  const int64_t bad = prepare(w, Act::Float, false, x, w.k, m, workspace, &input);
  if (bad < 0) multiply(w, input, nullptr, z, w.n);
  return bad;
}

// The input of a layer as far as it has been made.
struct Made {
  const float *x = nullptr;       // after the transforms
  const float *exact = nullptr;   // and with some columns cleared
  const float *rounded = nullptr;  // and rounded to its format; nullptr: it is not
  Input input;
};

Problem branch(const Branch &b, const LinearUse &use, const Made &made, int64_t m, float *y, Workspace &workspace) {
  const Weight &w = *use.weight;
  float *z = floats(workspace, m * w.n);
  const char *what = "the input of a branch";
  int64_t bad = -1;
  if (b.kind == Branch::Kind::LowRank) {
    float *t = floats(workspace, m * b.a->n);
    bad = times(*b.a, made.x, m, t, workspace);
    if (bad < 0) bad = times(*b.b, t, m, z, workspace);
  } else if (b.kind == Branch::Kind::Columns) {
    bad = times(*b.a, gathered(b.index, made.x, w.k, m, workspace), m, z, workspace);
  } else {
    const float *left = left_over(b, made.input, w, made.exact, made.rounded, w.k, m, workspace);
    if (made.rounded) {
      float *values = floats(workspace, m * b.a->k);
      const Problem problem = round_rows(*use.input->residual, left, b.a->k, m, values);
      if (problem.row >= 0) return problem;
      bad = times(*b.a, values, m, z, workspace);
    } else {
      Input input;
      bad = prepare(*b.a, use.act, b.a->kind == Kind::Wide16, left, b.a->k, m, workspace, &input);
      if (bad < 0) multiply(*b.a, input, nullptr, z, w.n);
    }
  }
  if (bad >= 0) return {bad, what};
  const TransformKernels &kernels = transform_kernels_now();
  each_row(m, w.n, [&](int64_t r) {
    kernels.add(z + r * w.n, w.n, y + r * w.n);
    return true;
  });
  return {};
}

}  // namespace

const float *transformed(const Steps &steps, const float *x, int64_t stride, int64_t m, Workspace &workspace, Problem *problem) {
  const TransformKernels &kernels = transform_kernels_now();
  const int64_t k = steps.k;
  float *out = nullptr;
  for (size_t first = 0; first < steps.list.size();) {
    const Transform &t = steps.list[first];
    if (t.kind == Transform::Kind::Rotate) {
      float *next = floats(workspace, m * k);
      const int64_t bad = rotate(t, x, stride, m, k, next, workspace);
      if (bad >= 0) *problem = {bad, first ? kTransformed : nullptr};
      if (bad >= 0) return nullptr;
      x = out = next, stride = k, first++;
      continue;
    }
    size_t end = first;
    while (end < steps.list.size() && steps.list[end].kind != Transform::Kind::Rotate) end++;
    float *next = out ? out : floats(workspace, m * k);
    const bool failed = each_row(m, k, [&](int64_t r) {
      const float *in = x + r * stride;
      for (size_t i = first; i < end; i++) {
        if (steps.list[i].kind == Transform::Kind::Permute && in == next + r * k) {
          float *line = static_cast<float *>(scratch(sizeof(float) * static_cast<size_t>(k)));
          if (!line) return false;
          memcpy(line, in, sizeof(float) * static_cast<size_t>(k));
          in = line;
        }
        step(steps.list[i], kernels, in, k, next + r * k);
        in = next + r * k;
      }
      return true;
    }) >= 0;
    if (failed) throw std::bad_alloc();
    x = out = next, stride = k, first = end;
  }
  return x;
}

bool rounded(const Rounding &r, const float *x, int64_t k, float *out) {
  const RoundKernels &kernels = round_kernels_now();
  if (!r.blocks || r.second) {
    const uint32_t most = kernels.largest(x, k);
    if (most >= 0x7f800000u) return false;
    if (!r.blocks) {
      for (int64_t at = 0; at < k; at += kRoundBlock) kernels.values(*r.plan, x + at, nullptr, std::min(kRoundBlock, k - at), out + at, false);
      return true;
    }
    BlockPlan block = r.block;
    float amax;
    memcpy(&amax, &most, 4);
    const double wish = std::min(std::max(static_cast<double>(amax) / block.most / r.top, 0x1p-149), 0x1.fffffep+127);
    float stored = static_cast<float>(wish);
    if (wish / static_cast<double>(stored) * r.top > r.most_short) stored = std::nextafterf(stored, INFINITY);
    block.outer = static_cast<double>(stored), block.factor = stored;
    Rounding one = r;
    one.block = block, one.second = false;
    return rounded(one, x, k, out);
  }
  BlockPlan block = r.block;
  block.size = r.size == 0 || r.size > k ? k : r.size;
  const int64_t step = block.size >= kRoundBlock ? block.size : kRoundBlock / block.size * block.size;
  bool good = true;
  for (int64_t at = 0; at < k; at += step) good = kernels.blocks(*r.plan, block, x + at, nullptr, std::min(step, k - at), out + at, nullptr) && good;
  return good;
}

Problem project(const LinearUse *const *uses, float *const *outs, int count, const float *x, int64_t m, Workspace &workspace) {
  const TransformKernels &kernels = transform_kernels_now();
  Made made;
  Problem problem;
  const auto shares = [&](int a, int b) {
    return uses[a]->input == uses[b]->input && uses[a]->product == uses[b]->product &&
           same_input(*uses[a]->weight, uses[a]->act, *uses[b]->weight, uses[b]->act);
  };
  for (int i = 0; i < count; i++) {
    const LinearUse &use = *uses[i];
    const Weight &w = *use.weight;
    const InputPlan *plan = use.input, *before = i ? uses[i - 1]->input : nullptr;
    if (i == 0 || plan != before) {
      const Steps *steps = plan ? plan->steps : nullptr;
      if (i == 0 || steps != (before ? before->steps : nullptr)) {
        made.x = steps ? transformed(*steps, x, w.k, m, workspace, &problem) : x;
        if (!made.x) return problem;
      }
      made.exact = made.x, made.rounded = nullptr;
      if (plan && !plan->cleared.empty()) {
        float *copy = floats(workspace, m * w.k);
        each_row(m, w.k, [&](int64_t r) {
          memcpy(copy + r * w.k, made.x + r * w.k, sizeof(float) * static_cast<size_t>(w.k));
          for (const int64_t column : plan->cleared) copy[r * w.k + column] = 0.0f;
          return true;
        });
        made.exact = copy;
      }
      if (plan && plan->rounding) {
        float *values = floats(workspace, m * w.k);
        problem = round_rows(*plan->rounding, made.exact, w.k, m, values);
        if (problem.row >= 0) return problem;
        made.rounded = values;
      }
    }
    if (i == 0 || !shares(i - 1, i)) {
      bool wide = false;
      for (int j = i; j < count && (j == i || shares(j - 1, j)); j++) wide = wide || uses[j]->weight->kind == Kind::Wide16;
      const float *main = made.rounded ? made.rounded : made.exact;
      const int64_t bad = prepare(w, use.act, wide, main, w.k, m, workspace, &made.input, use.product, plan ? plan->scale : 0.0f);
      if (bad >= 0) return {bad, plan && plan->steps ? kTransformed : nullptr};
    }
    const bool plain = use.branches.empty();
    multiply(w, made.input, plain ? use.bias : nullptr, outs[i], w.n);
    for (const Branch &b : use.branches) {
      problem = branch(b, use, made, m, outs[i], workspace);
      if (problem.row >= 0) return problem;
    }
    if (!plain && use.bias)
      each_row(m, w.n, [&](int64_t r) {
        kernels.shift(outs[i] + r * w.n, use.bias, w.n, outs[i] + r * w.n);
        return true;
      });
    if (use.post) {
      const float *y = transformed(*use.post, outs[i], w.n, m, workspace, &problem);
      if (!y) return {problem.row, "the output before its transform"};
      memcpy(outs[i], y, sizeof(float) * static_cast<size_t>(m * w.n));
    }
  }
  return problem;
}

}  // namespace anybit
