// Binds gptq.cc: shapes are checked here, rows are shared out to threads.
#include <nanobind/stl/optional.h>

#include <algorithm>

#include "bind_round.h"
#include "gptq.h"
#include "pool.h"

using namespace nanobind::literals;

namespace anybit {

AB_KERNELS(FeedbackKernels, feedback_kernels)

namespace {

using MatrixOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using CodesOut = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
constexpr int64_t kTogether = 64;  // rows of a task
using Index = Array<int32_t, 1>;

const float *grid(const std::optional<Matrix> &given, const Matrix &scale, const char *what) {
  if (!given) return nullptr;
  require(given->shape(0) == scale.shape(0) && given->shape(1) == scale.shape(1), what);
  return given->data();
}

// Half the distance between neighbouring values of an element of up to 256 codes where it is the same everywhere; 0 where it is not.
float half_step(const PyRound &r) {
  if (r.code_mask > 255) return 0;
  std::vector<float> values(r.decoded.begin(), r.decoded.begin() + r.code_mask + 1);
  if (!std::all_of(values.begin(), values.end(), [](float v) { return v - v == 0; })) return 0;
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  const float step = values.size() > 1 ? values[1] - values[0] : 0;
  for (size_t i = 1; i < values.size(); i++)
    if (!(values[i] - values[i - 1] == step)) return 0;
  return step / 2;
}

void feedback(
    const PyRound &r, Matrix base, Matrix weight, MatrixOut error, std::optional<MatrixOut> moved, Matrix coupling, std::optional<Matrix> second, Matrix scale,
    std::optional<Matrix> zero, std::optional<Matrix> offset, Index column, CodesOut codes, std::optional<Vector> cost,
    std::optional<nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>> loss,
    std::optional<nb::ndarray<uint64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>> near, bool full, bool whole_zero, float symmetric) {
  FeedbackPlan p{};
  p.n = static_cast<int64_t>(base.shape(1)), p.count = static_cast<int64_t>(base.shape(0));
  const auto like = [&](const auto &a) { return a.shape(0) == base.shape(0) && a.shape(1) == base.shape(1); };
  require(p.count <= kFeedbackColumns, "a block has at most 256 columns");
  require(like(weight) && like(error) && (!moved || like(*moved)) && like(codes), "weight, error, moved and codes have the targets' shape");
  require(coupling.shape(0) == base.shape(0) && coupling.shape(1) == base.shape(0), "coupling is square");
  require(!second || (second->shape(0) == base.shape(0) && second->shape(1) == base.shape(0) && !full), "the second coupling is square, for one sweep");
  require(second.has_value() == moved.has_value(), "targets are kept where there is a second coupling");
  require(cost.has_value() == loss.has_value(), "cost and loss go together");
  require(!cost || (cost->shape(0) == base.shape(0) && loss->shape(0) == base.shape(1)), "a cost for each column, a loss for each row");
  require(!near || (near->shape(0) == base.shape(0) && static_cast<int64_t>(near->shape(1)) == (p.n + kFeedbackRows - 1) / kFeedbackRows),
          "near: a bit for each row");
  require(static_cast<int64_t>(scale.shape(1)) == p.n, "a scale for each row");
  require(static_cast<int64_t>(column.shape(0)) == p.count, "a block for each column");
  for (size_t i = 0; i < column.shape(0); i++) require(column.data()[i] >= 0 && static_cast<size_t>(column.data()[i]) < scale.shape(0), "block of a column");
  require(codes.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && codes.dtype().bits == 8 * r.width, "codes: not the codes' type");
  require(r.plan.mode != RoundMode::Stochastic, "stochastic rounding has no feedback");
  p.round = &r.plan, p.decoded = r.decoded.data(), p.few = r.code_mask < 16, p.width = r.width;
  p.base = base.data(), p.weight = weight.data(), p.coupling = coupling.data(), p.second = second ? second->data() : nullptr;
  p.scale = scale.data(), p.zero = grid(zero, scale, "zero"), p.offset = grid(offset, scale, "offset");
  p.column = column.data(), p.full = full, p.whole_zero = whole_zero, p.symmetric = symmetric;
  p.error = error.data(), p.moved = moved ? moved->data() : nullptr, p.codes = static_cast<uint8_t *>(codes.data());
  p.near = near ? near->data() : nullptr, p.half = near ? half_step(r) : 0;
  p.cost = cost ? cost->data() : nullptr, p.loss = loss ? loss->data() : nullptr;
  const FeedbackKernels &kernels = *feedback_kernels_of[static_cast<int>(isa())];
  bool memory = true;
  {
    nb::gil_scoped_release release;
    parallel_for((p.n + kFeedbackRows - 1) / kFeedbackRows, [&](int64_t t) {
      const FloatState state;
      const int64_t first = t * kFeedbackRows;
      float *held = static_cast<float *>(scratch(sizeof(float) * static_cast<size_t>(2 * p.count * kFeedbackRows)));
      if (held) kernels.run(p, first, p.n - first < kFeedbackRows ? p.n - first : kFeedbackRows, held);
      else memory = false;
    });
  }
  if (!memory) throw std::bad_alloc();
}

void columnwise(Matrix in, Array<int64_t, 1> order, MatrixOut out) {
  const int64_t n = static_cast<int64_t>(in.shape(0)), k = static_cast<int64_t>(in.shape(1)), kept = static_cast<int64_t>(order.shape(0));
  require(kept == k && static_cast<int64_t>(out.shape(0)) == k && static_cast<int64_t>(out.shape(1)) == n, "an order of all columns, and a row of out for each");
  for (int64_t i = 0; i < k; i++) require(order.data()[i] >= 0 && order.data()[i] < k, "order: no such column");
  const FeedbackKernels &kernels = *feedback_kernels_of[static_cast<int>(isa())];
  nb::gil_scoped_release release;
  parallel_for((n + 15) / 16, [&](int64_t t) {
    const int64_t first = 16 * t;
    kernels.columnwise(in.data() + first * k, n - first < 16 ? n - first : 16, k, order.data(), out.data() + first, n);
  });
}

void ordered(Matrix xtx, Array<int64_t, 1> index, double mean, nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
  const int64_t k = static_cast<int64_t>(xtx.shape(0));
  const auto square = [&](const auto &a) { return static_cast<int64_t>(a.shape(0)) == k && static_cast<int64_t>(a.shape(1)) == k; };
  require(square(xtx) && square(out) && static_cast<int64_t>(index.shape(0)) == k, "square matrices, and an order");
  for (int64_t i = 0; i < k; i++) require(index.data()[i] >= 0 && index.data()[i] < k, "order: no such channel");
  const FeedbackKernels &kernels = *feedback_kernels_of[static_cast<int>(isa())];
  nb::gil_scoped_release release;
  parallel_for((k + kTogether - 1) / kTogether, [&](int64_t t) {
    const FloatState state;
    for (int64_t i = t * kTogether; i < k && i < (t + 1) * kTogether; i++) kernels.ordered(xtx.data(), index.data(), mean, k, i, out.data() + i * k);
  });
}

void unit(nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu> lower, Array<double, 1> diagonal, MatrixOut out) {
  const int64_t k = static_cast<int64_t>(lower.shape(0));
  const auto square = [&](const auto &a) { return static_cast<int64_t>(a.shape(0)) == k && static_cast<int64_t>(a.shape(1)) == k; };
  require(square(lower) && square(out) && static_cast<int64_t>(diagonal.shape(0)) == k, "square matrices, and a diagonal");
  const FeedbackKernels &kernels = *feedback_kernels_of[static_cast<int>(isa())];
  nb::gil_scoped_release release;
  parallel_for((k + kTogether - 1) / kTogether, [&](int64_t t) {
    const FloatState state;
    for (int64_t i = t * kTogether; i < k && i < (t + 1) * kTogether; i++) kernels.unit(lower.data(), diagonal.data(), k, i, out.data() + i * k);
  });
}

// Column by column in the order of rounding, as everything of the loop is: out[d] = w + sum_{j < c} e_j R_jc / R_cc of row[d] and c = column[d], in float64.
void targets(
    nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu> lower, Matrix weight, Matrix error, Array<int64_t, 1> row, Array<int64_t, 1> column,
    nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  const int64_t k = static_cast<int64_t>(lower.shape(0)), n = static_cast<int64_t>(weight.shape(1)), count = static_cast<int64_t>(row.shape(0));
  const auto like = [&](const auto &a) { return static_cast<int64_t>(a.shape(0)) == k && static_cast<int64_t>(a.shape(1)) == n; };
  require(static_cast<int64_t>(lower.shape(1)) == k && like(weight) && like(error), "a square factor, weight and error with as many rows");
  require(static_cast<int64_t>(column.shape(0)) == count && static_cast<int64_t>(out.shape(0)) == count, "a row, a column and a target each");
  for (int64_t d = 0; d < count; d++)
    require(row.data()[d] >= 0 && row.data()[d] < n && column.data()[d] >= 0 && column.data()[d] < k, "no such row or column");
  nb::gil_scoped_release release;
  parallel_for((count + kTogether - 1) / kTogether, [&](int64_t t) {  // one row of R after the other for many targets: fewer pages at a time
    const FloatState state;
    const int64_t first = t * kTogether, several = count - first < kTogether ? count - first : kTogether;
    const int64_t *at = row.data() + first, *c = column.data() + first;
    double *sum = out.data() + first;
    for (int64_t d = 0; d < several; d++) sum[d] = 0;
    const int64_t most = *std::max_element(c, c + several);
    for (int64_t j = 0; j < most; j++) {
      const float *w = weight.data() + j * n, *e = error.data() + j * n;
      const double *r = lower.data() + (k - 1 - j) * k + (k - 1);  // R_ji is lower[k-1-j][k-1-i]
      for (int64_t d = 0; d < several; d++) {
        if (j >= c[d]) continue;
        const float value = w[at[d]] - e[at[d]];  // as it was before the error was rounded
        sum[d] += (static_cast<double>(w[at[d]]) - static_cast<double>(value)) * r[-c[d]];
      }
    }
    for (int64_t d = 0; d < several; d++) {
      const double pivot = lower.data()[(k - 1 - c[d]) * k + (k - 1 - c[d])];
      sum[d] = static_cast<double>(weight.data()[c[d] * n + at[d]]) + sum[d] / pivot;
    }
  });
}

}  // namespace

void bind_gptq(nb::module_ &m) {
  m.def("feedback", &feedback, "round"_a, "base"_a, "weight"_a, "error"_a, "moved"_a.none(), "coupling"_a, "second"_a.none(), "scale"_a, "zero"_a.none(),
        "offset"_a.none(), "column"_a, "codes"_a, "cost"_a.none(), "loss"_a.none(), "near"_a.none(), "full"_a, "whole_zero"_a, "symmetric"_a);
  m.def("ordered", &ordered, "xtx"_a, "index"_a, "mean"_a, "out"_a);
  m.def("unit", &unit, "lower"_a, "diagonal"_a, "out"_a);
  m.def("targets", &targets, "lower"_a, "weight"_a, "error"_a, "row"_a, "column"_a, "out"_a);
  m.def("columnwise", &columnwise, "in"_a, "order"_a, "out"_a);
}

}  // namespace anybit
