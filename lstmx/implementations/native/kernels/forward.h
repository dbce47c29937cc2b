// The forward loop: matmuls and gates of a tile of rows in one pass over the registers.
#pragma once

#include <vector>

#include "cells.h"
#include "problem.h"
#include "tiles.h"

namespace lstmx {

// The weights of a map, block by block; unpacked if there are too few steps to be worth packing them.
struct Weights {
  const float* given;
  float* packed;        // all blocks, or only the last one if it is not full
  int64_t rows, units;
  int gates;
  bool all_packed;

  int64_t blocks() const { return (units + kLanes - 1) / kLanes; }
  bool is_packed(int64_t block) const { return all_packed || (block + 1) * kLanes > units; }
  const float* block(int64_t b) const {
    if (!is_packed(b)) return given + b * kLanes;
    return all_packed ? packed + b * rows * gates * kLanes : packed;
  }
};

// The weights of both maps, packed: those of the input map first.
inline int64_t packed_floats(int64_t features, int64_t units, int gates) {
  return (units + kLanes - 1) / kLanes * kLanes * gates * (features + units);
}

inline void pack(float* to, const float* input, const float* recurrent, int64_t features, int64_t units, int gates) {
  const int64_t blocks = (units + kLanes - 1) / kLanes;
  for (int64_t b = 0; b < blocks; ++b) {
    pack_by_unit(to + b * features * gates * kLanes, input, features, units, gates, b);
    pack_by_unit(to + (blocks * features + b * units) * gates * kLanes, recurrent, units, units, gates, b);
  }
}

template <class Cell>
class ForwardPass {
 public:
  ForwardPass(const Forward& problem, Team& team)
      : p_(problem),
        team_(team),
        blocks_(problem.blocks()),
        chunks_(chunk_count()),
        hoists_(p_.batch < 3 * chunks_ && p_.steps >= 2 * kRows),
        packs_(p_.packed != nullptr || p_.steps * ((p_.batch / chunks_ + kRows - 1) / kRows) >= 4),
        steps_at_once_(hoists_ ? std::min<int64_t>(p_.steps, std::max<int64_t>(1, 256 / p_.batch)) : p_.steps),
        weights_(p_.packed ? 0 : (packs_ ? blocks_ : 1) * kLanes * Cell::kGates * (p_.features + p_.units)),
        bias_(blocks_ * Cell::kSlots * kLanes),
        cells_(Cell::kHasCell ? p_.batch * blocks_ * kLanes : 0),
        mapped_(hoists_ ? 2 * steps_at_once_ * p_.batch * blocks_ * Cell::kSlots * kLanes : 0),
        input_{p_.input, packed(), p_.features, p_.units, Cell::kGates, packs_},
        recurrent_{p_.recurrent, packed() + (packs_ ? blocks_ : 1) * kLanes * Cell::kGates * p_.features,
                   p_.units, p_.units, Cell::kGates, packs_} {}

  void run() {
    prepare();
    if (p_.steps == 1) {
      single_step();
    } else {
      all_steps();
    }
    finish();
  }

 private:
  static constexpr int kSlots = Cell::kSlots, kGates = Cell::kGates;
  static constexpr int64_t kTapeBlock = Cell::kKept * kLanes;
  static constexpr int64_t kWide = 4;

  struct Row {
    const float* z;
    float *c, *y, *tape, *cells;
  };

  // The inputs and outputs of the rows of one step that are not skipped.
  struct Rows {
    explicit Rows(int64_t most) { x.reserve(most), h.reserve(most), rest.reserve(most); }
    void clear() { x.clear(), h.clear(), rest.clear(); }
    std::vector<const float*> x, h;
    std::vector<Row> rest;
  };

  void all_steps() {
    const int64_t parts = (p_.steps + steps_at_once_ - 1) / steps_at_once_;
    if (hoists_) team_.run(map_items(0), [&](int64_t k) { map(0, k); });
    for (int64_t part = 0; part < parts; ++part) {
      // While the loop runs over one part, the input map is applied to the next.
      const int64_t ahead = hoists_ && part + 1 < parts ? map_items(part + 1) : 0;
      team_.run(chunks_ + ahead, [&](int64_t k) {
        if (k < chunks_) {
          loop(part, k);
        } else {
          map(part + 1, k - chunks_);
        }
      });
    }
  }

  // Split by units, not rows: each core then reads its own part of the weights, the same in every call.
  void single_step() {
    Rows rows(p_.batch);
    gather(rows, 0, 0, 0, p_.batch);
    const auto item = [&](int64_t k) { tiles(rows, k * kWide, std::min(blocks_, (k + 1) * kWide)); };
    team_.run((blocks_ + kWide - 1) / kWide, item, Team::kFromBothEnds);
  }

  // Chunks of rows run all their steps independently: one for each thread, or more if tiles stay full.
  int64_t chunk_count() const {
    const int64_t full = p_.batch / kChunkRows, least = std::min<int64_t>(team_.size(), (p_.batch + 3) / 4);
    return std::max<int64_t>({least, full / team_.size() * team_.size(), 1});
  }
  int64_t chunk_begin(int64_t k) const { return p_.batch * k / chunks_; }

  // Nothing is written to it if the caller has packed it.
  float* packed() const { return p_.packed ? const_cast<float*>(p_.packed) : weights_.data(); }

  void prepare() {
    // Packs all blocks, or only the last one if it is not full.
    const int64_t first = packs_ ? 0 : blocks_ - 1;
    if (!p_.packed && (packs_ || p_.units % kLanes)) {
      team_.run(blocks_ - first, [&](int64_t k) {
        for (const Weights& w : {input_, recurrent_}) {
          float* to = w.packed + (packs_ ? k * w.rows * kGates * kLanes : 0);
          pack_by_unit(to, w.given, w.rows, w.units, kGates, first + k);
        }
      });
    }
    pack_bias();
    advise_huge_pages(p_.y, 4 * p_.steps * p_.batch * p_.units);
    advise_huge_pages(p_.cells, 4 * p_.steps * p_.batch * p_.units);
    advise_huge_pages(p_.tape, 4 * p_.steps * p_.batch * blocks_ * kTapeBlock);
    if (Cell::kHasCell) {
      for (int64_t b = 0; b < p_.batch; ++b) set_cell(b, p_.c0);
    }
  }

  void pack_bias() {
    for (int64_t j = 0; j < blocks_; ++j) {
      for (int s = 0; s < kSlots; ++s) {
        store(bias_.data() + (j * kSlots + s) * kLanes, load(p_.bias + s * p_.units + j * kLanes, lanes(j)));
      }
    }
  }

  int lanes(int64_t block) const { return int(std::min<int64_t>(kLanes, p_.units - block * kLanes)); }

  float* cell(int64_t b) const { return cells_.data() + b * blocks_ * kLanes; }

  void set_cell(int64_t b, const float* from) {
    for (int64_t j = 0; j < blocks_; ++j) {
      store(cell(b) + j * kLanes, load(from + b * p_.units + j * kLanes, lanes(j)));
    }
  }

  // The input map, for a few rows of a part of time.
  int64_t map_rows(int64_t part) const {
    return std::min(steps_at_once_, p_.steps - part * steps_at_once_) * p_.batch;
  }
  static constexpr int64_t kMapped = 4 * kRows;
  int64_t map_items(int64_t part) const { return (map_rows(part) + kMapped - 1) / kMapped; }
  float* mapped(int64_t part, int64_t row) const {
    return mapped_.data() + (part % 2 * steps_at_once_ * p_.batch + row) * blocks_ * kSlots * kLanes;
  }

  void map(int64_t part, int64_t item) {
    const int64_t begin = item * kMapped, count = std::min(kMapped, map_rows(part) - begin);
    const float* x[kMapped];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = begin + r, step = part * steps_at_once_ + row / p_.batch;
      x[r] = p_.x + (p_.time(step) * p_.batch + row % p_.batch) * p_.features;
    }
    for (int64_t j = 0; j < blocks_; ++j) {
      split(count, kRows, [&](int64_t first, int64_t size) {
        with_constant<kRows>(int(size), [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          Vec sum[R][kSlots];
          for (int r = 0; r < R; ++r) start(sum[r], bias_.data() + j * kSlots * kLanes);
          multiply_by(sum, x + first, input_, j, Cell::kInput);
          for (int r = 0; r < R; ++r) {
            float* to = mapped(part, begin + first + r) + j * kSlots * kLanes;
            for (int s = 0; s < kSlots; ++s) store(to + s * kLanes, sum[r][s]);
          }
        });
      });
    }
  }

  static LSTMX_INLINE void start(Vec (&sum)[kSlots], const float* from) {
#pragma GCC unroll 4
    for (int s = 0; s < kSlots; ++s) sum[s] = load(from + s * kLanes);
  }

  template <int R>
  LSTMX_INLINE void multiply_by(Vec (&sum)[R][kSlots], const float* const* rows, const Weights& weights,
                                int64_t block, const int (&slots)[kGates]) {
    if (weights.is_packed(block)) {
      multiply(sum, rows, weights.rows, weights.block(block), kGates * kLanes, kLanes, slots);
    } else {
      multiply(sum, rows, weights.rows, weights.block(block), kGates * p_.units, p_.units, slots);
    }
  }

  void loop(int64_t part, int64_t chunk) {
    const int64_t begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
    const int64_t last = std::min(p_.steps, (part + 1) * steps_at_once_);
    Rows rows(end - begin);
    for (int64_t step = part * steps_at_once_; step < last; ++step) {
      gather(rows, part, step, begin, end);
      tiles(rows, 0, blocks_);
    }
  }

  // A step of the blocks j .. end - 1 of units.
  void tiles(const Rows& rows, int64_t j, int64_t end) {
    const int64_t count = int64_t(rows.x.size());
    if (count == 1 && !packs_ && !hoists_) {
      for (; j + kWide <= end && (j + kWide) * kLanes <= p_.units; j += kWide) wide_tile(rows, j);
    }
    for (; j < end; ++j) {
      split(count, kRows, [&](int64_t first, int64_t size) {
        with_constant<kRows>(int(size), [&](auto n) { tile<decltype(n)::value>(rows, first, j); });
      });
    }
  }

  void gather(Rows& rows, int64_t part, int64_t step, int64_t begin, int64_t end) {
    const int64_t t = p_.time(step), n = p_.units;
    rows.clear();
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = t * p_.batch + b;
      const float* h = step == 0 ? p_.h0 + b * n : p_.y + (p_.time(step - 1) * p_.batch + b) * n;
      float* y = p_.y + row * n;
      float* tape = p_.tape ? p_.tape + row * blocks_ * kTapeBlock : nullptr;
      float* cells = p_.cells ? p_.cells + row * n : nullptr;
      if (!p_.exists(row)) {
        std::copy(h, h + n, y);
        hold(b, tape, cells);
        continue;
      }
      if (p_.is_reset(row)) {
        h = p_.fresh_h + b * n;
        if (Cell::kHasCell) set_cell(b, p_.fresh_c);
      }
      rows.x.push_back(p_.x + row * p_.features);
      rows.h.push_back(h);
      const float* z = hoists_ ? mapped(part, (step - part * steps_at_once_) * p_.batch + b) : nullptr;
      rows.rest.push_back({z, Cell::kHasCell ? cell(b) : nullptr, y, tape, cells});
    }
  }

  // A skipped step: its state is that of the previous step.
  void hold(int64_t b, float* tape, float* cells) {
    if (!Cell::kHasCell) return;
    for (int64_t j = 0; j < blocks_; ++j) {
      const Vec c = load(cell(b) + j * kLanes);
      if (tape) Cell::keep_cell(tape + j * kTapeBlock, c);
      if (cells) store(cells + j * kLanes, c, lanes(j));
    }
  }

  template <int R>
  void tile(const Rows& rows, int64_t first, int64_t j) {
    Vec sum[R][kSlots];
    const Row* row = rows.rest.data() + first;
    const float* const* h = rows.h.data() + first;
    if (hoists_) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) start(sum[r], row[r].z + j * kSlots * kLanes);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) start(sum[r], bias_.data() + j * kSlots * kLanes);
      multiply_by(sum, rows.x.data() + first, input_, j, Cell::kInput);
    }
    multiply_by(sum, h, recurrent_, j, Cell::kRecurrent);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) activate(sum[r], row[r], h[r], j);
  }

  // The gates of one vector of units of a row.
  LSTMX_INLINE void activate(const Vec (&sum)[kSlots], const Row& row, const float* h, int64_t j) {
    const int n = lanes(j);
    Vec c = Cell::kHasCell ? load(row.c + j * kLanes) : Vec{};
    const Vec before = Cell::kHasCell ? Vec{} : load(h + j * kLanes, n);
    Vec y;
    if (row.tape) {
      y = Cell::template forward<true>(sum, c, before, row.tape + j * kTapeBlock);
    } else {
      y = Cell::template forward<false>(sum, c, before, nullptr);
    }
    if (Cell::kHasCell) store(row.c + j * kLanes, c);
    store(row.y + j * kLanes, y, n);
    if (row.cells) store(row.cells + j * kLanes, c, n);
  }

  // A single row, with unpacked weights: several blocks at once, so that the parts of a row of weights that are
  // read are contiguous.
  void wide_tile(const Rows& rows, int64_t j) {
    Vec sum[kWide][kSlots];
    for (int b = 0; b < kWide; ++b) start(sum[b], bias_.data() + (j + b) * kSlots * kLanes);
    wide_multiply(sum, rows.x[0], p_.features, p_.input + j * kLanes, Cell::kInput);
    wide_multiply(sum, rows.h[0], p_.units, p_.recurrent + j * kLanes, Cell::kRecurrent);
    for (int b = 0; b < kWide; ++b) activate(sum[b], rows.rest[0], rows.h[0], j + b);
  }

  LSTMX_INLINE void wide_multiply(Vec (&sum)[kWide][kSlots], const float* x, int64_t count, const float* w,
                                  const int (&slots)[kGates]) {
    for (int64_t k = 0; k < count; ++k, w += kGates * p_.units) {
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
#pragma GCC unroll 4
        for (int b = 0; b < kWide; ++b) {
          Vec& to = sum[b][slots[g]];
          to = fused(splat(x[k]), load(w + g * p_.units + b * kLanes), to);
        }
      }
    }
  }

  void finish() {
    const int64_t n = p_.units;
    const float* last = p_.y + p_.time(p_.steps - 1) * p_.batch * n;
    std::copy(last, last + p_.batch * n, p_.h);
    if (!Cell::kHasCell) return;
    for (int64_t b = 0; b < p_.batch; ++b) std::copy(cell(b), cell(b) + n, p_.c + b * n);
  }

  const Forward p_;
  Team& team_;
  const int64_t blocks_, chunks_;
  const bool hoists_, packs_;
  const int64_t steps_at_once_;
  Scratch weights_, bias_, cells_, mapped_;
  const Weights input_, recurrent_;
};

}  // namespace lstmx
