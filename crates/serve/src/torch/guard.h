// C++ exceptions must not cross into Rust: they become a text in the caller's buffer.
#pragma once

// at::parallel_for is all in headers: compiled without OpenMP it runs on one thread and says nothing.
#ifndef _OPENMP
#error "compile with -fopenmp"
#endif

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <exception>

namespace trustformers {

inline void write_error(char* buffer, size_t capacity, const char* text) noexcept {
  const size_t length = std::min(std::strlen(text), capacity - 1);
  std::memcpy(buffer, text, length);
  buffer[length] = '\0';
}

// Whether `body` came to its end; if not, a text in `error` says why.
template <class Body>
bool done_or_error(char* error, size_t capacity, Body&& body) noexcept {
  try {
    body();
    return true;
  } catch (const c10::Error& failure) {
    write_error(error, capacity, failure.what_without_backtrace());
  } catch (const std::exception& failure) {
    write_error(error, capacity, failure.what());
  } catch (...) {
    write_error(error, capacity, "unknown C++ exception");
  }
  return false;
}

// The tensor `body` makes, owned by the caller, or null and a text in `error`.
template <class Body>
at::Tensor* tensor_or_error(char* error, size_t capacity, Body&& body) noexcept {
  at::Tensor* made = nullptr;
  done_or_error(error, capacity, [&] { made = new at::Tensor(body()); });
  return made;
}

}  // namespace trustformers
