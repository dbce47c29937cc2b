// The process's own threads for the phases of a Team.
//
// XLA's thread pool would do, but a thread that is woken often starts on the caller's core, especially on virtual
// machines, where an idle core does not look idle, and is moved only at the scheduler's next tick; so is a new
// thread after a pause. Therefore no helper is ever woken: it polls for the next call by itself, at first
// continuously, then between sleeps that grow with its idle time and whose timers wake it on its own core; finally
// it exits. Callers use helpers on other cores than their own, and start new ones if there are too few. They never
// wait for a helper, and no thread's affinity is changed.
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

  // Never destroyed: a helper may still poll for work when the process ends. A forked child has none of its
  // parent's threads and starts its own.
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

  // Gives work to at most `count` helpers. Short work is worth new threads only if calls follow each other
  // closely.
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
    // Twice as many as requested are enough, whatever core the caller runs on.
    missing = std::min(missing, 2 * count - int(helpers_.size()));
    if (may_start && missing > 0) start(work, missing);
  }

 private:
  // How long a helper polls continuously, how long it sleeps (t / 16 after an idle time of t, within these
  // bounds), and after which idle time it exits.
  static constexpr std::chrono::microseconds kLookOut{500}, kShortest{50}, kLongest{500}, kStay{500000};

  enum State { kLooking, kAccepting, kGiven, kWorking, kGone };

  struct Helper {
    std::atomic<State> state{kGiven};
    std::atomic<int> core{-1};  // on which it ran last
    Work work;                  // owned by the thread that set the state to kAccepting or kWorking

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

  // Starting a thread takes tens of microseconds, so each new one starts the next. Called with the lock held.
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
      // If no thread can be started, callers do all work themselves.
    }
  }

  std::mutex mutex_;
  std::vector<std::shared_ptr<Helper>> helpers_;
  Clock::time_point last_offer_{};
};

}  // namespace lstmx
