// What tensors the CPU kernels take.
#pragma once

#include <ATen/core/Tensor.h>

#include "cpu/kernels.h"

namespace trustformers {

inline cpu::Element element_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return cpu::kFloat;
    case at::kBFloat16: return cpu::kBFloat16;
    case at::kHalf: return cpu::kHalf;
    default: TORCH_CHECK(false, "no CPU kernel for elements of type ", type);
  }
}

inline cpu::Element element_of(const at::Tensor& tensor) { return element_of(tensor.scalar_type()); }

inline void check_plain(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous(), name, " must be contiguous and on the CPU");
}

// A tensor that a kernel writes its results to.
inline void check_out(const at::Tensor& out, at::IntArrayRef sizes, at::ScalarType type) {
  check_plain(out, "out");
  TORCH_CHECK(out.sizes() == sizes && out.scalar_type() == type, "results are ", sizes, " of ", type, ", not ",
              out.sizes(), " of ", out.scalar_type());
}

// A vector of floats that may be absent.
inline const float* optional_floats(const at::Tensor* tensor, int64_t elements, const char* name) {
  if (tensor == nullptr) return nullptr;
  check_plain(*tensor, name);
  TORCH_CHECK(tensor->scalar_type() == at::kFloat && tensor->numel() == elements, name, " must be ", elements,
              " elements of f32");
  return tensor->const_data_ptr<float>();
}

}  // namespace trustformers
