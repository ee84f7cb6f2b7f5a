// Launching CUDA kernels on the stream and device that torch is on.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>

#include "common/tensor.h"

namespace vpgfast {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

// Torch's current stream on the tensor's device. Looked up in the libtorch_cuda that the process has loaded, so that
// this library links to nothing of CUDA's and can be built, and imported, beside a CPU-only torch.
inline cudaStream_t current_stream(const Tensor& tensor) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(getter != nullptr, "this torch has no CUDA support");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(tensor.get_device_index(), &stream) == 0, "could not get torch's current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

// Blocks for `work` threads. Kernels loop over their work with the grid's size as stride, in 64-bit indices.
inline unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>(std::clamp<int64_t>((work + kThreads - 1) / kThreads, 1, int64_t{1} << 20));
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op, ": CUDA kernel launch failed: ", cudaGetErrorString(error));
}

// Neighbours that one load or store moves.
template <typename scalar_t, int kWidth>
struct alignas(sizeof(scalar_t) * kWidth) Pack {
  scalar_t value[kWidth];
};

// Whether 16-byte loads and stores may begin here: a contiguous view need not start where its storage does.
inline bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// Bytes of shared memory that a block may have on the current device.
inline int64_t most_shared() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return int64_t{48} << 10;
  }
  return bytes;
}

// For a kernel that is launched with so many bytes, and has `fixed` of its own: more than 48 KiB have to be asked for.
template <typename Kernel>
void allow_shared(Kernel* kernel, int64_t bytes, int64_t fixed = 0) {
  if (bytes + fixed > int64_t{48} << 10) {
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    STD_TORCH_CHECK(error == cudaSuccess, "a kernel was refused ", bytes,
                    " bytes of shared memory: ", cudaGetErrorString(error));
  }
}

__device__ __forceinline__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t index_stride() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// Sum over a warp, the same order every time; valid in lane 0.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  return value;
}

// Sum over a block of kThreads, the same order every time; valid in thread 0.
template <typename T>
__device__ T block_sum(T value) {
  __shared__ T of_warp[kThreads / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) {
    of_warp[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  T total{};
  if (threadIdx.x == 0) {
    for (const T& part : of_warp) {
      total += part;
    }
  }
  __syncthreads();
  return total;
}

}  // namespace vpgfast
