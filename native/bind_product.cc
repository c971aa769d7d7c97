// Bindings of product rules. All checks are here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "bind.h"

using namespace nanobind::literals;

namespace anybit {

void PyProduct::check(const Weight &w, Act act) const {
  if (product.lookup) {
    require(w.dense == Dense::None && w.bits == product.weight_bits, "the product's table is for codes of another width");
    require(act == (product.act_bits == 8 ? Act::Int8 : Act::Int4), "the product's table is for other activations");
    require(!w.zero && !w.has_offset, "table products take no zero points or offsets");
    return;
  }
  require(act == Act::Float, "this product takes float activations");
  require(product.terms == 0 || w.dense == Dense::None, "terms are of codes");
}

namespace {

constexpr int64_t kMostEntry = ((int64_t{1} << 31) - 1) / 512;  // 512 of them, a whole activation block, stay in int32

std::unique_ptr<PyProduct> make_patterns(int mantissa, int64_t offset, bool saturates, std::optional<Matrix> terms) {
  require(mantissa >= 1 && mantissa <= 23, "mantissa");
  require(offset >= 0x3f000000 && offset <= 0x3f800000, "offset");
  auto out = std::make_unique<PyProduct>();
  Product &p = out->product;
  p.pattern.mantissa = mantissa;
  p.pattern.offset = static_cast<int32_t>(offset);
  p.pattern.most = saturates ? 0x7f800000 - (1 << (23 - mantissa)) : 0x7f800000;
  if (terms) {
    const size_t count = terms->shape(0), entries = terms->shape(1);
    require(count >= 1 && count <= 8 && entries >= 1 && entries <= 256, "terms");
    p.terms = static_cast<int>(count);
    out->term_tables.resize(256 * count);
    for (size_t t = 0; t < count; t++)
      for (size_t i = 0; i < 256; i++) out->term_tables[256 * t + i] = terms->data()[t * entries + i % entries];
    p.term_tables = out->term_tables.data();
  }
  return out;
}

std::unique_ptr<PyProduct> make_lookup(int act_bits, int weight_bits, Array<int32_t, 2> table) {
  require((act_bits == 4 || act_bits == 8) && weight_bits >= 1 && weight_bits <= 8, "act_bits is 4 or 8, weight_bits 1 to 8");
  const size_t rows = size_t{1} << act_bits, entries = size_t{1} << weight_bits;
  require(table.shape(0) == rows && table.shape(1) == entries, "the table needs 2^act_bits x 2^weight_bits entries");
  auto out = std::make_unique<PyProduct>();
  Product &p = out->product;
  p.lookup = true, p.act_bits = act_bits, p.weight_bits = weight_bits;
  out->table.assign(table.data(), table.data() + rows * entries);
  int32_t least = std::numeric_limits<int32_t>::max(), most = std::numeric_limits<int32_t>::min();
  for (size_t i = 0; i < rows * entries; i++) {
    require(std::abs(static_cast<int64_t>(out->table[i])) <= kMostEntry, "an entry of the table is beyond 2^31 / 512");
    if (i / entries == rows / 2) continue;  // no activation has this code
    least = std::min(least, out->table[i]), most = std::max(most, out->table[i]);
  }
  p.table = out->table.data();
  const int64_t range = int64_t{most} - least;
  if (weight_bits <= 4 && range <= 65535) {
    p.planes = range <= 255 ? 1 : 2;
    p.least = least;
    for (int b = 0; b < p.planes; b++) {
      out->rows[b].assign(rows * 16, 0);
      for (size_t q = 0; q < rows; q++)
        for (size_t c = 0; c < 16 && q != rows / 2; c++)
          out->rows[b][q * 16 + c] = static_cast<uint8_t>(static_cast<uint32_t>(out->table[q * entries + c % entries] - least) >> (8 * b));
      p.rows[b] = out->rows[b].data();
    }
  }
  return out;
}

}  // namespace

void bind_products(nb::module_ &m) {
  nb::class_<PyProduct>(m, "Product")
      .def_static("patterns", &make_patterns, "mantissa"_a, "offset"_a, "saturates"_a, "terms"_a.none())
      .def_static("lookup", &make_lookup, "act_bits"_a, "weight_bits"_a, "table"_a)
      .def_prop_ro("path", [](const PyProduct &p) {
        return !p.product.lookup ? "pattern" : p.product.planes == 0 ? "gather" : p.product.planes == 1 ? "shuffle8" : "shuffle16";
      });
}

}  // namespace anybit
