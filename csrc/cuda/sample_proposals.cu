// sample_proposals on CUDA. See vpgfast/ops/sample_proposals.py for what it computes.

#include "cuda/proposals_cuda.h"

namespace vpgfast {
namespace {

constexpr int kChannels = 8;  // of a thread, which works out each point once for all of them

template <typename scalar_t>
__global__ void sample(const scalar_t* x, const double* ends, scalar_t* out, int64_t B, int64_t C, int64_t clips,
                       int64_t N, int64_t P, int64_t per_bin, bool each_video) {
  using T = accumulate_t<scalar_t>;
  const int64_t groups = (C + kChannels - 1) / kChannels;
  const T share = T{1} / static_cast<T>(per_bin);
  for (int64_t index = first_index(); index < B * groups * N * P; index += index_stride()) {
    const int64_t p = index % P, n = index / P % N, first = index / (P * N) % groups * kChannels;
    const int64_t b = index / (P * N * groups);
    const SamplingPoints points = proposal_points(ends, (each_video ? b * P : 0) + p, N * per_bin);
    const scalar_t* features = x + (b * C + first) * clips;
    T sum[kChannels] = {};
    for (int64_t m = n * per_bin; m < (n + 1) * per_bin; ++m) {
      const Neighbours near(points[m], clips);
      const T lower_weight = static_cast<T>(near.lower_weight), upper_weight = static_cast<T>(near.upper_weight);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (first + c < C && near.lower_weight != 0) {
          sum[c] += lower_weight * static_cast<T>(features[c * clips + near.lower]);
        }
        if (first + c < C && near.upper_weight != 0) {
          sum[c] += upper_weight * static_cast<T>(features[c * clips + near.lower + 1]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (first + c < C) {
        out[((b * C + first + c) * N + n) * P + p] = static_cast<scalar_t>(sum[c] * share);
      }
    }
  }
}

// A warp adds up the gradient of one clip of one channel.
template <typename scalar_t>
__global__ void sample_backward(const scalar_t* grad, const int64_t* starts,
                                const SortedTap<accumulate_t<scalar_t>>* taps, int64_t video_rows, scalar_t* grad_x,
                                int64_t B, int64_t C, int64_t clips, int64_t lists, int64_t per_bin) {
  using T = accumulate_t<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t index = first_index() / kWarp; index < B * C * clips; index += index_stride() / kWarp) {
    const int64_t channel = index / clips, row = channel / C * video_rows + index % clips;
    const scalar_t* from = grad + channel * lists;
    T sum = 0;
    for (int64_t k = starts[row] + lane; k < starts[row + 1]; k += kWarp) {
      sum += taps[k].weight * static_cast<T>(from[taps[k].list]);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      grad_x[index] = static_cast<scalar_t>(sum / static_cast<T>(per_bin));
    }
  }
}

Tensor sample_proposals(const Tensor& x_in, const Tensor& proposals_in, int64_t num_samples, int64_t samples_per_bin) {
  check_sizes("sample_proposals", "x", x_in, {-1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const int64_t B = x_in.size(0), C = x_in.size(1), clips = x_in.size(2);
  const Proposals proposals("sample_proposals", proposals_in, B, num_samples, samples_per_bin);
  const Tensor x = torch::stable::contiguous(x_in);
  Tensor out = torch::stable::new_empty(x, {B, C, num_samples, proposals.P});
  const int64_t work = B * ((C + kChannels - 1) / kChannels) * num_samples * proposals.P;
  if (work > 0) {
    dispatch_floating("sample_proposals", x.scalar_type(), [&]<typename scalar_t>() {
      sample<<<blocks_for(work), kThreads, 0, current_stream(x)>>>(read<scalar_t>(x), proposals.ends,
                                                                   write<scalar_t>(out), B, C, clips, num_samples,
                                                                   proposals.P, samples_per_bin, proposals.each_video);
      check_launch("sample_proposals");
    });
  }
  return out;
}

Tensor sample_proposals_backward(const Tensor& grad_in, const Tensor& proposals_in, int64_t clips,
                                 int64_t samples_per_bin) {
  check_sizes("sample_proposals_backward", "grad", grad_in, {-1, -1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(grad_in.get_device_index());
  const int64_t B = grad_in.size(0), C = grad_in.size(1), num_samples = grad_in.size(2);
  const Proposals proposals("sample_proposals_backward", proposals_in, B, num_samples, samples_per_bin);
  check_sizes("sample_proposals_backward", "grad", grad_in, {B, C, num_samples, proposals.P});
  const Tensor grad = torch::stable::contiguous(grad_in);
  Tensor grad_x = torch::stable::new_empty(grad, {B, C, clips});
  if (B * C * clips > 0) {
    dispatch_floating("sample_proposals_backward", grad.scalar_type(), [&]<typename scalar_t>() {
      using T = accumulate_t<scalar_t>;
      const TapsOfRows<T> taps("sample_proposals_backward", proposals, B, clips, false);
      sample_backward<scalar_t><<<blocks_for(B * C * clips * kWarp), kThreads, 0, current_stream(grad)>>>(
          read<scalar_t>(grad), read<int64_t>(taps.starts), read<SortedTap<T>>(taps.sorted), taps.video_rows,
          write<scalar_t>(grad_x), B, C, clips, num_samples * proposals.P, samples_per_bin);
      check_launch("sample_proposals_backward");
    });
  }
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("sample_proposals", TORCH_BOX(&sample_proposals));
  m.impl("sample_proposals_backward", TORCH_BOX(&sample_proposals_backward));
}

}  // namespace vpgfast
