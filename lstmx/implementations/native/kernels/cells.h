// The part that is specific to each cell: the gates of one vector of units, forward and backward.
//
// A "slot" is a pre-activation of a unit. The input map feeds the slots kInput, gate by gate in the order of
// the parameters, the recurrent map the slots kRecurrent. The "tape" stores what the reverse pass needs of a
// step, in kKept vectors for each vector of units.
#pragma once

#include "simd.h"

namespace lstmx {

struct Lstm {
  static constexpr int kGates = 4, kSlots = 4, kKept = 5;
  static constexpr int kInput[] = {0, 1, 2, 3}, kRecurrent[] = {0, 1, 2, 3};
  static constexpr bool kHasCell = true;

  // `a` are the pre-activations, `c` c_{t-1} and then c_t; returns h_t.
  template <bool kTraining>
  static LSTMX_INLINE Vec forward(const Vec* a, Vec& c, Vec, float* tape) {
    Vec i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]), o = sigmoid(a[3]);
    c = f * c + i * g;
    if (kTraining) {
      store(tape, i);
      store(tape + kLanes, f);
      store(tape + 2 * kLanes, g);
      store(tape + 3 * kLanes, o);
      store(tape + 4 * kLanes, c);
    }
    return o * tanh(c);
  }

  static LSTMX_INLINE Vec kept_cell(const float* tape) { return load(tape + 4 * kLanes); }
  static LSTMX_INLINE void keep_cell(float* tape, Vec c) { store(tape + 4 * kLanes, c); }

  // Computes the cotangents of the slots from dh and dc of the step's state; dc becomes that of the previous
  // state. Returns the part of the cotangent of h_{t-1} that does not pass through the recurrent map.
  static LSTMX_INLINE Vec backward(const float* tape, Vec c_before, Vec, Vec dh, Vec& dc, Vec* da) {
    Vec i = load(tape), f = load(tape + kLanes), g = load(tape + 2 * kLanes), o = load(tape + 3 * kLanes);
    Vec squashed = tanh(load(tape + 4 * kLanes));
    dc = dc + dh * o * (1.0f - squashed * squashed);
    da[0] = dc * g * i * (1.0f - i);
    da[1] = dc * c_before * f * (1.0f - f);
    da[2] = dc * i * (1.0f - g * g);
    da[3] = dh * squashed * o * (1.0f - o);
    dc = dc * f;
    return Vec{};
  }
};

// Reset after the matmul. Slot 2 is the input's part of n, slot 3 the recurrent one.
struct Gru {
  static constexpr int kGates = 3, kSlots = 4, kKept = 4;
  static constexpr int kInput[] = {0, 1, 2}, kRecurrent[] = {0, 1, 3};
  static constexpr bool kHasCell = false;

  template <bool kTraining>
  static LSTMX_INLINE Vec forward(const Vec* a, Vec&, Vec h, float* tape) {
    Vec reset = sigmoid(a[0]), update = sigmoid(a[1]), n = tanh(a[2] + reset * a[3]);
    if (kTraining) {
      store(tape, reset);
      store(tape + kLanes, update);
      store(tape + 2 * kLanes, n);
      store(tape + 3 * kLanes, a[3]);
    }
    return n + update * (h - n);
  }

  static LSTMX_INLINE Vec kept_cell(const float*) { return Vec{}; }
  static LSTMX_INLINE void keep_cell(float*, Vec) {}

  static LSTMX_INLINE Vec backward(const float* tape, Vec, Vec h_before, Vec dh, Vec&, Vec* da) {
    Vec reset = load(tape), update = load(tape + kLanes), n = load(tape + 2 * kLanes);
    Vec recurrent = load(tape + 3 * kLanes);
    da[1] = dh * (h_before - n) * update * (1.0f - update);
    da[2] = dh * (1.0f - update) * (1.0f - n * n);
    da[3] = da[2] * reset;
    da[0] = da[2] * recurrent * reset * (1.0f - reset);
    return dh * update;
  }
};

// The simple recurrent network: one gate, which is the state.
template <bool kRelu>
struct Elman {
  static constexpr int kGates = 1, kSlots = 1, kKept = 1;
  static constexpr int kInput[] = {0}, kRecurrent[] = {0};
  static constexpr bool kHasCell = false;

  template <bool kTraining>
  static LSTMX_INLINE Vec forward(const Vec* a, Vec&, Vec, float* tape) {
    Vec h = kRelu ? (a[0] < 0.0f ? Vec{} : a[0]) : tanh(a[0]);
    if (kTraining) store(tape, h);
    return h;
  }

  static LSTMX_INLINE Vec kept_cell(const float*) { return Vec{}; }
  static LSTMX_INLINE void keep_cell(float*, Vec) {}

  static LSTMX_INLINE Vec backward(const float* tape, Vec, Vec, Vec dh, Vec&, Vec* da) {
    Vec h = load(tape);
    da[0] = kRelu ? (h > 0.0f ? dh : Vec{}) : dh * (1.0f - h * h);
    return Vec{};
  }
};

}  // namespace lstmx
