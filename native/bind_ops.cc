// Bindings of the decoder, its caches, sampling, evaluation statistics, and of single operators for tests. All checks are here.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <stdexcept>

#include "bind.h"
#include "block.h"
#include "pool.h"
#include "sample.h"

using namespace nanobind::literals;

namespace anybit {
namespace {

using Cube = Array<float, 3>;
using MatrixOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = Array<int32_t, 1>;
using Positions = Array<int64_t, 1>;

template <class T> nb::object vector(size_t n, T **data) { return array(1, &n, data); }

// ------------------------------------------------------------------------------------------------ decoder
struct PyCache {
  Cache cache;
  bool busy = false;  // in a forward call that runs without the interpreter lock; read and written with it
};

Cache &idle(PyCache &c) {
  require(!c.busy, "the cache is in use by another call");
  return c.cache;
}

struct PyDecoder {
  Decoder d;
  bool sealed = false;  // a cache was made: layers can no longer be added
  std::vector<nb::object> keep;

  const float *floats(nb::object o, int64_t n) {
    const Vector v = nb::cast<Vector>(o);
    require(static_cast<int64_t>(v.shape(0)) == n, "an array's length differs from the model's");
    keep.push_back(o);
    return v.data();
  }
  const LinearUse &linear(nb::handle o, int64_t n, int64_t k) {
    const PyUse &use = nb::cast<const PyUse &>(o);
    use.expect(n, k);
    keep.push_back(nb::borrow(o));
    return use.use;
  }
};

const Pattern *pattern_of(nb::handle product) {
  const Product &rule = nb::cast<const PyProduct &>(product).product;
  require(!rule.lookup && rule.terms == 0, "attention takes a rule of patterns");
  return &rule.pattern;
}

void make_decoder(PyDecoder *self, nb::object embedding, nb::object norm, float eps, nb::object head, nb::object attention, nb::object keys,
                  nb::object values, bool turned, int64_t sinks, int64_t window) {
  new (self) PyDecoder();
  for (const nb::object &format : {keys, values})
    if (!format.is_none()) self->keep.push_back(format);
  if (!keys.is_none()) self->d.cache_shape->keys = nb::cast<const PyCacheFormat &>(keys).format;
  if (!values.is_none()) self->d.cache_shape->values = nb::cast<const PyCacheFormat &>(values).format;
  CacheShape &shape = *self->d.cache_shape;
  shape.turned = turned;
  require(sinks >= 0 && window >= 0 && sinks <= 1 << 20 && window <= 1 << 20 && sinks % kTileKeys == 0 && window % kTileKeys == 0, "sinks or window");
  shape.sinks = sinks, shape.window = window / kTileKeys;
  if (sinks || window) shape.exact = std::make_shared<CacheShape>();
  if (!attention.is_none()) self->d.attention = pattern_of(attention), self->keep.push_back(attention);
  const LinearUse &table = nb::cast<const PyUse &>(embedding).use;
  self->d.vocab = table.weight->n, self->d.width = table.weight->k, self->d.eps = eps;
  self->d.embedding = self->linear(embedding, self->d.vocab, self->d.width).weight;
  self->d.norm = self->floats(norm, self->d.width);
  self->d.head = self->linear(head, self->d.vocab, self->d.width);
}

int64_t add_rope(PyDecoder &p, Vector inverse, Vector inverse_long, float scale) {
  RopePlan rope;
  rope.half = static_cast<int64_t>(inverse.shape(0)), rope.scale = scale;
  require(inverse_long.shape(0) == 0 || inverse_long.shape(0) == inverse.shape(0), "rope: two sets of different length");
  rope.inverse.assign(inverse.data(), inverse.data() + inverse.shape(0));
  rope.inverse_long.assign(inverse_long.data(), inverse_long.data() + inverse_long.shape(0));
  p.d.ropes.push_back(rope);
  return static_cast<int64_t>(p.d.ropes.size()) - 1;
}

void add_layer(PyDecoder &p, int64_t heads, int64_t kv_heads, int64_t dim, int64_t window, int64_t rope, float eps, float residual, nb::list linears,
               nb::list mlps, nb::object router, int64_t chosen, bool renormalise, nb::object mixer_norm, nb::object mlp_norm, nb::object q_norm,
               nb::object k_norm) {
  require(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0 && heads <= 1 << 16, "heads");
  require(dim >= 2 && dim % 2 == 0 && dim <= 4096 && window >= 0, "head dimension or window");
  require(rope >= 0 && rope < static_cast<int64_t>(p.d.ropes.size()) && p.d.ropes[static_cast<size_t>(rope)].half * 2 == dim, "rope");
  require(!p.sealed, "layers come before caches");
  require(nb::len(linears) == 4, "a layer has four linears: q, k, v, o");
  const int64_t count = static_cast<int64_t>(nb::len(mlps));
  require(router.is_none() ? count == 1 && chosen == 0 : count >= 1 && count <= kMostExperts && chosen >= 1 && chosen <= count,
          "a layer has one MLP, or a router that chooses among at most 1024");
  LayerPlan layer;
  const int64_t width = p.d.width;
  layer.heads = heads, layer.kv_heads = kv_heads, layer.dim = dim, layer.window = window, layer.rope = rope, layer.eps = eps, layer.residual = residual;
  layer.q = p.linear(linears[0], heads * dim, width);
  layer.k = p.linear(linears[1], kv_heads * dim, width);
  layer.v = p.linear(linears[2], kv_heads * dim, width);
  layer.o = p.linear(linears[3], width, heads * dim);
  if (!router.is_none()) layer.router = p.linear(router, count, width);
  layer.chosen = chosen, layer.renormalise = renormalise;
  for (const nb::handle item : mlps) {
    const nb::list three = nb::cast<nb::list>(item);
    require(nb::len(three) == 3, "an MLP has three linears: gate, up, down");
    if (layer.mlps.empty()) layer.inner = nb::cast<const PyUse &>(three[0]).use.weight->n;
    layer.mlps.push_back({p.linear(three[0], layer.inner, width), p.linear(three[1], layer.inner, width), p.linear(three[2], width, layer.inner)});
  }
  layer.mixer_norm = p.floats(mixer_norm, width), layer.mlp_norm = p.floats(mlp_norm, width);
  if (!q_norm.is_none()) layer.q_norm = p.floats(q_norm, dim);
  if (!k_norm.is_none()) layer.k_norm = p.floats(k_norm, dim);
  p.d.cache_shape->add(kv_heads, dim);
  p.d.layers.push_back(std::move(layer));
}

// None, or (layer, row, what, fault) of the first value that is not finite.
nb::object forward(PyDecoder &p, Ids ids, nb::list caches, std::vector<int64_t> counts, bool all_logits, MatrixOut out) {
  require(nb::len(caches) == counts.size() && !counts.empty(), "one count for each cache");
  std::vector<PyCache *> used;
  std::vector<Sequence> sequences;
  int64_t rows = 0;
  for (size_t i = 0; i < counts.size(); i++) {
    PyCache &c = nb::cast<PyCache &>(caches[i]);
    require(counts[i] >= 1 && counts[i] <= 1 << 20, "a sequence needs at least one token");
    require(idle(c).shape() == p.d.cache_shape.get(), "the cache belongs to another model");
    require(c.cache.length() + counts[i] <= 1 << 20, "a sequence may hold 2^20 tokens");
    for (PyCache *other : used) require(other != &c, "a cache may be given once");
    used.push_back(&c);
    sequences.push_back({&c.cache, rows, counts[i]});
    rows += counts[i];
  }
  require(static_cast<int64_t>(ids.shape(0)) == rows, "ids: length differs from the sum of counts");
  for (int64_t i = 0; i < rows; i++) require(ids.data()[i] >= 0 && ids.data()[i] < p.d.vocab, "a token id is outside the vocabulary");
  require(static_cast<int64_t>(out.shape(0)) == (all_logits ? rows : static_cast<int64_t>(counts.size())) &&
              static_cast<int64_t>(out.shape(1)) == p.d.vocab, "out: wrong shape");
  struct Busy {
    std::vector<PyCache *> &list;
    explicit Busy(std::vector<PyCache *> &l) : list(l) { for (PyCache *c : list) c->busy = true; }
    ~Busy() { for (PyCache *c : list) c->busy = false; }
  } busy(used);
  Fault fault;
  {
    nb::gil_scoped_release release;
    fault = p.d.forward(ids.data(), sequences, all_logits, out.data());
  }
  return fault.what ? nb::object(nb::make_tuple(fault.layer, fault.row, fault.what, fault.fault)) : nb::none();
}

// ------------------------------------------------------------------------------------------------ sampling
std::vector<int64_t> choose_all(Matrix logits, nb::list choices, std::vector<uint64_t> positions) {
  const size_t m = logits.shape(0), n = logits.shape(1);
  require(nb::len(choices) == m && positions.size() == m && n >= 1 && n < (size_t{1} << 31), "one choice and one position for each row");
  std::vector<Choice> list;
  for (size_t i = 0; i < m; i++) list.push_back(nb::cast<const Choice &>(choices[i]));
  std::vector<int64_t> out(m);
  nb::gil_scoped_release release;
  FloatState state;
  for (size_t i = 0; i < m; i++) out[i] = choose(ops(), logits.data() + i * n, static_cast<int64_t>(n), list[i], positions[i]);
  return out;
}

// ------------------------------------------------------------------------------------------------ evaluation
// Names the first row whose largest logit could not be found, whatever the number of threads.
void require_finite(size_t rows, const int32_t *a, const int32_t *b) {
  for (size_t i = 0; i < rows; i++)
    if (a[i] < 0 || b[i] < 0) throw nb::value_error(("row " + std::to_string(i) + " holds a value that is not finite").c_str());
}

nb::tuple row_stats(Matrix reference, Matrix logits, Ids targets) {
  const size_t m = logits.shape(0), n = logits.shape(1);
  require(reference.shape(0) == m && reference.shape(1) == n && targets.shape(0) == m && n >= 1, "reference, logits and targets: shapes differ");
  for (size_t i = 0; i < m; i++) require(targets.data()[i] >= 0 && static_cast<size_t>(targets.data()[i]) < n, "a target is outside the vocabulary");
  double *reference_nll, *nll, *kl;
  int32_t *reference_top, *top;
  nb::object a = vector(m, &reference_nll), b = vector(m, &nll), c = vector(m, &kl), d = vector(m, &reference_top), e = vector(m, &top);
  const float *r = reference.data(), *q = logits.data();
  const int32_t *t = targets.data();
  {
    nb::gil_scoped_release release;
    const OpsKernels &k = ops();
    const int64_t width = static_cast<int64_t>(n);
    parallel_for(static_cast<int64_t>(m), [&](int64_t i) {
      const float *ri = r + i * width, *qi = q + i * width;
      reference_top[i] = static_cast<int32_t>(k.argmax(ri, width)), top[i] = static_cast<int32_t>(k.argmax(qi, width));
      if (reference_top[i] < 0 || top[i] < 0) return;
      const double lse_r = k.logsumexp(ri, width), lse_q = k.logsumexp(qi, width);
      reference_nll[i] = lse_r - static_cast<double>(ri[t[i]]);
      nll[i] = lse_q - static_cast<double>(qi[t[i]]);
      kl[i] = k.divergence(ri, qi, width, lse_r, lse_q);
    });
  }
  require_finite(m, reference_top, top);
  return nb::make_tuple(a, b, c, d, e);
}

nb::tuple row_nll(Matrix logits, Ids targets) {
  const size_t m = logits.shape(0), n = logits.shape(1);
  require(targets.shape(0) == m && n >= 1, "logits and targets: shapes differ");
  for (size_t i = 0; i < m; i++) require(targets.data()[i] >= 0 && static_cast<size_t>(targets.data()[i]) < n, "a target is outside the vocabulary");
  double *nll;
  int32_t *top;
  nb::object a = vector(m, &nll), b = vector(m, &top);
  const float *q = logits.data();
  const int32_t *t = targets.data();
  {
    nb::gil_scoped_release release;
    const OpsKernels &k = ops();
    const int64_t width = static_cast<int64_t>(n);
    parallel_for(static_cast<int64_t>(m), [&](int64_t i) {
      top[i] = static_cast<int32_t>(k.argmax(q + i * width, width));
      if (top[i] >= 0) nll[i] = k.logsumexp(q + i * width, width) - static_cast<double>(q[i * width + t[i]]);
    });
  }
  require_finite(m, top, top);
  return nb::make_tuple(a, b);
}

// ------------------------------------------------------------------------------------------------ single operators, for tests
nb::object op_rmsnorm(Matrix x, Vector weight, float eps) {
  require(x.shape(1) == weight.shape(0), "x and weight: widths differ");
  const size_t shape[2] = {x.shape(0), x.shape(1)};
  const int64_t n = static_cast<int64_t>(shape[1]);
  float *y;
  nb::object out = array(2, shape, &y);
  FloatState state;
  const int64_t bad = ops().rmsnorm(x.data(), n, n, weight.data(), eps, 0, static_cast<int64_t>(shape[0]), y, n);
  if (bad >= 0) throw nb::value_error(("row " + std::to_string(bad) + ": the mean square is not finite").c_str());
  return out;
}

nb::object op_exp(Vector x) {
  float *y;
  nb::object out = vector(x.shape(0), &y);
  FloatState state;
  ops().exp(x.data(), static_cast<int64_t>(x.shape(0)), y);
  return out;
}

nb::object op_swiglu(Vector gate, Vector up) {
  require(gate.shape(0) == up.shape(0), "gate and up: lengths differ");
  float *y;
  nb::object out = vector(gate.shape(0), &y);
  FloatState state;
  ops().swiglu(gate.data(), up.data(), static_cast<int64_t>(gate.shape(0)), y);
  return out;
}

// (int32[m, count] experts ascending, float32[m, count] weights) of logits [m, n]
nb::tuple op_route(Matrix logits, int64_t count, bool renormalise) {
  const size_t shape[2] = {logits.shape(0), static_cast<size_t>(count)};
  const int64_t n = static_cast<int64_t>(logits.shape(1));
  require(n <= kMostExperts && count >= 1 && count <= n, "experts");
  float *weights;
  int32_t *chosen;
  nb::object first = array(2, shape, &chosen), second = array(2, shape, &weights);
  FloatState state;
  float e[kMostExperts];
  for (int64_t r = 0; r < static_cast<int64_t>(shape[0]); r++) {
    require(ops().finite(logits.data() + r * n, n), "logits are finite");
    ops().route(logits.data() + r * n, n, count, renormalise, e, chosen + r * count, weights + r * count);
  }
  return nb::make_tuple(first, second);
}

nb::tuple op_rope_table(Positions positions, Vector inverse, float factor) {
  const size_t shape[2] = {positions.shape(0), inverse.shape(0)};
  const int64_t half = static_cast<int64_t>(shape[1]);
  float *cos, *sin;
  nb::object a = array(2, shape, &cos), b = array(2, shape, &sin);
  FloatState state;
  for (int64_t i = 0; i < static_cast<int64_t>(shape[0]); i++) {
    require(positions.data()[i] >= 0 && positions.data()[i] < 1 << 20, "a position is below 2^20");
    ops().rope_table(positions.data()[i], inverse.data(), half, factor, cos + i * half, sin + i * half);
  }
  return nb::make_tuple(a, b);
}

nb::object op_rotate(Matrix x, Matrix cos, Matrix sin) {
  const size_t shape[2] = {x.shape(0), x.shape(1)}, half = shape[1] / 2;
  require(shape[1] % 2 == 0 && cos.shape(0) == shape[0] && sin.shape(0) == shape[0] && cos.shape(1) == half && sin.shape(1) == half, "x, cos, sin: shapes");
  float *y;
  nb::object out = array(2, shape, &y);
  memcpy(y, x.data(), sizeof(float) * shape[0] * shape[1]);
  FloatState state;
  for (size_t i = 0; i < shape[0]; i++) ops().rotate(y + i * shape[1], static_cast<int64_t>(half), cos.data() + i * half, sin.data() + i * half);
  return out;
}

// q [heads, t, d] of tokens at `positions`, k and v [kv_heads, length, d] from position 0.
nb::object op_attention(Cube q, Cube k, Cube v, Positions positions, int64_t window, nb::object product) {
  const Pattern *pattern = product.is_none() ? nullptr : pattern_of(product);
  const int64_t heads = static_cast<int64_t>(q.shape(0)), t = static_cast<int64_t>(q.shape(1)), dim = static_cast<int64_t>(q.shape(2));
  const int64_t kv_heads = static_cast<int64_t>(k.shape(0)), length = static_cast<int64_t>(k.shape(1));
  require(kv_heads >= 1 && heads % kv_heads == 0 && static_cast<int64_t>(k.shape(2)) == dim && static_cast<int64_t>(positions.shape(0)) == t, "q, k: shapes");
  require(v.shape(0) == k.shape(0) && v.shape(1) == k.shape(1) && v.shape(2) == k.shape(2) && dim >= 1 && length >= 1, "v: shape");
  for (int64_t i = 0; i < t; i++) require(positions.data()[i] >= 0 && positions.data()[i] < length, "a position is outside the keys");
  const size_t shape[3] = {q.shape(0), q.shape(1), q.shape(2)};
  float *out;
  nb::object result = array(3, shape, &out);
  const OpsKernels &kernels = ops();
  const int64_t padded = (dim + 15) / 16 * 16, tiles = (length + kTileKeys - 1) / kTileKeys, size = kStateHead + padded;
  FloatState state;
  for (int64_t head = 0; head < kv_heads; head++) {
    const float nan = std::nanf("");  // what is not visible must not matter
    std::vector<float> keys(static_cast<size_t>(tiles * kTileKeys * dim), nan), values(static_cast<size_t>(tiles * kTileKeys * padded), nan);
    std::vector<const float *> key_tiles, value_tiles;
    for (int64_t i = 0; i < length; i++)
      for (int64_t d = 0; d < dim; d++) {
        keys[static_cast<size_t>((i / 16 * dim + d) * 16 + i % 16)] = k.data()[(head * length + i) * dim + d];
        values[static_cast<size_t>(i * padded + d)] = v.data()[(head * length + i) * dim + d];
      }
    for (int64_t i = 0; i < tiles; i++) {
      key_tiles.push_back(keys.data() + i * kTileKeys * dim);
      value_tiles.push_back(values.data() + i * kTileKeys * padded);
    }
    const int64_t group = heads / kv_heads, count = t * group;
    std::vector<float> states(static_cast<size_t>(count * size), 0.0f), buffer(kernels.attend_floats(padded));
    std::vector<Query> queries;
    for (int64_t i = 0; i < count; i++) {
      const int64_t row = i / group, h = head * group + i % group, at = positions.data()[row];
      queries.push_back({q.data() + (h * t + row) * dim, states.data() + i * size, window && at + 1 > window ? at + 1 - window : 0, at + 1});
    }
    for (int64_t tile = 0; tile < tiles; tile += kSpanTiles)
      kernels.attend({key_tiles.data(), value_tiles.data(), tile, std::min(tiles, tile + kSpanTiles), dim, padded, 1.0f / std::sqrt(static_cast<float>(dim)),
                      queries.data(), count, buffer.data(), pattern});
    for (int64_t i = 0; i < count; i++) kernels.finish(states.data() + i * size, dim, out + ((head * group + i % group) * t + i / group) * dim);
  }
  return result;
}

std::vector<uint32_t> op_philox(std::vector<uint32_t> counter, std::vector<uint32_t> key) {
  require(counter.size() == 4 && key.size() == 2, "counter of four words, key of two");
  std::vector<uint32_t> out(4);
  philox(counter.data(), key.data(), out.data());
  return out;
}

}  // namespace

void bind_ops(nb::module_ &m) {
  nb::class_<Choice>(m, "Choice")
      .def("__init__", [](Choice *c, float temperature, int64_t top_k, double top_p, double min_p, uint64_t seed) {
        new (c) Choice{temperature, top_k, top_p, min_p, seed};
      }, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a);
  m.def("choose", &choose_all, "logits"_a, "choices"_a, "positions"_a);

  nb::class_<PyCache>(m, "Cache")
      .def_prop_ro("length", [](const PyCache &c) { return c.cache.length(); })
      .def_prop_ro("nbytes", [](const PyCache &c) { return c.cache.bytes(); })
      .def_prop_ro("long_rope", [](const PyCache &c) { return c.cache.long_rope(); })
      .def("truncate", [](PyCache &c, int64_t length) {
        require(length >= 0, "length");
        require(idle(c).holds(length), "float32 keys and values are gone there");
        idle(c).truncate(length);
      }, "length"_a)
      .def("fork", [](PyCache &c) { return PyCache{idle(c)}; });
  nb::class_<PyDecoder>(m, "Decoder")
      .def("__init__", &make_decoder, "embedding"_a, "norm"_a, "eps"_a, "head"_a, "attention"_a.none() = nb::none(), "keys"_a.none() = nb::none(),
           "values"_a.none() = nb::none(), "turned"_a = true, "sinks"_a = 0, "window"_a = 0)
      .def_prop_ro("page_bytes", [](const PyDecoder &p) { return p.d.cache_shape->bytes; })
      .def("add_rope", &add_rope, "inverse"_a, "inverse_long"_a, "scale"_a)
      .def("add_layer", &add_layer, "heads"_a, "kv_heads"_a, "dim"_a, "window"_a, "rope"_a, "eps"_a, "residual"_a, "linears"_a, "mlps"_a,
           "router"_a.none(), "chosen"_a, "renormalise"_a, "mixer_norm"_a, "mlp_norm"_a, "q_norm"_a.none(), "k_norm"_a.none())
      .def("cache", [](PyDecoder &p, bool long_rope) {
        p.sealed = true;
        return PyCache{Cache(p.d.cache_shape, long_rope)};
      }, "long_rope"_a = false)
      .def("forward", &forward, "ids"_a, "caches"_a, "counts"_a, "all_logits"_a, "out"_a);

  m.def("row_stats", &row_stats, "reference"_a, "logits"_a, "targets"_a);
  m.def("row_nll", &row_nll, "logits"_a, "targets"_a);
  m.def("op_rmsnorm", &op_rmsnorm, "x"_a, "weight"_a, "eps"_a);
  m.def("op_exp", &op_exp, "x"_a);
  m.def("op_swiglu", &op_swiglu, "gate"_a, "up"_a);
  m.def("op_route", &op_route, "logits"_a, "count"_a, "renormalise"_a);
  m.def("op_rope_table", &op_rope_table, "positions"_a, "inverse"_a, "factor"_a);
  m.def("op_rotate", &op_rotate, "x"_a, "cos"_a, "sin"_a);
  m.def("op_attention", &op_attention, "q"_a, "k"_a, "v"_a, "positions"_a, "window"_a, "product"_a.none() = nb::none());
  m.def("op_philox", &op_philox, "counter"_a, "key"_a);
}

}  // namespace anybit
