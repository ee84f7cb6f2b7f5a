// temporal_iou_map on CUDA. See vpgfast/ops/temporal_iou_map.py for what it computes.

#include "cuda/intervals_cuda.h"
#include "cuda/map_blocks.h"

namespace vpgfast::temporal_iou_map_cuda {
namespace {

constexpr int kRows = 2;  // of a map, that a thread has cells of

// A thread's cells are 16 bytes of a row, stored together where rows begin at multiples of that (kPacked).
template <typename scalar_t, int kWidth, bool kPacked>
__global__ void __launch_bounds__(kThreads, 4)
    iou_map(const scalar_t* __restrict__ spans, scalar_t* __restrict__ out, MapBlocks blocks) {
  using T = accumulate_t<scalar_t>;
  const int size = blocks.T;
  for (int64_t group = blockIdx.y; group < blocks.groups(); group += gridDim.y) {
    const int64_t map = blocks.map_of(group);
    if (map >= blocks.maps) {
      return;
    }
    const Interval<T> span = read_interval<T>(spans, map);
    for (int j = blocks.x() * kWidth; j < size; j += kWidth << blocks.log_x) {
      T ends[kWidth];
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        ends[c] = map_cell<T>(0, j + c, size).end;
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int i = ((static_cast<int>(blockIdx.x) * kRows + k) << blocks.log_y) + blocks.y();
        if (i >= size) {
          break;
        }
        Pack<scalar_t, kWidth> cells = {};
        if (j + kWidth > i) {
          const T start = map_cell<T>(i, 0, size).start;
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            const T iou = interval_iou<false>(start, ends[c], span.start, span.end);
            cells.value[c] = static_cast<scalar_t>(j + c < i ? T{0} : iou);
          }
        }
        scalar_t* to = out + (map * size + i) * size + j;
        if constexpr (kPacked) {
          *reinterpret_cast<Pack<scalar_t, kWidth>*>(to) = cells;
        } else {
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            if (j + c < size) {
              to[c] = cells.value[c];
            }
          }
        }
      }
    }
  }
}

// One block a span, whose threads lie on its map as above.
template <typename scalar_t, int kWidth, bool kPacked>
__global__ void __launch_bounds__(kThreads, 4)
    iou_map_backward(const scalar_t* grad, const scalar_t* spans, scalar_t* grad_spans, int64_t count, int size,
                     int log_x) {
  using T = accumulate_t<scalar_t>;
  const int x = static_cast<int>(threadIdx.x) & ((1 << log_x) - 1), y = static_cast<int>(threadIdx.x) >> log_x;
  for (int64_t row = blockIdx.x; row < count; row += gridDim.x) {
    const Interval<T> span = read_interval<T>(spans, row);
    T sum_start = 0, sum_end = 0;
    for (int i = y; i < size; i += kThreads >> log_x) {
      const scalar_t* from = grad + (row * size + i) * size;
      for (int j = x * kWidth; j < size; j += kWidth << log_x) {
        if (j + kWidth <= i) {
          continue;
        }
        Pack<scalar_t, kWidth> cells = {};
        if constexpr (kPacked) {
          cells = *reinterpret_cast<const Pack<scalar_t, kWidth>*>(from + j);
        } else {
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            if (j + c < size) {
              cells.value[c] = from[j + c];
            }
          }
        }
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          if (i <= j + c && j + c < size) {
            const Interval<T> cell = map_cell<T>(i, j + c, size);
            T by_start, by_end;
            interval_iou_gradient<false>(span.start, span.end, cell.start, cell.end, by_start, by_end);
            const T g = static_cast<T>(cells.value[c]);
            sum_start += g * by_start;
            sum_end += g * by_end;
          }
        }
      }
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
  Tensor out = torch::stable::new_empty(spans, {spans.size(0), spans.size(1), T, T});
  if (out.numel() == 0) {
    return out;
  }
  dispatch_floating("temporal_iou_map", spans.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidth = 16 / sizeof(scalar_t);
    const MapBlocks blocks(spans.size(0) * spans.size(1), T, kWidth, kRows);
    const cudaStream_t stream = current_stream(spans);
    const auto* from = read<scalar_t>(spans);
    auto* to = write<scalar_t>(out);
    if (T % kWidth == 0 && is_aligned(to)) {
      iou_map<scalar_t, kWidth, true><<<blocks.grid(), kThreads, 0, stream>>>(from, to, blocks);
    } else {
      iou_map<scalar_t, kWidth, false><<<blocks.grid(), kThreads, 0, stream>>>(from, to, blocks);
    }
    check_launch("temporal_iou_map");
  });
  return out;
}

Tensor temporal_iou_map_backward(const Tensor& grad_in, const Tensor& spans_in) {
  const int64_t count = spans_in.size(0) * spans_in.size(1), T = grad_in.size(3);
  check_sizes("temporal_iou_map_backward", "grad", grad_in, {spans_in.size(0), spans_in.size(1), T, T});
  check_dtype("temporal_iou_map_backward", "grad", grad_in, spans_in.scalar_type());
  STD_TORCH_CHECK(T < (int64_t{1} << 24), "temporal_iou_map: T is ", T, "; it must be from 0 to 2^24 - 1");
  const torch::stable::accelerator::DeviceGuard guard(spans_in.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_in), spans = torch::stable::contiguous(spans_in);
  Tensor grad_spans = torch::stable::empty_like(spans);
  if (count == 0) {
    return grad_spans;
  }
  dispatch_floating("temporal_iou_map_backward", spans.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidth = 16 / sizeof(scalar_t);
    const int log_x = MapBlocks(count, T, kWidth, 1).log_x, size = static_cast<int>(T);
    const cudaStream_t stream = current_stream(spans);
    const auto *dy = read<scalar_t>(grad), *from = read<scalar_t>(spans);
    auto* to = write<scalar_t>(grad_spans);
    const unsigned blocks = blocks_for(count * kThreads);
    if (T % kWidth == 0 && is_aligned(dy)) {
      iou_map_backward<scalar_t, kWidth, true><<<blocks, kThreads, 0, stream>>>(dy, from, to, count, size, log_x);
    } else {
      iou_map_backward<scalar_t, kWidth, false><<<blocks, kThreads, 0, stream>>>(dy, from, to, count, size, log_x);
    }
    check_launch("temporal_iou_map_backward");
  });
  return grad_spans;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_iou_map", TORCH_BOX(&temporal_iou_map));
  m.impl("temporal_iou_map_backward", TORCH_BOX(&temporal_iou_map_backward));
}

}  // namespace vpgfast::temporal_iou_map_cuda
