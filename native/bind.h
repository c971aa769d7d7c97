// What the binding files share.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "operator.h"

namespace anybit {

// A weight together with the arrays whose memory it reads.
struct PyWeight {
  OwnedWeight weight;
  std::optional<nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>> keep_codes, keep_scale, keep_offset, keep_zero;
};

void bind_ops(nanobind::module_ &m);  // bind_ops.cc: block operators, sampling, evaluation statistics

}  // namespace anybit
