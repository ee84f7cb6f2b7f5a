// proposal_conv on CUDA. See vpgfast/ops/proposal_conv.py for what it computes.
//
// As on the CPU: all clips are convolved with all N kernel slices by one matrix product (cuBLAS, in the tensors'
// dtype), then each proposal's output is a sum of a few rows of it, formed in float32.

#include <optional>

#include "cuda/proposals_cuda.h"

namespace vpgfast {
namespace {

constexpr int kProposals = 32;                            // of a block
constexpr int kChannels = 64;                             // of a block
constexpr int kPoints = 16;                               // of each proposal, worked out at a time
constexpr int kOfWarp = kProposals / (kThreads / kWarp);  // proposals
constexpr int kOfLane = kChannels / kWarp;                // channels
constexpr int64_t kProductBytes = int64_t{1} << 30;       // of the matrix product that is held at a time

struct Sizes {
  int64_t B, clips, N, P, per_bin;
  int64_t D, first, channels;  // channels first .. first + channels - 1 of D are held
};

// A block writes 64 channels of 32 proposals: warps add up rows with neighbouring channels in neighbouring lanes, and
// the sums are turned round in shared memory, so that reads and writes are both coalesced.
template <typename scalar_t>
__global__ void gather(const scalar_t* rows, const double* ends, bool each_video, const scalar_t* bias, scalar_t* out,
                       Sizes s) {
  using T = accumulate_t<scalar_t>;
  __shared__ int64_t clip[kProposals][kPoints];
  __shared__ T lower_weight[kProposals][kPoints], upper_weight[kProposals][kPoints];
  __shared__ T tile[kProposals][kChannels + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t proposal_tiles = (s.P + kProposals - 1) / kProposals;
  const int64_t channel_tiles = (s.channels + kChannels - 1) / kChannels;
  const int64_t points = s.N * s.per_bin, row_length = s.N * s.channels;
  const T share = T{1} / static_cast<T>(s.per_bin);
  for (int64_t index = blockIdx.x; index < s.B * channel_tiles * proposal_tiles; index += gridDim.x) {
    const int64_t p0 = index % proposal_tiles * kProposals, d0 = index / proposal_tiles % channel_tiles * kChannels;
    const int64_t b = index / (proposal_tiles * channel_tiles);
    const scalar_t* video = rows + b * s.clips * row_length + d0;
    T sum[kOfWarp][kOfLane] = {};
    for (int64_t m0 = 0; m0 < points; m0 += kPoints) {
      __syncthreads();  // the points before these have been used, and the tile before this one
      for (int k = threadIdx.x; k < kProposals * kPoints; k += kThreads) {
        const int p = k / kPoints, m = k % kPoints;
        if (p0 + p < s.P && m0 + m < points) {
          const int64_t proposal = (each_video ? b * s.P : 0) + p0 + p;
          const Neighbours near(proposal_points(ends, proposal, points)[m0 + m], s.clips);
          clip[p][m] = near.lower;
          lower_weight[p][m] = static_cast<T>(near.lower_weight);
          upper_weight[p][m] = static_cast<T>(near.upper_weight);
        } else {
          lower_weight[p][m] = upper_weight[p][m] = 0;
        }
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kOfWarp; ++i) {
        const int p = warp * kOfWarp + i;
        for (int m = 0; m < kPoints; ++m) {
          const T lower = lower_weight[p][m], upper = upper_weight[p][m];
          const scalar_t* row = video + clip[p][m] * row_length + (m0 + m) / s.per_bin * s.channels;
#pragma unroll
          for (int j = 0; j < kOfLane; ++j) {
            const int d = lane + j * kWarp;
            if (d0 + d < s.channels) {
              sum[i][j] += lower != 0 ? lower * static_cast<T>(row[d]) : T{0};
              sum[i][j] += upper != 0 ? upper * static_cast<T>(row[row_length + d]) : T{0};
            }
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) {
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) {
        tile[warp * kOfWarp + i][lane + j * kWarp] = sum[i][j] * share;
      }
    }
    __syncthreads();
    for (int d = warp; d < kChannels && d0 + d < s.channels; d += kThreads / kWarp) {
      if (p0 + lane < s.P) {
        const T offset = bias != nullptr ? static_cast<T>(bias[s.first + d0 + d]) : T{0};
        out[(b * s.D + s.first + d0 + d) * s.P + p0 + lane] = static_cast<scalar_t>(tile[lane][d] + offset);
      }
    }
  }
}

// A warp adds up 32 channels of one row's gradient. `grad` lies channels-last, [B, P, channels].
template <typename scalar_t>
__global__ void gather_backward(const scalar_t* grad, const int64_t* starts,
                                const SortedTap<accumulate_t<scalar_t>>* taps, int64_t video_rows, scalar_t* grad_rows,
                                Sizes s) {
  using T = accumulate_t<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  const int64_t channel_tiles = (s.channels + kWarp - 1) / kWarp, rows = s.N * s.clips;
  for (int64_t index = first_index() / kWarp; index < s.B * rows * channel_tiles; index += index_stride() / kWarp) {
    const int64_t d = index % channel_tiles * kWarp + lane, row = index / channel_tiles % rows;
    const int64_t b = index / (channel_tiles * rows), n = row / s.clips, t = row % s.clips;
    if (d >= s.channels) {
      continue;
    }
    const int64_t begin = starts[b * video_rows + row], end = starts[b * video_rows + row + 1];
    T sum = 0;
    for (int64_t k = begin; k < end; ++k) {
      sum += taps[k].weight * static_cast<T>(grad[(b * s.P + taps[k].list) * s.channels + d]);
    }
    grad_rows[((b * s.clips + t) * s.N + n) * s.channels + d] = static_cast<scalar_t>(sum / static_cast<T>(s.per_bin));
  }
}

template <typename scalar_t, typename T>
__global__ void add(const scalar_t* from, T* to, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    to[index] += static_cast<T>(from[index]);
  }
}

// Output channels at a time, so that the matrix product stays within its bound.
int64_t channels_at_a_time(const Tensor& x, int64_t D, int64_t N) {
  const int64_t channel = std::max<int64_t>(1, x.size(0) * x.size(2) * N * x.element_size());
  return std::clamp<int64_t>(kProductBytes / channel, std::min<int64_t>(D, kChannels), std::max<int64_t>(D, 1));
}

// [B, C, T] as [B * T, C].
Tensor clip_rows(const Tensor& x) {
  const Tensor rows = torch::stable::contiguous(torch::stable::transpose(x, 1, 2));
  return torch::stable::view(rows, {x.size(0) * x.size(2), x.size(1)});
}

// Channels first .. first + channels - 1 of [D, C, N] as [N * channels, C].
Tensor kernel_slices(Tensor& weight, int64_t first, int64_t channels) {
  const Tensor part = torch::stable::transpose(torch::stable::narrow(weight, 0, first, channels), 1, 2);
  return torch::stable::view(torch::stable::contiguous(torch::stable::transpose(part, 0, 1)),
                             {weight.size(2) * channels, weight.size(1)});
}

Tensor proposal_conv(const Tensor& x, const Tensor& proposals_in, const Tensor& weight_in,
                     const std::optional<Tensor>& bias_in, int64_t samples_per_bin) {
  check_sizes("proposal_conv", "x", x, {-1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t B = x.size(0), C = x.size(1), clips = x.size(2);
  check_sizes("proposal_conv", "weight", weight_in, {-1, C, -1});
  check_dtype("proposal_conv", "weight", weight_in, x.scalar_type());
  Tensor weight = weight_in;
  const int64_t D = weight.size(0), N = weight.size(2);
  const Proposals proposals("proposal_conv", proposals_in, B, N, samples_per_bin);
  const int64_t P = proposals.P;
  std::optional<Tensor> bias;
  if (bias_in) {
    check_sizes("proposal_conv", "bias", *bias_in, {D});
    check_dtype("proposal_conv", "bias", *bias_in, x.scalar_type());
    bias = torch::stable::contiguous(*bias_in);
  }
  Tensor out = torch::stable::new_empty(x, {B, D, P});
  if (B * D * P == 0) {
    return out;
  }
  const Tensor clips_last = clip_rows(x);
  const int64_t step = channels_at_a_time(x, D, N);
  for (int64_t d = 0; d < D; d += step) {
    const int64_t channels = std::min(step, D - d);
    Tensor rows = torch::stable::new_empty(x, {B * clips, N * channels});
    matrix_product(clips_last, torch::stable::transpose(kernel_slices(weight, d, channels), 0, 1), rows);
    const Sizes sizes{B, clips, N, P, samples_per_bin, D, d, channels};
    const int64_t blocks = B * ((channels + kChannels - 1) / kChannels) * ((P + kProposals - 1) / kProposals);
    dispatch_floating("proposal_conv", x.scalar_type(), [&]<typename scalar_t>() {
      gather<<<blocks_for(blocks * kThreads), kThreads, 0, current_stream(x)>>>(
          read<scalar_t>(rows), proposals.ends, proposals.each_video, bias ? read<scalar_t>(*bias) : nullptr,
          write<scalar_t>(out), sizes);
      check_launch("proposal_conv");
    });
  }
  return out;
}

// Gradients by x and by the weight; one that is not asked for is empty.
std::tuple<Tensor, Tensor> proposal_conv_backward(const Tensor& grad_in, const Tensor& x, const Tensor& proposals_in,
                                                  const Tensor& weight_in, int64_t samples_per_bin, bool by_x,
                                                  bool by_weight) {
  check_sizes("proposal_conv_backward", "x", x, {-1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t B = x.size(0), C = x.size(1), clips = x.size(2);
  check_sizes("proposal_conv_backward", "weight", weight_in, {-1, C, -1});
  check_dtype("proposal_conv_backward", "weight", weight_in, x.scalar_type());
  Tensor weight = weight_in, grad = grad_in;
  const int64_t D = weight.size(0), N = weight.size(2);
  const Proposals proposals("proposal_conv_backward", proposals_in, B, N, samples_per_bin);
  const int64_t P = proposals.P;
  check_sizes("proposal_conv_backward", "grad", grad, {B, D, P});
  check_dtype("proposal_conv_backward", "grad", grad, x.scalar_type());
  Tensor grad_x = by_x ? torch::stable::new_zeros(x, {B, C, clips}) : torch::stable::new_empty(x, {0});
  Tensor grad_weight = by_weight ? torch::stable::new_zeros(x, {D, C, N}) : torch::stable::new_empty(x, {0});
  if (B * C * clips * D * P == 0) {
    return {grad_x, grad_weight};
  }
  const Tensor clips_last = clip_rows(x);
  const int64_t step = channels_at_a_time(x, D, N);
  dispatch_floating("proposal_conv_backward", x.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const cudaStream_t stream = current_stream(x);
    const TapsOfRows<T> taps("proposal_conv_backward", proposals, B, clips, true);
    Tensor grad_clips = torch::stable::new_empty(x, {B * clips, C});
    std::optional<Tensor> sums;  // over the shares of the channels, where there are several
    if (by_x && step < D) {
      sums = torch::stable::new_zeros(x, {B * clips, C}, accumulate_dtype(x));
    }
    for (int64_t d = 0; d < D; d += step) {
      const int64_t channels = std::min(step, D - d);
      const Tensor part = torch::stable::narrow(grad, 1, d, channels);
      const Tensor grad_last = torch::stable::contiguous(torch::stable::transpose(part, 1, 2));
      Tensor grad_rows = torch::stable::new_empty(x, {B * clips, N * channels});
      const Sizes sizes{B, clips, N, P, samples_per_bin, D, d, channels};
      const int64_t warps = B * N * clips * ((channels + kWarp - 1) / kWarp);
      gather_backward<scalar_t><<<blocks_for(warps * kWarp), kThreads, 0, stream>>>(
          read<scalar_t>(grad_last), read<int64_t>(taps.starts), read<SortedTap<T>>(taps.sorted), taps.video_rows,
          write<scalar_t>(grad_rows), sizes);
      check_launch("proposal_conv_backward");
      if (by_x) {
        matrix_product(grad_rows, kernel_slices(weight, d, channels), grad_clips);
        if (sums) {
          add<<<blocks_for(B * clips * C), kThreads, 0, stream>>>(read<scalar_t>(grad_clips), write<T>(*sums),
                                                                  B * clips * C);
          check_launch("proposal_conv_backward");
        }
      }
      if (by_weight) {
        Tensor slices = torch::stable::new_empty(x, {N * channels, C});
        matrix_product(torch::stable::transpose(grad_rows, 0, 1), clips_last, slices);
        const Tensor by_channel = torch::stable::transpose(torch::stable::view(slices, {N, channels, C}), 0, 1);
        Tensor target = torch::stable::narrow(grad_weight, 0, d, channels);
        torch::stable::copy_(target, torch::stable::transpose(by_channel, 1, 2));
      }
    }
    if (by_x) {
      const Tensor rows = torch::stable::view(sums ? *sums : grad_clips, {B, clips, C});
      torch::stable::copy_(grad_x, torch::stable::transpose(rows, 1, 2));
    }
  });
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("proposal_conv", TORCH_BOX(&proposal_conv));
  m.impl("proposal_conv_backward", TORCH_BOX(&proposal_conv_backward));
}

}  // namespace vpgfast
