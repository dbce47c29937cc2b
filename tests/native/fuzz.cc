// Random problems for the CPU kernels, without XLA: their results against plain loops in double precision,
// and against their own with other numbers of threads, whose bits must be the same.
//
//   kernels=lstmx/implementations/native/kernels
//   flags="-std=c++17 -g -O1 -march=native -fno-math-errno -ffp-contract=fast -pthread -I$kernels"
//   g++ $flags -fsanitize=address,undefined -fno-sanitize-recover=all tests/native/fuzz.cc -o fuzz
//   ./fuzz 600          # seconds
//   ./fuzz 0 4711       # one problem again, by the number that a failure has printed
//   ./fuzz 600 0 2      # from problem 0 on, two callers at once
//
// Every array lies in a heap block of exactly its size, working memory included, so that AddressSanitizer
// sees a float too many; what is to be written is NaN first. For ThreadSanitizer: -fsanitize=thread
// -DREAL_SCRATCH (the kernels' own working memory, shared by callers). For other vectors: -mno-avx512f -mavx2
// -mfma, -march=x86-64.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#ifdef REAL_SCRATCH
#include "problem.h"
#else
#define Scratch KernelScratch
#include "problem.h"
#undef Scratch
namespace lstmx {
class Scratch {
 public:
  explicit Scratch(int64_t floats) : data_(new float[floats]) {
    std::fill_n(data_.get(), floats, std::numeric_limits<float>::quiet_NaN());
  }
  float* data() const { return data_.get(); }

 private:
  std::unique_ptr<float[]> data_;
};
}  // namespace lstmx
#endif
#include "backward.h"
#include "forward.h"
#include "helpers.h"
#include "truth.h"

namespace {

using namespace fuzz;

template <class Cell>
Outputs run(const Inputs& in, lstmx::Team& team) {
  const Sizes n = in.n;
  const int64_t rows = n.steps * n.batch, states = n.batch * n.units, gates = Cell::kGates;
  const int64_t blocks = (n.units + lstmx::kLanes - 1) / lstmx::kLanes;
  const lstmx::Problem problem{n.steps, n.batch, n.features, n.units, in.reverse, in.x.get(), in.input.get(),
                               in.recurrent.get(), in.bias.get(), in.h0.get(), in.c0.get(), in.fresh_h.get(),
                               in.fresh_c.get(), in.keep.get(), in.resets.get()};
  Outputs out;
  out.y = Array(rows * n.units), out.h = Array(states);
  if (Cell::kHasCell) out.c = Array(states);
  if (in.wants_cells) out.cells = Array(rows * n.units);
  if (in.training) out.tape = Array(rows * blocks * lstmx::kLanes * Cell::kKept);
  lstmx::Forward forward;
  static_cast<lstmx::Problem&>(forward) = problem;
  forward.y = out.y.get(), forward.h = out.h.get(), forward.c = out.c.get();
  forward.tape = out.tape.get(), forward.cells = out.cells.get();
  lstmx::ForwardPass<Cell>(forward, team).run();
  if (!in.training) return out;

  out.dx = Array(rows * n.features), out.d_input = Array(n.features * gates * n.units);
  out.d_recurrent = Array(n.units * gates * n.units), out.d_bias = Array(in.bias.size);
  out.dh0 = Array(states);
  if (Cell::kHasCell) out.dc0 = Array(states);
  if (in.resets) {
    out.d_fresh_h = Array(states);
    if (Cell::kHasCell) out.d_fresh_c = Array(states);
  }
  lstmx::Backward backward;
  static_cast<lstmx::Problem&>(backward) = problem;
  backward.y = out.y.get(), backward.tape = out.tape.get();
  backward.dy = in.dy.get(), backward.dh = in.dh.get(), backward.dc = in.dc.get();
  backward.d_cells = in.d_cells.get(), backward.dx = out.dx.get(), backward.d_input = out.d_input.get();
  backward.d_recurrent = out.d_recurrent.get(), backward.d_bias = out.d_bias.get();
  backward.dh0 = out.dh0.get(), backward.dc0 = out.dc0.get();
  backward.d_fresh_h = out.d_fresh_h.get(), backward.d_fresh_c = out.d_fresh_c.get();
  lstmx::BackwardPass<Cell>(backward, team).run();
  return out;
}

double largest(const std::vector<double>& values) {
  double most = 0;
  for (double v : values) most = std::max(most, std::fabs(v));
  return most;
}

std::mutex report;
double worst_forward = 0, worst_backward = 0;

// Compares with the truth: what there is to complain of, or "".
std::string compare(const Outputs& out, const Truth& to) {
  double scale = 0;
  for (int k = Outputs::kForward; k < Outputs::kCount; ++k) scale = std::max(scale, largest(to[k]));
  for (int k = 0; k < Outputs::kCount; ++k) {
    if (k == Outputs::kTape) continue;
    const bool is_forward = k < Outputs::kForward;
    // A small gradient is compared with the large ones beside it, a sum that cancels with what was summed.
    const double summed = is_summed(k) ? 0.2 * largest(to[k + kMagnitudes]) : 0;
    const double size = std::max({largest(to[k]), summed, is_forward ? 1 : 0.03 * scale, 1e-30});
    double worst = 0;
    for (int64_t i = 0; i < out.all(k)->size; ++i) {
      const double error = std::fabs(out.all(k)->get()[i] - to[k][i]) / size;
      if (!(error <= 1e-5)) {
        return std::string(kNames[k]) + "[" + std::to_string(i) + "] is " +
               std::to_string(out.all(k)->get()[i]) + ", not " + std::to_string(to[k][i]);
      }
      worst = std::max(worst, error);
    }
    std::lock_guard<std::mutex> lock(report);
    double& so_far = is_forward ? worst_forward : worst_backward;
    so_far = std::max(so_far, worst);
  }
  return "";
}

// Runs with a number of threads: of its own, which start late at random, or the kernels' helpers.
template <class Cell>
Outputs run_with(const Inputs& in, int threads, Random& random) {
  std::vector<std::thread> started;
  const bool own = random.chance(0.6);
  std::vector<int> delays;
  for (int k = 0; k < threads; ++k) delays.push_back(random.chance(0.3) ? 0 : int(random.below(300)));
  Outputs out;
  {
    lstmx::Team team(threads, [&](const std::function<void()>& work) {
      if (!own) return lstmx::Helpers::instance().offer(work, threads - 1, random.chance(0.3));
      for (int k = 1; k < threads; ++k) {
        started.emplace_back([work, delay = std::chrono::microseconds(delays[k])] {
          std::this_thread::sleep_for(delay);
          work();
        });
      }
    });
    out = run<Cell>(in, team);
  }
  for (std::thread& t : started) t.join();
  return out;
}

template <class Cell>
std::string check(const Inputs& in, Random& random) {
  const Outputs out = run_with<Cell>(in, 1, random);
  std::string complaint = compare(out, truth(in, out));
  for (int threads = 2; threads <= 4 && complaint.empty(); ++threads) {
    const Outputs other = run_with<Cell>(in, threads, random);
    for (int k = 0; k < Outputs::kCount; ++k) {
      const Array &a = *out.all(k), &b = *other.all(k);
      if (a.size && std::memcmp(a.get(), b.get(), a.size * sizeof(float)) != 0) {
        complaint = std::string(kNames[k]) + " has other bits with " + std::to_string(threads) + " threads";
      }
    }
  }
  return complaint;
}

// In the order of `Name`.
constexpr std::string (*kChecks[])(const Inputs&, Random&) = {
    check<lstmx::Lstm>, check<lstmx::Gru>, check<lstmx::Elman<false>>, check<lstmx::Elman<true>>};

bool passes(uint64_t seed) {
  Random random(seed);
  const Inputs in = draw(random);
  const std::string complaint = kChecks[in.cell](in, random);
  if (complaint.empty()) return true;
  std::lock_guard<std::mutex> lock(report);
  std::printf("problem %llu: %s T=%lld B=%lld D=%lld H=%lld%s%s%s%s%s: %s\n", (unsigned long long)seed,
              in.facts().name, (long long)in.n.steps, (long long)in.n.batch, (long long)in.n.features,
              (long long)in.n.units, in.reverse ? " reverse" : "", in.keep ? " keep" : "",
              in.resets ? " resets" : "", in.training ? " training" : "", in.wants_cells ? " cells" : "",
              complaint.c_str());
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  const int callers = argc > 3 ? std::atoi(argv[3]) : 1;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::atomic<uint64_t> next{first};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    do {
      if (!passes(next++)) failed = true;
    } while (!failed && std::chrono::steady_clock::now() < end);
  };
  std::vector<std::thread> others;
  for (int k = 1; k < callers; ++k) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  std::printf("%llu problems with vectors of %d; largest errors: forward %.1e, backward %.1e; %s\n",
              (unsigned long long)(next - first), lstmx::kLanes, worst_forward, worst_backward,
              failed ? "FAILED" : "all right");
  return failed;
}
