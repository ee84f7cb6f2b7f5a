// Stands in for CUDA's header where kernels are compiled as C++ and run on the CPU. Tensors are the CPU's.
#ifndef CUDA_EMULATOR_RUNTIME_H_
#define CUDA_EMULATOR_RUNTIME_H_

// Torch's calls that hand out memory, which is to be poisoned, or that may read the device's (../host.cpp).
#define aoti_torch_aten_new_empty cuda_emulator_new_empty
#define torch_call_dispatcher cuda_emulator_call_dispatcher
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "cuda_emulator.h"
// After it: std::min, std::max.
#include <dlfcn.h>
#include <math.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

// Torch's headers are through: what follows is compiled as device code is.
#define __CUDA_ARCH__ 800
#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (cuda_emulator::indices.thread)
#define blockIdx (cuda_emulator::indices.block)
#define blockDim (cuda_emulator::indices.block_size)
#define gridDim (cuda_emulator::indices.grid_size)
constexpr int warpSize = 32;

// Host side ----------------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorAssert = 710,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device);

namespace cuda_emulator {
cudaError_t set_attribute(const void* function, cudaFuncAttribute, int value);
int blocks_that_fit(int threads, size_t shared);
}  // namespace cuda_emulator
template <typename Function>
cudaError_t cudaFuncSetAttribute(Function* function, cudaFuncAttribute attribute, int value) {
  return cuda_emulator::set_attribute(reinterpret_cast<const void*>(function), attribute, value);
}
template <typename Function>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function*, int threads, size_t shared) {
  *blocks = cuda_emulator::blocks_that_fit(threads, shared);
  return cudaSuccess;
}

// Torch: no device to choose, and a stream that is none.
namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int32_t) {
  }
};
}  // namespace torch::stable::accelerator
#define DeviceGuard NoGuard
namespace cuda_emulator {
inline int32_t current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
}  // namespace cuda_emulator
#define dlopen(...) reinterpret_cast<void*>(&cuda_emulator::current_stream)
#define dlsym(...) reinterpret_cast<void*>(&cuda_emulator::current_stream)

// Device side --------------------------------------------------------------------------------------------------------

#include "device_functions.h"
#include "vector_types.h"

#endif
