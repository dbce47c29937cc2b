// The entry points, for XLA and for streams.
#include "backward.h"
#include "forward.h"
#include "run.h"
#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace lstmx {
namespace {

using Array = ffi::Buffer<ffi::F32>;
using Flags = ffi::Buffer<ffi::PRED>;
using Result = ffi::Result<Array>;

// Arrays that a cell or a call does not have are passed empty.
const float* data(const Array& a) { return a.element_count() ? a.typed_data() : nullptr; }
float* data(Result& a) { return a->element_count() ? a->typed_data() : nullptr; }
const uint8_t* data(const Flags& f) {
  return f.element_count() ? reinterpret_cast<const uint8_t*>(f.typed_data()) : nullptr;
}

Problem problem_of(bool reverse, const Array& x, const Array& input, const Array& recurrent, const Array& bias,
                   const Array& h0, const Array& c0, const Array& fresh_h, const Array& fresh_c,
                   const Flags& keep, const Flags& resets) {
  const auto shape = x.dimensions();
  return {shape[0],  shape[1],        shape[2],        recurrent.dimensions()[0], reverse,
          data(x),   data(input),     data(recurrent), data(bias),                data(h0),
          data(c0),  data(fresh_h),   data(fresh_c),   data(keep),                data(resets)};
}

template <typename Pass, typename Call>
ffi::Error run_with(ffi::ThreadPool& pool, const Call& call, int gates) {
  try {
    run<Pass>(call, gates, pool.num_threads());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "lstmx: out of memory in a native kernel");
  }
  return ffi::Error::Success();
}

template <class Cell>
ffi::Error forward(ffi::ThreadPool pool, bool reverse, Array x, Array input, Array recurrent, Array bias,
                   Array h0, Array c0, Array fresh_h, Array fresh_c, Flags keep, Flags resets, Result y,
                   Result h, Result c, Result tape, Result cells) {
  Forward call;
  static_cast<Problem&>(call) =
      problem_of(reverse, x, input, recurrent, bias, h0, c0, fresh_h, fresh_c, keep, resets);
  call.y = data(y), call.h = data(h), call.c = data(c), call.tape = data(tape), call.cells = data(cells);
  return run_with<ForwardPass<Cell>>(pool, call, Cell::kGates);
}

template <class Cell>
ffi::Error backward(ffi::ThreadPool pool, bool reverse, Array x, Array input, Array recurrent, Array bias,
                    Array h0, Array c0, Array fresh_h, Array fresh_c, Flags keep, Flags resets, Array y,
                    Array tape, Array dy, Array dh, Array dc, Array d_cells, Result dx, Result d_input,
                    Result d_recurrent, Result d_bias, Result dh0, Result dc0, Result d_fresh_h,
                    Result d_fresh_c) {
  Backward call;
  static_cast<Problem&>(call) =
      problem_of(reverse, x, input, recurrent, bias, h0, c0, fresh_h, fresh_c, keep, resets);
  call.y = data(y), call.tape = data(tape), call.dy = data(dy), call.dh = data(dh), call.dc = data(dc);
  call.d_cells = data(d_cells), call.dx = data(dx), call.d_input = data(d_input);
  call.d_recurrent = data(d_recurrent), call.d_bias = data(d_bias), call.dh0 = data(dh0);
  call.dc0 = data(dc0), call.d_fresh_h = data(d_fresh_h), call.d_fresh_c = data(d_fresh_c);
  return run_with<BackwardPass<Cell>>(pool, call, 2 * Cell::kGates);
}

auto inputs() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<bool>("reverse")
      .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
      .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
      .Arg<Flags>().Arg<Flags>();
}

auto forward_binding() {
  return inputs().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>();
}

auto backward_binding() {
  return inputs()
      .Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
      .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()
      .Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>();
}

}  // namespace
}  // namespace lstmx

#define LSTMX_DEFINE(name, Cell)                                                                      \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(lstmx_##name##_forward, lstmx::forward<Cell>, lstmx::forward_binding()); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(lstmx_##name##_backward, lstmx::backward<Cell>, lstmx::backward_binding())

LSTMX_DEFINE(lstm, lstmx::Lstm);
LSTMX_DEFINE(gru, lstmx::Gru);
LSTMX_DEFINE(elman_tanh, lstmx::Elman<false>);
LSTMX_DEFINE(elman_relu, lstmx::Elman<true>);

// The number of floats in a vector, on which the layout of the tape depends.
extern "C" int lstmx_lanes() { return lstmx::kLanes; }

// A step of layers, the lowest first; false if there is too little memory.
extern "C" bool lstmx_step(const lstmx::StepLayer* layers, int64_t count, int64_t threads) {
  try {
    for (int64_t k = 0; k < count; ++k) lstmx::step(layers[k], threads);
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}
