// Attention over sequences packed one after another, without padding. Called from attention.rs only.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "guard.h"

namespace {

struct Run {
  int64_t start;   // first row
  int64_t length;  // rows of one sequence
  int64_t count;   // neighbouring sequences of that length
};

// `count` sequences of `length` rows each: qkv [rows, 3 * heads * width] -> out [rows, heads * width].
void attend(const at::Tensor& qkv, const at::Tensor& out, int64_t heads, const Run& run) {
  const int64_t width = out.size(1) / heads;
  const int64_t rows = run.length * run.count;
  const auto parts = qkv.narrow(0, run.start, rows)
                         .view({run.count, run.length, 3, heads, width})
                         .permute({2, 0, 3, 1, 4});
  const auto mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
  out.narrow(0, run.start, rows)
      .view({run.count, run.length, heads, width})
      .copy_(mixed.transpose(1, 2));
}

std::vector<Run> runs_of(const int64_t* lengths, size_t sequences, bool group) {
  std::vector<Run> runs;
  runs.reserve(sequences);
  int64_t start = 0;
  for (size_t i = 0; i < sequences; ++i) {
    if (group && !runs.empty() && runs.back().length == lengths[i]) {
      ++runs.back().count;
    } else {
      runs.push_back({start, lengths[i], 1});
    }
    start += lengths[i];
  }
  return runs;
}

// Whether whole sequences can be dealt to the threads without one of them carrying most of the work.
bool deals_evenly(const std::vector<Run>& runs, int64_t threads) {
  int64_t longest = 0;
  int64_t total = 0;
  for (const auto& run : runs) {
    longest = std::max(longest, run.length * run.length);
    total += run.length * run.length;
  }
  return total >= threads * longest;
}

at::Tensor attention(const at::Tensor& qkv, int64_t heads, const int64_t* lengths, size_t sequences) {
  const bool on_cpu = qkv.device().is_cpu();
  const auto runs = runs_of(lengths, sequences, !on_cpu);
  const int64_t used = runs.empty() ? 0 : runs.back().start + runs.back().length * runs.back().count;
  TORCH_CHECK(used <= qkv.size(0), "sequences of ", used, " rows in a matrix of ", qkv.size(0));
  auto out = at::empty({qkv.size(0), qkv.size(1) / 3}, qkv.options());
  out.narrow(0, used, qkv.size(0) - used).zero_();
  const int64_t threads = at::get_num_threads();
  if (!on_cpu || threads == 1 || !deals_evenly(runs, threads)) {
    for (const auto& run : runs) attend(qkv, out, heads, run);
    return out;
  }
  // One parallel region for all sequences: a region for each would cost more than a short sequence.
  std::atomic<size_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    c10::InferenceMode guard(true);
    for (size_t i = next++; i < runs.size(); i = next++) attend(qkv, out, heads, runs[i]);
  });
  return out;
}

}  // namespace

extern "C" {

at::Tensor* tfs_packed_attention(const at::Tensor* qkv, int64_t heads, const int64_t* lengths,
                                 size_t sequences, char* error, size_t capacity) {
  return trustformers::tensor_or_error(
      error, capacity, [&] { return attention(*qkv, heads, lengths, sequences); });
}

}
