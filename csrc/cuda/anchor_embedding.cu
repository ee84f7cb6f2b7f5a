// anchor_embedding on CUDA. See vpgfast/ops/anchor_embedding.py for what it computes.
//
// A block makes a table of its frequencies once. In float32 a frequency is the product of two numbers that the host has
// worked out in float64 and split in two floats each, correct to half a unit in the last place and a bit, so that the
// float kernels have no float64 operation.

#include <cmath>

#include "cuda/launch.h"

namespace vpgfast::anchor_embedding_cuda {
namespace {

constexpr int kFactors = 64;
constexpr int64_t kMostTabled = int64_t{kFactors} * kFactors;  // D up to 16,384
constexpr int64_t kMostBlocks = 1056;                          // eight for each of an H100's multiprocessors

// Frequency 64 q + r is coarse[q] fine[r]; each is the sum of its two floats.
struct Factors {
  float coarse[kFactors], coarse_rest[kFactors], fine[kFactors], fine_rest[kFactors];
};

// Angles per unit of centre or width at place i of D / 4.
__host__ __device__ __forceinline__ double exact_frequency(double i, double D, double log_temperature) {
  return 2 * 3.14159265358979323846 * exp(-log_temperature * (4.0 * i / D));
}

Factors factors_of(int64_t D, double log_temperature) {
  Factors factors{};
  const auto split = [](double value, float& rounded, float& rest) {
    rounded = static_cast<float>(value);
    rest = static_cast<float>(value - static_cast<double>(rounded));
  };
  for (int k = 0; k < kFactors && k < D / 4; ++k) {
    split(std::exp(-log_temperature * (4.0 * k / static_cast<double>(D))), factors.fine[k], factors.fine_rest[k]);
  }
  for (int k = 0; k * int64_t{kFactors} < D / 4; ++k) {
    split(exact_frequency(static_cast<double>(k) * kFactors, static_cast<double>(D), log_temperature),
          factors.coarse[k], factors.coarse_rest[k]);
  }
  return factors;
}

// The frequencies: in shared memory, or worked out each time where they are too many for that.
template <typename T, bool kTabled>
struct Frequencies {
  __device__ Frequencies(const Factors& factors, int quarter, int64_t D, double log_temperature)
      : D(static_cast<double>(D)), log_temperature(log_temperature) {
    if constexpr (kTabled) {
      extern __shared__ unsigned char shared_bytes[];
      table = reinterpret_cast<T*>(shared_bytes);
      for (int i = threadIdx.x; i < quarter; i += blockDim.x) {
        if constexpr (sizeof(T) == 8) {
          table[i] = exact_frequency(i, this->D, log_temperature);
        } else {
          const float coarse = factors.coarse[i / kFactors], fine = factors.fine[i % kFactors];
          const float rest = coarse * factors.fine_rest[i % kFactors] + factors.coarse_rest[i / kFactors] * fine;
          table[i] = fmaf(coarse, fine, rest);  // rounded once
        }
      }
      __syncthreads();
    }
  }
  __device__ T operator[](int64_t i) const {
    if constexpr (kTabled) {
      return table[i];
    } else {
      return static_cast<T>(exact_frequency(static_cast<double>(i), D, log_temperature));
    }
  }

  double D, log_temperature;
  T* table;
};

__device__ __forceinline__ void sine_cosine(float angle, float* sine, float* cosine) {
  sincosf(angle, sine, cosine);
}
__device__ __forceinline__ void sine_cosine(double angle, double* sine, double* cosine) {
  sincos(angle, sine, cosine);
}

// A block's threads are 2^log_wide places by as many rows (centres or widths) as that leaves.
template <typename scalar_t, bool kTabled>
__global__ void __launch_bounds__(kThreads) embed(const scalar_t* anchors, scalar_t* out, int64_t rows, int64_t D,
                                                  double log_temperature, Factors factors, int log_wide) {
  using T = accumulate_t<scalar_t>;
  const int64_t quarter = D / 4;
  const Frequencies<T, kTabled> frequencies(factors, static_cast<int>(quarter), D, log_temperature);
  const int per_block = kThreads >> log_wide, wide = 1 << log_wide;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * per_block + (threadIdx.x >> log_wide); row < rows;
       row += static_cast<int64_t>(gridDim.x) * per_block) {
    const T x = static_cast<T>(anchors[row]);
    auto* to = reinterpret_cast<Pack<scalar_t, 2>*>(out) + row * quarter;
    for (int64_t i = threadIdx.x & (wide - 1); i < quarter; i += wide) {
      T sine, cosine;
      sine_cosine(x * frequencies[i], &sine, &cosine);
      to[i] = {static_cast<scalar_t>(sine), static_cast<scalar_t>(cosine)};
    }
  }
}

// One warp a centre or width. kPacked: a sine's and a cosine's gradient lie where one load may take both.
template <typename scalar_t, bool kTabled, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    embed_backward(const scalar_t* grad, const scalar_t* anchors, scalar_t* grad_anchors, int64_t rows, int64_t D,
                   double log_temperature, Factors factors) {
  using T = accumulate_t<scalar_t>;
  const int64_t quarter = D / 4;
  const Frequencies<T, kTabled> frequencies(factors, static_cast<int>(quarter), D, log_temperature);
  for (int64_t row = first_index() / kWarp; row < rows; row += index_stride() / kWarp) {
    const T x = static_cast<T>(anchors[row]);
    const scalar_t* from = grad + 2 * row * quarter;
    T sum = 0;
    for (int64_t i = threadIdx.x % kWarp; i < quarter; i += kWarp) {
      const T w = frequencies[i];
      T sine, cosine;
      sine_cosine(x * w, &sine, &cosine);
      Pack<scalar_t, 2> pair;
      if constexpr (kPacked) {
        pair = reinterpret_cast<const Pack<scalar_t, 2>*>(from)[i];
      } else {
        pair = {from[2 * i], from[2 * i + 1]};
      }
      sum += (static_cast<T>(pair.value[0]) * cosine - static_cast<T>(pair.value[1]) * sine) * w;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) {
      grad_anchors[row] = static_cast<scalar_t>(sum);
    }
  }
}

Tensor anchor_embedding(const Tensor& anchors_in, int64_t D, double temperature) {
  check_sizes("anchor_embedding", "anchors", anchors_in, {-1, 2});
  STD_TORCH_CHECK(D >= 0 && D % 4 == 0, "anchor_embedding: D is ", D, "; it must be a multiple of 4");
  const torch::stable::accelerator::DeviceGuard guard(anchors_in.get_device_index());
  const Tensor anchors = torch::stable::contiguous(anchors_in);
  Tensor out = torch::stable::new_empty(anchors, {anchors.size(0), D});
  const int64_t rows = 2 * anchors.size(0), quarter = D / 4;
  if (rows * quarter == 0) {
    return out;
  }
  int log_wide = 5;
  while (kThreads >> log_wide > 1 && int64_t{1} << log_wide < quarter) {
    ++log_wide;
  }
  const int64_t per_block = kThreads >> log_wide;
  const auto blocks = static_cast<unsigned>(std::min((rows + per_block - 1) / per_block, kMostBlocks));
  const double log_temperature = std::log(temperature);
  dispatch_floating("anchor_embedding", anchors.scalar_type(), [&]<typename scalar_t>() {
    const cudaStream_t stream = current_stream(anchors);
    const auto* from = read<scalar_t>(anchors);
    auto* to = write<scalar_t>(out);
    if (quarter <= kMostTabled) {
      const int64_t shared = quarter * static_cast<int64_t>(sizeof(accumulate_t<scalar_t>));
      embed<scalar_t, true><<<blocks, kThreads, shared, stream>>>(from, to, rows, D, log_temperature,
                                                                  factors_of(D, log_temperature), log_wide);
    } else {
      embed<scalar_t, false><<<blocks, kThreads, 0, stream>>>(from, to, rows, D, log_temperature, Factors{}, log_wide);
    }
    check_launch("anchor_embedding");
  });
  return out;
}

Tensor anchor_embedding_backward(const Tensor& grad_in, const Tensor& anchors_in, double temperature) {
  check_sizes("anchor_embedding_backward", "grad", grad_in, {anchors_in.size(0), -1});
  check_dtype("anchor_embedding_backward", "grad", grad_in, anchors_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(anchors_in.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_in), anchors = torch::stable::contiguous(anchors_in);
  Tensor grad_anchors = torch::stable::new_empty(anchors, {anchors.size(0), 2});
  const int64_t rows = 2 * anchors.size(0), D = grad.size(1), quarter = D / 4;
  if (rows == 0) {
    return grad_anchors;
  }
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(blocks_for(rows * kWarp), kMostBlocks));
  const double log_temperature = std::log(temperature);
  dispatch_floating("anchor_embedding_backward", anchors.scalar_type(), [&]<typename scalar_t>() {
    const cudaStream_t stream = current_stream(anchors);
    const auto *dy = read<scalar_t>(grad), *from = read<scalar_t>(anchors);
    auto* to = write<scalar_t>(grad_anchors);
    const int64_t shared = quarter * static_cast<int64_t>(sizeof(accumulate_t<scalar_t>));
    if (quarter <= kMostTabled && is_aligned(dy)) {
      embed_backward<scalar_t, true, true><<<blocks, kThreads, shared, stream>>>(dy, from, to, rows, D, log_temperature,
                                                                                 factors_of(D, log_temperature));
    } else if (quarter <= kMostTabled) {
      embed_backward<scalar_t, true, false><<<blocks, kThreads, shared, stream>>>(
          dy, from, to, rows, D, log_temperature, factors_of(D, log_temperature));
    } else {
      embed_backward<scalar_t, false, false>
          <<<blocks, kThreads, 0, stream>>>(dy, from, to, rows, D, log_temperature, Factors{});
    }
    check_launch("anchor_embedding_backward");
  });
  return grad_anchors;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("anchor_embedding", TORCH_BOX(&anchor_embedding));
  m.impl("anchor_embedding_backward", TORCH_BOX(&anchor_embedding_backward));
}

}  // namespace vpgfast::anchor_embedding_cuda
