// Binds gptq.cc: shapes are checked here, rows are shared out to threads.
#include <nanobind/stl/optional.h>

#include "bind_round.h"
#include "gptq.h"
#include "pool.h"

using namespace nanobind::literals;

namespace anybit {

AB_KERNELS(FeedbackKernels, feedback_kernels)

namespace {

using MatrixOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using CodesOut = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Index = Array<int32_t, 1>;

const float *grid(const std::optional<Matrix> &given, const Matrix &scale, const char *what) {
  if (!given) return nullptr;
  require(given->shape(0) == scale.shape(0) && given->shape(1) == scale.shape(1), what);
  return given->data();
}

void feedback(
    const PyRound &r, Matrix base, Matrix weight, MatrixOut error, MatrixOut moved, Matrix coupling, std::optional<Matrix> second, Matrix scale,
    std::optional<Matrix> zero, std::optional<Matrix> offset, Index row, Index column, CodesOut codes, bool full, bool whole_zero, float symmetric) {
  FeedbackPlan p{};
  p.n = static_cast<int64_t>(base.shape(1)), p.count = static_cast<int64_t>(base.shape(0)), p.blocks = static_cast<int64_t>(scale.shape(1));
  const auto like = [&](const auto &a) { return a.shape(0) == base.shape(0) && a.shape(1) == base.shape(1); };
  require(p.count <= kFeedbackColumns, "a block has at most 256 columns");
  require(like(weight) && like(error) && like(moved) && like(codes), "weight, error, moved and codes have the targets' shape");
  require(coupling.shape(0) == base.shape(0) && coupling.shape(1) == base.shape(0), "coupling is square");
  require(!second || (second->shape(0) == base.shape(0) && second->shape(1) == base.shape(0) && !full), "the second coupling is square, for one sweep");
  require(static_cast<int64_t>(row.shape(0)) == p.n && static_cast<int64_t>(column.shape(0)) == p.count, "row and column");
  for (size_t i = 0; i < row.shape(0); i++) require(row.data()[i] >= 0 && static_cast<size_t>(row.data()[i]) < scale.shape(0), "row of blocks");
  for (size_t i = 0; i < column.shape(0); i++) require(column.data()[i] >= 0 && column.data()[i] < p.blocks, "block of a column");
  require(codes.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && codes.dtype().bits == 8 * r.width, "codes: not the codes' type");
  require(r.plan.mode != RoundMode::Stochastic, "stochastic rounding has no feedback");
  p.round = &r.plan, p.decoded = r.decoded.data(), p.width = r.width;
  p.base = base.data(), p.weight = weight.data(), p.coupling = coupling.data(), p.second = second ? second->data() : nullptr;
  p.scale = scale.data(), p.zero = grid(zero, scale, "zero"), p.offset = grid(offset, scale, "offset");
  p.row = row.data(), p.column = column.data(), p.full = full, p.whole_zero = whole_zero, p.symmetric = symmetric;
  p.error = error.data(), p.moved = moved.data(), p.codes = static_cast<uint8_t *>(codes.data());
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

}  // namespace

void bind_gptq(nb::module_ &m) {
  m.def("feedback", &feedback, "round"_a, "base"_a, "weight"_a, "error"_a, "moved"_a, "coupling"_a, "second"_a.none(), "scale"_a, "zero"_a.none(),
        "offset"_a.none(), "row"_a, "column"_a, "codes"_a, "full"_a, "whole_zero"_a, "symmetric"_a);
}

}  // namespace anybit
