// The threads behind team.h. Its extern functions are called from device.rs only.

#include "team.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "guard.h"

namespace trustformers {

namespace {

// How often a thread looks for what it waits for before it sleeps: for some microseconds. Where nothing else runs, a
// thread that never slept would make a decoder's step no more than a few hundredths faster; where something else does,
// it would keep a core from whom it waits for, and make the step ten times slower.
constexpr int kLooks = 200;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The value, once it is another.
template <class T>
T changed(const std::atomic<T>& value, T before) {
  for (int i = 0; i < kLooks; ++i) {
    const T now = value.load(std::memory_order_acquire);
    if (now != before) return now;
    pause();
  }
  value.wait(before, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// Helpers of one thread. They sleep while it has no work for them.
class Team {
 public:
  explicit Team(int64_t threads) {
    helpers_.reserve(threads - 1);
    try {
      for (uint32_t i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i); });
    } catch (...) {  // no more threads to be had
      end();
      throw;
    }
  }

  ~Team() { end(); }

  int64_t size() const { return static_cast<int64_t>(helpers_.size()) + 1; }

  void run(int64_t threads, c10::function_ref<void()> work) {
    TORCH_CHECK(work_ == nullptr, "work of a team cannot share work in its turn");
    work_ = &work;
    working_.store(static_cast<int32_t>(threads - 1), std::memory_order_relaxed);
    begin(static_cast<uint32_t>(threads));
    attempt();
    for (int32_t left = working_.load(std::memory_order_acquire); left > 0;) left = changed(working_, left);
    work_ = nullptr;
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  // Threads of a team are counted in so many bits of a round.
  static constexpr uint32_t kMost = 1023;

 private:
  void end() {
    ended_ = true;
    begin(kMost);
    for (auto& helper : helpers_) helper.join();
  }

  // A round is a number and how many threads it is for, in one word: a helper it is not for may miss it, and must
  // not read of one round what is of the next.
  void begin(uint32_t threads) {
    round_.store(((round_.load(std::memory_order_relaxed) >> 10) + 1) << 10 | threads);
    round_.notify_all();
  }

  void help(uint32_t index) {
    for (uint32_t round = 0;;) {
      round = changed(round_, round);
      if (index >= (round & kMost)) continue;
      if (ended_) return;
      attempt();
      if (working_.fetch_sub(1) == 1) working_.notify_one();
    }
  }

  void attempt() {
    try {
      (*work_)();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing_);
      failure_ = std::current_exception();
    }
  }

  std::vector<std::thread> helpers_;
  c10::function_ref<void()>* work_ = nullptr;
  std::mutex failing_;
  std::exception_ptr failure_;
  bool ended_ = false;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int32_t> working_{0};
};

thread_local std::unique_ptr<Team> team;

}  // namespace

int64_t team_size() { return team ? team->size() : at::get_num_threads(); }

void run_on_team(int64_t threads, c10::function_ref<void()> work) {
  if (team) return team->run(threads, work);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(); });
}

}  // namespace trustformers

extern "C" {

void tfs_team_end();

// From here on kernels of the calling thread have helpers of their own, and LibTorch's operators run on it alone.
bool tfs_team_start(int64_t threads, char* error, size_t capacity) {
  using trustformers::Team;
  return trustformers::done_or_error(error, capacity, [&] {
    tfs_team_end();
    trustformers::team = std::make_unique<Team>(std::clamp<int64_t>(threads, 1, Team::kMost));
    // Of this thread only: at::set_num_threads would tell all threads that begin later.
    omp_set_num_threads(1);
  });
}

// From here on LibTorch's helpers are those of the kernels too.
void tfs_team_end() { trustformers::team.reset(); }

}
