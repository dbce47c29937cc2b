// The process's own threads for the phases of a Team.
//
// XLA's pool would do, but a thread that is woken often comes to run on the caller's core, above all on virtual
// machines, where a core at rest does not look idle, and is moved only after milliseconds. A helper that
// finds itself there leaves its place to a new thread, because the kernel puts new threads on the least busy
// core; from then on it is woken where it ran last. None of them is ever waited for, and no thread's affinity
// is touched.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "team.h"

namespace lstmx {

class Helpers {
 public:
  // Never destroyed: a helper may still look out for work when the process ends. A forked child has none of
  // its parent's threads, and makes its own.
  static Helpers& instance() {
    static std::mutex* mutex = new std::mutex;
    static Helpers* helpers = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(*mutex);
    if (owner != getpid()) {
      helpers = new Helpers;
      owner = getpid();
    }
    return *helpers;
  }

  // Gives work to helper k, counted from 0; drops it if that one is busy.
  void offer(std::function<void()> work, int k) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (k >= int(helpers_.size())) {
      auto helper = std::make_unique<Helper>();
      if (!start(helper.get())) return;
      helpers_.push_back(std::move(helper));
    }
    helpers_[k]->accept(std::move(work));
  }

 private:
  // For how long a helper looks out for more work before it sleeps: the next call of a training step is near.
  static constexpr std::chrono::microseconds kLookOut{200};

  struct Helper {
    std::mutex mutex;
    std::condition_variable wake;
    std::function<void()> work;
    int callers_core = -1;
    std::atomic<bool> has_work{false}, is_busy{false};

    // Work that it has not begun yet is that of a call which is over, or will be soon: it gives way.
    void accept(std::function<void()> given) {
      if (is_busy.load(std::memory_order_acquire)) return;
      {
        std::lock_guard<std::mutex> lock(mutex);
        work = std::move(given);
        callers_core = this_core();
        has_work.store(true, std::memory_order_release);
      }
      wake.notify_one();
    }

    void live() {
      for (;;) {
        await();
        std::function<void()> mine;
        {
          std::lock_guard<std::mutex> lock(mutex);
          const int core = this_core();
          if (core >= 0 && core == callers_core) {
            callers_core = -1;  // move once, wherever that leads
            if (start(this)) return;
          }
          is_busy.store(true, std::memory_order_release);
          has_work.store(false, std::memory_order_relaxed);
          mine.swap(work);
        }
        mine();
        is_busy.store(false, std::memory_order_release);
      }
    }

    void await() {
      const auto until = std::chrono::steady_clock::now() + kLookOut;
      while (!has_work.load(std::memory_order_acquire)) {
        if (std::chrono::steady_clock::now() < until) {
          std::this_thread::yield();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [this] { return has_work.load(std::memory_order_acquire); });
      }
    }
  };

  // Without threads to be had, callers do all work themselves.
  static bool start(Helper* helper) {
    try {
      std::thread([helper] { helper->live(); }).detach();
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Helper>> helpers_;
};

}  // namespace lstmx
