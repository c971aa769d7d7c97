// The Python module anybit.kernels._native. Everything that could hurt is checked here; the kernels check nothing.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "bind.h"
#include "escape.h"
#include "operator.h"
#include "pool.h"

using namespace nanobind::literals;

namespace anybit {
namespace {

using Integers = Array<int32_t, 1>;
using Rows = Array<int64_t, 1>;

struct PyScale {
  Scale scale;
  std::vector<Bytes> data;  // of the scales, and of the second level if there is one
};

int64_t width_of(ScaleKind kind) {
  if (kind == ScaleKind::One) return 0;
  return kind == ScaleKind::Float32 ? 4 : kind == ScaleKind::Float16 || kind == ScaleKind::BFloat16 ? 2 : 1;
}

// Whether a small float holds codes beyond its largest finite value (NaN, infinity), which arithmetic would read as numbers: the table does not.
bool has_special(const Grid &s, const Bytes &data) {
  const uint8_t size = static_cast<uint8_t>((1 << (s.bits - s.has_sign)) - 1);
  int finite = size;
  while (finite > 0 && !std::isfinite(s.table[finite])) finite--;
  if (finite == size) return false;
  if (s.paired) return true;
  uint8_t top = 0;
  const uint8_t *p = data.data(), *end = p + data.shape(0);
  for (; p < end; p++) top = std::max(top, static_cast<uint8_t>(*p & size));
  return top > finite;
}

PyScale make_scale(int kind, Bytes data, int64_t rows, int64_t columns, float whole, int bits, int mantissa, float factor, bool has_sign, Vector table, bool paired,
                   const PyScale *second, int64_t each) {
  PyScale s;
  require(kind >= 1 && kind <= static_cast<int>(ScaleKind::Table), "scale kind");
  require(rows >= 0 && columns >= 1 && bits >= 0 && bits <= 8 && mantissa >= 0 && mantissa <= 8, "scale fields");
  require(bits >= 1 || kind < static_cast<int>(ScaleKind::Exponent), "scale bits");
  require(kind < static_cast<int>(ScaleKind::Exponent) || table.shape(0) == 256, "scales of at most 8 bits need their table");
  require(table.shape(0) == 0 || table.shape(0) == 256, "scale table needs 256 entries");
  require(!paired || (rows == 1 && bits >= 1 && bits <= 4), "two scales a byte are tiled and have at most 4 bits");
  require(second ? each >= 1 && second->scale.each == 0 : each == 0, "scales of scales have one level");
  s.scale.kind = static_cast<ScaleKind>(kind);
  s.scale.data = data.data();
  s.scale.rows = rows, s.scale.columns = columns, s.scale.whole = whole, s.scale.paired = paired;
  s.scale.bits = bits, s.scale.mantissa = mantissa, s.scale.factor = factor, s.scale.has_sign = has_sign;
  for (size_t i = 0; i < table.shape(0); i++) s.scale.table[i] = table.data()[i];
  if (s.scale.kind == ScaleKind::Mini && has_special(s.scale, data)) s.scale.kind = ScaleKind::Table;
  s.data.push_back(data);
  if (second) {
    s.scale.second = second->scale, s.scale.each = each;
    s.data.push_back(second->data[0]);
  }
  return s;
}

void check_grid(const OwnedWeight &w, const Grid &s, const Bytes &data, int64_t columns) {
  require(s.columns == columns, "scale columns differ from the blocks along k");
  const int64_t grid = s.rows == 1 ? w.tiles * 16 : s.rows == 0 ? 1 : (w.n + s.rows - 1) / s.rows, stored = s.paired ? (columns + 1) / 2 : columns;
  require(static_cast<int64_t>(data.shape(0)) == grid * stored * width_of(s.kind), "scale bytes differ from the grid");
}

void check_scale(const OwnedWeight &w, const PyScale &s) {
  check_grid(w, s.scale, s.data[0], w.blocks);
  if (s.scale.each) check_grid(w, s.scale.second, s.data[1], (w.blocks + s.scale.each - 1) / s.scale.each);
}

}  // namespace

std::unique_ptr<PyWeight> make_weight(int64_t n, int64_t k, int bits, int dense, Bytes codes, int64_t block, const PyScale *scale, const PyScale *offset,
                                      std::optional<Bytes> zero, int zero_flip, std::optional<Integers> integers, float step, Vector table,
                                      float float_step, Vector values, bool trits, std::optional<Array<uint8_t, 2>> index) {
  auto out = std::make_unique<PyWeight>();
  OwnedWeight &w = out->weight;
  constexpr int64_t kMost = int64_t{1} << 31;  // and n * k below 2^48: no byte count can wrap
  require(n >= 1 && k >= 1 && n <= kMost && k <= kMost && n <= (int64_t{1} << 48) / k, "n and k must be 1 to 2^31, and n * k at most 2^48");
  require(dense >= 0 && dense <= 3, "dense kind");
  require(dense ? bits == (dense == 1 ? 32 : 16) : bits >= 1 && bits <= 8, "bits");
  w.n = n, w.k = k, w.bits = bits, w.dense = static_cast<Dense>(dense), w.block = dense ? 0 : block;
  require(dense || block >= 0, "block");
  w.step = step, w.float_step = float_step;
  w.codes = codes.data();
  if (!dense) {
    const size_t entries = size_t{1} << bits;
    require(scale != nullptr, "coded weights need a scale");
    require(table.shape(0) == entries && values.shape(0) == entries, "tables need 2^bits entries");
    require(!integers || integers->shape(0) == entries, "the integer table needs 2^bits entries");
    if (integers)
      for (size_t i = 0; i < entries; i++) require(integers->data()[i] >= -32768 && integers->data()[i] <= 32767, "integer table beyond int16");
    for (size_t i = 0; i < std::max<size_t>(entries, 16); i++) w.table[i] = table.data()[i % entries], w.values[i] = values.data()[i % entries];
  }
  const int64_t tiles = (n + 15) / 16;
  if (index) {
    require(dense == static_cast<int>(Dense::BFloat16), "lossless codes are bfloat16");
    const EscapeShape blocks(tiles * 16 * k, 16 * k, 2);
    require(static_cast<int64_t>(index->shape(0)) == blocks.blocks && index->shape(1) == static_cast<size_t>(kEscapeEntry), "index: its size differs from the layout");
    check_escapes(blocks, index->data(), codes.data(), static_cast<int64_t>(codes.shape(0)));
    w.index = index->data();
    out->keep_index = *index;
  } else {
    const int32_t ternary[4] = {-1, 0, 1, 1};
    require(!trits || (!dense && bits == 2 && integers && std::equal(ternary, ternary + 4, integers->data())), "only ternary codes lie five a byte");
    const int64_t chunks = trits ? (k + 19) / 20 : (k + 31) / 32, chunk = trits ? 64 : 64 * bits;
    const int64_t bytes = dense ? tiles * 16 * k * (bits / 8) : tiles * chunks * chunk;
    require(static_cast<int64_t>(codes.shape(0)) == bytes, "codes: byte count differs from the layout");  // before lists of k / block entries
    w.trits = trits;
  }
  w.finish(!dense && integers ? integers->data() : nullptr);
  if (!dense) {
    check_scale(w, *scale);
    w.scale = scale->scale;
    out->keep = scale->data;
    if (offset) {
      check_scale(w, *offset);
      w.offset = offset->scale, w.has_offset = true;
      out->keep.insert(out->keep.end(), offset->data.begin(), offset->data.end());
    }
    if (zero) {
      require(static_cast<int64_t>(zero->shape(0)) == w.tiles * w.blocks * 16, "zero: byte count differs from the grid");
      w.zero = zero->data(), w.zero_flip = zero_flip;
      out->keep.push_back(*zero);
    }
  }
  out->keep.push_back(codes);
  return out;
}

namespace {

nb::object matmul(const PyWeight &p, Matrix x, int act, std::optional<Vector> bias, const PyProduct *product) {
  const Weight &w = p.weight;
  require(static_cast<int64_t>(x.shape(1)) == w.k, "x: columns differ from k");
  require(act == 0 || act == 1 || (act == 2 && product), "act");
  require(act == 0 || w.segment_count > 0, "this weight has no integer path");
  if (product) product->check(w, static_cast<Act>(act));
  require(!bias || static_cast<int64_t>(bias->shape(0)) == w.n, "bias: length differs from n");
  const int64_t m = static_cast<int64_t>(x.shape(0));
  const size_t shape[2] = {static_cast<size_t>(m), static_cast<size_t>(w.n)};
  float *y;
  nb::object out = array(2, shape, &y);
  int64_t bad = -1;
  {
    nb::gil_scoped_release release;
    Workspace workspace;
    Input input;
    bad = prepare(w, static_cast<Act>(act), w.kind == Kind::Wide16, x.data(), w.k, m, workspace, &input, product ? &product->product : nullptr);
    if (bad < 0) multiply(w, input, bias ? bias->data() : nullptr, y, w.n);
  }
  if (bad >= 0) throw nb::value_error(("non-finite value in row " + std::to_string(bad) + " of the input").c_str());
  return out;
}

nb::object rows(const PyWeight &p, std::optional<Rows> ids) {
  const Weight &w = p.weight;
  const int64_t count = ids ? static_cast<int64_t>(ids->shape(0)) : w.n;
  if (ids)
    for (int64_t i = 0; i < count; i++) require(ids->data()[i] >= 0 && ids->data()[i] < w.n, "row index out of range");
  const size_t shape[2] = {static_cast<size_t>(count), static_cast<size_t>(w.k)};
  float *y;
  nb::object out = array(2, shape, &y);
  {
    nb::gil_scoped_release release;
    if (ids) rows_of(w, ids->data(), count, y);
    else all_rows(w, y);
  }
  return out;
}

const char *kind_name(const Weight &w) {
  if (w.dense != Dense::None) return "dense";
  switch (w.kind) {
    case Kind::Unsigned8: return "u8";
    case Kind::Signed8: return "s8";
    case Kind::Wide16: return "i16";
    default: return "float";
  }
}

std::string how(const PyWeight &p, int act) {
  const char *why = nullptr;
  const int64_t rows = p.weight.kernels->streams(p.weight, act != 0, &why);
  if (!rows) return std::string("by panels: ") + why;
  return rows == 1 ? "one row in registers, more by panels" : "up to " + std::to_string(rows) + " rows in registers, more by panels";
}

}  // namespace
}  // namespace anybit

NB_MODULE(_native, m) {
  using namespace anybit;
  m.doc() = "Native kernels of anybit; anybit.native is the only importer.";
  bind_products(m);
  nb::class_<PyScale>(m, "Scale")
      .def_static("make", &make_scale, "kind"_a, "data"_a, "rows"_a, "columns"_a, "whole"_a, "bits"_a, "mantissa"_a, "factor"_a, "has_sign"_a, "table"_a,
                  "paired"_a = false, "second"_a.none() = nb::none(), "each"_a = 0);
  nb::class_<PyWeight>(m, "Weight")
      .def_static("make", &make_weight, "n"_a, "k"_a, "bits"_a, "dense"_a, "codes"_a, "block"_a, "scale"_a.none(), "offset"_a.none(), "zero"_a.none(),
                  "zero_flip"_a, "integers"_a.none(), "step"_a, "table"_a, "float_step"_a, "values"_a, "trits"_a = false, "index"_a.none() = nb::none())
      .def("matmul", &matmul, "x"_a, "act"_a, "bias"_a.none() = nb::none(), "product"_a.none() = nb::none())
      .def("rows", &rows, "ids"_a.none() = nb::none())
      .def_prop_ro("isa", [](const PyWeight &p) { return p.weight.kernels->isa; })
      .def_prop_ro("kind", [](const PyWeight &p) { return kind_name(p.weight); })
      .def("how", &how, "act"_a)
      .def_prop_ro("affine", [](const PyWeight &p) { return p.weight.affine; })
      .def_prop_ro("n", [](const PyWeight &p) { return p.weight.n; })
      .def_prop_ro("k", [](const PyWeight &p) { return p.weight.k; });
  m.def("isa", [] { return isa_name(isa()); });
  m.def("supported_isas", [] {
    nb::list names;
    for (int i = 0; i < static_cast<int>(Isa::count); i++)
      if (isa_supported(static_cast<Isa>(i))) names.append(isa_name(static_cast<Isa>(i)));
    return names;
  });
  m.def("set_isa", [](const std::string &name) {
    if (const char *wrong = set_isa(name.c_str())) throw nb::value_error(("instruction set '" + name + "': " + wrong).c_str());
  }, "name"_a);
  m.def("threads", &threads);
  m.def("set_threads", [](int count) {
    require(count >= 1 && count <= 256, "threads must be 1 to 256");
    nb::gil_scoped_release release;
    set_threads(count);
  }, "count"_a);
  m.def("stay_alone", &stay_alone);
  m.def("usable_cores", &usable_cores);
  m.def("cgroup_cores", &cgroup_cores, "root"_a, "membership"_a);
  m.def("fork_join", &fork_join_ns, "tasks"_a, "most_ns"_a, nb::call_guard<nb::gil_scoped_release>());
  bind_round(m);
  bind_around(m);
  bind_ops(m);
  bind_pack(m);
  bind_gptq(m);
  bind_sums(m);
}
