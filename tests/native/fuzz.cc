// Random problems for the CPU kernels, without XLA: their results against plain loops in double precision,
// and against their own with other numbers of threads, whose bits must be the same.
//
//   kernels=lstmx/implementations/native/kernels
//   flags="-std=c++17 -g -O1 -march=native -fno-math-errno -ffp-contract=fast -pthread -I$kernels"
//   g++ $flags -fsanitize=address,undefined -fno-sanitize-recover=all tests/native/fuzz.cc -o fuzz
//   ./fuzz 600          # seconds
//   ./fuzz 0 4711       # one problem again, by the number that a failure has printed
//   ./fuzz 600 0 2      # from problem 0 on, two callers at once
//
// Every array lies in a heap block of exactly its size, working memory included, so that AddressSanitizer
// sees a float too many; what is to be written is NaN first. For ThreadSanitizer: -fsanitize=thread
// -DREAL_SCRATCH (the kernels' own working memory, shared by callers). For other vectors: -mno-avx512f -mavx2
// -mfma, -march=x86-64.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#ifdef REAL_SCRATCH
#include "problem.h"
#else
#define Scratch KernelScratch
#include "problem.h"
#undef Scratch
namespace lstmx {
class Scratch {
 public:
  explicit Scratch(int64_t floats) : data_(new float[floats]) {
    std::fill_n(data_.get(), floats, std::numeric_limits<float>::quiet_NaN());
  }
  float* data() const { return data_.get(); }

 private:
  std::unique_ptr<float[]> data_;
};
}  // namespace lstmx
#endif
#include "backward.h"
#include "forward.h"
#include "helpers.h"

namespace {

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

Sizes draw_sizes(Random& random, int64_t gates) {
  const auto small = [&](int64_t most) { return 1 + random.below(random.chance(0.5) ? 8 : most); };
  Sizes n{1 + random.below(40), small(70), small(70), small(70)};
  if (random.chance(0.2)) n.units = 1 + 16 * random.below(5);
  if (random.chance(0.25)) n.steps = 1 + random.below(700);
  // Large problems are cut in time, so that there are many.
  const auto work = [&] { return double(n.steps) * n.batch * gates * n.units * (n.units + n.features); };
  while (n.steps > 1 && work() > 6e6) n.steps = (n.steps + 1) / 2;
  return n;
}

std::unique_ptr<uint8_t[]> draw_keep(Random& random, const Sizes& n) {
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

Inputs draw(Random& random) {
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

template <class Cell>
Outputs run(const Inputs& in, lstmx::Team& team) {
  const Sizes n = in.n;
  const int64_t rows = n.steps * n.batch, states = n.batch * n.units, gates = Cell::kGates;
  const int64_t blocks = (n.units + lstmx::kLanes - 1) / lstmx::kLanes;
  const lstmx::Problem problem{n.steps, n.batch, n.features, n.units, in.reverse, in.x.get(), in.input.get(),
                               in.recurrent.get(), in.bias.get(), in.h0.get(), in.c0.get(), in.fresh_h.get(),
                               in.fresh_c.get(), in.keep.get(), in.resets.get()};
  Outputs out;
  out.y = Array(rows * n.units), out.h = Array(states);
  if (Cell::kHasCell) out.c = Array(states);
  if (in.wants_cells) out.cells = Array(rows * n.units);
  if (in.training) out.tape = Array(rows * blocks * lstmx::kLanes * Cell::kKept);
  lstmx::Forward forward;
  static_cast<lstmx::Problem&>(forward) = problem;
  forward.y = out.y.get(), forward.h = out.h.get(), forward.c = out.c.get();
  forward.tape = out.tape.get(), forward.cells = out.cells.get();
  lstmx::ForwardPass<Cell>(forward, team).run();
  if (!in.training) return out;

  out.dx = Array(rows * n.features), out.d_input = Array(n.features * gates * n.units);
  out.d_recurrent = Array(n.units * gates * n.units), out.d_bias = Array(in.bias.size);
  out.dh0 = Array(states);
  if (Cell::kHasCell) out.dc0 = Array(states);
  if (in.resets) {
    out.d_fresh_h = Array(states);
    if (Cell::kHasCell) out.d_fresh_c = Array(states);
  }
  lstmx::Backward backward;
  static_cast<lstmx::Problem&>(backward) = problem;
  backward.y = out.y.get(), backward.tape = out.tape.get();
  backward.dy = in.dy.get(), backward.dh = in.dh.get(), backward.dc = in.dc.get();
  backward.d_cells = in.d_cells.get(), backward.dx = out.dx.get(), backward.d_input = out.d_input.get();
  backward.d_recurrent = out.d_recurrent.get(), backward.d_bias = out.d_bias.get();
  backward.dh0 = out.dh0.get(), backward.dc0 = out.dc0.get();
  backward.d_fresh_h = out.d_fresh_h.get(), backward.d_fresh_c = out.d_fresh_c.get();
  lstmx::BackwardPass<Cell>(backward, team).run();
  return out;
}

// What the results must be, in the order of `Outputs`; empty where there is no such result. After these, for
// the gradients of the parameters, the magnitudes of what was summed, which may have cancelled.
using Truth = std::vector<std::vector<double>>;
constexpr int kMagnitudes = Outputs::kCount - 6;
bool is_summed(int k) { return k >= 6 && k <= 8; }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One row of the batch, step by step.
class Row {
 public:
  Row(const Inputs& in, const Outputs& computed, int64_t b, Truth& to)
      : in_(in), computed_(computed), cell_(in.facts()), n_(in.n), b_(b), to_(to) {}

  void forward() {
    begin(in_.h0, in_.c0);
    for (int64_t step = 0; step < n_.steps; ++step) {
      const int64_t row = row_of(step);
      if (!in_.keep || in_.keep[row]) {
        if (in_.resets && in_.resets[row]) begin(in_.fresh_h, in_.fresh_c);
        advance(row);
      } else {
        kept_.push_back({});
      }
      for (int64_t u = 0; u < n_.units; ++u) {
        to_[0][row * n_.units + u] = h_[u];
        if (in_.wants_cells) to_[4][row * n_.units + u] = c_[u];
      }
    }
    for (int64_t u = 0; u < n_.units; ++u) {
      to_[1][b_ * n_.units + u] = h_[u];
      if (cell_.has_c) to_[2][b_ * n_.units + u] = c_[u];
    }
  }

  void backward() {
    std::vector<double> dh = of(in_.dh), dc = of(in_.dc);
    for (int64_t step = n_.steps - 1; step >= 0; --step) {
      const int64_t row = row_of(step);
      for (int64_t u = 0; u < n_.units; ++u) {
        dh[u] += in_.dy.get()[row * n_.units + u];
        if (in_.wants_cells) dc[u] += in_.d_cells.get()[row * n_.units + u];
      }
      if (in_.keep && !in_.keep[row]) continue;
      retreat(row, kept_[step], dh, dc);
      if (!in_.resets || !in_.resets[row]) continue;
      for (int64_t u = 0; u < n_.units; ++u) {
        to_[11][b_ * n_.units + u] += dh[u], dh[u] = 0;
        if (cell_.has_c) to_[12][b_ * n_.units + u] += dc[u], dc[u] = 0;
      }
    }
    for (int64_t u = 0; u < n_.units; ++u) {
      to_[9][b_ * n_.units + u] = dh[u];
      if (cell_.has_c) to_[10][b_ * n_.units + u] = dc[u];
    }
  }

 private:
  struct Kept {
    std::vector<double> h, c, a, c_after;  // h_{t-1}, c_{t-1}, activations (Elman: slopes) [slots][H], c_t
  };

  int64_t row_of(int64_t step) const {
    return (in_.reverse ? n_.steps - 1 - step : step) * n_.batch + b_;
  }
  std::vector<double> of(const Array& states) const {
    if (!states.get()) return std::vector<double>(n_.units);
    return {states.get() + b_ * n_.units, states.get() + (b_ + 1) * n_.units};
  }
  void begin(const Array& h, const Array& c) { h_ = of(h), c_ = of(c); }
  // The slot of a gate of the recurrent map: that of a GRU's n is apart from the input map's.
  int64_t slot(int64_t gate) const { return in_.cell == kGru && gate == 2 ? 3 : gate; }

  void add(int k, int64_t at, double term) {
    to_[k][at] += term;
    to_[k + kMagnitudes][at] += std::fabs(term);
  }

  void advance(int64_t row) {
    const int64_t units = n_.units;
    std::vector<double> a(in_.bias.get(), in_.bias.get() + in_.bias.size);
    for (int64_t g = 0; g < cell_.gates; ++g) {
      for (int64_t u = 0; u < units; ++u) {
        for (int64_t d = 0; d < n_.features; ++d) {
          a[g * units + u] += double(in_.x.get()[row * n_.features + d]) *
                              in_.input.get()[(d * cell_.gates + g) * units + u];
        }
        for (int64_t k = 0; k < units; ++k) {
          a[slot(g) * units + u] += h_[k] * in_.recurrent.get()[(k * cell_.gates + g) * units + u];
        }
      }
    }
    kept_.push_back({h_, c_, {}, {}});
    for (int64_t u = 0; u < units; ++u) activate(row, u, a);
    kept_.back().a = a, kept_.back().c_after = c_;
  }

  void activate(int64_t row, int64_t u, std::vector<double>& a) {
    const auto at = [&](int64_t slot) -> double& { return a[slot * n_.units + u]; };
    if (in_.cell == kLstm) {
      double &i = at(0), &f = at(1), &g = at(2), &o = at(3);
      i = sigmoid(i), f = sigmoid(f), g = std::tanh(g), o = sigmoid(o);
      c_[u] = f * c_[u] + i * g;
      h_[u] = o * std::tanh(c_[u]);
    } else if (in_.cell == kGru) {
      double &reset = at(0), &update = at(1), &n = at(2), &recurrent = at(3);
      reset = sigmoid(reset), update = sigmoid(update), n = std::tanh(n + reset * recurrent);
      h_[u] = (1 - update) * n + update * h_[u];
    } else if (in_.cell == kElmanTanh) {
      h_[u] = std::tanh(at(0));
      at(0) = 1 - h_[u] * h_[u];
    } else {
      // So near 0 that rounding may change the sign, either slope is right. Which one the kernels have taken
      // is seen by their y, which must still be right itself.
      const bool is_sure = std::fabs(at(0)) > 1e-4;
      h_[u] = std::max(at(0), 0.0);
      at(0) = is_sure ? h_[u] > 0 : computed_.y.get()[row * n_.units + u] > 0;
    }
  }

  void retreat(int64_t row, const Kept& kept, std::vector<double>& dh, std::vector<double>& dc) {
    const int64_t units = n_.units;
    std::vector<double> da(cell_.slots * units);
    for (int64_t u = 0; u < units; ++u) deactivate(kept, u, dh[u], dc[u], da);
    for (int64_t k = 0; k < cell_.slots * units; ++k) add(8, k, da[k]);
    for (int64_t g = 0; g < cell_.gates; ++g) {
      for (int64_t u = 0; u < units; ++u) {
        for (int64_t d = 0; d < n_.features; ++d) {
          const int64_t at = (d * cell_.gates + g) * units + u, x = row * n_.features + d;
          add(6, at, in_.x.get()[x] * da[g * units + u]);
          to_[5][x] += in_.input.get()[at] * da[g * units + u];
        }
        for (int64_t k = 0; k < units; ++k) {
          const int64_t at = (k * cell_.gates + g) * units + u;
          add(7, at, kept.h[k] * da[slot(g) * units + u]);
          dh[k] += in_.recurrent.get()[at] * da[slot(g) * units + u];
        }
      }
    }
  }

  // From the cotangents of the step's state to those of the slots, and of the state before without the maps.
  void deactivate(const Kept& kept, int64_t u, double& dh, double& dc, std::vector<double>& da) const {
    const auto a = [&](int64_t slot) { return kept.a[slot * n_.units + u]; };
    const auto d = [&](int64_t slot) -> double& { return da[slot * n_.units + u]; };
    if (in_.cell == kLstm) {
      const double i = a(0), f = a(1), g = a(2), o = a(3), shown = std::tanh(kept.c_after[u]);
      dc += dh * o * (1 - shown * shown);
      d(0) = dc * g * i * (1 - i), d(1) = dc * kept.c[u] * f * (1 - f);
      d(2) = dc * i * (1 - g * g), d(3) = dh * shown * o * (1 - o);
      dc *= f, dh = 0;
    } else if (in_.cell == kGru) {
      const double reset = a(0), update = a(1), n = a(2), recurrent = a(3);
      d(1) = dh * (kept.h[u] - n) * update * (1 - update), d(2) = dh * (1 - update) * (1 - n * n);
      d(3) = d(2) * reset, d(0) = d(2) * recurrent * reset * (1 - reset);
      dh *= update;
    } else {
      d(0) = dh * a(0), dh = 0;
    }
  }

  const Inputs& in_;
  const Outputs& computed_;
  const Facts cell_;
  const Sizes n_;
  const int64_t b_;
  Truth& to_;
  std::vector<double> h_, c_;
  std::vector<Kept> kept_;
};

Truth truth(const Inputs& in, const Outputs& computed) {
  Truth to(Outputs::kCount + 3);
  for (int k = 0; k < Outputs::kCount; ++k) {
    to[k].resize(computed.all(k)->size);
    if (is_summed(k)) to[k + kMagnitudes].resize(computed.all(k)->size);
  }
  for (int64_t b = 0; b < in.n.batch; ++b) {
    Row row(in, computed, b, to);
    row.forward();
    if (in.training) row.backward();
  }
  return to;
}

double largest(const std::vector<double>& values) {
  double most = 0;
  for (double v : values) most = std::max(most, std::fabs(v));
  return most;
}

std::mutex report;
double worst_forward = 0, worst_backward = 0;

// Compares with the truth: what there is to complain of, or "".
std::string compare(const Outputs& out, const Truth& to) {
  double scale = 0;
  for (int k = Outputs::kForward; k < Outputs::kCount; ++k) scale = std::max(scale, largest(to[k]));
  for (int k = 0; k < Outputs::kCount; ++k) {
    if (k == Outputs::kTape) continue;
    const bool is_forward = k < Outputs::kForward;
    // A small gradient is compared with the large ones beside it, a sum that cancels with what was summed.
    const double summed = is_summed(k) ? 0.2 * largest(to[k + kMagnitudes]) : 0;
    const double size = std::max({largest(to[k]), summed, is_forward ? 1 : 0.03 * scale, 1e-30});
    double worst = 0;
    for (int64_t i = 0; i < out.all(k)->size; ++i) {
      const double error = std::fabs(out.all(k)->get()[i] - to[k][i]) / size;
      if (!(error <= 1e-5)) {
        return std::string(kNames[k]) + "[" + std::to_string(i) + "] is " +
               std::to_string(out.all(k)->get()[i]) + ", not " + std::to_string(to[k][i]);
      }
      worst = std::max(worst, error);
    }
    std::lock_guard<std::mutex> lock(report);
    double& so_far = is_forward ? worst_forward : worst_backward;
    so_far = std::max(so_far, worst);
  }
  return "";
}

// Runs with a number of threads: of its own, which start late at random, or the kernels' helpers.
template <class Cell>
Outputs run_with(const Inputs& in, int threads, Random& random) {
  std::vector<std::thread> started;
  const bool own = random.chance(0.6);
  std::vector<int> delays;
  for (int k = 0; k < threads; ++k) delays.push_back(random.chance(0.3) ? 0 : int(random.below(300)));
  Outputs out;
  {
    lstmx::Team team(threads, [&](const std::function<void()>& work) {
      if (!own) return lstmx::Helpers::instance().offer(work, threads - 1, random.chance(0.3));
      for (int k = 1; k < threads; ++k) {
        started.emplace_back([work, delay = std::chrono::microseconds(delays[k])] {
          std::this_thread::sleep_for(delay);
          work();
        });
      }
    });
    out = run<Cell>(in, team);
  }
  for (std::thread& t : started) t.join();
  return out;
}

template <class Cell>
std::string check(const Inputs& in, Random& random) {
  const Outputs out = run_with<Cell>(in, 1, random);
  std::string complaint = compare(out, truth(in, out));
  for (int threads = 2; threads <= 4 && complaint.empty(); ++threads) {
    const Outputs other = run_with<Cell>(in, threads, random);
    for (int k = 0; k < Outputs::kCount; ++k) {
      const Array &a = *out.all(k), &b = *other.all(k);
      if (a.size && std::memcmp(a.get(), b.get(), a.size * sizeof(float)) != 0) {
        complaint = std::string(kNames[k]) + " has other bits with " + std::to_string(threads) + " threads";
      }
    }
  }
  return complaint;
}

// In the order of `Name`.
constexpr std::string (*kChecks[])(const Inputs&, Random&) = {
    check<lstmx::Lstm>, check<lstmx::Gru>, check<lstmx::Elman<false>>, check<lstmx::Elman<true>>};

bool passes(uint64_t seed) {
  Random random(seed);
  const Inputs in = draw(random);
  const std::string complaint = kChecks[in.cell](in, random);
  if (complaint.empty()) return true;
  std::lock_guard<std::mutex> lock(report);
  std::printf("problem %llu: %s T=%lld B=%lld D=%lld H=%lld%s%s%s%s%s: %s\n", (unsigned long long)seed,
              in.facts().name, (long long)in.n.steps, (long long)in.n.batch, (long long)in.n.features,
              (long long)in.n.units, in.reverse ? " reverse" : "", in.keep ? " keep" : "",
              in.resets ? " resets" : "", in.training ? " training" : "", in.wants_cells ? " cells" : "",
              complaint.c_str());
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  const int callers = argc > 3 ? std::atoi(argv[3]) : 1;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::atomic<uint64_t> next{first};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    do {
      if (!passes(next++)) failed = true;
    } while (!failed && std::chrono::steady_clock::now() < end);
  };
  std::vector<std::thread> others;
  for (int k = 1; k < callers; ++k) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  std::printf("%llu problems with vectors of %d; largest errors: forward %.1e, backward %.1e; %s\n",
              (unsigned long long)(next - first), lstmx::kLanes, worst_forward, worst_backward,
              failed ? "FAILED" : "all right");
  return failed;
}
