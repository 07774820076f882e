// Memory that a thread keeps from one kernel to the next.
#pragma once

#include <cstdint>
#include <vector>

namespace trustformers {

// This thread's scratch of so many floats, aligned to 64 bytes. Grows to the most that was ever asked for; the next
// call with the same Purpose has the same memory.
template <class Purpose>
float* scratch_of(int64_t floats) {
  thread_local std::vector<float> buffer;
  constexpr int64_t alignment = 64 / sizeof(float);
  if (static_cast<int64_t>(buffer.size()) < floats + alignment) buffer.resize(floats + alignment);
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

}  // namespace trustformers
