// Tensors over memory that Rust owns. Called from mapped.rs only.

#include <ATen/ops/from_blob.h>

#include "guard.h"

extern "C" {

// The tensor keeps `owner` alive: `release(owner)` runs when its storage dies.
at::Tensor* tfs_tensor_over(void* data, const int64_t* sizes, size_t dimensions, int kind,
                            void (*release)(void*), void* owner, char* error, size_t capacity) {
  return trustformers::tensor_or_error(error, capacity, [&] {
    return at::from_blob(
        data, at::IntArrayRef(sizes, dimensions), [release, owner](void*) { release(owner); },
        at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)));
  });
}

}
