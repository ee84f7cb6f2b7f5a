// temporal_iou_map on CUDA. See vpgfast/ops/temporal_iou_map.py for what it computes.

#include "cuda/intervals_cuda.h"

namespace vpgfast {
namespace {

template <typename scalar_t>
__global__ void iou_map(const scalar_t* spans, scalar_t* out, int64_t total, int64_t size) {
  using T = accumulate_t<scalar_t>;
  for (int64_t index = first_index(); index < total; index += index_stride()) {
    const int64_t j = index % size, i = index / size % size;
    const Interval<T> span = read_interval<T>(spans, index / (size * size)), cell = map_cell<T>(i, j, size);
    const T iou = interval_iou<false>(cell.start, cell.end, span.start, span.end);
    out[index] = static_cast<scalar_t>(j < i ? T{0} : iou);
  }
}

// One block a span.
template <typename scalar_t>
__global__ void iou_map_backward(const scalar_t* grad, const scalar_t* spans, scalar_t* grad_spans, int64_t count,
                                 int64_t size) {
  using T = accumulate_t<scalar_t>;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const Interval<T> span = read_interval<T>(spans, row);
    const scalar_t* map = grad + row * size * size;
    T sum_start = 0, sum_end = 0;
    for (int64_t index = threadIdx.x; index < size * size; index += kThreads) {
      const int64_t i = index / size, j = index % size;
      if (j < i) {
        continue;
      }
      const Interval<T> cell = map_cell<T>(i, j, size);
      T by_start, by_end;
      interval_iou_gradient<false>(span.start, span.end, cell.start, cell.end, by_start, by_end);
      const T g = static_cast<T>(map[index]);
      sum_start += g * by_start;
      sum_end += g * by_end;
    }
    sum_start = block_sum(sum_start);
    sum_end = block_sum(sum_end);
    if (threadIdx.x == 0) {
      grad_spans[2 * row] = static_cast<scalar_t>(sum_start);
      grad_spans[2 * row + 1] = static_cast<scalar_t>(sum_end);
    }
  }
}

Tensor temporal_iou_map(const Tensor& spans_in, int64_t T) {
  check_sizes("temporal_iou_map", "spans", spans_in, {-1, -1, 2});
  STD_TORCH_CHECK(0 <= T && T < (int64_t{1} << 24), "temporal_iou_map: T is ", T, "; it must be from 0 to 2^24 - 1");
  const torch::stable::accelerator::DeviceGuard guard(spans_in.get_device_index());
  const Tensor spans = torch::stable::contiguous(spans_in);
  const int64_t total = spans.size(0) * spans.size(1) * T * T;
  Tensor out = torch::stable::new_empty(spans, {spans.size(0), spans.size(1), T, T});
  if (total > 0) {
    dispatch_floating("temporal_iou_map", spans.scalar_type(), [&]<typename scalar_t>() {
      iou_map<<<blocks_for(total), kThreads, 0, current_stream(spans)>>>(read<scalar_t>(spans), write<scalar_t>(out),
                                                                         total, T);
      check_launch("temporal_iou_map");
    });
  }
  return out;
}

Tensor temporal_iou_map_backward(const Tensor& grad_in, const Tensor& spans_in) {
  const int64_t count = spans_in.size(0) * spans_in.size(1), T = grad_in.size(3);
  check_sizes("temporal_iou_map_backward", "grad", grad_in, {spans_in.size(0), spans_in.size(1), T, T});
  check_dtype("temporal_iou_map_backward", "grad", grad_in, spans_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(spans_in.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_in), spans = torch::stable::contiguous(spans_in);
  Tensor grad_spans = torch::stable::empty_like(spans);
  if (count > 0) {
    dispatch_floating("temporal_iou_map_backward", spans.scalar_type(), [&]<typename scalar_t>() {
      iou_map_backward<<<blocks_for(count * kThreads), kThreads, 0, current_stream(spans)>>>(
          read<scalar_t>(grad), read<scalar_t>(spans), write<scalar_t>(grad_spans), count, T);
      check_launch("temporal_iou_map_backward");
    });
  }
  return grad_spans;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_iou_map", TORCH_BOX(&temporal_iou_map));
  m.impl("temporal_iou_map_backward", TORCH_BOX(&temporal_iou_map_backward));
}

}  // namespace vpgfast
