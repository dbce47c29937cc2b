// Register tiles: R rows by a few vectors of columns, the sums held in registers over the whole contraction.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "simd.h"

namespace lstmx {

// Calls f(std::integral_constant<int, n>{}) for the run-time n in 1..Max.
template <int Max, typename F>
LSTMX_INLINE void with_constant(int n, const F& f) {
  if constexpr (Max == 1) {
    f(std::integral_constant<int, 1>{});
  } else {
    if (n == Max) return f(std::integral_constant<int, Max>{});
    with_constant<Max - 1>(n, f);
  }
}

// Splits `total` into parts of at most `most`, as equal as possible, and calls f(begin, size) for each.
template <typename F>
LSTMX_INLINE void split(int64_t total, int64_t most, const F& f) {
  const int64_t parts = (total + most - 1) / most;
  for (int64_t p = 0, begin = 0; p < parts; ++p) {
    const int64_t size = total / parts + (p < total % parts);
    f(begin, size);
    begin += size;
  }
}

// sum[r][slots[v]] += x(r) * weight(v), of floats x(r) and vectors weight(v).
template <int R, int V, int S, typename Factor, typename Weight>
LSTMX_INLINE void add_products(Vec (&sum)[R][S], const Factor& x, const Weight& weight, const int (&slots)[V]) {
  if constexpr (R * V + R + 1 <= kRegisters && R * V + V + 1 > kRegisters) {
    // One vector of weights at a time: with all of them the compiler stores sums to memory.
    Vec rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rows[r] = splat(x(r));
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec w = weight(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][slots[v]] = fused(rows[r], w, sum[r][slots[v]]);
    }
  } else {
    Vec w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = weight(v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][slots[v]] = fused(splat(x(r)), w[v], sum[r][slots[v]]);
    }
  }
}

// sum[r][slots[v]] += rows[r][k] * w[k][v] for k < count: vector v of row k of the weights lies at
// w + k * row_stride + v * vector_stride.
template <int R, int V, int S>
LSTMX_INLINE void multiply(Vec (&sum)[R][S], const float* const* rows, int64_t count, const float* w,
                           int64_t row_stride, int64_t vector_stride, const int (&slots)[V]) {
  const float* x[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) x[r] = rows[r];
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; ++k, w += row_stride) {
    add_products(sum, [&](int r) { return x[r][k]; }, [&](int v) { return load(w + v * vector_stride); }, slots);
  }
}

// The weight of a map in the order in which the gates of one vector of units read it: [K][gates][lanes], from
// [K, gates * H]. Units beyond H are zero.
inline void pack_by_unit(float* to, const float* from, int64_t rows, int64_t units, int gates, int64_t block) {
  const int64_t begin = block * kLanes;
  const int n = int(std::min<int64_t>(kLanes, units - begin));
  for (int64_t k = 0; k < rows; ++k, from += gates * units) {
    for (int v = 0; v < gates; ++v, to += kLanes) store(to, load(from + v * units + begin, n));
  }
}

// The same weight transposed, for the cotangents of the map's input: groups of up to four vectors of
// features, each [H / lanes][gates][lanes][vectors of the group][lanes].
struct Transposed {
  static constexpr int kGroup = 4;
  int64_t features, blocks;
  int gates;

  int64_t vectors() const { return (features + kLanes - 1) / kLanes; }
  int64_t groups() const { return (vectors() + kGroup - 1) / kGroup; }
  int64_t depth() const { return blocks * gates * kLanes; }
  int64_t size() const { return vectors() * kLanes * depth(); }
  // First vector of a group; the groups are as equal as possible.
  int64_t first(int64_t group) const {
    const int64_t parts = groups(), all = vectors();
    return group * (all / parts) + std::min(group, all % parts);
  }
};

inline void pack_transposed(float* to, const float* from, const Transposed& shape, int64_t units,
                            int64_t group) {
  const int64_t first = shape.first(group), vectors = shape.first(group + 1) - first;
  to += first * kLanes * shape.depth();
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const int64_t unit = block * kLanes;
    const int n = int(std::min<int64_t>(kLanes, units - unit));
    for (int g = 0; g < shape.gates; ++g, to += kLanes * vectors * kLanes) {
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t feature = (first + v) * kLanes;
        Vec rows[kLanes];
        for (int d = 0; d < kLanes; ++d) {
          const bool there = feature + d < shape.features;
          const float* row = from + (feature + d) * shape.gates * units + g * units + unit;
          rows[d] = there ? load(row, n) : Vec{};
        }
        transpose(rows);
        for (int u = 0; u < kLanes; ++u) store(to + (u * vectors + v) * kLanes, rows[u]);
      }
    }
  }
}

}  // namespace lstmx
