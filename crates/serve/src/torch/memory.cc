// What the process's allocators do with freed memory. Every function is called from memory.rs only.

#include <malloc.h>

extern "C" {

// Rust's allocator where the binary has made it that; absent elsewhere, as in a Python process.
void mi_collect(bool force) __attribute__((weak));

// glibc has LibTorch's memory. Blocks over M_MMAP_THRESHOLD are mappings of their own, which end when they are
// freed; smaller ones lie in the arena of the thread that asked, and the end of an arena goes back only when it
// is over M_TRIM_THRESHOLD. By itself glibc raises both as large blocks are freed, to at most 32 and 64 MiB:
// then the next model's weights lie in the arena of whichever thread loads it, and freed they stay there, as
// malloc_trim passes over the ends of all arenas but the first. So both are set here: to where they end up, or
// to where they begin.
void tfs_keep_freed_memory(bool keep) {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, keep ? 32 << 20 : 128 << 10);
  mallopt(M_TRIM_THRESHOLD, keep ? 64 << 20 : 128 << 10);
#endif
}

// mimalloc purges by itself only when it is used again.
void tfs_return_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  if (mi_collect) mi_collect(true);
}

}
