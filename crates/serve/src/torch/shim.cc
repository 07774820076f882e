// What LibTorch offers and tch does not. Every function is called from shim.rs only.

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <exception>

extern "C" {

// Inference mode is thread-local: a guard belongs to the thread that made it.
void* tfs_inference_mode_enter() { return new c10::InferenceMode(true); }
void tfs_inference_mode_leave(void* guard) { delete static_cast<c10::InferenceMode*>(guard); }

// Fails once the pool has started, as in a Python process that used it: then it stays as it is.
void tfs_limit_interop_threads() {
  try {
    at::set_num_interop_threads(1);
  } catch (const std::exception&) {
  }
}

}
