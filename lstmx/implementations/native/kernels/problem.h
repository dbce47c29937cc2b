// The inputs and outputs of a call, and its working memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "simd.h"
#include "team.h"

namespace lstmx {

// Arrays are row-major float32; null if a cell or a call does not have them.
struct Problem {
  int64_t steps, batch, features, units;
  bool reverse;
  const float* x;                     // [T, B, D]
  const float *input, *recurrent;     // [D, gates * H], [H, gates * H]
  const float* bias;                  // [slots, H]
  const float *h0, *c0;               // [B, H]
  const float *fresh_h, *fresh_c;     // [B, H], with resets
  const uint8_t *keep, *resets;       // [T, B]

  int64_t blocks() const { return (units + kLanes - 1) / kLanes; }
  int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  bool exists(int64_t row) const { return keep == nullptr || keep[row]; }
  bool is_reset(int64_t row) const { return resets != nullptr && resets[row]; }
};

struct Forward : Problem {
  float *y, *h, *c;  // [T, B, H], [B, H], [B, H]
  float* tape;       // [T, B, H / lanes, kept, lanes], or null in inference
  float* cells;      // [T, B, H], or null
  const float* packed = nullptr;  // both weights, packed by `pack`, or null
};

struct Backward : Problem {
  const float *y, *tape;        // of the forward pass
  const float *dy, *dh, *dc;    // cotangents of y, h and c
  const float* d_cells;         // [T, B, H], or null
  float *dx, *d_input, *d_recurrent, *d_bias, *dh0, *dc0, *d_fresh_h, *d_fresh_c;
};

// A page fault for every 4 KiB of a newly allocated output can take as long as the arithmetic.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t begin = (uintptr_t(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (uintptr_t(data) + bytes) & ~(kHuge - 1);
  if (data != nullptr && end > begin) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
}

// Working memory that is reused by later calls, which then need no page faults.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : bytes_((floats * 4 + 4095) & ~int64_t(4095)) {
    std::lock_guard<std::mutex> lock(mutex());
    std::vector<Piece>& pieces = free();
    size_t best = pieces.size();
    for (size_t k = 0; k < pieces.size(); ++k) {
      const bool fits = pieces[k].bytes >= bytes_ && pieces[k].bytes <= 2 * bytes_ + (1 << 16);
      if (fits && (best == pieces.size() || pieces[k].bytes < pieces[best].bytes)) best = k;
    }
    if (best < pieces.size()) {
      data_ = pieces[best].data;
      bytes_ = pieces[best].bytes;
      kept() -= bytes_;
      pieces.erase(pieces.begin() + best);
      return;
    }
    data_ = static_cast<float*>(std::aligned_alloc(4096, bytes_ ? bytes_ : 4096));
    if (data_ == nullptr) throw std::bad_alloc();
    advise_huge_pages(data_, bytes_);
  }
  ~Scratch() {
    std::lock_guard<std::mutex> lock(mutex());
    std::vector<Piece>& pieces = free();
    pieces.push_back({data_, bytes_});
    kept() += bytes_;
    while (kept() > kMost) {
      std::free(pieces.front().data);
      kept() -= pieces.front().bytes;
      pieces.erase(pieces.begin());
    }
  }
  Scratch(const Scratch&) = delete;
  float* data() const { return data_; }

 private:
  struct Piece {
    float* data;
    int64_t bytes;
  };
  static constexpr int64_t kMost = 128 << 20;
  // Never destroyed: helpers of the last call may outlive static destructors.
  static std::mutex& mutex() { static auto* m = new std::mutex; return *m; }
  static std::vector<Piece>& free() { static auto* v = new std::vector<Piece>; return *v; }
  static int64_t& kept() { static auto* n = new int64_t(0); return *n; }

  int64_t bytes_;
  float* data_;
};

}  // namespace lstmx
