// What LibTorch offers and tch does not. Every function is called from shim.rs only.

#include <c10/core/InferenceMode.h>

extern "C" {

// Inference mode is thread-local: a guard belongs to the thread that made it.
void* tfs_inference_mode_enter() { return new c10::InferenceMode(true); }
void tfs_inference_mode_leave(void* guard) { delete static_cast<c10::InferenceMode*>(guard); }

}
