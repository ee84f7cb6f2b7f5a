// sample_proposals on CUDA. See vpgfast/ops/sample_proposals.py for what it computes.

#include "cuda/proposals_cuda.h"

namespace vpgfast {
namespace {

constexpr int kListThreads = 128;
constexpr int kChannels = 8;       // of a thread, in registers
constexpr int kMostChannels = 32;  // of a block, for which a thread works out its one point once
constexpr int64_t kStagedBytes = 40 << 10;
constexpr int64_t kFewestChannels = 4, kMostStagedChannels = 16;

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

// A block has 2^log_channels channels of a video. It reads their gradient into shared memory once, as it lies; then
// every thread adds up the taps of one clip of one channel, in their order, and neighbouring threads, which have the
// same clip, read the same tap. Where a channel's gradient is too long for shared memory (not kStaged) it stays where
// it is.
template <typename scalar_t, bool kStaged>
__global__ void __launch_bounds__(kThreads)
    sample_backward(const scalar_t* grad, const int64_t* starts, const SortedTap<accumulate_t<scalar_t>>* taps,
                    int64_t video_rows, scalar_t* grad_x, int64_t B, int64_t C, int64_t clips, int64_t lists,
                    int64_t per_bin, int log_channels) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  auto* staged = reinterpret_cast<T*>(shared_bytes);
  const int channels = 1 << log_channels, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Channel c of list l. Turned by l, so that neither lanes in a row of lists nor in one of channels meet in a bank.
  const auto place = [&](int c, int64_t l) {
    return (static_cast<int>(l) << log_channels) + ((c + static_cast<int>(l)) & (channels - 1));
  };
  for (int64_t b = blockIdx.y; b < B; b += gridDim.y) {
    for (int64_t first = static_cast<int64_t>(blockIdx.x) << log_channels; first < C;
         first += static_cast<int64_t>(gridDim.x) << log_channels) {
      if constexpr (kStaged) {
        for (int c = warp; c < channels && first + c < C; c += kThreads / kWarp) {
          const scalar_t* from = grad + (b * C + first + c) * lists;
#pragma unroll 8
          for (int64_t l = lane; l < lists; l += kWarp) {
            staged[place(c, l)] = static_cast<T>(from[l]);
          }
        }
        __syncthreads();
      }
      const int c = threadIdx.x & (channels - 1);
      const int64_t channel = b * C + first + c;
      for (int64_t clip = threadIdx.x >> log_channels; clip < clips && first + c < C;
           clip += kThreads >> log_channels) {
        const int64_t row = b * video_rows + clip, end = starts[row + 1];
        T sum = 0;
#pragma unroll 4
        for (int64_t k = starts[row]; k < end; ++k) {
          const SortedTap<T> tap = taps[k];
          if constexpr (kStaged) {
            sum += tap.weight * staged[place(c, tap.list)];
          } else {
            sum += tap.weight * static_cast<T>(grad[channel * lists + tap.list]);
          }
        }
        grad_x[channel * clips + clip] = static_cast<scalar_t>(sum / static_cast<T>(per_bin));
      }
      if constexpr (kStaged) {
        __syncthreads();  // before other channels' gradient comes
      }
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
      const TapsOfRows<T> taps("sample_proposals_backward", proposals, B, clips, false);
      const int64_t lists = num_samples * proposals.P, bytes = lists * static_cast<int64_t>(sizeof(T));
      int64_t channels = std::min(kMostStagedChannels, kStagedBytes / std::max<int64_t>(1, bytes));
      if (channels < kFewestChannels) {
        channels = std::min(kFewestChannels, most_shared() / bytes);
      }
      const bool staged = channels > 0;
      int log_channels = 0;
      while (staged ? 2 << log_channels <= channels : log_channels < 3) {
        ++log_channels;
      }
      const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(((C - 1) >> log_channels) + 1, 1 << 30)),
                        static_cast<unsigned>(std::min<int64_t>(B, 65535)));
      const cudaStream_t stream = current_stream(grad);
      const auto* dy = read<scalar_t>(grad);
      const auto* starts = read<int64_t>(taps.starts);
      const auto* sorted = read<SortedTap<T>>(taps.sorted);
      if (staged) {
        const int64_t shared = bytes << log_channels;
        allow_shared(sample_backward<scalar_t, true>, shared);
        sample_backward<scalar_t, true><<<blocks, kThreads, shared, stream>>>(dy, starts, sorted, taps.video_rows,
                                                                              write<scalar_t>(grad_x), B, C, clips,
                                                                              lists, samples_per_bin, log_channels);
      } else {
        sample_backward<scalar_t, false><<<blocks, kThreads, 0, stream>>>(dy, starts, sorted, taps.video_rows,
                                                                          write<scalar_t>(grad_x), B, C, clips, lists,
                                                                          samples_per_bin, log_channels);
      }
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
