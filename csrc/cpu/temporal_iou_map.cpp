// temporal_iou_map on the CPU. See vpgfast/ops/temporal_iou_map.py for what it computes.

#include <algorithm>

#include "cpu/intervals_cpu.h"

namespace vpgfast {
namespace {

constexpr int64_t kCellsPerTask = 1 << 14;

template <typename T, typename scalar_t>
void iou_map(T start, T end, scalar_t* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const T cell_start = static_cast<T>(i) / static_cast<T>(size);
    scalar_t* row = out + i * size;
    for (int64_t j = 0; j < size; ++j) {
      const T cell_end = static_cast<T>(static_cast<int32_t>(j + 1)) / static_cast<T>(size);
      const T iou = interval_iou<false>(cell_start, cell_end, start, end);
      row[j] = static_cast<scalar_t>(j < i ? T{0} : iou);
    }
  }
}

template <typename T, typename scalar_t>
void iou_map_backward(T start, T end, const scalar_t* grad, scalar_t* grad_pair, int64_t size) {
  T sum_start = 0, sum_end = 0;
  for (int64_t i = 0; i < size; ++i) {
    const T cell_start = static_cast<T>(i) / static_cast<T>(size);
    const scalar_t* row = grad + i * size;
#pragma omp simd reduction(+ : sum_start, sum_end)
    for (int64_t j = i; j < size; ++j) {
      const T cell_end = static_cast<T>(static_cast<int32_t>(j + 1)) / static_cast<T>(size);
      T by_start, by_end;
      interval_iou_gradient<false>(start, end, cell_start, cell_end, by_start, by_end);
      const T g = static_cast<T>(row[j]);
      sum_start += g * by_start;
      sum_end += g * by_end;
    }
  }
  grad_pair[0] = static_cast<scalar_t>(sum_start);
  grad_pair[1] = static_cast<scalar_t>(sum_end);
}

Tensor temporal_iou_map(const Tensor& spans_in, int64_t T) {
  check_sizes("temporal_iou_map", "spans", spans_in, {-1, -1, 2});
  STD_TORCH_CHECK(0 <= T && T < (int64_t{1} << 24), "temporal_iou_map: T is ", T, "; it must be from 0 to 2^24 - 1");
  const Tensor spans = torch::stable::contiguous(spans_in);
  const int64_t count = spans.size(0) * spans.size(1);
  Tensor out = torch::stable::new_empty(spans, {spans.size(0), spans.size(1), T, T});
  dispatch_floating("temporal_iou_map", spans.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const auto* from = read<scalar_t>(spans);
    auto* to = write<scalar_t>(out);
    check_intervals("temporal_iou_map", "spans", from, count);
    const int64_t grain = std::max<int64_t>(1, kCellsPerTask / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        iou_map(static_cast<compute>(from[2 * r]), static_cast<compute>(from[2 * r + 1]), to + r * T * T, T);
      }
    });
  });
  return out;
}

Tensor temporal_iou_map_backward(const Tensor& grad_in, const Tensor& spans_in) {
  const int64_t count = spans_in.size(0) * spans_in.size(1), T = grad_in.size(3);
  check_sizes("temporal_iou_map_backward", "grad", grad_in, {spans_in.size(0), spans_in.size(1), T, T});
  check_dtype("temporal_iou_map_backward", "grad", grad_in, spans_in.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in), spans = torch::stable::contiguous(spans_in);
  Tensor grad_spans = torch::stable::empty_like(spans);
  dispatch_floating("temporal_iou_map_backward", spans.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const auto* from = read<scalar_t>(spans);
    const auto* g = read<scalar_t>(grad);
    auto* to = write<scalar_t>(grad_spans);
    const int64_t grain = std::max<int64_t>(1, kCellsPerTask / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        iou_map_backward(static_cast<compute>(from[2 * r]), static_cast<compute>(from[2 * r + 1]), g + r * T * T,
                         to + 2 * r, T);
      }
    });
  });
  return grad_spans;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_iou_map", TORCH_BOX(&temporal_iou_map));
  m.impl("temporal_iou_map_backward", TORCH_BOX(&temporal_iou_map_backward));
}

}  // namespace vpgfast
