// Bindings of what runs around a product. Everything is checked here: shapes, indices, that arrays live as long as their readers.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string_view>

#include "bind.h"
#include "pool.h"

using namespace nanobind::literals;

namespace anybit {
namespace {

using Index = Array<int64_t, 1>;

struct PySteps {
  nb::object keep;
  Steps steps;
};
struct PyInput {
  nb::object keep;
  InputPlan plan;
  int64_t k = 0;  // 0: of any width
};
struct PyBranch {
  nb::object keep;
  Branch branch;
};

const Weight &weight_of(nb::handle o) { return nb::cast<const PyWeight &>(o).weight; }

std::vector<int64_t> columns(nb::handle o, int64_t k) {
  const Index index = nb::cast<Index>(o);
  std::vector<int64_t> out(index.data(), index.data() + index.shape(0));
  for (const int64_t i : out) require(i >= 0 && i < k, "a column is out of range");
  return out;
}

const float *floats_of(nb::handle o, int64_t k) {
  const Vector v = nb::cast<Vector>(o);
  require(static_cast<int64_t>(v.shape(0)) == k, "a transform's data: length differs from k");
  return v.data();
}

// Each step: (kind, data, block); data an array, or for "rotate" a list of weights.
void make_steps(PySteps *self, int64_t k, nb::list list) {
  new (self) PySteps{list, {}};
  require(k >= 1, "k");
  self->steps.k = k;
  for (const nb::handle item : list) {
    const nb::tuple step = nb::cast<nb::tuple>(item);
    require(nb::len(step) == 3, "a step is (kind, data, block)");
    const std::string kind = nb::cast<std::string>(step[0]);
    const nb::object data = step[1];
    Transform t;
    t.block = nb::cast<int64_t>(step[2]);
    if (kind == "scale" || kind == "shift") {
      t.kind = kind == "scale" ? Transform::Kind::Scale : Transform::Kind::Shift;
      t.data = floats_of(data, k);
    } else if (kind == "permute") {
      t.kind = Transform::Kind::Permute;
      const Index index = nb::cast<Index>(data);
      require(static_cast<int64_t>(index.shape(0)) == k, "a permutation has k places");
      columns(data, k);
      t.index = index.data();
    } else if (kind == "hadamard") {
      t.kind = Transform::Kind::Hadamard;
      require(t.block >= 1 && (t.block & (t.block - 1)) == 0 && k % t.block == 0, "a Hadamard block is a power of two that divides k");
      if (!data.is_none()) t.data = floats_of(data, k);
    } else {
      require(kind == "rotate", "kind of step");
      t.kind = Transform::Kind::Rotate;
      require(t.block >= 1 && k % t.block == 0, "a rotation's block divides k");
      for (const nb::handle w : nb::cast<nb::list>(data)) {
        const Weight &rotation = weight_of(w);
        require(rotation.dense == Dense::Float32 && rotation.n == t.block && rotation.k == t.block, "a rotation is dense float32 [block, block]");
        t.rotations.push_back(&rotation);
      }
      require(t.rotations.size() == 1 || static_cast<int64_t>(t.rotations.size()) == k / t.block, "one rotation, or one for each block");
    }
    self->steps.list.push_back(t);
  }
}

void make_input(PyInput *self, nb::object steps, nb::object cleared, float scale, nb::object rounding, nb::object residual, int64_t k) {
  new (self) PyInput{nb::make_tuple(steps, rounding, residual), {}, k};
  InputPlan &p = self->plan;
  if (!steps.is_none()) {
    p.steps = &nb::cast<const PySteps &>(steps).steps;
    require(p.steps->k == k, "steps of another width");
  }
  if (!cleared.is_none()) p.cleared = columns(cleared, k);
  require(scale == 0.0f || (scale >= 0x1p-100f && scale <= 0x1p100f), "scale of activations");
  p.scale = scale;
  if (!rounding.is_none()) p.rounding = &nb::cast<const PyRounding &>(rounding).rounding;
  if (!residual.is_none()) p.residual = &nb::cast<const PyRounding &>(residual).rounding;
}

void make_branch(PyBranch *self, const std::string &kind, nb::object a, nb::object b, nb::object index, int64_t n, int64_t k) {
  new (self) PyBranch{nb::make_tuple(a, b), {}};
  Branch &out = self->branch;
  out.a = &weight_of(a);
  if (kind == "low_rank") {
    out.kind = Branch::Kind::LowRank;
    out.b = &weight_of(b);
    require(out.a->k == k && out.b->n == n && out.b->k == out.a->n, "low_rank: a [r, k], b [n, r]");
    return;
  }
  require(kind == "columns" || kind == "residual", "kind of branch");
  out.kind = kind == "columns" ? Branch::Kind::Columns : Branch::Kind::Residual;
  out.index = columns(index, k);
  require(out.a->n == n && out.a->k == static_cast<int64_t>(out.index.size()), "a branch of columns: a [n, columns]");
}

void make_use(PyUse *self, nb::object weight, nb::object bias, int act, nb::object product, nb::object input, nb::list branches, nb::object post) {
  new (self) PyUse{nb::make_tuple(weight, bias, product, input, branches, post), {}};
  LinearUse &use = self->use;
  const Weight &w = weight_of(weight);
  use.weight = &w;
  require(act == 0 || act == 1 || (act == 2 && !product.is_none()), "act");
  require(act == 0 || w.segment_count > 0, "this weight has no integer path");
  use.act = static_cast<Act>(act);
  if (!product.is_none()) {
    const PyProduct &rule = nb::cast<const PyProduct &>(product);
    rule.check(w, use.act);
    use.product = &rule.product;
  }
  if (!bias.is_none()) {
    const Vector v = nb::cast<Vector>(bias);
    require(static_cast<int64_t>(v.shape(0)) == w.n, "bias: length differs from n");
    use.bias = v.data();
  }
  if (!input.is_none()) {
    const PyInput &plan = nb::cast<const PyInput &>(input);
    require(plan.k == w.k, "an input of another width");
    require(plan.plan.scale == 0.0f || act == 1, "a scale that was given is for int8 activations");
    require(!plan.plan.rounding || act == 0, "rounded activations are float");
    use.input = &plan.plan;
  }
  for (const nb::handle item : branches) {
    Branch b = nb::cast<const PyBranch &>(item).branch;
    require((b.b ? b.b->n : b.a->n) == w.n && (b.kind != Branch::Kind::LowRank || b.a->k == w.k), "a branch of another shape");
    for (const int64_t i : b.index) require(i < w.k, "a branch of another width");
    if (b.kind == Branch::Kind::Residual) {
      const bool rounded = use.input && use.input->residual && use.input->rounding;
      require(act == 1 ? b.a->segment_count > 0 : rounded, "a residual needs activations that are rounded");
      for (size_t c = 0; act == 1 && c < b.index.size(); c++) {
        const Segment *end = w.segments + w.segment_count;
        const Segment *s = std::upper_bound(w.segments, end, b.index[c], [](int64_t k, const Segment &each) { return k < each.k0; }) - 1;
        b.segment.push_back(s - w.segments);
        b.at.push_back(s->at + b.index[c] - 4 * s->g0);
      }
    }
    use.branches.push_back(std::move(b));
  }
  if (!post.is_none()) {
    use.post = &nb::cast<const PySteps &>(post).steps;
    require(use.post->k == w.n, "transforms of the output: another width");
  }
}

// (y, None), or what went wrong: (nothing that is defined, (row, what or None, fault)).
nb::tuple run(const PyUse &p, Matrix x) {
  require(static_cast<int64_t>(x.shape(1)) == p.use.weight->k, "x: columns differ from k");
  const int64_t m = static_cast<int64_t>(x.shape(0));
  const size_t shape[2] = {x.shape(0), static_cast<size_t>(p.use.weight->n)};
  float *y;
  nb::object out = array(2, shape, &y);
  Problem problem;
  {
    nb::gil_scoped_release release;
    FloatState state;
    Workspace workspace;
    const LinearUse *use = &p.use;
    if (m > 0) problem = project(&use, &y, 1, x.data(), m, workspace);
  }
  if (problem.row < 0) return nb::make_tuple(out, nb::none());
  return nb::make_tuple(out, nb::make_tuple(problem.row, problem.what ? problem.what : "the input", problem.fault));
}

// x through steps, or None where it is not finite on the way to a rotation.
nb::object apply(const PySteps &p, Matrix x) {
  require(static_cast<int64_t>(x.shape(1)) == p.steps.k, "x: columns differ from k");
  const int64_t m = static_cast<int64_t>(x.shape(0));
  const size_t shape[2] = {x.shape(0), x.shape(1)};
  float *y;
  nb::object out = array(2, shape, &y);
  bool good = true;
  {
    nb::gil_scoped_release release;
    FloatState state;
    Workspace workspace;
    Problem problem;
    const float *made = m ? transformed(p.steps, x.data(), p.steps.k, m, workspace, &problem) : x.data();
    good = made != nullptr;
    if (good) std::copy(made, made + m * p.steps.k, y);
  }
  return good ? out : nb::object(nb::none());
}

nb::object round_all(const PyRounding &p, Matrix x) {
  const int64_t m = static_cast<int64_t>(x.shape(0)), k = static_cast<int64_t>(x.shape(1));
  const size_t shape[2] = {x.shape(0), x.shape(1)};
  float *y;
  nb::object out = array(2, shape, &y);
  FloatState state;
  for (int64_t r = 0; r < m; r++)
    if (!rounded(p.rounding, x.data() + r * k, k, y + r * k)) return nb::cast(r);
  return out;
}

}  // namespace

void bind_around(nb::module_ &m) {
  nb::class_<PySteps>(m, "Steps", nb::is_weak_referenceable()).def("__init__", &make_steps, "k"_a, "list"_a).def("apply", &apply, "x"_a);
  nb::class_<PyInput>(m, "InputPlan", nb::is_weak_referenceable())
      .def("__init__", &make_input, "steps"_a.none(), "cleared"_a.none(), "scale"_a, "rounding"_a.none(), "residual"_a.none(), "k"_a);
  nb::class_<PyBranch>(m, "Branch").def("__init__", &make_branch, "kind"_a, "a"_a, "b"_a.none(), "index"_a.none(), "n"_a, "k"_a);
  nb::class_<PyUse>(m, "Use")
      .def("__init__", &make_use, "weight"_a, "bias"_a.none(), "act"_a, "product"_a.none() = nb::none(), "input"_a.none() = nb::none(),
           "branches"_a = nb::list(), "post"_a.none() = nb::none())
      .def("run", &run, "x"_a);
  m.def("round_tokens", &round_all, "rounding"_a, "x"_a);  // a row's number where it is refused
}

}  // namespace anybit
