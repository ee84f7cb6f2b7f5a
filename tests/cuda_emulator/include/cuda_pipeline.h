// Asynchronous copies from global to shared memory. What is copied is there when it has been waited for, not before.
#ifndef CUDA_EMULATOR_PIPELINE_H_
#define CUDA_EMULATOR_PIPELINE_H_

#include <cuda_runtime.h>

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0, CUDA_EMULATOR_HERE) {
  cuda_emulator::copy_async(to, from, size, zeros, place);
}
inline void __pipeline_commit() {
  cuda_emulator::commit_copies();
}
inline void __pipeline_wait_prior(size_t groups) {
  cuda_emulator::wait_for_copies(groups);
}

#endif
