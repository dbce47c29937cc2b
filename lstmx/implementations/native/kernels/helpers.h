// The process's own threads for the phases of a Team.
//
// XLA's pool would do, but a thread that is woken often comes to run on the caller's core, above all on virtual
// machines, where a core at rest does not look idle, and is moved only by the scheduler's next tick, as is a new
// thread after a pause. So no helper is ever woken: it looks out for the next call by itself, first without
// a break, then from sleeps that grow with its idleness, whose timers wake it on its own core; and ends in the
// end. Callers turn to helpers on other cores than their own, and start new ones where there are too few.
// None is ever waited for, and no thread's affinity is touched.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
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
  using Clock = std::chrono::steady_clock;
  using Work = std::function<void()>;

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

  // Gives work to `count` helpers, or to fewer. If it is short by itself, it is worth new threads only when calls
  // come one upon another.
  void offer(const Work& work, int count, bool is_short) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Clock::time_point now = Clock::now();
    const bool may_start = !is_short || now - last_offer_ < kLookOut;
    last_offer_ = now;
    const auto gone = [](const auto& helper) { return helper->state == kGone; };
    helpers_.erase(std::remove_if(helpers_.begin(), helpers_.end(), gone), helpers_.end());
    const int core = this_core();
    int missing = count;
    for (const auto& helper : helpers_) {
      const bool is_elsewhere = core < 0 || helper->core != core;
      if (missing > 0 && is_elsewhere && helper->accept(work)) --missing;
    }
    // Twice as many as asked for are enough, for any core that callers come to run on.
    missing = std::min(missing, 2 * count - int(helpers_.size()));
    if (may_start && missing > 0) start(work, missing);
  }

 private:
  // For how long a helper looks out without a break, for how long it sleeps (after an idle time of t, t / 16
  // within these bounds), and for how long it stays at all.
  static constexpr std::chrono::microseconds kLookOut{500}, kShortest{50}, kLongest{500}, kStay{500000};

  enum State { kLooking, kAccepting, kGiven, kWorking, kGone };

  struct Helper {
    std::atomic<State> state{kGiven};
    std::atomic<int> core{-1};  // where it was last
    Work work;                  // of whoever brought the state to kAccepting or kWorking

    explicit Helper(Work first) : work(std::move(first)) {}

    bool move(State from, State to) { return state.compare_exchange_strong(from, to); }

    bool accept(const Work& given) {
      if (!move(kLooking, kAccepting)) return false;
      work = given;
      state = kGiven;
      return true;
    }

    void live() {
      Clock::time_point last = Clock::now();
      for (;;) {
        core = this_core();
        if (move(kGiven, kWorking)) {
          work();
          work = nullptr;
          state = kLooking;
          last = Clock::now();
          continue;
        }
        const auto idle = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - last);
        if (idle < kLookOut) {
          std::this_thread::yield();
        } else if (idle < kStay) {
          std::this_thread::sleep_for(std::clamp(idle / 16, kShortest, kLongest));
        } else if (move(kLooking, kGone)) {
          return;
        }
      }
    }
  };

  // Starting a thread takes tens of microseconds: each new one starts the next. Called with the lock held.
  void start(const Work& work, int count) {
    auto helper = std::make_shared<Helper>(work);
    try {
      std::thread([this, helper, work, count] {
        if (count > 1) {
          std::lock_guard<std::mutex> lock(mutex_);
          start(work, count - 1);
        }
        helper->live();
      }).detach();
      helpers_.push_back(helper);
    } catch (const std::system_error&) {
      // Without threads to be had, callers do all work themselves.
    }
  }

  std::mutex mutex_;
  std::vector<std::shared_ptr<Helper>> helpers_;
  Clock::time_point last_offer_{};
};

}  // namespace lstmx
