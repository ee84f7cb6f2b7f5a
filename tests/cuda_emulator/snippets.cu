// Small kernels, right and wrong, on which the emulator itself is tested (test_emulator.py).

#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>

#define EXPORT extern "C" __attribute__((visibility("default"))) int

namespace {

constexpr int kThreads = 64;

int error_of_launch() {
  return static_cast<int>(cudaGetLastError());
}

// Every thread writes its place and reads its neighbour's.
template <int kFence>
__global__ void pass_on(int* out) {
  __shared__ int values[kThreads];
  const int t = threadIdx.x;
  values[t] = t;
  if (kFence == 1) {
    __syncthreads();
  } else if (kFence == 2) {
    __syncwarp();
  } else if (kFence == 3) {
    __shfl_sync(0xffffffffu, t, 0);
  }
  out[t] = values[t ^ 1];
}
template <int kFence>
int passed_on() {
  int out[kThreads];
  pass_on<kFence><<<1, kThreads, 0, nullptr>>>(out);
  for (int t = 0; t < kThreads; ++t) {
    if (out[t] != (t ^ 1)) {
      return 1;
    }
  }
  return 0;
}

// A value that all lanes have read is written by one of them, after a meeting that needs it.
__global__ void replace(int* out) {
  __shared__ int value;
  if (threadIdx.x == 0) {
    value = 1;
  }
  __syncwarp();
  const int sum = __popc(__ballot_sync(0xffffffffu, value));
  if (threadIdx.x == 0) {
    value = sum;
  }
  __syncwarp();
  out[threadIdx.x] = value;
}

__global__ void write_one_place(int* out, bool atomically) {
  if (threadIdx.x == 0) {
    if (atomically) {
      atomicAdd(out, 1);
    } else {
      *out += 1;
    }
  }
}
__global__ void read_and_write(int* out) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    out[0] = 1;
  } else if (out[0] == 7) {
    out[1] = 7;
  }
}

// The last block to come adds up what all have written.
template <bool kFences>
__global__ void add_up(int* parts, unsigned* count, int* sum) {
  __shared__ bool last;
  parts[blockIdx.x * blockDim.x + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (kFences) {
      __threadfence();
    }
    last = atomicAdd(count, 1u) == gridDim.x - 1;
    if (kFences) {
      __threadfence();
    }
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    *sum = 0;
    for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) {
      *sum += parts[i];
    }
  }
}
template <bool kFences>
int added_up() {
  int parts[5 * 32], sum = -1;
  unsigned count = 0;
  add_up<kFences><<<5, 32>>>(parts, &count, &sum);
  return sum != 160;
}

__global__ void leave_before_barrier() {
  if (threadIdx.x == 5) {
    return;
  }
  __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void meet_in_part(unsigned mask) {
  if (threadIdx.x % 32 < 16) {
    __shfl_xor_sync(mask, 1, 1);
  }
}
__global__ void meet_in_two_places() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}

__global__ void read_unwritten(float* out) {
  __shared__ float values[4];
  extern __shared__ float more[];
  out[0] = values[1];
  out[1] = more[1];
}

template <int kWait>
__global__ void copy(const float4* in, float4* out) {
  __shared__ __align__(16) float4 values[32];
  __pipeline_memcpy_async(&values[threadIdx.x], &in[threadIdx.x], 16, threadIdx.x == 3 ? 8 : 0);
  __pipeline_commit();
  if (kWait == 1) {
    __pipeline_wait_prior(0);
  }
  out[threadIdx.x] = values[threadIdx.x];
  if (kWait == 2) {
    __pipeline_wait_prior(0);
  }
}
__global__ void load_vector(const float* in, float* out, int offset) {
  const float4 values = *reinterpret_cast<const float4*>(in + offset);
  out[0] = values.x + values.w;
}

__global__ void check(int value) {
  assert(value < 3 && "a value too large");
}

__global__ void use_shared(int* out, int place) {
  extern __shared__ __align__(16) unsigned char bytes[];
  bytes[place] = 3;
  out[0] = bytes[place];
}
__global__ void use_static(int* out, int place) {
  __shared__ int values[8], others[8];
  others[0] = 1;
  values[place] = 2;
  out[0] = values[place] + others[0];
}

template <typename T, typename Stored, int kDepth>
__global__ void multiply(const Stored* a, const Stored* b, float* c) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, kDepth, T, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, kDepth, T, wmma::col_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, kDepth, float> sums;
  wmma::fill_fragment(sums, 1.0f);
  wmma::load_matrix_sync(left, a, kDepth);
  wmma::load_matrix_sync(right, b, kDepth);
  wmma::mma_sync(sums, left, right, sums);
  for (auto& sum : sums.x) {
    sum *= 2;
  }
  wmma::store_matrix_sync(c, sums, 16, wmma::mem_row_major);
}
// Elements that the product would round if it rounded them to 10 bits, or to 7 for bfloat16.
template <typename T, typename Stored, int kDepth>
int products_differ() {
  alignas(32) Stored a[16 * kDepth], b[16 * kDepth];
  alignas(32) float c[256];
  for (int i = 0; i < 16 * kDepth; ++i) {
    a[i] = static_cast<Stored>(static_cast<float>(i % 13) / 7 - 1);
    b[i] = static_cast<Stored>(static_cast<float>(i % 11) / 3);
    if constexpr (std::is_same_v<Stored, float>) {
      a[i] = nvcuda::wmma::__float_to_tf32(a[i]);
      b[i] = nvcuda::wmma::__float_to_tf32(b[i]);
    }
  }
  multiply<T, Stored, kDepth><<<1, 32>>>(a, b, c);
  for (int i = 0; i < 256; ++i) {
    double sum = 1;
    for (int k = 0; k < kDepth; ++k) {
      sum += static_cast<double>(a[i / 16 * kDepth + k]) * static_cast<double>(b[i % 16 * kDepth + k]);
    }
    if (std::abs(2 * sum - c[i]) > 1e-5 * (1 + std::abs(sum))) {
      return 1;
    }
  }
  return 0;
}

__global__ void warp_functions(int* wrong) {
  const int lane = threadIdx.x % 32;
  const unsigned all = 0xffffffffu;
  bool right = __shfl_down_sync(all, lane, 3) == (lane < 29 ? lane + 3 : lane);
  right &= __shfl_up_sync(all, lane, 3) == (lane >= 3 ? lane - 3 : lane);
  right &= __shfl_xor_sync(all, lane, 5, 8) == (lane ^ 5);
  right &= __shfl_sync(all, lane, 9, 8) == lane / 8 * 8 + 1;
  right &= __shfl_sync(all, 0.5 * lane, 7) == 3.5;
  right &= __ballot_sync(all, lane % 2) == 0xaaaaaaaau;
  right &= __any_sync(all, lane == 4) && !__all_sync(all, lane == 4) && __all_sync(all, lane >= 0);
  right &= __reduce_add_sync(all, lane) == 496 && __reduce_max_sync(all, lane) == 31;
  if (lane < 8) {
    right &= __ballot_sync(0xffu, lane > 5) == 0xc0u;
  }
  right &= __popc(0xf0u) == 4 && __ffs(8) == 4 && __clz(1) == 31 && __clzll(1) == 63 && __popcll(~0ull) == 64;
  right &= __syncthreads_count(lane == 0) == 2 && __syncthreads_or(threadIdx.x == 40) && !__syncthreads_and(lane == 40);
  if (!right) {
    atomicAdd(wrong, 1);
  }
}

}  // namespace

EXPORT shared_with_barrier() {
  return passed_on<1>();
}
EXPORT shared_with_syncwarp() {
  return passed_on<2>();
}
EXPORT shared_with_shuffle() {
  return passed_on<3>();
}
EXPORT shared_with_nothing() {
  passed_on<0>();
  return 0;
}
EXPORT shared_read_then_written() {
  int out[32];
  replace<<<1, 32>>>(out);
  return out[0] != 32 || out[31] != 32;
}
EXPORT blocks_write_one_place() {
  int out = 0;
  write_one_place<<<4, 32>>>(&out, false);
  return 0;
}
EXPORT blocks_add_atomically() {
  int out = 0;
  write_one_place<<<4, 32>>>(&out, true);
  write_one_place<<<1, 32>>>(&out, false);
  return out != 5;
}
EXPORT blocks_read_and_write() {
  int out[2] = {};
  read_and_write<<<3, 1>>>(out);
  return 0;
}
EXPORT last_block_adds_up() {
  return added_up<true>();
}
EXPORT last_block_without_fences() {
  return added_up<false>();
}
EXPORT barrier_without_one() {
  leave_before_barrier<<<1, kThreads>>>();
  return 0;
}
EXPORT barriers_in_two_places() {
  two_barriers<<<1, kThreads>>>();
  return 0;
}
EXPORT lanes_missing() {
  meet_in_part<<<1, kThreads>>>(0xffffffffu);
  return 0;
}
EXPORT lanes_not_named() {
  meet_in_part<<<1, kThreads>>>(0xffffu);
  meet_in_part<<<1, kThreads>>>(0xffu);
  return 0;
}
EXPORT lanes_in_two_places() {
  meet_in_two_places<<<1, 32>>>();
  return 0;
}
EXPORT unwritten_is_poison() {
  float out[2] = {};
  read_unwritten<<<1, 1, 16>>>(out);
  return !(std::isnan(out[0]) && std::isnan(out[1]));
}
EXPORT copy_waited_for() {
  float4 in[32], out[32];
  for (int i = 0; i < 32; ++i) {
    in[i] = make_float4(i, 1, 2, 3);
  }
  copy<1><<<1, 32>>>(in, out);
  return !(out[2].x == 2 && out[2].w == 3 && out[3].y == 1 && out[3].z == 0 && out[3].w == 0);
}
EXPORT copy_read_too_early() {
  float4 in[32] = {}, out[32];
  copy<2><<<1, 32>>>(in, out);
  return !std::isnan(out[2].x);
}
EXPORT copy_not_waited_for() {
  float4 in[32] = {}, out[32];
  copy<0><<<1, 32>>>(in, out);
  return 0;
}
EXPORT vector_load(int offset) {
  alignas(16) float in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  float out = 0;
  load_vector<<<1, 1>>>(in, &out, offset);
  return out != (offset == 0 ? 5 : 13);
}
EXPORT vector_load_misaligned() {
  return vector_load(1);
}
EXPORT vector_load_aligned() {
  return vector_load(0) + vector_load(4);
}
EXPORT failed_assertion() {
  check<<<2, 32>>>(3);
  return !(error_of_launch() == cudaErrorAssert && error_of_launch() == cudaSuccess);
}
EXPORT shared_memory_limits() {
  int out = 0, limit = 0;
  cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  use_shared<<<1, 1, 50'000>>>(&out, 49'999);
  bool right = error_of_launch() == cudaErrorInvalidValue && out == 0;
  right &= cudaFuncSetAttribute(use_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 50'000) == cudaSuccess;
  use_shared<<<1, 1, 50'000>>>(&out, 49'999);
  right &= error_of_launch() == cudaSuccess && out == 3;
  right &= cudaFuncSetAttribute(use_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, limit + 1) != cudaSuccess;
  error_of_launch();
  use_shared<<<1, 1025, 16>>>(&out, 0);
  return !(right && error_of_launch() == cudaErrorInvalidConfiguration);
}
EXPORT fixed_and_asked_for() {
  int out = 0;
  use_static<<<1, 1, 49'152>>>(&out, 7);
  return 0;
}
EXPORT within_bounds() {
  int out = 0;
  use_shared<<<1, 1, 16>>>(&out, 15);
  use_static<<<1, 1>>>(&out, 7);
  return out != 3;
}
EXPORT beyond_dynamic() {
  int out = 0;
  use_shared<<<1, 1, 16>>>(&out, 16);
  return 0;
}
EXPORT beyond_static() {
  int out = 0;
  use_static<<<1, 1>>>(&out, 8);
  return 0;
}
EXPORT beyond_global() {
  auto* out = new int[3];
  read_and_write<<<1, 1>>>(out + 3);
  delete[] out;
  return 0;
}
EXPORT matrix_products() {
  return products_differ<__half, __half, 16>() + products_differ<__nv_bfloat16, __nv_bfloat16, 16>() +
         products_differ<nvcuda::wmma::precision::tf32, float, 8>();
}
EXPORT functions_of_a_warp() {
  int wrong = 0;
  warp_functions<<<3, kThreads>>>(&wrong);
  return wrong;
}
EXPORT numbers_beside_nan() {
  const float nan = std::nanf("");
  return !(max(nan, 1.0f) == 1 && min(1.0f, nan) == 1 && max(2, int64_t{3}) == 3 && atomicAdd(new float(1), 1) == 1);
}
EXPORT copies_in_a_capture() {
  int host = 0, device = 1, other = 0;
  cudaStreamCaptureStatus status;
  cudaStreamIsCapturing(nullptr, &status);
  const auto refused = [](cudaError_t error) { return error == cudaErrorStreamCaptureUnsupported; };
  return !(status == cudaStreamCaptureStatusActive &&
           refused(cudaMemcpyAsync(&host, &device, sizeof(int), cudaMemcpyDeviceToHost, nullptr)) &&
           refused(cudaMemcpyAsync(&device, &host, sizeof(int), cudaMemcpyHostToDevice, nullptr)) &&
           refused(cudaStreamSynchronize(nullptr)) && refused(cudaDeviceSynchronize()) &&
           cudaMemcpyAsync(&other, &device, sizeof(int), cudaMemcpyDeviceToDevice, nullptr) == cudaSuccess &&
           cudaMemsetAsync(&device, 0, sizeof(int), nullptr) == cudaSuccess && other == 1 && device == 0);
}
