// What the kernels must compute: plain loops in double precision.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "problems.h"

namespace fuzz {

// What the results must be, in the order of `Outputs`; empty where there is no such result. After these, for
// the gradients of the parameters, the magnitudes of what was summed, which may have cancelled.
using Truth = std::vector<std::vector<double>>;
constexpr int kMagnitudes = Outputs::kCount - 6;
inline bool is_summed(int k) { return k >= 6 && k <= 8; }

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

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

inline Truth truth(const Inputs& in, const Outputs& computed) {
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

}  // namespace fuzz
