// anchor_embedding on CUDA. See vpgfast/ops/anchor_embedding.py for what it computes.

#include "cuda/launch.h"

namespace vpgfast {
namespace {

// Angles per unit of centre or width at place i of D / 4.
template <typename T>
__device__ __forceinline__ T frequency(int64_t i, int64_t D, double temperature) {
  return static_cast<T>(2 * 3.14159265358979323846 *
                        exp(-log(temperature) * (4.0 * static_cast<double>(i) / static_cast<double>(D))));
}

template <typename scalar_t>
__global__ void embed(const scalar_t* anchors, scalar_t* out, int64_t pairs, int64_t D, double temperature) {
  using T = accumulate_t<scalar_t>;
  for (int64_t index = first_index(); index < pairs; index += index_stride()) {
    const T x = static_cast<T>(anchors[index / (D / 4)]);
    T sine, cosine;
    if constexpr (sizeof(T) == 8) {
      sincos(x * frequency<T>(index % (D / 4), D, temperature), &sine, &cosine);
    } else {
      sincosf(x * frequency<T>(index % (D / 4), D, temperature), &sine, &cosine);
    }
    out[2 * index] = static_cast<scalar_t>(sine);
    out[2 * index + 1] = static_cast<scalar_t>(cosine);
  }
}

// One warp a centre or width.
template <typename scalar_t>
__global__ void embed_backward(const scalar_t* grad, const scalar_t* anchors, scalar_t* grad_anchors, int64_t count,
                               int64_t D, double temperature) {
  using T = accumulate_t<scalar_t>;
  const int64_t quarter = D / 4;
  for (int64_t k = first_index() / kWarp; k < count; k += index_stride() / kWarp) {
    const T x = static_cast<T>(anchors[k]);
    T sum = 0;
    for (int64_t i = threadIdx.x % kWarp; i < quarter; i += kWarp) {
      const T w = frequency<T>(i, D, temperature);
      T sine, cosine;
      if constexpr (sizeof(T) == 8) {
        sincos(x * w, &sine, &cosine);
      } else {
        sincosf(x * w, &sine, &cosine);
      }
      const scalar_t* pair = grad + 2 * (k * quarter + i);
      sum += (static_cast<T>(pair[0]) * cosine - static_cast<T>(pair[1]) * sine) * w;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) {
      grad_anchors[k] = static_cast<scalar_t>(sum);
    }
  }
}

Tensor anchor_embedding(const Tensor& anchors_in, int64_t D, double temperature) {
  check_sizes("anchor_embedding", "anchors", anchors_in, {-1, 2});
  STD_TORCH_CHECK(D >= 0 && D % 4 == 0, "anchor_embedding: D is ", D, "; it must be a multiple of 4");
  const torch::stable::accelerator::DeviceGuard guard(anchors_in.get_device_index());
  const Tensor anchors = torch::stable::contiguous(anchors_in);
  Tensor out = torch::stable::new_empty(anchors, {anchors.size(0), D});
  const int64_t pairs = anchors.size(0) * D / 2;
  if (pairs > 0) {
    dispatch_floating("anchor_embedding", anchors.scalar_type(), [&]<typename scalar_t>() {
      embed<<<blocks_for(pairs), kThreads, 0, current_stream(anchors)>>>(read<scalar_t>(anchors), write<scalar_t>(out),
                                                                         pairs, D, temperature);
      check_launch("anchor_embedding");
    });
  }
  return out;
}

Tensor anchor_embedding_backward(const Tensor& grad_in, const Tensor& anchors_in, double temperature) {
  check_sizes("anchor_embedding_backward", "grad", grad_in, {anchors_in.size(0), -1});
  check_dtype("anchor_embedding_backward", "grad", grad_in, anchors_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(anchors_in.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_in), anchors = torch::stable::contiguous(anchors_in);
  Tensor grad_anchors = torch::stable::new_empty(anchors, {anchors.size(0), 2});
  const int64_t count = 2 * anchors.size(0);
  if (count > 0) {
    dispatch_floating("anchor_embedding_backward", anchors.scalar_type(), [&]<typename scalar_t>() {
      embed_backward<<<blocks_for(count * kWarp), kThreads, 0, current_stream(anchors)>>>(
          read<scalar_t>(grad), read<scalar_t>(anchors), write<scalar_t>(grad_anchors), count, grad.size(1),
          temperature);
      check_launch("anchor_embedding_backward");
    });
  }
  return grad_anchors;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("anchor_embedding", TORCH_BOX(&anchor_embedding));
  m.impl("anchor_embedding_backward", TORCH_BOX(&anchor_embedding_backward));
}

}  // namespace vpgfast
