// Linear layers with weights packed for oneDNN. Called from linear.rs only.

#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/Tensor.h>

#include "guard.h"

namespace {

using Scalars = c10::List<std::optional<c10::Scalar>>;

// The operators have no C++ face: inductor reaches them by name, and so does this.
at::Tensor pack(const at::Tensor& weight, int64_t rows) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_reorder_linear_weight", "")
          .typed<at::Tensor(const at::Tensor&, std::optional<int64_t>)>();
  return op.call(weight, rows);
}

// Whether oneDNN computes with such elements on this CPU.
bool computes(at::ScalarType kind) {
  if (kind == at::kFloat) return true;
  if (kind != at::kBFloat16 && kind != at::kHalf) return false;
  const char* name =
      kind == at::kHalf ? "mkldnn::_is_mkldnn_fp16_supported" : "mkldnn::_is_mkldnn_bf16_supported";
  const auto op = c10::Dispatcher::singleton().findSchema({name, ""});
  return op.has_value() && op->typed<bool()>().call();
}

using Optional = std::optional<at::Tensor>;

Optional optional(const at::Tensor* tensor) {
  return tensor == nullptr ? Optional() : Optional(*tensor);
}

at::Tensor run(const at::Tensor& x, const at::Tensor& packed, const Optional& bias,
               c10::string_view activation, std::optional<c10::string_view> algorithm) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            c10::string_view, Scalars, std::optional<c10::string_view>)>();
  return op.call(x, packed, bias, activation, Scalars(), algorithm);
}

at::Tensor run_add(const at::Tensor& x, const at::Tensor& other, const at::Tensor& packed,
                   const Optional& bias) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "binary")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const std::optional<at::Tensor>&, c10::string_view)>();
  return op.call(x, other, packed, bias, "add");
}

}  // namespace

extern "C" {

bool tfs_linear_can_pack(const at::Tensor* weight) {
  try {
    return at::hasMKLDNN() && at::globalContext().userEnabledMkldnn() && weight->device().is_cpu() &&
           computes(weight->scalar_type());
  } catch (...) {
    return false;
  }
}

at::Tensor* tfs_linear_pack(const at::Tensor* weight, int64_t rows, char* error, size_t capacity) {
  return trustformers::tensor_or_error(error, capacity, [&] { return pack(*weight, rows); });
}

// bias: null for none. activation: 0 none, 1 gelu (erf), 2 gelu (tanh), 3 relu.
at::Tensor* tfs_linear_run(const at::Tensor* x, const at::Tensor* packed, const at::Tensor* bias,
                           int activation, char* error, size_t capacity) {
  return trustformers::tensor_or_error(error, capacity, [&] {
    const auto added = optional(bias);
    switch (activation) {
      case 1: return run(*x, *packed, added, "gelu", "none");
      case 2: return run(*x, *packed, added, "gelu", "tanh");
      case 3: return run(*x, *packed, added, "relu", std::nullopt);
      default: return run(*x, *packed, added, "none", std::nullopt);
    }
  });
}

at::Tensor* tfs_linear_run_add(const at::Tensor* x, const at::Tensor* other,
                               const at::Tensor* packed, const at::Tensor* bias, char* error,
                               size_t capacity) {
  return trustformers::tensor_or_error(error, capacity,
                                       [&] { return run_add(*x, *other, *packed, optional(bias)); });
}

}
