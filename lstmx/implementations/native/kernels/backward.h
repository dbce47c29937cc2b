// The reverse loop. Time is divided into parts of several hundred rows (T * B); while the loop runs over one
// part, the matmuls of the previous one are computed: the cotangents of the inputs, and its contribution to the
// gradients of the weights. So the cotangents of the gates never leave the caches.
#pragma once

#include <vector>

#include "cells.h"
#include "problem.h"
#include "tiles.h"

namespace lstmx {

template <class Cell>
class BackwardPass {
 public:
  BackwardPass(const Backward& problem, Team& team)
      : p_(problem),
        team_(team),
        blocks_(problem.blocks()),
        chunks_(std::max<int64_t>({std::min<int64_t>(team.size(), (p_.batch + 3) / 4),
                                   p_.batch / kChunkRows / team.size() * team.size(), 1})),
        parts_(std::max<int64_t>(1, std::min(p_.steps, p_.steps * p_.batch / kPartRows))),
        steps_at_once_((p_.steps + parts_ - 1) / parts_),
        most_rows_(steps_at_once_ * p_.batch),
        to_h_{p_.units, blocks_, kGates},
        to_x_{p_.features, blocks_, kGates},
        tiles_x_((p_.features + kRows - 1) / kRows),
        tiles_h_((p_.units + kRows - 1) / kRows),
        weights_(to_h_.size() + to_x_.size()),
        carry_(2 * p_.batch * width()),
        gates_(2 * most_rows_ * blocks_ * kSlots * kLanes),
        inputs_(2 * most_rows_ * kStride * (tiles_x_ + tiles_h_)) {}

  void run() {
    prepare();
    const int64_t parts = (p_.steps + steps_at_once_ - 1) / steps_at_once_;
    for (int64_t part = 0; part <= parts; ++part) {
      if (part < parts) list(part);
      const int64_t loops = part < parts ? chunks_ : 0, packs = part < parts ? tiles_x_ + tiles_h_ : 0;
      const int64_t maps = part > 0 ? map_items(part - 1) : 0, gradients = part > 0 ? blocks_ : 0;
      team_.run(loops + gradients + maps + packs, [&](int64_t k) {
        if (k < loops) return loop(part, k);
        if ((k -= loops) < gradients) return add_gradients(part - 1, k);
        if ((k -= gradients) < maps) return map_back(part - 1, k);
        pack_inputs(part, k - maps);
      });
    }
    finish();
  }

 private:
  static constexpr int kSlots = Cell::kSlots, kGates = Cell::kGates;
  static constexpr int64_t kTapeBlock = Cell::kKept * kLanes, kGateBlock = kSlots * kLanes;
  // The least number of rows in a part of time, if there are as many. With more rows the gradients of the weights
  // are read and written less often; with fewer the cotangents of the gates stay in faster caches.
  static constexpr int64_t kPartRows = 512;
  static constexpr int kStride = (kRows + 3) / 4 * 4;   // of a packed row of a tile of inputs
  static constexpr int64_t kMapped = 4 * kRows;

  // The rows of a part of time that are not skipped, in the order of the loop.
  struct List {
    std::vector<int64_t> row;    // t * B + b
    std::vector<int64_t> place;  // for each (step, b) of the part: its index in `row`, or -1
    std::vector<const float*> h;  // h_{t-1} for each
  };

  int64_t width() const { return blocks_ * kLanes; }
  int lanes(int64_t block) const { return int(std::min<int64_t>(kLanes, p_.units - block * kLanes)); }
  float* dh(int64_t b) const { return carry_.data() + b * width(); }
  float* dc(int64_t b) const { return carry_.data() + (p_.batch + b) * width(); }
  int64_t chunk_begin(int64_t k) const { return p_.batch * k / chunks_; }
  // The steps of a part, in the order of the forward loop; the parts are numbered from its end.
  int64_t end_of(int64_t part) const { return p_.steps - part * steps_at_once_; }
  int64_t begin_of(int64_t part) const { return std::max<int64_t>(0, end_of(part) - steps_at_once_); }

  // Cotangents of the gates: [blocks][rows][slots][lanes], alternating between two parts.
  float* gates(int64_t part, int64_t block, int64_t place) const {
    return gates_.data() + ((part % 2 * blocks_ + block) * most_rows_ + place) * kGateBlock;
  }
  float* packed_inputs(int64_t part, int64_t tile) const {
    return inputs_.data() + (part % 2 * (tiles_x_ + tiles_h_) + tile) * most_rows_ * kStride;
  }

  void prepare() {
    const int64_t groups_h = to_h_.groups(), groups_x = to_x_.groups();
    team_.run(groups_h + groups_x, [&](int64_t k) {
      if (k < groups_h) return pack_transposed(weights_.data(), p_.recurrent, to_h_, p_.units, k);
      pack_transposed(weights_.data() + to_h_.size(), p_.input, to_x_, p_.units, k - groups_h);
    });
    advise_huge_pages(p_.dx, 4 * p_.steps * p_.batch * p_.features);
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t j = 0; j < blocks_; ++j) {
        store(dh(b) + j * kLanes, load(p_.dh + b * p_.units + j * kLanes, lanes(j)));
        if (Cell::kHasCell) store(dc(b) + j * kLanes, load(p_.dc + b * p_.units + j * kLanes, lanes(j)));
      }
    }
    if (p_.resets) {
      std::fill_n(p_.d_fresh_h, p_.batch * p_.units, 0.0f);
      if (Cell::kHasCell) std::fill_n(p_.d_fresh_c, p_.batch * p_.units, 0.0f);
    }
  }

  const float* h_before(int64_t step, int64_t b) const {
    const int64_t row = p_.time(step) * p_.batch + b;
    if (p_.is_reset(row)) return p_.fresh_h + b * p_.units;
    if (step == 0) return p_.h0 + b * p_.units;
    return p_.y + (p_.time(step - 1) * p_.batch + b) * p_.units;
  }

  void list(int64_t part) {
    List& list = lists_[part % 2];
    list.row.clear(), list.h.clear();
    list.place.assign(most_rows_, -1);
    for (int64_t step = end_of(part) - 1; step >= begin_of(part); --step) {
      for (int64_t b = 0; b < p_.batch; ++b) {
        const int64_t row = p_.time(step) * p_.batch + b;
        if (!p_.exists(row)) continue;
        list.place[(step - begin_of(part)) * p_.batch + b] = int64_t(list.row.size());
        list.row.push_back(row);
        list.h.push_back(h_before(step, b));
      }
    }
  }

  void loop(int64_t part, int64_t chunk) {
    const List& list = lists_[part % 2];
    const int64_t begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
    std::vector<const float*> rows;
    std::vector<float*> to;
    for (int64_t step = end_of(part) - 1; step >= begin_of(part); --step) {
      rows.clear(), to.clear();
      for (int64_t b = begin; b < end; ++b) {
        const int64_t row = p_.time(step) * p_.batch + b;
        const int64_t place = list.place[(step - begin_of(part)) * p_.batch + b];
        if (place < 0) {
          hold(b, row);
          continue;
        }
        gates_of(part, step, b, row, place, list.h[place]);
        rows.push_back(gates(part, 0, place));
        to.push_back(dh(b));
      }
      through(weights_.data(), to_h_, Cell::kRecurrent, rows.data(), to.data(), int64_t(rows.size()), true);
      if (p_.resets) drop_at_resets(step, begin, end);
    }
  }

  // A skipped step passes the cotangents on.
  void hold(int64_t b, int64_t row) {
    for (int64_t j = 0; j < blocks_; ++j) {
      const int64_t at = row * p_.units + j * kLanes;
      store(dh(b) + j * kLanes, load(dh(b) + j * kLanes) + load(p_.dy + at, lanes(j)));
      if (p_.d_cells) store(dc(b) + j * kLanes, load(dc(b) + j * kLanes) + load(p_.d_cells + at, lanes(j)));
    }
  }

  void gates_of(int64_t part, int64_t step, int64_t b, int64_t row, int64_t place, const float* h) {
    const float* tape = p_.tape + row * blocks_ * kTapeBlock;
    const float *kept = nullptr, *given = nullptr;  // c_{t-1}: from the tape, or from an argument
    if (Cell::kHasCell) {
      if (p_.is_reset(row)) {
        given = p_.fresh_c + b * p_.units;
      } else if (step == 0) {
        given = p_.c0 + b * p_.units;
      } else {
        kept = p_.tape + (p_.time(step - 1) * p_.batch + b) * blocks_ * kTapeBlock;
      }
    }
    for (int64_t j = 0; j < blocks_; ++j) {
      const int n = lanes(j);
      const int64_t at = row * p_.units + j * kLanes;
      const Vec c_before = kept ? Cell::kept_cell(kept + j * kTapeBlock)
                                : given ? load(given + j * kLanes, n) : Vec{};
      const Vec h_before = Cell::kHasCell ? Vec{} : load(h + j * kLanes, n);
      const Vec dh_t = load(dh(b) + j * kLanes) + load(p_.dy + at, n);
      Vec dc_t = Cell::kHasCell ? load(dc(b) + j * kLanes) : Vec{};
      if (p_.d_cells) dc_t += load(p_.d_cells + at, n);
      Vec da[kSlots];
      const Vec direct = Cell::backward(tape + j * kTapeBlock, c_before, h_before, dh_t, dc_t, da);
      float* to = gates(part, j, place);
#pragma GCC unroll 4
      for (int s = 0; s < kSlots; ++s) store(to + s * kLanes, da[s]);
      if (Cell::kHasCell) store(dc(b) + j * kLanes, dc_t);
      store(dh(b) + j * kLanes, direct);
    }
  }

  // to[r] (+)= the transpose of a map, applied to the cotangents of the gates of a row.
  void through(const float* weights, const Transposed& shape, const int (&slots)[kGates],
               const float* const* rows, float* const* to, int64_t count, bool adds) {
    for (int64_t group = 0; group < shape.groups(); ++group) {
      const int64_t first = shape.first(group);
      const int vectors = int(shape.first(group + 1) - first);
      split(count, kRows, [&](int64_t begin, int64_t size) {
        with_constant<kRows>(int(size), [&](auto r) {
          with_constant<Transposed::kGroup>(vectors, [&](auto v) {
            through_tile<decltype(r)::value, decltype(v)::value>(
                weights + first * kLanes * shape.depth(), slots, rows + begin, to + begin, first, shape.features,
                adds);
          });
        });
      });
    }
  }

  template <int R, int V>
  void through_tile(const float* weights, const int (&slots)[kGates], const float* const* rows,
                    float* const* to, int64_t first, int64_t features, bool adds) {
    static constexpr int kAll[] = {0, 1, 2, 3};
    int order[V];
    for (int v = 0; v < V; ++v) order[v] = kAll[v];
    Vec sum[R][V] = {};
    const float* x[R];
    for (int64_t j = 0; j < blocks_; ++j) {
      for (int g = 0; g < kGates; ++g, weights += kLanes * V * kLanes) {
        for (int r = 0; r < R; ++r) x[r] = rows[r] + j * most_rows_ * kGateBlock + slots[g] * kLanes;
        multiply(sum, x, kLanes, weights, V * kLanes, kLanes, order);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        float* at = to[r] + (first + v) * kLanes;
        // The carried cotangents have room for whole vectors, a row of dx does not.
        if (adds) {
          store(at, load(at) + sum[r][v]);
        } else {
          store(at, sum[r][v], int(std::min<int64_t>(kLanes, features - (first + v) * kLanes)));
        }
      }
    }
  }

  void drop_at_resets(int64_t step, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = p_.time(step) * p_.batch + b;
      if (!p_.exists(row) || !p_.is_reset(row)) continue;
      move(p_.d_fresh_h + b * p_.units, dh(b));
      if (Cell::kHasCell) move(p_.d_fresh_c + b * p_.units, dc(b));
    }
  }

  void move(float* to, float* from) const {
    for (int64_t u = 0; u < p_.units; ++u) to[u] += from[u];
    std::fill_n(from, width(), 0.0f);
  }

  int64_t map_items(int64_t part) const {
    return (int64_t(lists_[part % 2].row.size()) + kMapped - 1) / kMapped;
  }

  void map_back(int64_t part, int64_t item) {
    const List& list = lists_[part % 2];
    const int64_t begin = item * kMapped;
    const int64_t count = std::min<int64_t>(kMapped, int64_t(list.row.size()) - begin);
    const float* rows[kMapped];
    float* to[kMapped];
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = gates(part, 0, begin + r);
      to[r] = p_.dx + list.row[begin + r] * p_.features;
    }
    through(weights_.data() + to_h_.size(), to_x_, Cell::kInput, rows, to, count, false);
  }

  // The inputs of both maps, one tile of features at a time: [rows][kStride].
  void pack_inputs(int64_t part, int64_t tile) {
    const List& list = lists_[part % 2];
    const bool of_x = tile < tiles_x_;
    const int64_t features = of_x ? p_.features : p_.units, count = of_x ? tiles_x_ : tiles_h_;
    const int64_t k = of_x ? tile : tile - tiles_x_;
    const int64_t begin = features * k / count, size = features * (k + 1) / count - begin;
    float* to = packed_inputs(part, tile);
    // A copy of fixed size is one load and one store; floats beyond the tile are never read.
    const int64_t copied = begin + kStride <= features ? kStride : size;
    with_constant<kStride>(int(copied), [&](auto floats) {
      for (size_t i = 0; i < list.row.size(); ++i, to += kStride) {
        const float* from = (of_x ? p_.x + list.row[i] * features : list.h[i]) + begin;
        std::memcpy(to, from, sizeof(float) * decltype(floats)::value);
      }
    });
  }

  // The contribution of a part of time to the gradients of the weights of one vector of units.
  void add_gradients(int64_t part, int64_t block) {
    const int64_t rows = int64_t(lists_[part % 2].row.size());
    const float* da = gates(part, block, 0);
    const int n = lanes(block);
    for (int64_t tile = 0; tile < tiles_x_ + tiles_h_; ++tile) {
      const bool of_x = tile < tiles_x_;
      const int64_t features = of_x ? p_.features : p_.units, count = of_x ? tiles_x_ : tiles_h_;
      const int64_t k = of_x ? tile : tile - tiles_x_;
      const int64_t begin = features * k / count, size = features * (k + 1) / count - begin;
      float* to = (of_x ? p_.d_input : p_.d_recurrent) + begin * kGates * p_.units + block * kLanes;
      with_constant<kRows>(int(size), [&](auto r) {
        if (of_x) {
          gradient_tile<decltype(r)::value>(to, part > 0, packed_inputs(part, tile), da, rows, n, Cell::kInput);
        } else {
          gradient_tile<decltype(r)::value>(to, part > 0, packed_inputs(part, tile), da, rows, n, Cell::kRecurrent);
        }
      });
    }
    Vec sum[kSlots] = {};
    for (int64_t i = 0; i < rows; ++i) {
      for (int s = 0; s < kSlots; ++s) sum[s] += load(da + i * kGateBlock + s * kLanes);
    }
    for (int s = 0; s < kSlots; ++s) {
      float* to = p_.d_bias + s * p_.units + block * kLanes;
      store(to, part ? load(to, n) + sum[s] : sum[s], n);
    }
  }

  template <int R>
  LSTMX_INLINE void gradient_tile(float* to, bool adds, const float* inputs, const float* da, int64_t rows, int n,
                                  const int (&slots)[kGates]) {
    Vec sum[R][kGates] = {};
    int order[kGates];
    for (int g = 0; g < kGates; ++g) order[g] = g;
#pragma GCC unroll 2
    for (int64_t i = 0; i < rows; ++i, inputs += kStride, da += kGateBlock) {
      add_products(sum, [&](int r) { return inputs[r]; }, [&](int g) { return load(da + slots[g] * kLanes); }, order);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        float* at = to + (r * kGates + g) * p_.units;
        store(at, adds ? load(at, n) + sum[r][g] : sum[r][g], n);
      }
    }
  }

  void finish() {
    for (int64_t b = 0; b < p_.batch; ++b) {
      std::copy(dh(b), dh(b) + p_.units, p_.dh0 + b * p_.units);
      if (Cell::kHasCell) std::copy(dc(b), dc(b) + p_.units, p_.dc0 + b * p_.units);
    }
    if (p_.keep == nullptr) return;
    for (int64_t row = 0; row < p_.steps * p_.batch; ++row) {
      if (!p_.exists(row)) std::fill_n(p_.dx + row * p_.features, p_.features, 0.0f);
    }
  }

  const Backward p_;
  Team& team_;
  const int64_t blocks_, chunks_, parts_, steps_at_once_, most_rows_;
  const Transposed to_h_, to_x_;
  const int64_t tiles_x_, tiles_h_;
  Scratch weights_, carry_, gates_, inputs_;
  List lists_[2];
};

}  // namespace lstmx
