// Holds the kernels of every instruction set that this machine has to the products of a file (write.py): bit for bit, on one thread and on two.
//
//     driver FILE [SET ...]      the named sets must be there, or it fails; 0: all products are equal
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "operator.h"
#include "pool.h"

using namespace anybit;

namespace {

FILE *file;

void need(bool good, const char *what) {
  if (good) return;
  fprintf(stderr, "driver: %s\n", what);
  exit(2);
}

template <class T> T one() {
  T value;
  need(fread(&value, sizeof value, 1, file) == 1, "the file ends early");
  return value;
}
int64_t number() { return one<int64_t>(); }

// Elements before a guard of other bytes, so that reading past the end shows.
template <class T> struct Values {
  bool present = false;
  std::vector<T> list;
  void read() {
    const int64_t count = number();
    present = count >= 0;
    list.assign(static_cast<size_t>(present ? count : 0), T());
    if (count > 0) need(fread(list.data(), sizeof(T), list.size(), file) == list.size(), "the file ends early");
  }
  const T *data() const { return present ? list.data() : nullptr; }
};

struct StoredGrid {
  Values<float> table;
  Values<uint8_t> bytes;
  void read(Grid &grid) {
    grid.kind = static_cast<ScaleKind>(number());
    grid.rows = number(), grid.columns = number();
    grid.bits = static_cast<int>(number()), grid.mantissa = static_cast<int>(number()), grid.has_sign = number() != 0, grid.paired = number() != 0;
    grid.factor = one<float>();
    table.read(), bytes.read();
    for (size_t i = 0; i < table.list.size() && i < 256; i++) grid.table[i] = table.list[i];
    grid.data = bytes.data();
  }
};

struct StoredScale {
  bool present = false;
  Scale scale;
  StoredGrid grid, second;
  void read() {
    present = number() != 0;
    if (!present) return;
    grid.read(scale);
    scale.whole = one<float>(), scale.each = number();
    if (scale.each) second.read(scale.second);
  }
};

struct Stored {
  int64_t n, k, bits, dense, block, zero_flip, trits, m, act;
  float step, float_step;
  Values<uint8_t> codes, zero, index;
  Values<int32_t> integers;
  Values<float> table, values, x, bias, want;
  StoredScale scale, offset;

  void read() {
    n = number(), k = number(), bits = number(), dense = number(), block = number(), zero_flip = number(), trits = number();
    step = one<float>(), float_step = one<float>();
    codes.read(), integers.read(), table.read(), values.read(), zero.read(), index.read();
    scale.read(), offset.read();
    m = number(), act = number();
    x.read(), bias.read(), want.read();
  }

  OwnedWeight weight() const {
    OwnedWeight w;
    w.n = n, w.k = k, w.bits = static_cast<int>(bits), w.dense = static_cast<Dense>(dense), w.block = dense ? 0 : block;
    w.step = step, w.float_step = float_step, w.codes = codes.data(), w.trits = trits != 0;
    for (size_t i = 0; !table.list.empty() && i < std::max<size_t>(table.list.size(), 16); i++)
      w.table[i] = table.list[i % table.list.size()], w.values[i] = values.list[i % values.list.size()];
    w.finish(dense ? nullptr : integers.data());
    if (!dense) {
      w.scale = scale.scale;
      if (offset.present) w.offset = offset.scale, w.has_offset = true;
      if (zero.present) w.zero = zero.data(), w.zero_flip = static_cast<int>(zero_flip);
    }
    return w;
  }
};

int64_t wrong(const Stored &p) {
  const OwnedWeight w = p.weight();
  Workspace workspace;
  Input input;
  need(prepare(w, static_cast<Act>(p.act), w.kind == Kind::Wide16, p.x.data(), p.k, p.m, workspace, &input) < 0, "an input is not finite");
  std::vector<float> y(static_cast<size_t>(p.m * p.n), 3.4e38f);
  multiply(w, input, p.bias.data(), y.data(), p.n);
  int64_t count = 0;
  for (size_t i = 0; i < y.size(); i++) count += memcmp(&y[i], &p.want.list[i], sizeof(float)) != 0;
  return count;
}

}  // namespace

int main(int count, char **arguments) {
  need(count >= 2, "give the file of products");
  file = fopen(arguments[1], "rb");
  need(file != nullptr, "the file cannot be opened");
  for (int i = 2; i < count; i++)
    if (const char *why = set_isa(arguments[i])) need(false, (std::string(arguments[i]) + ": " + why).c_str());
  const FloatState state;
  int64_t products = 0, bad = 0;
  for (int magic; (magic = fgetc(file)) != EOF; products++) {
    ungetc(magic, file);
    need(number() == 0x616e7962, "this is no file of products");
    Stored p;
    p.read();
    for (int isa = 0; isa < static_cast<int>(Isa::count); isa++) {
      if (!isa_supported(static_cast<Isa>(isa))) continue;
      set_isa(isa_name(static_cast<Isa>(isa)));
      for (int threads = 1; threads <= 2; threads++) {
        set_threads(threads);
        const int64_t differ = wrong(p);
        if (differ && bad++ < 20)
          fprintf(stderr, "product %lld (%lld x %lld x %lld, %lld bits, block %lld, act %lld) on %s: %lld results differ\n", (long long)products, (long long)p.m, (long long)p.n,
                  (long long)p.k, (long long)p.bits, (long long)p.block, (long long)p.act, isa_name(static_cast<Isa>(isa)), (long long)differ);
      }
    }
  }
  need(products > 0, "the file holds no products");
  printf("%lld products on", (long long)products);
  for (int isa = 0; isa < static_cast<int>(Isa::count); isa++)
    if (isa_supported(static_cast<Isa>(isa))) printf(" %s", isa_name(static_cast<Isa>(isa)));
  printf(": %lld differ\n", (long long)bad);
  return bad ? 1 : 0;
}
