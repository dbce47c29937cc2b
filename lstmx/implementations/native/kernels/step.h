// One step of a stack of layers in memory that the caller keeps: for streams, where a call through XLA takes as
// long as the arithmetic.
#pragma once

#include "cells.h"
#include "forward.h"
#include "run.h"

namespace lstmx {

// The order of library.KERNELS.
enum CellKind : int64_t { kLstm, kGru, kElmanTanh, kElmanRelu };

// A layer, with the layout of stepping.StepLayer.
struct StepLayer {
  int64_t kind, batch, features, units;
  const float *x, *input, *recurrent, *bias;
  const float* packed;  // null for a single row
  float *h, *c;  // the state before the step, and then after it; c is null if the cell has none
  float* y;
};

inline int gates(int64_t kind) { return kind == kLstm ? 4 : kind == kGru ? 3 : 1; }

template <class Cell>
void step(const StepLayer& layer, int64_t threads) {
  Forward call{};
  call.steps = 1, call.batch = layer.batch, call.features = layer.features, call.units = layer.units;
  call.x = layer.x, call.input = layer.input, call.recurrent = layer.recurrent, call.bias = layer.bias;
  // The new state is written after everything has been read.
  call.packed = layer.packed;
  call.h0 = call.h = layer.h, call.c0 = call.c = layer.c, call.y = layer.y;
  run<ForwardPass<Cell>>(call, Cell::kGates, threads);
}

inline void step(const StepLayer& layer, int64_t threads) {
  switch (layer.kind) {
    case kLstm: return step<Lstm>(layer, threads);
    case kGru: return step<Gru>(layer, threads);
    case kElmanTanh: return step<Elman<false>>(layer, threads);
    case kElmanRelu: return step<Elman<true>>(layer, threads);
  }
}

}  // namespace lstmx
