// What the binding files share.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include <memory>

#include "around.h"
#include "cache.h"

namespace anybit {

namespace nb = nanobind;

// A read-only array from Python: contiguous, on the CPU, of one dtype and dimension.
template <class T, size_t dimensions> using Array = nb::ndarray<const T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<uint8_t, 1>;
using Vector = Array<float, 1>;
using Matrix = Array<float, 2>;

inline void require(bool ok, const char *what) {  // ValueError in Python
  if (!ok) throw std::invalid_argument(what);
}

// A new NumPy array of `shape`, and where its numbers lie.
template <class T> nb::object array(size_t dimensions, const size_t *shape, T **data) {
  size_t count = 1;
  for (size_t i = 0; i < dimensions; i++) count *= shape[i];
  *data = new T[count > 0 ? count : 1];
  nb::capsule owner(*data, [](void *p) noexcept { delete[] static_cast<T *>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(*data, dimensions, shape, owner));
}


// A weight together with the arrays whose memory it reads.
struct PyWeight {
  OwnedWeight weight;
  std::vector<Bytes> keep;
  std::optional<Array<uint8_t, 2>> keep_index;
};

// A product rule together with its tables.
struct PyProduct {
  Product product;
  std::vector<float> term_tables;
  std::vector<int32_t> table;
  std::vector<uint8_t> rows[2];
  // ValueError: it cannot run on this weight with these activations.
  void check(const Weight &w, Act act) const;
};

// A way of rounding tokens, with the tables that it reads.
struct PyRounding {
  nb::object keep;
  Rounding rounding;
};

// A format of keys or values.
struct PyCacheFormat {
  nb::object keep;
  std::shared_ptr<CacheFormat> format;
};

// A linear layer as the engine runs it: the objects whose memory `use` reads are kept.
struct PyUse {
  nb::object keep;
  LinearUse use;
  void expect(int64_t n, int64_t k) const { require(use.weight->n == n && use.weight->k == k, "a weight's shape differs from the model's"); }
};

void bind_around(nb::module_ &m);    // bind_around.cc: what runs around a product
void bind_products(nanobind::module_ &m);  // bind_product.cc
void bind_pack(nanobind::module_ &m);  // bind_pack.cc: packing, lossless codes
void bind_ops(nanobind::module_ &m);   // bind_ops.cc: block operators, sampling, evaluation statistics
void bind_round(nanobind::module_ &m);  // bind_round.cc: rounding arrays to values and codes
void bind_gptq(nanobind::module_ &m);   // bind_gptq.cc: codes with feedback of their errors
void bind_sums(nanobind::module_ &m);   // bind_sums.cc: sums over blocks for searches of scales

}  // namespace anybit
