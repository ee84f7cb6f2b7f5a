// proposal_conv on the CPU. See vpgfast/ops/proposal_conv.py for what it computes.
//
// Sampling acts on time alone and the convolution on channels and samples alone, so they commute: first one matrix
// product of all clips with all N kernel slices, then a sum of a few rows of it for each proposal.

#include <optional>

#include "common/aten.h"
#include "cpu/proposals_cpu.h"

namespace vpgfast {
namespace {

constexpr int64_t kProductBytes = 16 << 20;  // of the matrix product that is held at a time, where clips allow it

// The sizes of a call, and how it is cut into videos and output channels so that the matrix product stays small.
template <typename T>
struct Plan {
  Plan(int64_t B, int64_t C, int64_t clips, int64_t D, int64_t N) : B(B), C(C), clips(clips), D(D), N(N) {
    const int64_t video = std::max<int64_t>(1, clips * N * padded<T>(D) * static_cast<int64_t>(sizeof(T)));
    videos = std::clamp<int64_t>(kProductBytes / video, 1, std::max<int64_t>(1, B));
    const int64_t shares = (video + kProductBytes - 1) / kProductBytes;  // of the channels, where one video is too much
    channels = std::max<int64_t>(padded<T>((D + shares - 1) / shares), Vector<T>::kWidth);
    stride = row_stride<T>(N * channels);
  }
  RowLayout layout() const {
    return {clips, stride, channels, false};
  }
  int64_t B, C, clips, D, N;
  int64_t videos;    // at a time
  int64_t channels;  // at a time, whole registers
  int64_t stride;    // elements of a row of the product: N kernel slices of `channels`, and what row_stride adds
};

// Kernel slices of output channels first .. first + plan.channels - 1 of [D, C, N], as rows n * plan.channels + d of
// [plan.stride, C]; rows of channels beyond D are zero.
template <typename scalar_t, typename T>
void kernel_slices(const scalar_t* weight, const Plan<T>& plan, int64_t first, T* slices) {
  const int64_t C = plan.C, N = plan.N;
  torch::stable::parallel_for(0, plan.channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      if (first + d < plan.D) {
        transpose(weight + (first + d) * C * N, N, slices + d * C, plan.channels * C, C, N);
        continue;
      }
      for (int64_t n = 0; n < N; ++n) {
        std::fill_n(slices + (n * plan.channels + d) * C, C, T{0});
      }
    }
  });
  std::fill(slices + N * plan.channels * C, slices + plan.stride * C, T{0});
}

template <typename scalar_t, typename T>
void weight_of_slices(const T* slices, const Plan<T>& plan, int64_t first, scalar_t* weight) {
  const int64_t C = plan.C, N = plan.N, count = std::min(plan.channels, plan.D - first);
  torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      transpose(slices + d * C, plan.channels * C, weight + (first + d) * C * N, N, N, C);
    }
  });
}

template <typename T>
void add(const Tensor& from, const Tensor& to) {
  const T* source = read<T>(from);
  T* target = write<T>(to);
  torch::stable::parallel_for(0, to.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      target[i] += source[i];
    }
  });
}

// a b into `out`, or added to it.
template <typename T>
void product(const Tensor& a, const Tensor& b, const Tensor& out, bool accumulate) {
  if (!accumulate) {
    matrix_product(a, b, out);
    return;
  }
  const Tensor more = torch::stable::new_empty(out, {out.size(0), out.size(1)});
  matrix_product(a, b, more);
  add<T>(more, out);
}

Tensor proposal_conv(const Tensor& x_in, const Tensor& proposals_in, const Tensor& weight_in,
                     const std::optional<Tensor>& bias_in, int64_t samples_per_bin) {
  check_sizes("proposal_conv", "x", x_in, {-1, -1, -1});
  const int64_t B = x_in.size(0), C = x_in.size(1), clips = x_in.size(2);
  check_sizes("proposal_conv", "weight", weight_in, {-1, C, -1});
  check_dtype("proposal_conv", "weight", weight_in, x_in.scalar_type());
  const int64_t D = weight_in.size(0), N = weight_in.size(2);
  const Proposals proposals("proposal_conv", proposals_in, B, N, samples_per_bin);
  check_values("proposal_conv", proposals, B);
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  std::optional<Tensor> bias;
  if (bias_in) {
    check_sizes("proposal_conv", "bias", *bias_in, {D});
    check_dtype("proposal_conv", "bias", *bias_in, x.scalar_type());
    bias = torch::stable::contiguous(*bias_in);
  }
  const int64_t P = proposals.P;
  Tensor out = torch::stable::new_empty(x, {B, D, P});
  dispatch_floating("proposal_conv", x.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const ScalarType dtype = accumulate_dtype(x);
    const Plan<T> plan(B, C, clips, D, N);
    Tensor rows = torch::stable::new_empty(x, {B * clips, C}, dtype);
    channels_last(read<scalar_t>(x), B, C, clips, write<T>(rows), C);
    const Tensor slices = torch::stable::new_empty(x, {plan.stride, C}, dtype);
    Tensor product = torch::stable::new_empty(x, {plan.videos * clips, plan.stride}, dtype);
    const int64_t video_stride = clips * plan.stride;
    for (int64_t d = 0; d < D; d += plan.channels) {
      const int64_t channels = std::min(plan.channels, D - d);
      kernel_slices(read<scalar_t>(weight), plan, d, write<T>(slices));
      std::vector<T> bias_values(plan.channels);
      if (bias) {
        std::transform(read<scalar_t>(*bias) + d, read<scalar_t>(*bias) + d + channels, bias_values.begin(),
                       [](scalar_t value) { return static_cast<T>(value); });
      }
      for (int64_t b = 0; b < B; b += plan.videos) {
        const int64_t videos = std::min(plan.videos, B - b);
        matrix_product(torch::stable::narrow(rows, 0, b * clips, videos * clips),
                       torch::stable::transpose(slices, 0, 1), torch::stable::narrow(product, 0, 0, videos * clips));
        for_blocks_of_lists<T>(
            proposals, plan.layout(), b, videos,
            [&](int64_t video, int64_t count_videos, int64_t first, int64_t count, const TapLists<T>& lists) {
              gather(lists, first, count, read<T>(product) + (video - b) * video_stride, video_stride, count_videos,
                     channels, bias_values.data(), write<scalar_t>(out) + (video * D + d) * P, D, P);
            });
      }
    }
  });
  return out;
}

// Gradients by x and by the weight; one that is not asked for is empty.
std::tuple<Tensor, Tensor> proposal_conv_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& proposals_in,
                                                  const Tensor& weight_in, int64_t samples_per_bin, bool by_x,
                                                  bool by_weight) {
  check_sizes("proposal_conv_backward", "x", x_in, {-1, -1, -1});
  const int64_t B = x_in.size(0), C = x_in.size(1), clips = x_in.size(2);
  check_sizes("proposal_conv_backward", "weight", weight_in, {-1, C, -1});
  check_dtype("proposal_conv_backward", "weight", weight_in, x_in.scalar_type());
  const int64_t D = weight_in.size(0), N = weight_in.size(2);
  const Proposals proposals("proposal_conv_backward", proposals_in, B, N, samples_per_bin);
  check_values("proposal_conv_backward", proposals, B);
  const int64_t P = proposals.P;
  check_sizes("proposal_conv_backward", "grad", grad_in, {B, D, P});
  check_dtype("proposal_conv_backward", "grad", grad_in, x_in.scalar_type());
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const Tensor grad = torch::stable::contiguous(grad_in);
  Tensor grad_x = by_x ? torch::stable::new_empty(x, {B, C, clips}) : torch::stable::new_empty(x, {0});
  Tensor grad_weight = by_weight ? torch::stable::new_empty(x, {D, C, N}) : torch::stable::new_empty(x, {0});
  dispatch_floating("proposal_conv_backward", x.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const ScalarType dtype = accumulate_dtype(x);
    const Plan<T> plan(B, C, clips, D, N);
    Tensor rows, grad_rows, slices, grad_slices;
    if (by_x) {
      grad_rows = torch::stable::new_zeros(x, {B * clips, C}, dtype);
      slices = torch::stable::new_empty(x, {plan.stride, C}, dtype);
    }
    if (by_weight) {
      rows = torch::stable::new_empty(x, {B * clips, C}, dtype);
      channels_last(read<scalar_t>(x), B, C, clips, write<T>(rows), C);
      grad_slices = torch::stable::new_zeros(x, {plan.stride, C}, dtype);
    }
    Tensor grad_product = torch::stable::new_empty(x, {plan.videos * clips, plan.stride}, dtype);
    const int64_t video_stride = clips * plan.stride;
    for (int64_t d = 0; d < D; d += plan.channels) {
      const int64_t channels = std::min(plan.channels, D - d);
      if (by_x) {
        kernel_slices(read<scalar_t>(weight), plan, d, write<T>(slices));
      }
      for (int64_t b = 0; b < B; b += plan.videos) {
        const int64_t videos = std::min(plan.videos, B - b);
        Tensor part = torch::stable::narrow(grad_product, 0, 0, videos * clips);
        torch::stable::zero_(part);
        for_blocks_of_lists<T>(
            proposals, plan.layout(), b, videos,
            [&](int64_t video, int64_t count_videos, int64_t first, int64_t count, const TapLists<T>& lists) {
              scatter(lists, first, count, read<scalar_t>(grad) + (video * D + d) * P, D, P, count_videos, channels,
                      write<T>(part) + (video - b) * video_stride, video_stride);
            });
        if (by_x) {
          product<T>(part, slices, torch::stable::narrow(grad_rows, 0, b * clips, videos * clips), d > 0);
        }
        if (by_weight) {
          product<T>(torch::stable::transpose(part, 0, 1), torch::stable::narrow(rows, 0, b * clips, videos * clips),
                     grad_slices, b > 0);
        }
      }
      if (by_weight) {
        weight_of_slices(read<T>(grad_slices), plan, d, write<scalar_t>(grad_weight));
      }
    }
    if (by_x) {
      channels_first(read<T>(grad_rows), C, B, C, clips, write<scalar_t>(grad_x));
    }
  });
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("proposal_conv", TORCH_BOX(&proposal_conv));
  m.impl("proposal_conv_backward", TORCH_BOX(&proposal_conv_backward));
}

}  // namespace vpgfast
