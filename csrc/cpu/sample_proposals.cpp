// sample_proposals on the CPU. See vpgfast/ops/sample_proposals.py for what it computes.

#include "cpu/proposals_cpu.h"

namespace vpgfast {
namespace {

template <typename T>
RowLayout layout_of(int64_t clips, int64_t C) {
  return {clips, row_stride<T>(padded<T>(C)), 0, true};
}

Tensor sample_proposals(const Tensor& x_in, const Tensor& proposals_in, int64_t num_samples, int64_t samples_per_bin) {
  check_sizes("sample_proposals", "x", x_in, {-1, -1, -1});
  const int64_t B = x_in.size(0), C = x_in.size(1), clips = x_in.size(2);
  const Proposals proposals("sample_proposals", proposals_in, B, num_samples, samples_per_bin);
  check_values("sample_proposals", proposals, B);
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t Q = num_samples * proposals.P;
  Tensor out = torch::stable::new_empty(x, {B, C, num_samples, proposals.P});
  dispatch_floating("sample_proposals", x.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const RowLayout layout = layout_of<T>(clips, C);
    const Tensor rows = torch::stable::new_empty(x, {B * clips, layout.clip_stride}, accumulate_dtype(x));
    channels_last(read<scalar_t>(x), B, C, clips, write<T>(rows), layout.clip_stride);
    const std::vector<T> no_bias(padded<T>(C));
    const int64_t video_stride = clips * layout.clip_stride;
    for_blocks_of_lists<T>(proposals, layout, 0, B,
                           [&](int64_t b, int64_t batches, int64_t first, int64_t count, const TapLists<T>& lists) {
                             gather(lists, first, count, read<T>(rows) + b * video_stride, video_stride, batches, C,
                                    no_bias.data(), write<scalar_t>(out) + b * C * Q, C, Q);
                           });
  });
  return out;
}

Tensor sample_proposals_backward(const Tensor& grad_in, const Tensor& proposals_in, int64_t clips,
                                 int64_t samples_per_bin) {
  check_sizes("sample_proposals_backward", "grad", grad_in, {-1, -1, -1, -1});
  const int64_t B = grad_in.size(0), C = grad_in.size(1), num_samples = grad_in.size(2);
  const Proposals proposals("sample_proposals_backward", proposals_in, B, num_samples, samples_per_bin);
  check_values("sample_proposals_backward", proposals, B);
  check_sizes("sample_proposals_backward", "grad", grad_in, {B, C, num_samples, proposals.P});
  const Tensor grad = torch::stable::contiguous(grad_in);
  const int64_t Q = num_samples * proposals.P;
  Tensor grad_x = torch::stable::new_empty(grad, {B, C, clips});
  dispatch_floating("sample_proposals_backward", grad.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const RowLayout layout = layout_of<T>(clips, C);
    const Tensor rows = torch::stable::new_zeros(grad, {B * clips, layout.clip_stride}, accumulate_dtype(grad));
    const int64_t video_stride = clips * layout.clip_stride;
    for_blocks_of_lists<T>(proposals, layout, 0, B,
                           [&](int64_t b, int64_t batches, int64_t first, int64_t count, const TapLists<T>& lists) {
                             scatter(lists, first, count, read<scalar_t>(grad) + b * C * Q, C, Q, batches, C,
                                     write<T>(rows) + b * video_stride, video_stride);
                           });
    channels_first(read<T>(rows), layout.clip_stride, B, C, clips, write<scalar_t>(grad_x));
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("sample_proposals", TORCH_BOX(&sample_proposals));
  m.impl("sample_proposals_backward", TORCH_BOX(&sample_proposals_backward));
}

}  // namespace vpgfast
