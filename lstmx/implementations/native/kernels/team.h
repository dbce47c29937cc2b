// Threads that share the items of a phase: each takes the next item when it is free.
//
// The caller never waits for a thread to begin: a helper that starts late takes the remaining items, if any.
// The results do not depend on which thread runs an item.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lstmx {

// The core that the thread runs on; -1 if unknown.
inline int this_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

inline void relax(int& spins) {
  if (++spins > 4000) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  using Schedule = std::function<void(const std::function<void()>&)>;

  // `schedule` hands a function to `size - 1` other threads.
  Team(int size, const Schedule& schedule) : size_(size), state_(std::make_shared<State>()) {
    if (size > 1) schedule([state = state_] { help(*state); });
  }
  ~Team() { state_->finished.store(true, std::memory_order_release); }
  Team(const Team&) = delete;

  int size() const { return size_; }

  // From which end of the items a thread takes the next one.
  enum Order : uint64_t {
    kFirstToLast,
    kFromBothEnds,  // helpers begin with the last, so that each core gets the same items in every call
  };

  // Calls item(0) .. item(count - 1), each once, and returns when all are done.
  template <typename Item>
  void run(int64_t count, const Item& item, Order order = kFirstToLast) {
    if (count <= 0) return;
    if (size_ == 1 || count == 1) {
      for (int64_t k = 0; k < count; ++k) item(k);
      return;
    }
    State& state = *state_;
    state.item = &item;
    state.call = [](const void* item, int64_t k) { (*static_cast<const Item*>(item))(k); };
    state.remaining.store(count, std::memory_order_relaxed);
    phase_ = (phase_ + 1) & kMask;
    const uint64_t head = order << (3 * kBits) | phase_ << (2 * kBits) | uint64_t(count) << kBits;
    state.head.store(head, std::memory_order_release);
    while (take(state, false)) {
    }
    int spins = 0;
    while (state.remaining.load(std::memory_order_acquire) > 0) relax(spins);
  }

 private:
  // One word holds the order, the phase, the end of its items and the next item, so that taking an item is a
  // single compare-and-swap, which fails if the phase is over.
  static constexpr int kBits = 21;
  static constexpr uint64_t kMask = (uint64_t(1) << kBits) - 1;

  struct State {
    std::atomic<uint64_t> head{0};
    std::atomic<int64_t> remaining{0};
    std::atomic<bool> finished{false};
    const void* item = nullptr;
    void (*call)(const void*, int64_t) = nullptr;
  };

  static bool take(State& state, bool is_helper) {
    uint64_t head = state.head.load(std::memory_order_acquire), item, rest;
    do {
      const uint64_t next = head & kMask, end = head >> kBits & kMask;
      if (next >= end) return false;
      const bool takes_last = is_helper && head >> (3 * kBits) == kFromBothEnds;
      item = takes_last ? end - 1 : next;
      rest = takes_last ? head - (kMask + 1) : head + 1;
    } while (!state.head.compare_exchange_weak(head, rest, std::memory_order_acq_rel));
    // The phase cannot end before this item does, so `call` and `item` still belong to it.
    state.call(state.item, int64_t(item));
    state.remaining.fetch_sub(1, std::memory_order_release);
    return true;
  }

  static void help(State& state) {
    int spins = 0;
    while (!state.finished.load(std::memory_order_acquire)) {
      if (take(state, true)) {
        spins = 0;
      } else {
        relax(spins);
      }
    }
  }

  int size_;
  uint64_t phase_ = 0;
  std::shared_ptr<State> state_;
};

}  // namespace lstmx
