// Counts the bytes that batches allocate. Called from gauge.rs only.

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace {

// What the batch of one thread holds above what there was when it began. Frees count on the thread that
// frees, whoever allocated: so no block has to know its batch, and a buffer that outlives batches
// counts in the one that makes it and in the one that frees it. Atomic for the sake of helpers.
struct Gauge {
  std::atomic<int64_t> live{0};
  std::atomic<int64_t> peak{0};

  void add(int64_t bytes) {
    const int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    int64_t most = peak.load(std::memory_order_relaxed);
    while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
    }
  }
};

// Gauges are lent to threads and never freed: a helper may still hold one whose thread has ended.
struct Gauges {
  std::mutex mutex;
  std::vector<Gauge*> spare;
  std::vector<Gauge*> running;
  // The gauge of the only batch that runs; null with none or several.
  std::atomic<Gauge*> only{nullptr};
};

Gauges& gauges() {
  static auto* all = new Gauges;  // outlives every thread
  return *all;
}

// The gauge of the batch that runs on this thread.
thread_local Gauge* current = nullptr;

// A helper in a parallel region of the only batch belongs to it. With several batches it is not known
// to which, and what helpers allocate (little: operators allocate before they go parallel) is not counted.
Gauge* charged() {
  if (current != nullptr) return current;
  Gauge* only = gauges().only.load(std::memory_order_relaxed);
  return only != nullptr && at::in_parallel_region() ? only : nullptr;
}

std::atomic<int64_t> fail_above{INT64_MAX};

// More than any machine has, so that the allocator fails in its own way and with its own words.
constexpr size_t kImpossible = size_t{1} << 62;

c10::Allocator* original = nullptr;
c10::DeleterFnPtr original_deleter = nullptr;

void counted_free(void* block) {
  if (Gauge* gauge = block == nullptr ? nullptr : charged()) {
    gauge->live.fetch_sub(static_cast<int64_t>(malloc_usable_size(block)),
                          std::memory_order_relaxed);
  }
  original_deleter(block);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    Gauge* gauge = charged();
    if (gauge != nullptr) {
      const int64_t limit = fail_above.load(std::memory_order_relaxed);
      const int64_t live = gauge->live.load(std::memory_order_relaxed);
      if (static_cast<int64_t>(bytes) > limit - std::max<int64_t>(live, 0)) bytes = kImpossible;
    }
    c10::DataPtr block = original->allocate(bytes);
    // The original's blocks are their own contexts, as its raw deleter promises.
    if (block.compare_exchange_deleter(original_deleter, &counted_free) && gauge != nullptr && block) {
      gauge->add(static_cast<int64_t>(malloc_usable_size(block.get())));
    }
    return block;
  }

  c10::DeleterFnPtr raw_deleter() const override { return &counted_free; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

// The allocator of the GPUs: null, or an exception, where there are none or CUDA was not used yet.
c10::DeviceAllocator* device_allocator() {
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(c10::DeviceType::CUDA));
  return allocator != nullptr && allocator->initialized() ? allocator : nullptr;
}

int64_t device_bytes(int device, bool peak) {
  auto* allocator = device_allocator();
  if (allocator == nullptr) return -1;
  const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
  const auto& all = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
  return peak ? all.peak : all.current;
}

}  // namespace

extern "C" {

// What is allocated on a GPU now, from where its peak is counted anew; -1 where it does not tell.
int64_t tfs_device_memory_enter(int device) noexcept {
  try {
    if (auto* allocator = device_allocator()) {
      allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
    }
    return device_bytes(device, false);
  } catch (...) {
    return -1;
  }
}

// The most that was allocated on it at once since `enter`; -1 where it does not tell.
int64_t tfs_device_memory_peak(int device) noexcept {
  try {
    return device_bytes(device, true);
  } catch (...) {
    return -1;
  }
}

// What a GPU has free; -1 where it does not tell.
int64_t tfs_device_memory_free(int device) noexcept {
  try {
    auto* allocator = device_allocator();
    if (allocator == nullptr) return -1;
    return static_cast<int64_t>(allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device)).first);
  } catch (...) {
    return -1;
  }
}

// Not thread-safe against itself. Without a raw deleter blocks could not be told when they are freed.
void tfs_memory_install() {
  original = c10::GetCPUAllocator();
  original_deleter = original->raw_deleter();
  if (original_deleter == nullptr) return;
  c10::SetCPUAllocator(new CountingAllocator, /*priority=*/UINT8_MAX);
}

bool tfs_memory_is_counted() { return original_deleter != nullptr; }

void tfs_memory_enter() {
  auto& all = gauges();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.spare.empty()) all.spare.push_back(new Gauge);
  Gauge* gauge = all.spare.back();
  all.spare.pop_back();
  gauge->live.store(0, std::memory_order_relaxed);
  gauge->peak.store(0, std::memory_order_relaxed);
  all.running.push_back(gauge);
  all.only.store(all.running.size() == 1 ? gauge : nullptr, std::memory_order_relaxed);
  current = gauge;
}

// The most bytes since `enter` on this thread.
int64_t tfs_memory_leave() {
  auto& all = gauges();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Gauge* gauge = current;
  current = nullptr;
  all.running.erase(std::find(all.running.begin(), all.running.end(), gauge));
  all.only.store(all.running.size() == 1 ? all.running.front() : nullptr, std::memory_order_relaxed);
  all.spare.push_back(gauge);
  return gauge->peak.load(std::memory_order_relaxed);
}

void tfs_memory_fail_above(int64_t bytes) { fail_above.store(bytes, std::memory_order_relaxed); }

}
