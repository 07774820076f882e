// The CPU kernels, compiled once for every instruction set and chosen when they run. Only C headers and our own:
// an inline function of a shared header would be compiled for AVX-512 and might be linked for all.

#include "kernels.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace trustformers::cpu {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

struct Int8 {
  int8_t bits;
};

namespace portable {
#define TFS_LANES 4
#include "vector.inl"
#include "attention.inl"
#include "rows.inl"
#include "product.inl"
#include "table.inl"
#undef TFS_LANES
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TFS_HAS_X86 1

// A target for the whole of an inclusion: an inline function without one would be taken apart into the
// baseline's vectors before it is inlined.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define TFS_LANES 8
#include "vector.inl"
#include "attention.inl"
#include "rows.inl"
#include "product.inl"
#include "table.inl"
#undef TFS_LANES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define TFS_LANES 16
#include "vector.inl"
#include "attention.inl"
#include "rows.inl"
#include "product.inl"
#include "table.inl"
#undef TFS_LANES
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512_dot {
#define TFS_LANES 16
#include "vector.inl"
#include "attention.inl"
#include "rows.inl"
#include "product.inl"
#include "product_dot.inl"
#include "table.inl"
#undef TFS_LANES
}  // namespace avx512_dot
#pragma GCC pop_options
#endif

int best_instruction_set() {
#ifdef TFS_HAS_X86
  static const int best = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide) return 1;
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") ? 3 : 2;
  }();
  return best;
#else
  return 0;
#endif
}

bool has_matrix_units() {
#ifdef TFS_HAS_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

const Kernels& kernels(int instruction_set) {
#ifdef TFS_HAS_X86
  const int best = best_instruction_set();
  switch (instruction_set < best ? instruction_set : best) {
    case 3: return avx512_dot::kKernels;
    case 2: return avx512::kKernels;
    case 1: return avx2::kKernels;
    default: break;
  }
#endif
  (void)instruction_set;
  return portable::kKernels;
}

}  // namespace trustformers::cpu
