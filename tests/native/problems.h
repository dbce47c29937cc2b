// A random problem for the CPU kernels: the arrays that go in and come out.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>

namespace fuzz {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) { engine_.discard(8); }
  int64_t below(int64_t n) { return int64_t(engine_() % uint64_t(n)); }
  bool chance(double p) { return uniform() < p; }
  double uniform() { return double(engine_() >> 11) / 9007199254740992.0; }
  float normal() {
    return float(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()));
  }

 private:
  std::mt19937_64 engine_;
};

// Floats in a heap block of exactly their size; or none at all, a null pointer.
struct Array {
  std::unique_ptr<float[]> data;
  int64_t size = 0;

  Array() = default;
  explicit Array(int64_t n) : data(new float[n]), size(n) { std::fill_n(data.get(), n, kNan); }
  static Array drawn(Random& random, int64_t n, double scale) {
    Array a(n);
    for (int64_t k = 0; k < n; ++k) a.data[k] = float(scale) * random.normal();
    return a;
  }
  float* get() const { return data.get(); }
};

// What differs from cell to cell, but for the arithmetic.
enum Name { kLstm, kGru, kElmanTanh, kElmanRelu };
struct Facts {
  const char* name;
  int64_t gates, slots;
  bool has_c;
};
constexpr Facts kCells[] = {{"lstm", 4, 4, true}, {"gru", 3, 4, false}, {"elman tanh", 1, 1, false},
                            {"elman relu", 1, 1, false}};

struct Sizes {
  int64_t steps, batch, features, units;
};

struct Inputs {
  Name cell;
  Sizes n;
  bool reverse, training, wants_cells;
  Array x, input, recurrent, bias, h0, c0, fresh_h, fresh_c, dy, dh, dc, d_cells;
  std::unique_ptr<uint8_t[]> keep, resets;

  const Facts& facts() const { return kCells[cell]; }
};

inline Sizes draw_sizes(Random& random, int64_t gates) {
  const auto small = [&](int64_t most) { return 1 + random.below(random.chance(0.5) ? 8 : most); };
  Sizes n{1 + random.below(40), small(70), small(70), small(70)};
  if (random.chance(0.2)) n.units = 1 + 16 * random.below(5);
  if (random.chance(0.25)) n.steps = 1 + random.below(700);
  // Large problems are cut in time, so that there are many.
  const auto work = [&] { return double(n.steps) * n.batch * gates * n.units * (n.units + n.features); };
  while (n.steps > 1 && work() > 6e6) n.steps = (n.steps + 1) / 2;
  return n;
}

inline std::unique_ptr<uint8_t[]> draw_keep(Random& random, const Sizes& n) {
  std::unique_ptr<uint8_t[]> keep(new uint8_t[n.steps * n.batch]);
  const bool ragged = random.chance(0.5);
  const double density = random.uniform();
  for (int64_t b = 0; b < n.batch; ++b) {
    const int64_t length = random.below(n.steps + 1);
    for (int64_t t = 0; t < n.steps; ++t) {
      keep[t * n.batch + b] = ragged ? t < length : random.chance(density);
    }
  }
  return keep;
}

inline Inputs draw(Random& random) {
  Inputs in;
  in.cell = Name(random.below(std::size(kCells)));
  const auto [name, gates, slots, has_c] = in.facts();
  in.reverse = random.chance(0.3);
  in.training = random.chance(0.8);
  in.wants_cells = has_c && random.chance(0.3);
  const Sizes n = in.n = draw_sizes(random, gates);
  const int64_t rows = n.steps * n.batch, states = n.batch * n.units;
  if (random.chance(0.5)) in.keep = draw_keep(random, n);
  if (random.chance(0.4)) {
    in.resets.reset(new uint8_t[rows]);
    const double density = random.uniform() * random.uniform();
    for (int64_t k = 0; k < rows; ++k) {
      in.resets[k] = random.chance(density) && (in.keep == nullptr || in.keep[k]);
    }
    in.fresh_h = Array::drawn(random, states, 0.5);
    if (has_c) in.fresh_c = Array::drawn(random, states, 1);
  }
  in.x = Array::drawn(random, rows * n.features, random.chance(0.2) ? 3 : 0.7);
  for (int64_t k = 0; k < rows && in.keep; ++k) {
    // Nothing may depend on inputs that do not exist.
    if (!in.keep[k]) std::fill_n(in.x.get() + k * n.features, n.features, kNan);
  }
  in.input = Array::drawn(random, n.features * gates * n.units, 1 / std::sqrt(double(n.features)));
  in.recurrent = Array(n.units * gates * n.units);
  // Bounded: of a few large weights comes chaos, where a rounding error grows without an end; of smaller ones
  // where no gate damps it.
  const double bound = (gates > 1 ? 1 : 0.5) / std::sqrt(double(n.units));
  for (int64_t k = 0; k < in.recurrent.size; ++k) {
    in.recurrent.get()[k] = float((2 * random.uniform() - 1) * bound);
  }
  in.bias = Array::drawn(random, slots * n.units, 0.5);
  in.h0 = Array::drawn(random, states, 0.5);
  if (has_c) in.c0 = Array::drawn(random, states, 1);
  in.dy = Array::drawn(random, rows * n.units, 1);
  in.dh = Array::drawn(random, states, 1);
  if (has_c) in.dc = Array::drawn(random, states, 1);
  if (in.wants_cells) in.d_cells = Array::drawn(random, rows * n.units, 1);
  return in;
}

struct Outputs {
  Array y, h, c, tape, cells, dx, d_input, d_recurrent, d_bias, dh0, dc0, d_fresh_h, d_fresh_c;

  static constexpr int kCount = 13, kTape = 3, kForward = 5;
  const Array* all(int k) const {
    const Array* arrays[] = {&y, &h, &c, &tape, &cells, &dx, &d_input, &d_recurrent, &d_bias, &dh0, &dc0,
                             &d_fresh_h, &d_fresh_c};
    return arrays[k];
  }
};
const char* const kNames[] = {"y", "h", "c", "tape", "cells", "dx", "d_input", "d_recurrent", "d_bias", "dh0",
                              "dc0", "d_fresh_h", "d_fresh_c"};

}  // namespace fuzz
