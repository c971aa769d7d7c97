// Binds sums.cc: lengths are checked here, blocks are shared out to threads.
#include <nanobind/stl/optional.h>

#include "bind_round.h"
#include "pool.h"
#include "sums.h"

using namespace nanobind::literals;

namespace anybit {

AB_KERNELS(SumsKernels, sums_kernels)

namespace {

constexpr int64_t kTask = 32 * kRoundBlock;  // numbers
using Floats = Array<float, 1>;
using Doubles = Array<double, 1>;

nb::object block_sums(
    const PyRound &r, int what, Floats x, int64_t size, Floats scale, std::optional<Floats> offset, std::optional<Floats> before,
    std::optional<Doubles> weight, float end, std::optional<Doubles> unit, double power) {
  require(what >= 0 && what < 4, "what: pairs, scales, loss or power");
  SumsPlan p{};
  const int64_t n = static_cast<int64_t>(x.shape(0)), blocks = static_cast<int64_t>(scale.shape(0));
  require(size >= 1 && n % size == 0 && n / size == blocks, "x is whole blocks, one scale each");
  require(!offset || offset->shape(0) == scale.shape(0), "offset: one a block");
  require(!before || (before->shape(0) == scale.shape(0) && what < 2), "before: one a block, and no loss");
  require(!weight || (static_cast<int64_t>(weight->shape(0)) % size == 0 && weight->shape(0) > 0), "weight: those of whole blocks");
  require(r.plan.mode != RoundMode::Stochastic && !r.refuse_outside, "a search rounds to nearest, and saturates");
  require(end > 0, "end");
  require(what != 3 || (unit && unit->shape(0) == scale.shape(0) && power >= 0.1 && power <= 10), "power: 0.1 to 10, and a unit for each block");
  p.round = &r.plan, p.what = static_cast<Sums>(what), p.size = size, p.x = x.data(), p.scale = scale.data();
  p.offset = offset ? offset->data() : nullptr, p.before = before ? before->data() : nullptr;
  p.weight = weight ? weight->data() : nullptr, p.period = weight ? static_cast<int64_t>(weight->shape(0)) : 1, p.end = end;
  p.unit = unit ? unit->data() : nullptr, p.power = power;
  const size_t shape[2] = {static_cast<size_t>(blocks), static_cast<size_t>(kSums[what])};
  nb::object out = array(2, shape, &p.out);
  const SumsKernels &kernels = *sums_kernels_of[static_cast<int>(isa())];
  const int64_t each = std::max<int64_t>(1, kTask / size);
  {
    nb::gil_scoped_release release;
    parallel_for((blocks + each - 1) / each, [&](int64_t t) {
      const FloatState state;
      kernels.blocks(p, t * each, std::min(each, blocks - t * each));
    });
  }
  return out;
}

nb::object block_ends(Floats x, int64_t size) {
  const int64_t n = static_cast<int64_t>(x.shape(0));
  require(size >= 1 && n % size == 0, "x is whole blocks");
  float *low = nullptr;
  const int64_t blocks = n / size;
  const size_t shape[2] = {2, static_cast<size_t>(blocks)};
  nb::object out = array(2, shape, &low);
  const SumsKernels &kernels = *sums_kernels_of[static_cast<int>(isa())];
  const int64_t each = std::max<int64_t>(1, kTask / size);
  {
    nb::gil_scoped_release release;
    parallel_for((blocks + each - 1) / each, [&](int64_t t) {
      const FloatState state;
      const int64_t from = t * each;
      kernels.ends(x.data() + from * size, size, std::min(each, blocks - from), low + from, low + blocks + from);
    });
  }
  return out;
}

void block_codes(const PyRound &r, Floats x, int64_t size, Floats scale, std::optional<Floats> zero, std::optional<Floats> offset, bool whole, float end,
                 nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  CodesPlan p{};
  const int64_t n = static_cast<int64_t>(x.shape(0)), blocks = static_cast<int64_t>(scale.shape(0));
  require(size >= 1 && n % size == 0 && n / size == blocks, "x is whole blocks, one scale each");
  require((!zero || zero->shape(0) == scale.shape(0)) && (!offset || offset->shape(0) == scale.shape(0)), "zero and offset: one a block");
  require(out.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && out.dtype().bits == 8 * r.width, "codes: not the codes' type");
  require(static_cast<int64_t>(out.shape(0)) == n && end > 0, "a code for each number, and an end");
  require(r.plan.mode != RoundMode::Stochastic && !r.refuse_outside, "these are rounded to nearest, and saturate");
  p.round = &r.plan, p.width = r.width, p.size = size, p.x = x.data(), p.scale = scale.data(), p.zero = zero ? zero->data() : nullptr;
  p.offset = offset ? offset->data() : nullptr, p.whole = whole, p.end = end, p.out = static_cast<uint8_t *>(out.data());
  const SumsKernels &kernels = *sums_kernels_of[static_cast<int>(isa())];
  const int64_t each = std::max<int64_t>(1, kTask / size);
  nb::gil_scoped_release release;
  parallel_for((blocks + each - 1) / each, [&](int64_t t) {
    const FloatState state;
    kernels.codes(p, t * each, std::min(each, blocks - t * each));
  });
}

uint32_t block_values(Bytes codes, Vector table, bool few, int64_t size, Floats scale, std::optional<Floats> zero, std::optional<Floats> offset,
                      nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  const int64_t n = static_cast<int64_t>(codes.shape(0)), blocks = static_cast<int64_t>(scale.shape(0));
  require(size >= 1 && n % size == 0 && n / size == blocks, "codes are those of whole blocks, one scale each");
  require(static_cast<int64_t>(out.shape(0)) == n && table.shape(0) == 256, "a number for each code, and a table of 256");
  require((!zero || zero->shape(0) == scale.shape(0)) && (!offset || offset->shape(0) == scale.shape(0)), "zero and offset: one a block");
  const SumsKernels &kernels = *sums_kernels_of[static_cast<int>(isa())];
  const int64_t each = std::max<int64_t>(1, kTask / size), tasks = (blocks + each - 1) / each;
  std::vector<uint32_t> any(static_cast<size_t>(tasks));
  {
    nb::gil_scoped_release release;
    parallel_for(tasks, [&](int64_t t) {
      const FloatState state;
      const int64_t from = t * each;
      any[static_cast<size_t>(t)] = kernels.values(
          codes.data() + from * size, table.data(), few, size, std::min(each, blocks - from), scale.data() + from, zero ? zero->data() + from : nullptr,
          offset ? offset->data() + from : nullptr, out.data() + from * size);
    });
  }
  uint32_t all = 0;
  for (const uint32_t a : any) all |= a;
  return all;
}

}  // namespace

void bind_sums(nb::module_ &m) {
  m.def("block_sums", &block_sums, "round"_a, "what"_a, "x"_a, "size"_a, "scale"_a, "offset"_a.none(), "before"_a.none(), "weight"_a.none(), "end"_a,
        "unit"_a.none() = nb::none(), "power"_a = 2.0);
  m.def("block_values", &block_values, "codes"_a, "table"_a, "few"_a, "size"_a, "scale"_a, "zero"_a.none(), "offset"_a.none(), "out"_a);
  m.def("block_codes", &block_codes, "round"_a, "x"_a, "size"_a, "scale"_a, "zero"_a.none(), "offset"_a.none(), "whole"_a, "end"_a, "out"_a);
  m.def("block_ends", &block_ends, "x"_a, "size"_a);
}

}  // namespace anybit
