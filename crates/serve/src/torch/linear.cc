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

at::Tensor run(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& bias,
               c10::string_view activation, std::optional<c10::string_view> algorithm) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            c10::string_view, Scalars, std::optional<c10::string_view>)>();
  return op.call(x, packed, bias, activation, Scalars(), algorithm);
}

at::Tensor run_add(const at::Tensor& x, const at::Tensor& other, const at::Tensor& packed,
                   const at::Tensor& bias) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "binary")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const std::optional<at::Tensor>&, c10::string_view)>();
  return op.call(x, other, packed, bias, "add");
}

}  // namespace

extern "C" {

bool tfs_linear_can_pack() { return at::hasMKLDNN() && at::globalContext().userEnabledMkldnn(); }

at::Tensor* tfs_linear_pack(const at::Tensor* weight, int64_t rows, char* error, size_t capacity) {
  return trustformers::tensor_or_error(error, capacity, [&] { return pack(*weight, rows); });
}

// activation: 0 none, 1 gelu (erf), 2 gelu (tanh), 3 relu.
at::Tensor* tfs_linear_run(const at::Tensor* x, const at::Tensor* packed, const at::Tensor* bias,
                           int activation, char* error, size_t capacity) {
  return trustformers::tensor_or_error(error, capacity, [&] {
    switch (activation) {
      case 1: return run(*x, *packed, *bias, "gelu", "none");
      case 2: return run(*x, *packed, *bias, "gelu", "tanh");
      case 3: return run(*x, *packed, *bias, "relu", std::nullopt);
      default: return run(*x, *packed, *bias, "none", std::nullopt);
    }
  });
}

at::Tensor* tfs_linear_run_add(const at::Tensor* x, const at::Tensor* other,
                               const at::Tensor* packed, const at::Tensor* bias, char* error,
                               size_t capacity) {
  return trustformers::tensor_or_error(error, capacity,
                                       [&] { return run_add(*x, *other, *packed, *bias); });
}

}
