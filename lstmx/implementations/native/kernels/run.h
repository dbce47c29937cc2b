// A call on as many threads as it is worth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "helpers.h"
#include "problem.h"
#include "team.h"

namespace lstmx {

// The least numbers of floating point operations that are worth waking, or starting, another thread.
constexpr double kWorthATeam = 4e5, kWorthAThread = 5e6;

// Throws std::bad_alloc.
template <typename Pass, typename Call>
void run(const Call& call, int gates, int64_t threads) {
  const double work = 2.0 * call.steps * call.batch * gates * call.units * (call.units + call.features);
  const int size = work < kWorthATeam ? 1 : int(std::max<int64_t>(1, threads));
  const auto schedule = [&](const std::function<void()>& help) {
    Helpers::instance().offer(help, size - 1, work < kWorthAThread);
  };
  Team team(size, schedule);
  Pass(call, team).run();
}

}  // namespace lstmx
