// Threads that share the items of a phase: whoever is free takes the next.
//
// The caller never waits for a thread to begin: a helper that starts late finds what is left, or nothing.
// What an item computes does not depend on who runs it, so neither do the results.
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

// The core that the thread runs on; -1 where that cannot be known.
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
  using Schedule = std::function<void(std::function<void()>)>;

  // `schedule` hands a function to another thread; it is called `size - 1` times.
  Team(int size, const Schedule& schedule) : size_(size), state_(std::make_shared<State>()) {
    for (int k = 1; k < size; ++k) {
      schedule([state = state_] { help(*state); });
    }
  }
  ~Team() { state_->finished.store(true, std::memory_order_release); }
  Team(const Team&) = delete;

  int size() const { return size_; }

  // Calls item(0) .. item(count - 1), each once, and returns when all are done.
  template <typename Item>
  void run(int64_t count, const Item& item) {
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
    state.head.store(phase_ << (2 * kBits) | uint64_t(count) << kBits, std::memory_order_release);
    while (take(state)) {
    }
    int spins = 0;
    while (state.remaining.load(std::memory_order_acquire) > 0) relax(spins);
  }

 private:
  // One word holds the phase, the number of its items and the next one, so that taking an item is one
  // compare-and-swap, which fails if the phase is over.
  static constexpr int kBits = 21;
  static constexpr uint64_t kMask = (uint64_t(1) << kBits) - 1;

  struct State {
    std::atomic<uint64_t> head{0};
    std::atomic<int64_t> remaining{0};
    std::atomic<bool> finished{false};
    const void* item = nullptr;
    void (*call)(const void*, int64_t) = nullptr;
  };

  static bool take(State& state) {
    uint64_t head = state.head.load(std::memory_order_acquire);
    do {
      if ((head & kMask) >= (head >> kBits & kMask)) return false;
    } while (!state.head.compare_exchange_weak(head, head + 1, std::memory_order_acq_rel));
    // The phase cannot end before this item does, so these two are still its own.
    state.call(state.item, int64_t(head & kMask));
    state.remaining.fetch_sub(1, std::memory_order_release);
    return true;
  }

  static void help(State& state) {
    int spins = 0;
    while (!state.finished.load(std::memory_order_acquire)) {
      if (take(state)) {
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
