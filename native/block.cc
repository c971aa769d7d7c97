// The order of a transformer's operators, and how their work is cut for the pool. No arithmetic happens here: that is in ops.cc and linear.cc.
#include "block.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "pool.h"

namespace anybit {

AB_KERNELS(OpsKernels, ops_kernels)

const OpsKernels &ops() { return *ops_kernels_of[static_cast<int>(isa())]; }

// One forward call: its buffers and the steps of a block.
struct Decoder::Run {
  Decoder &d;
  const OpsKernels &ops;
  const std::vector<Sequence> &sequences;
  int64_t m;
  std::vector<const Sequence *> of_row;
  std::vector<int64_t> position;
  float *x = nullptr, *h = nullptr, *t = nullptr;  // [m, width]: residual stream, normed, output of o and of the MLP
  float *gate = nullptr, *up = nullptr;            // [m, inner]
  float *some = nullptr, *part = nullptr;          // [m, width]: an expert's input and output, where there are experts
  Fault fault;

  float *floats(int64_t count) { return static_cast<float *>(d.activations_.take(sizeof(float) * static_cast<size_t>(count))); }

  // Runs body(first, end) over [0, count) in units of at least `unit`.
  template <class Body> void split(int64_t count, int64_t unit, Body &&body) {
    parallel_for((count + unit - 1) / unit, [&](int64_t u) { body(u * unit, std::min(count, (u + 1) * unit)); });
  }

  bool fail(int64_t layer, int64_t row, const char *what, const char *how = "is not finite") {
    if (row < 0) return false;
    fault = {layer, row, what, how};
    return true;
  }

  bool norm(const float *weight, float eps, const float *in, int64_t rows, float *out, int64_t layer, const char *what) {
    std::atomic<int64_t> bad{INT64_MAX};
    split(rows, std::max<int64_t>(1, 16384 / d.width), [&](int64_t first, int64_t end) {
      const int64_t row = ops.rmsnorm(in, d.width, d.width, weight, eps, first, end, out, d.width);
      for (int64_t seen = bad.load(); row >= 0 && row < seen && !bad.compare_exchange_weak(seen, row);) {
      }
    });
    return !fail(layer, bad.load() == INT64_MAX ? -1 : bad.load(), what);
  }

  // One input through several linear layers; those of equal geometry share the prepared input.
  bool project(const LinearUse *const *uses, float *const *outs, int count, const float *in, int64_t rows, int64_t layer, const char *what) {
    const Problem problem = anybit::project(uses, outs, count, in, rows, d.inputs_);
    d.inputs_.reset();
    return !fail(layer, problem.row, problem.what ? problem.what : what, problem.fault);
  }

  void embed(const int32_t *ids) {
    split(m, std::max<int64_t>(1, 16384 / d.width), [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; r++) {
        const int64_t id = ids[r];
        rows_of(*d.embedding, &id, 1, x + r * d.width);
      }
    });
  }

  // Cosines and sines of every row for each rotary embedding of the model.
  std::vector<std::pair<float *, float *>> tables() {
    std::vector<std::pair<float *, float *>> result;
    for (const RopePlan &rope : d.ropes) {
      float *cos = floats(m * rope.half), *sin = floats(m * rope.half);
      split(m, 16, [&](int64_t first, int64_t end) {
        for (int64_t r = first; r < end; r++) {
          const bool is_long = of_row[static_cast<size_t>(r)]->cache->long_rope() && !rope.inverse_long.empty();
          const float *inverse = is_long ? rope.inverse_long.data() : rope.inverse.data();
          ops.rope_table(position[static_cast<size_t>(r)], inverse, rope.half, rope.scale, cos + r * rope.half, sin + r * rope.half);
        }
      });
      result.emplace_back(cos, sin);
    }
    return result;
  }

  // Cosines and sines of whole tiles, for keys that are turned when they are read.
  void turn_tiles() {
    int64_t most = 0;
    for (const Sequence &s : sequences) most = std::max(most, (s.cache->length() + s.rows + kTileKeys - 1) / kTileKeys);
    for (RopePlan &rope : d.ropes)
      for (int set = 0; set < (rope.inverse_long.empty() ? 1 : 2); set++) {
        const int64_t each = kTileKeys * rope.half, have = static_cast<int64_t>(rope.cos[set].size()) / each;
        if (have >= most) continue;
        rope.cos[set].resize(static_cast<size_t>(most * each)), rope.sin[set].resize(static_cast<size_t>(most * each));
        split(most - have, 1, [&](int64_t first, int64_t end) {
          std::vector<float> cos(static_cast<size_t>(rope.half)), sin(static_cast<size_t>(rope.half));
          for (int64_t at = (have + first) * kTileKeys; at < (have + end) * kTileKeys; at++) {
            ops.rope_table(at, (set ? rope.inverse_long : rope.inverse).data(), rope.half, rope.scale, cos.data(), sin.data());
            for (int64_t i = 0; i < rope.half; i++) {
              const size_t to = static_cast<size_t>((at / 16 * rope.half + i) * 16 + at % 16);
              rope.cos[set][to] = cos[static_cast<size_t>(i)], rope.sin[set][to] = sin[static_cast<size_t>(i)];
            }
          }
        });
      }
  }

  // Head norms, rotation, and the new keys and values into the cache pages.
  bool store(const LayerPlan &layer, int64_t index, float *q, float *k, float *v, const float *cos, const float *sin) {
    const int64_t half = layer.dim / 2, dim = layer.dim;
    const CacheShape::Layer &place = d.cache_shape->layers[static_cast<size_t>(index)];
    std::atomic<int64_t> bad{INT64_MAX}, beyond{INT64_MAX};
    const auto note = [](std::atomic<int64_t> &first, int64_t row) {
      for (int64_t seen = first.load(); row < seen && !first.compare_exchange_weak(seen, row);) {
      }
    };
    split(m, std::max<int64_t>(1, 8192 / (dim * (layer.heads + layer.kv_heads))), [&](int64_t first, int64_t end) {
      for (int64_t r = first; r < end; r++) {
        float *qr = q + r * layer.heads * dim, *kr = k + r * layer.kv_heads * dim, *vr = v + r * layer.kv_heads * dim;
        bool good = true;
        if (layer.q_norm) good = ops.rmsnorm(qr, dim, dim, layer.q_norm, layer.eps, 0, layer.heads, qr, dim) < 0;
        if (layer.k_norm) good = ops.rmsnorm(kr, dim, dim, layer.k_norm, layer.eps, 0, layer.kv_heads, kr, dim) < 0 && good;
        for (int64_t head = 0; head < layer.heads; head++) ops.rotate(qr + head * dim, half, cos + r * half, sin + r * half);
        for (int64_t head = 0; head < layer.kv_heads && d.cache_shape->turned; head++) ops.rotate(kr + head * dim, half, cos + r * half, sin + r * half);
        if (!good || !ops.finite(qr, layer.heads * dim) || !ops.finite(kr, layer.kv_heads * dim) || !ops.finite(vr, layer.kv_heads * dim)) {
          note(bad, r);
          continue;
        }
        const int64_t at = position[static_cast<size_t>(r)];
        uint8_t *page = of_row[static_cast<size_t>(r)]->cache->page(at / kTileKeys) + place.at;
        for (int64_t head = 0; head < layer.kv_heads; head++)
          if (!put(*d.cache_shape, place, page + head * place.head, at % kTileKeys, kr + head * dim, vr + head * dim)) note(beyond, r);
        if (!d.cache_shape->exact || !d.cache_shape->sees_exact(at / kTileKeys, at / kTileKeys)) continue;
        const CacheShape &whole = *d.cache_shape->exact;
        const CacheShape::Layer &there = whole.layers[static_cast<size_t>(index)];
        page = of_row[static_cast<size_t>(r)]->cache->exact(at / kTileKeys) + there.at;
        for (int64_t head = 0; head < layer.kv_heads; head++) {
          if (!d.cache_shape->turned) ops.rotate(kr + head * dim, half, cos + r * half, sin + r * half);
          put(whole, there, page + head * there.head, at % kTileKeys, kr + head * dim, vr + head * dim);
        }
      }
    });
    if (fail(index, bad.load() == INT64_MAX ? -1 : bad.load(), "queries, keys or values")) return false;
    return !fail(index, beyond.load() == INT64_MAX ? -1 : beyond.load(), "a key or value", "needs a scale that the cache's format does not hold");
  }

  // Rows [row0, row1) of one sequence against one key head: all query heads of its group.
  struct Part {
    const Sequence *sequence;
    int64_t head, row0, row1;
  };

  // Runs the spans [span0, span1) of a part. states: [(row1 - row0) * group][size], or nullptr to finish into `out` at once.
  bool attend(const LayerPlan &layer, int64_t index, const Part &part, int64_t span0, int64_t span1, const float *q, float *states, float *out) const {
    const CacheShape::Layer &place = d.cache_shape->layers[static_cast<size_t>(index)];
    const int64_t group = layer.heads / layer.kv_heads, count = (part.row1 - part.row0) * group, size = kStateHead + place.padded;
    const int64_t last = position[static_cast<size_t>(part.row1 - 1)], tiles = last / kTileKeys + 1;
    const int64_t decoded = tile_floats(*d.cache_shape, place);
    const size_t need = sizeof(Query) * static_cast<size_t>(count) + 2 * sizeof(float *) * static_cast<size_t>(tiles) + 128 +
                        sizeof(float) * (static_cast<size_t>((states ? 0 : count * size) + kSpanTiles * decoded) + ops.attend_floats(place.padded));
    char *memory = static_cast<char *>(scratch(need));
    if (!memory) return false;
    float *buffer = reinterpret_cast<float *>(memory);
    memory += sizeof(float) * ops.attend_floats(place.padded);
    float *const tiles_buffer = reinterpret_cast<float *>(memory);
    memory += sizeof(float) * static_cast<size_t>(kSpanTiles * decoded);
    if (!states) {
      states = reinterpret_cast<float *>(memory);
      memory += sizeof(float) * static_cast<size_t>(count * size);
    } else {
      out = nullptr;
    }
    Query *queries = reinterpret_cast<Query *>(memory);
    const float **keys = reinterpret_cast<const float **>(queries + count), **values = keys + tiles;

    int64_t lowest = INT64_MAX;
    for (int64_t i = 0; i < count; i++) {
      const int64_t row = part.row0 + i / group, head = part.head * group + i % group, at = position[static_cast<size_t>(row)];
      const int64_t first = layer.window && at + 1 > layer.window ? at + 1 - layer.window : 0;
      queries[i] = {q + (row * layer.heads + head) * layer.dim, states + i * size, first, at + 1};
      queries[i].state[2] = 0.0f;
      lowest = std::min(lowest, first);
    }
    const int64_t tile0 = std::max(span0 * kSpanTiles, lowest / kTileKeys), tile1 = std::min(span1 * kSpanTiles, tiles);
    const RopePlan &rope = d.ropes[static_cast<size_t>(layer.rope)];
    const bool is_long = part.sequence->cache->long_rope() && !rope.inverse_long.empty();
    const int64_t turn = kTileKeys * rope.half;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(layer.dim));
    for (int64_t tile = tile0; tile < tile1;) {
      const int64_t end = std::min(tile1, (tile / kSpanTiles + 1) * kSpanTiles);
      for (int64_t i = tile; i < end; i++) {
        if (d.cache_shape->sees_exact(last / kTileKeys, i)) {  // all rows of a part are of one tile then
          const CacheShape::Layer &there = d.cache_shape->exact->layers[static_cast<size_t>(index)];
          const uint8_t *from = part.sequence->cache->exact(i) + there.at + part.head * there.head;
          anybit::tile(*d.cache_shape->exact, there, from, nullptr, nullptr, nullptr, keys + i, values + i);
          continue;
        }
        const float *cos = d.cache_shape->turned ? nullptr : rope.cos[is_long].data() + i * turn, *sin = cos ? rope.sin[is_long].data() + i * turn : nullptr;
        anybit::tile(*d.cache_shape, place, part.sequence->cache->page(i) + place.at + part.head * place.head, cos, sin, tiles_buffer + (i - tile) * decoded,
                     keys + i, values + i);
      }
      ops.attend({keys, values, tile, end, layer.dim, place.padded, scale, queries, count, buffer, d.attention});
      tile = end;
    }
    if (out)
      for (int64_t i = 0; i < count; i++) ops.finish(queries[i].state, layer.dim, out_row(layer, part, i, out));
    return true;
  }

  static float *out_row(const LayerPlan &layer, const Part &part, int64_t i, float *out) {
    const int64_t group = layer.heads / layer.kv_heads;
    return out + ((part.row0 + i / group) * layer.heads + part.head * group + i % group) * layer.dim;
  }

  bool attention(const LayerPlan &layer, int64_t index, const float *q, float *out) {
    const int64_t group = layer.heads / layer.kv_heads, size = kStateHead + d.cache_shape->layers[static_cast<size_t>(index)].padded;
    const int64_t rows = std::max<int64_t>(1, 32 / group);
    std::vector<Part> parts;
    int64_t spans = 0;
    for (const Sequence &s : sequences)
      for (int64_t head = 0; head < layer.kv_heads; head++)
        for (int64_t row = s.row, end; row < s.row + s.rows; row = end) {
          end = std::min(s.row + s.rows, row + rows);
          if (d.cache_shape->exact) end = std::min(end, row + kTileKeys - position[static_cast<size_t>(row)] % kTileKeys);
          parts.push_back({&s, head, row, end});
          spans = std::max(spans, position[static_cast<size_t>(parts.back().row1 - 1)] / (kSpanTiles * kTileKeys) + 1);
        }
    const int64_t count = static_cast<int64_t>(parts.size());
    std::atomic<bool> failed{false};
    if (count >= 2 * threads() || spans == 1) {
      parallel_for(count, [&](int64_t i) {
        const Part &part = parts[static_cast<size_t>(count - 1 - i)];  // late rows see more keys: first
        if (!attend(layer, index, part, 0, spans, q, nullptr, out)) failed.store(true);
      });
    } else {  // few queries, long past: spans run apart and are merged in their order, as above
      const int64_t each = rows * group * size;
      float *states = static_cast<float *>(d.inputs_.take(sizeof(float) * static_cast<size_t>(count * spans * each)));
      parallel_for(count * spans, [&](int64_t i) {
        if (!attend(layer, index, parts[static_cast<size_t>(i / spans)], i % spans, i % spans + 1, q, states + i * each, nullptr)) failed.store(true);
      });
      parallel_for(count, [&](int64_t p) {
        const Part &part = parts[static_cast<size_t>(p)];
        for (int64_t i = 0; i < (part.row1 - part.row0) * group; i++) {
          float *state = states + p * spans * each + i * size;
          for (int64_t span = 1; span < spans; span++) ops.merge(state, state + span * each, size - kStateHead);
          ops.finish(state, layer.dim, out_row(layer, part, i, out));
        }
      });
      d.inputs_.reset();
    }
    if (failed.load()) throw std::bad_alloc();
    return true;
  }

  void add(const float *y, float factor) {
    split(m * d.width, 32768, [&](int64_t first, int64_t end) { ops.add(x + first, y + first, factor, end - first); });
  }

  // One MLP of `rows` rows of a layer's normed input.
  bool mlp(const LayerPlan &layer, const ExpertPlan &plan, int64_t index, const float *in, int64_t rows, float *out) {
    const LinearUse *gate_up[2] = {&plan.gate, &plan.up}, *down[1] = {&plan.down};
    float *gate_up_out[2] = {gate, up}, *down_out[1] = {out};
    if (!project(gate_up, gate_up_out, 2, in, rows, index, "the normed input of the MLP")) return false;
    split(rows * layer.inner, 8192, [&](int64_t first, int64_t end) { ops.swiglu(gate + first, up + first, end - first, gate + first); });
    return project(down, down_out, 1, gate, rows, index, "the inner activations of the MLP");
  }

  // Every expert that a row chose runs on its rows together; a row adds up its experts' outputs in their order, whatever other rows chose.
  bool experts(const LayerPlan &layer, int64_t index) {
    const int64_t count = static_cast<int64_t>(layer.mlps.size()), chosen = layer.chosen, unit = std::max<int64_t>(1, 16384 / d.width);
    std::vector<float> logits(static_cast<size_t>(m * count)), weights(static_cast<size_t>(m * chosen));
    std::vector<int32_t> choice(static_cast<size_t>(m * chosen));
    const LinearUse *router[1] = {&layer.router};
    float *router_out[1] = {logits.data()};
    if (!project(router, router_out, 1, h, m, index, "the normed input of the router")) return false;
    for (int64_t r = 0; r < m; r++)
      if (!ops.finite(logits.data() + r * count, count)) return !fail(index, r, "the router's logits");
    split(m, 16, [&](int64_t first, int64_t end) {
      float e[kMostExperts];
      for (int64_t r = first; r < end; r++)
        ops.route(logits.data() + r * count, count, chosen, layer.renormalise, e, choice.data() + r * chosen, weights.data() + r * chosen);
    });
    std::vector<std::vector<int64_t>> places(static_cast<size_t>(count));  // of each expert: row * chosen + which of the row's it is
    for (int64_t i = 0; i < m * chosen; i++) places[static_cast<size_t>(choice[static_cast<size_t>(i)])].push_back(i);
    memset(t, 0, sizeof(float) * static_cast<size_t>(m * d.width));
    for (int64_t each = 0; each < count; each++) {
      const std::vector<int64_t> &mine = places[static_cast<size_t>(each)];
      const int64_t rows = static_cast<int64_t>(mine.size());
      if (!rows) continue;
      const auto row_of = [&](int64_t i) { return mine[static_cast<size_t>(i)] / chosen; };
      if (rows < m)
        split(rows, unit, [&](int64_t first, int64_t end) {
          for (int64_t i = first; i < end; i++) memcpy(some + i * d.width, h + row_of(i) * d.width, sizeof(float) * static_cast<size_t>(d.width));
        });
      if (!mlp(layer, layer.mlps[static_cast<size_t>(each)], index, rows < m ? some : h, rows, part)) {
        fault.row = row_of(fault.row);
        return false;
      }
      split(rows, unit, [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; i++)
          ops.add(t + row_of(i) * d.width, part + i * d.width, weights[static_cast<size_t>(mine[static_cast<size_t>(i)])], d.width);
      });
    }
    return true;
  }

  bool run(const int32_t *ids, bool all_logits, float *out) {
    int64_t q_width = 0, kv_width = 0, inner = 0;
    bool sparse = false;
    for (const LayerPlan &layer : d.layers) {
      q_width = std::max(q_width, layer.heads * layer.dim);
      kv_width = std::max(kv_width, layer.kv_heads * layer.dim);
      inner = std::max(inner, layer.inner);
      sparse = sparse || layer.chosen;
    }
    x = floats(m * d.width), h = floats(m * d.width), t = floats(m * d.width);
    float *q = floats(m * q_width), *k = floats(m * kv_width), *v = floats(m * kv_width), *mixed = floats(m * q_width);
    gate = floats(m * inner), up = floats(m * inner);
    if (sparse) some = floats(m * d.width), part = floats(m * d.width);
    embed(ids);
    const auto rotary = tables();
    if (!d.cache_shape->turned) turn_tiles();
    for (size_t i = 0; i < d.layers.size(); i++) {
      const LayerPlan &layer = d.layers[i];
      const int64_t index = static_cast<int64_t>(i);
      const auto &[cos, sin] = rotary[static_cast<size_t>(layer.rope)];
      const LinearUse *qkv[3] = {&layer.q, &layer.k, &layer.v}, *o[1] = {&layer.o};
      float *qkv_out[3] = {q, k, v}, *o_out[1] = {t};
      if (!norm(layer.mixer_norm, layer.eps, x, m, h, index, "the input of attention")) return false;
      if (!project(qkv, qkv_out, 3, h, m, index, "the normed input of attention")) return false;
      if (!store(layer, index, q, k, v, cos, sin)) return false;
      attention(layer, index, q, mixed);
      if (!project(o, o_out, 1, mixed, m, index, "the output of attention")) return false;
      add(t, layer.residual);
      if (!norm(layer.mlp_norm, layer.eps, x, m, h, index, "the input of the MLP")) return false;
      if (!(layer.chosen ? experts(layer, index) : mlp(layer, layer.mlps[0], index, h, m, t))) return false;
      add(t, layer.residual);
    }
    int64_t rows = m;
    if (!all_logits) {  // each sequence's last row, moved together; a sequence's row never lies before its index
      rows = 0;
      for (const Sequence &s : sequences) memmove(x + d.width * rows++, x + (s.row + s.rows - 1) * d.width, sizeof(float) * static_cast<size_t>(d.width));
    }
    const auto original = [&](Fault f) {
      if (!all_logits) f.row = sequences[static_cast<size_t>(f.row)].row + sequences[static_cast<size_t>(f.row)].rows - 1;
      return f;
    };
    const LinearUse *head[1] = {&d.head};
    float *head_out[1] = {out};
    if (!norm(d.norm, d.eps, x, rows, h, -1, "the input of the final norm") || !project(head, head_out, 1, h, rows, -1, "the input of the head")) {
      fault = original(fault);
      return false;
    }
    for (int64_t r = 0; r < rows; r++)
      if (!ops.finite(out + r * d.vocab, d.vocab)) {
        fault = original({-1, r, "the logits"});
        return false;
      }
    return true;
  }
};

Fault Decoder::forward(const int32_t *ids, const std::vector<Sequence> &sequences, bool all_logits, float *out) {
  std::lock_guard<std::mutex> lock(mutex_);
  FloatState state;
  Run run{*this, ops(), sequences, 0, {}, {}, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, {}};
  for (const Sequence &s : sequences) {
    s.cache->reserve(s.cache->length() + s.rows);
    for (int64_t i = 0; i < s.rows; i++) {
      run.of_row.push_back(&s);
      run.position.push_back(s.cache->length() + i);
    }
    run.m += s.rows;
  }
  bool good;
  try {
    good = run.run(ids, all_logits, out);
  } catch (...) {
    activations_.reset();
    inputs_.reset();
    throw;
  }
  activations_.reset();
  inputs_.reset();
  if (!good) return run.fault;
  for (const Sequence &s : sequences) s.cache->advance(s.cache->length() + s.rows);
  return {};
}

}  // namespace anybit
