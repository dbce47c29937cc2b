// A call on as many threads as it is worth.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <new>
#include <vector>

#include "helpers.h"
#include "problem.h"
#include "team.h"

namespace lstmx {

// The least numbers of floating point operations that are worth waking, or starting, another thread.
constexpr double kWorthATeam = 4e5, kWorthAThread = 5e6;

inline double work_of(const Problem& p, int gates) {
  return 2.0 * p.steps * p.batch * gates * p.units * (p.units + p.features);
}

// Throws std::bad_alloc.
template <typename Pass, typename Call>
void run(const Call& call, int gates, int64_t threads) {
  const double work = work_of(call, gates);
  const int size = work < kWorthATeam ? 1 : int(std::max<int64_t>(1, threads));
  const auto schedule = [&](const std::function<void()>& help) {
    Helpers::instance().offer(help, size - 1, work < kWorthAThread);
  };
  Team team(size, schedule);
  Pass(call, team).run();
}

// Several calls of equal sizes, each on one thread, as far as they can be divided among the threads; the results
// are those of `run` for each. Throws std::bad_alloc.
template <typename Pass, typename Call>
void run_members(const std::vector<Call>& calls, int gates, int64_t threads) {
  const int64_t members = int64_t(calls.size());
  const double one = work_of(calls[0], gates), work = one * members;
  const int64_t size = work < kWorthATeam ? 1 : std::max<int64_t>(1, std::min(threads, members));
  const int64_t together = members / size * size;
  // The order of sums depends on the number of threads that a call is made for.
  const int as_if = one < kWorthATeam ? 1 : int(std::max<int64_t>(1, threads));
  std::atomic<bool> failed{false};
  {
    const auto schedule = [&](const std::function<void()>& help) {
      Helpers::instance().offer(help, int(size) - 1, work < kWorthAThread);
    };
    Team team(int(size), schedule);
    team.run(together, [&](int64_t k) {
      try {
        Team alone(as_if, [](const std::function<void()>&) {});
        Pass(calls[k], alone).run();
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    });
  }
  if (failed) throw std::bad_alloc();
  for (int64_t k = together; k < members; ++k) run<Pass>(calls[k], gates, threads);
}

}  // namespace lstmx
