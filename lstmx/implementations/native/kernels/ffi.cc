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

// The part of an array that is one member's. Arrays that a cell or a call does not have are passed empty; those
// without an axis of members, whose rank is then `rank`, belong to all of them.
struct Member {
  int64_t index, count;

  template <typename T>
  T* of(T* data, int64_t elements, int64_t axes, int64_t rank) const {
    if (elements == 0) return nullptr;
    return axes > rank ? data + index * (elements / count) : data;
  }
  const float* of(const Array& a, int64_t rank) const {
    return of(a.typed_data(), a.element_count(), a.dimensions().size(), rank);
  }
  float* of(Result& a, int64_t rank) const {
    return of(a->typed_data(), a->element_count(), a->dimensions().size(), rank);
  }
  const uint8_t* of(const Flags& f, int64_t rank) const {
    const auto* data = reinterpret_cast<const uint8_t*>(f.typed_data());
    return of(data, f.element_count(), f.dimensions().size(), rank);
  }
};

// Of all members at once: the part of one may be too small for a huge page.
void advise(const std::initializer_list<Result*>& results) {
  for (Result* r : results) {
    if ((*r)->element_count()) advise_huge_pages((*r)->typed_data(), 4 * (*r)->element_count());
  }
}

int64_t size(const Array& a, int from_last) { return a.dimensions()[a.dimensions().size() - from_last]; }

Problem problem_of(Member m, bool reverse, const Array& x, const Array& input, const Array& recurrent,
                   const Array& bias, const Array& h0, const Array& c0, const Array& fresh_h,
                   const Array& fresh_c, const Flags& keep, const Flags& resets) {
  return {size(x, 3),     size(x, 2),          size(x, 1),    size(recurrent, 2), reverse,
          m.of(x, 3),     m.of(input, 2),      m.of(recurrent, 2), m.of(bias, 2), m.of(h0, 2),
          m.of(c0, 2),    m.of(fresh_h, 2),    m.of(fresh_c, 2),   m.of(keep, 2), m.of(resets, 2)};
}

// `members` is 0 where arrays have no axis of members.
template <typename Pass, typename Call, typename Make>
ffi::Error run_with(ffi::ThreadPool& pool, int64_t members, int gates, const Make& make) {
  try {
    if (members == 0) {
      run<Pass>(make(Member{0, 1}), gates, pool.num_threads());
    } else {
      std::vector<Call> calls;
      for (int64_t k = 0; k < members; ++k) calls.push_back(make(Member{k, members}));
      run_members<Pass>(calls, gates, pool.num_threads());
    }
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "lstmx: out of memory in a native kernel");
  }
  return ffi::Error::Success();
}

template <class Cell>
ffi::Error forward(ffi::ThreadPool pool, bool reverse, int64_t members, Array x, Array input, Array recurrent,
                   Array bias, Array h0, Array c0, Array fresh_h, Array fresh_c, Flags keep, Flags resets,
                   Result y, Result h, Result c, Result tape, Result cells) {
  if (members) advise({&y, &tape, &cells});
  return run_with<ForwardPass<Cell>, Forward>(pool, members, Cell::kGates, [&](Member m) {
    Forward call{};
    static_cast<Problem&>(call) =
        problem_of(m, reverse, x, input, recurrent, bias, h0, c0, fresh_h, fresh_c, keep, resets);
    call.y = m.of(y, 3), call.h = m.of(h, 2), call.c = m.of(c, 2), call.tape = m.of(tape, 3);
    call.cells = m.of(cells, 3);
    return call;
  });
}

template <class Cell>
ffi::Error backward(ffi::ThreadPool pool, bool reverse, int64_t members, Array x, Array input,
                    Array recurrent, Array bias, Array h0, Array c0, Array fresh_h, Array fresh_c, Flags keep,
                    Flags resets, Array y, Array tape, Array dy, Array dh, Array dc, Array d_cells, Result dx,
                    Result d_input, Result d_recurrent, Result d_bias, Result dh0, Result dc0,
                    Result d_fresh_h, Result d_fresh_c) {
  if (members) advise({&dx, &d_input, &d_recurrent});
  return run_with<BackwardPass<Cell>, Backward>(pool, members, 2 * Cell::kGates, [&](Member m) {
    Backward call;
    static_cast<Problem&>(call) =
        problem_of(m, reverse, x, input, recurrent, bias, h0, c0, fresh_h, fresh_c, keep, resets);
    call.y = m.of(y, 3), call.tape = m.of(tape, 3), call.dy = m.of(dy, 3), call.dh = m.of(dh, 2);
    call.dc = m.of(dc, 2), call.d_cells = m.of(d_cells, 3), call.dx = m.of(dx, 3);
    call.d_input = m.of(d_input, 2), call.d_recurrent = m.of(d_recurrent, 2), call.d_bias = m.of(d_bias, 2);
    call.dh0 = m.of(dh0, 2), call.dc0 = m.of(dc0, 2), call.d_fresh_h = m.of(d_fresh_h, 2);
    call.d_fresh_c = m.of(d_fresh_c, 2);
    return call;
  });
}

auto inputs() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<bool>("reverse")
      .Attr<int64_t>("members")
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

// The number of floats of a layer's packed weights, which `lstmx_pack` writes.
extern "C" int64_t lstmx_packed_floats(const lstmx::StepLayer* layer) {
  return lstmx::packed_floats(layer->features, layer->units, lstmx::gates(layer->kind));
}

extern "C" void lstmx_pack(const lstmx::StepLayer* layer, float* to) {
  lstmx::pack(to, layer->input, layer->recurrent, layer->features, layer->units, lstmx::gates(layer->kind));
}
