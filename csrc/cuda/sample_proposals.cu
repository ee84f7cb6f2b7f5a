// sample_proposals on CUDA. See vpgfast/ops/sample_proposals.py for what it computes.

#include "cuda/scatter_taps.h"

namespace vpgfast::sample_proposals_cuda {
namespace {

constexpr int kListThreads = 128;
constexpr int kChannels = 8;       // of a thread, in registers
constexpr int kMostChannels = 32;  // of a block, for which a thread works out its one point once

// blockIdx: a tile of lists (samples of proposals), some channels, a video; a thread has one list. Where a sample is
// one point (kOnePoint) its two clips and weights serve all of the block's channels.
template <typename scalar_t, bool kOnePoint>
__global__ void __launch_bounds__(kListThreads, 6)
    sample(const scalar_t* x, const double* ends, scalar_t* out, int64_t B, int64_t C, int64_t clips, int64_t N,
           int64_t P, int64_t per_bin, bool each_video) {
  using T = accumulate_t<scalar_t>;
  constexpr int kSpan = kOnePoint ? kMostChannels : kChannels;
  const int64_t lists = N * P, list = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x;
  if (list >= lists) {
    return;
  }
  const int64_t n = list / P, p = list - n * P;
  const T share = T{1} / static_cast<T>(per_bin);
  for (int64_t b = blockIdx.z; b < B; b += gridDim.z) {
    const SamplingPoints points = proposal_points(ends, (each_video ? b * P : 0) + p, N * per_bin);
    Neighbours near(points[n], clips);
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kSpan; first < C; first += int64_t{gridDim.y} * kSpan) {
      const int64_t last = min(C, first + kSpan);
      if constexpr (kOnePoint) {
        const T lower_weight = static_cast<T>(near.lower_weight), upper_weight = static_cast<T>(near.upper_weight);
        const bool lower = near.lower_weight != 0, upper = near.upper_weight != 0;
        const scalar_t* features = x + (b * C + first) * clips + near.lower;
        const int next = upper ? 1 : 0;  // what has no weight is read, but may be NaN
        scalar_t* to = out + (b * C + first) * lists + list;
#pragma unroll 8
        for (int64_t c = first; c < last; ++c, features += clips, to += lists) {
          const T here = static_cast<T>(features[0]), there = static_cast<T>(features[next]);
          *to = static_cast<scalar_t>(lower_weight * (lower ? here : T{0}) + upper_weight * (upper ? there : T{0}));
        }
      } else {
        T sum[kChannels] = {};
        const scalar_t* features = x + (b * C + first) * clips;
        for (int64_t m = n * per_bin; m < (n + 1) * per_bin; ++m) {
          near = Neighbours(points[m], clips);
          const T lower_weight = static_cast<T>(near.lower_weight), upper_weight = static_cast<T>(near.upper_weight);
          const bool lower = near.lower_weight != 0, upper = near.upper_weight != 0;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            if (first + c < last && lower) {
              sum[c] += lower_weight * static_cast<T>(features[c * clips + near.lower]);
            }
            if (first + c < last && upper) {
              sum[c] += upper_weight * static_cast<T>(features[c * clips + near.lower + 1]);
            }
          }
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (first + c < last) {
            out[(b * C + first + c) * lists + list] = static_cast<scalar_t>(sum[c] * share);
          }
        }
      }
    }
  }
}

// Sums over the samples of rows [B, clips, N, C] to [B, C, clips]; a block has 32 channels of 32 clips of a video.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    sum_samples(const accumulate_t<scalar_t>* rows, scalar_t* grad_x, int64_t C, int clips, int N) {
  using T = accumulate_t<scalar_t>;
  __shared__ T turned[kWarp][kWarp + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int tiles = (clips + kWarp - 1) / kWarp, channel_tiles = static_cast<int>((C + kWarp - 1) / kWarp);
  const int first = static_cast<int>(blockIdx.x % tiles) * kWarp;
  const int64_t c0 = static_cast<int64_t>(blockIdx.x / tiles % channel_tiles) * kWarp;
  const int64_t b = blockIdx.x / tiles / channel_tiles;
  for (int t = warp; t < kWarp && first + t < clips; t += kThreads / kWarp) {
    const T* from = rows + (b * clips + first + t) * N * C + c0 + lane;
    T sum = 0;
    if (c0 + lane < C) {
#pragma unroll 4
      for (int n = 0; n < N; ++n) {
        sum += from[n * C];
      }
    }
    turned[t][lane] = sum;
  }
  __syncthreads();
  for (int c = warp; c < kWarp && c0 + c < C; c += kThreads / kWarp) {
    if (first + lane < clips) {
      grad_x[(b * C + c0 + c) * clips + first + lane] = static_cast<scalar_t>(turned[lane][c]);
    }
  }
}

Tensor sample_proposals(const Tensor& x_in, const Tensor& proposals_in, int64_t num_samples, int64_t samples_per_bin) {
  check_sizes("sample_proposals", "x", x_in, {-1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const int64_t B = x_in.size(0), C = x_in.size(1), clips = x_in.size(2);
  const Proposals proposals("sample_proposals", proposals_in, B, num_samples, samples_per_bin);
  const Tensor x = torch::stable::contiguous(x_in);
  if (clips == 0) {
    return torch::stable::new_zeros(x, {B, C, num_samples, proposals.P});
  }
  Tensor out = torch::stable::new_empty(x, {B, C, num_samples, proposals.P});
  if (out.numel() > 0) {
    dispatch_floating("sample_proposals", x.scalar_type(), [&]<typename scalar_t>() {
      const int64_t lists = num_samples * proposals.P, span = samples_per_bin == 1 ? kMostChannels : kChannels;
      STD_TORCH_CHECK(lists / kListThreads < (int64_t{1} << 31) - 1, "sample_proposals: too many samples");
      const dim3 blocks(static_cast<unsigned>((lists + kListThreads - 1) / kListThreads),
                        static_cast<unsigned>(std::min<int64_t>((C + span - 1) / span, 65535)),
                        static_cast<unsigned>(std::min<int64_t>(B, 65535)));
      const cudaStream_t stream = current_stream(x);
      const auto* from = read<scalar_t>(x);
      auto* to = write<scalar_t>(out);
      if (samples_per_bin == 1) {
        sample<scalar_t, true><<<blocks, kListThreads, 0, stream>>>(from, proposals.ends, to, B, C, clips, num_samples,
                                                                    proposals.P, 1, proposals.each_video);
      } else {
        sample<scalar_t, false><<<blocks, kListThreads, 0, stream>>>(
            from, proposals.ends, to, B, C, clips, num_samples, proposals.P, samples_per_bin, proposals.each_video);
      }
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
      const char* op = "sample_proposals_backward";
      const cudaStream_t stream = current_stream(grad);
      const TapStorage<T> storage(op, proposals, grad, B, clips);
      const Sizes s{B,
                    0,
                    C,
                    0,
                    static_cast<int>(clips),
                    static_cast<int>(proposals.P),
                    static_cast<int>(num_samples),
                    static_cast<int>(samples_per_bin),
                    static_cast<int>(C),
                    proposals.each_video};
      const Blocks blocks{storage.blocks, 0, 0};
      if (blocks.count() == 0) {
        torch::stable::zero_(grad_x);
        return;
      }
      prepare<scalar_t, T><<<grid(op, blocks.count()), kChunk, 0, stream>>>(proposals.ends, write<Tap<T>>(storage.list),
                                                                            write<Reach>(storage.reach), nullptr,
                                                                            nullptr, nullptr, nullptr, s, blocks);
      const Tensor rows = torch::stable::new_empty(grad, {B * clips * num_samples, C}, accumulate_dtype(grad));
      launch_scatter<scalar_t, true>(op, grad, storage.taps(), rows, s, stream);
      const int64_t tiles = B * ((C + kWarp - 1) / kWarp) * ((clips + kWarp - 1) / kWarp);
      sum_samples<<<grid(op, tiles), kThreads, 0, stream>>>(read<T>(rows), write<scalar_t>(grad_x), C, s.clips, s.N);
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

}  // namespace vpgfast::sample_proposals_cuda
