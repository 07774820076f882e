// Threads that share the work of a kernel.
#pragma once

#include <c10/util/FunctionRef.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace trustformers {

// How many threads work on a kernel of the calling thread, itself included.
int64_t team_size();

// Runs `work` on this thread and on its helpers, `threads` in all, at most team_size(), and waits for all of them.
// What one throws is thrown here.
void run_on_team(int64_t threads, c10::function_ref<void()> work);

// Runs body(i) for all i of [0, tasks) in no order, on at most so many threads. A body shares nothing in its turn.
template <class Body>
void share(int64_t tasks, int64_t most_threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next++; i < tasks; i = next++) body(i);
  };
  const int64_t threads = std::min({tasks, most_threads, team_size()});
  if (threads > 1) {
    run_on_team(threads, work);
  } else {
    work();
  }
}

// Runs body(from, to) for parts of [0, rows) of `grain` rows each.
template <class Body>
void share_rows(int64_t rows, int64_t grain, const Body& body) {
  share((rows + grain - 1) / grain, rows, [&](int64_t i) { body(i * grain, std::min(rows, (i + 1) * grain)); });
}

}  // namespace trustformers
