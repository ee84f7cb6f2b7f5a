// temporal_map_max_pool on CUDA. See vpgfast/ops/temporal_map_max_pool.py for what it computes.

#include <cassert>

#include "cuda/launch.h"

namespace vpgfast {
namespace {

template <typename T>
__device__ __forceinline__ bool beats(T later, T earlier) {
  return later > earlier || later != later;  // torch's MaxPool1d: the first maximum on ties, the last NaN
}

template <typename scalar_t, int kWidth>
struct alignas(sizeof(scalar_t) * kWidth) Pack {
  scalar_t value[kWidth];
};

// A thread owns kWidth neighbouring columns of one channel's map and writes them from the last row up:
// out[i, j] = max(x[i], out[i + 1, j]) needs nothing but its own registers, and each cell is written once, coalesced.
template <typename scalar_t, int kWidth>
__global__ void max_pool_columns(const scalar_t* x, scalar_t* out, int64_t channels, int64_t T) {
  using compute = accumulate_t<scalar_t>;
  const int64_t groups = T / kWidth;
  for (int64_t index = first_index(); index < channels * groups; index += index_stride()) {
    const int64_t channel = index / groups, first = index % groups * kWidth;
    const scalar_t* values = x + channel * T;
    compute largest[kWidth] = {};
    for (int64_t i = T - 1; i >= 0; --i) {
      const compute value = static_cast<compute>(values[i]);
      Pack<scalar_t, kWidth> cells;
#pragma unroll
      for (int w = 0; w < kWidth; ++w) {
        const int64_t j = first + w;
        // `value` is the earlier clip: it takes over unless the later ones beat it.
        largest[w] = i == j || (i < j && !beats(largest[w], value)) ? value : largest[w];
        cells.value[w] = static_cast<scalar_t>(i <= j ? largest[w] : compute{0});
      }
      *reinterpret_cast<Pack<scalar_t, kWidth>*>(out + (channel * T + i) * T + first) = cells;
    }
  }
}

// Clip k is the maximum of exactly the cells (i, j) with left < i <= k <= j < right, where `left` is the nearest
// earlier clip that k does not beat and `right` the nearest later clip that beats k. A warp sums that rectangle: each
// cell's gradient is read once, there are no atomics, and the order of the sum is fixed.
template <typename scalar_t>
__global__ void max_pool_columns_backward(const scalar_t* grad, const scalar_t* x, scalar_t* grad_x, int64_t channels,
                                          int64_t T) {
  using compute = accumulate_t<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t index = first_index() / kWarp; index < channels * T; index += index_stride() / kWarp) {
    const int64_t channel = index / T, k = index % T;
    const scalar_t* values = x + channel * T;
    const compute own = static_cast<compute>(values[k]);

    int64_t right = T;
    for (int64_t first = k + 1; first < T && right == T; first += kWarp) {
      const int64_t j = first + lane;
      const unsigned found = __ballot_sync(0xffffffffu, j < T && beats(static_cast<compute>(values[j]), own));
      right = found ? first + __ffs(found) - 1 : T;
    }
    int64_t left = -1;
    for (int64_t last = k - 1; last >= 0 && left == -1; last -= kWarp) {
      const int64_t i = last - lane;
      const unsigned found = __ballot_sync(0xffffffffu, i >= 0 && !beats(own, static_cast<compute>(values[i])));
      left = found ? last - (__ffs(found) - 1) : -1;
    }

    const int64_t width = right - k, cells = (k - left) * width;
    const scalar_t* map = grad + channel * T * T;
    compute sum = 0;
    for (int64_t cell = lane; cell < cells; cell += kWarp) {
      sum += static_cast<compute>(map[(left + 1 + cell / width) * T + k + cell % width]);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      grad_x[channel * T + k] = static_cast<scalar_t>(sum);
    }
  }
}

template <typename scalar_t>
__device__ int64_t span_argmax(const scalar_t* values, const int64_t* spans, int64_t p, int64_t T) {
  using compute = accumulate_t<scalar_t>;
  const int64_t first = spans[2 * p], last = spans[2 * p + 1];
  assert(0 <= first && first <= last && last < T && "vpgfast: a span must lie within the video, first <= last");
  int64_t best = first;
  for (int64_t t = first + 1; t <= last; ++t) {
    best = beats(static_cast<compute>(values[t]), static_cast<compute>(values[best])) ? t : best;
  }
  return best;
}

template <typename scalar_t>
__global__ void max_pool_spans(const scalar_t* x, const int64_t* spans, scalar_t* out, int64_t channels, int64_t T,
                               int64_t count) {
  for (int64_t index = first_index(); index < channels * count; index += index_stride()) {
    const scalar_t* values = x + index / count * T;
    out[index] = values[span_argmax(values, spans, index % count, T)];
  }
}

template <typename scalar_t>
__global__ void max_pool_spans_backward(const scalar_t* grad, const scalar_t* x, const int64_t* spans,
                                        accumulate_t<scalar_t>* sums, int64_t channels, int64_t T, int64_t count) {
  for (int64_t index = first_index(); index < channels * count; index += index_stride()) {
    const int64_t channel = index / count;
    const int64_t best = span_argmax(x + channel * T, spans, index % count, T);
    atomicAdd(sums + channel * T + best, static_cast<accumulate_t<scalar_t>>(grad[index]));
  }
}

// The same without atomics: one thread adds a channel's spans in their order.
template <typename scalar_t>
__global__ void max_pool_spans_backward_in_order(const scalar_t* grad, const scalar_t* x, const int64_t* spans,
                                                 accumulate_t<scalar_t>* sums, int64_t channels, int64_t T,
                                                 int64_t count) {
  for (int64_t channel = first_index(); channel < channels; channel += index_stride()) {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t best = span_argmax(x + channel * T, spans, p, T);
      sums[channel * T + best] += static_cast<accumulate_t<scalar_t>>(grad[channel * count + p]);
    }
  }
}

template <typename scalar_t>
__global__ void cast(const accumulate_t<scalar_t>* from, scalar_t* to, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    to[index] = static_cast<scalar_t>(from[index]);
  }
}

Tensor temporal_map_max_pool(const Tensor& x_in) {
  check_sizes("temporal_map_max_pool", "x", x_in, {-1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t channels = x.size(0) * x.size(1), T = x.size(2);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), T, T});
  if (channels * T == 0) {
    return out;
  }
  dispatch_floating("temporal_map_max_pool", x.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidest = 16 / sizeof(scalar_t);
    const auto* from = read<scalar_t>(x);
    auto* to = write<scalar_t>(out);
    const cudaStream_t stream = current_stream(x);
    if (T % kWidest == 0) {
      const unsigned blocks = blocks_for(channels * T / kWidest);
      max_pool_columns<scalar_t, kWidest><<<blocks, kThreads, 0, stream>>>(from, to, channels, T);
    } else {
      max_pool_columns<scalar_t, 1><<<blocks_for(channels * T), kThreads, 0, stream>>>(from, to, channels, T);
    }
    check_launch("temporal_map_max_pool");
  });
  return out;
}

Tensor temporal_map_max_pool_backward(const Tensor& grad_in, const Tensor& x_in) {
  const int64_t channels = x_in.size(0) * x_in.size(1), T = x_in.size(2);
  check_sizes("temporal_map_max_pool_backward", "grad", grad_in, {x_in.size(0), x_in.size(1), T, T});
  check_dtype("temporal_map_max_pool_backward", "grad", grad_in, x_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in), grad = torch::stable::contiguous(grad_in);
  Tensor grad_x = torch::stable::empty_like(x);
  if (channels * T == 0) {
    return grad_x;
  }
  dispatch_floating("temporal_map_max_pool_backward", x.scalar_type(), [&]<typename scalar_t>() {
    max_pool_columns_backward<scalar_t><<<blocks_for(channels * T * kWarp), kThreads, 0, current_stream(x)>>>(
        read<scalar_t>(grad), read<scalar_t>(x), write<scalar_t>(grad_x), channels, T);
    check_launch("temporal_map_max_pool_backward");
  });
  return grad_x;
}

void check_spans(const Tensor& spans) {
  check_sizes("temporal_map_max_pool", "spans", spans, {-1, 2});
  check_dtype("temporal_map_max_pool", "spans", spans, ScalarType::Long);
}

Tensor temporal_map_max_pool_spans(const Tensor& x_in, const Tensor& spans_in) {
  check_sizes("temporal_map_max_pool", "x", x_in, {-1, -1, -1});
  check_spans(spans_in);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in), spans = torch::stable::contiguous(spans_in);
  const int64_t channels = x.size(0) * x.size(1), T = x.size(2), count = spans.size(0);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), count});
  if (channels * count == 0) {
    return out;
  }
  dispatch_floating("temporal_map_max_pool", x.scalar_type(), [&]<typename scalar_t>() {
    max_pool_spans<scalar_t><<<blocks_for(channels * count), kThreads, 0, current_stream(x)>>>(
        read<scalar_t>(x), read<int64_t>(spans), write<scalar_t>(out), channels, T, count);
    check_launch("temporal_map_max_pool");
  });
  return out;
}

Tensor temporal_map_max_pool_spans_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& spans_in,
                                            bool deterministic) {
  const int64_t channels = x_in.size(0) * x_in.size(1), T = x_in.size(2), count = spans_in.size(0);
  check_spans(spans_in);
  check_sizes("temporal_map_max_pool_backward", "grad", grad_in, {x_in.size(0), x_in.size(1), count});
  check_dtype("temporal_map_max_pool_backward", "grad", grad_in, x_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in), grad = torch::stable::contiguous(grad_in);
  const Tensor spans = torch::stable::contiguous(spans_in);
  const auto accumulate = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sums = torch::stable::new_zeros(x, {x.size(0), x.size(1), T}, accumulate);
  Tensor grad_x = torch::stable::empty_like(x);
  if (channels * T == 0) {
    return grad_x;
  }
  dispatch_floating("temporal_map_max_pool_backward", x.scalar_type(), [&]<typename scalar_t>() {
    const cudaStream_t stream = current_stream(x);
    const auto* dy = read<scalar_t>(grad);
    const auto* from = read<scalar_t>(x);
    const auto* ends = read<int64_t>(spans);
    auto* sum = write<accumulate_t<scalar_t>>(sums);
    if (deterministic) {
      max_pool_spans_backward_in_order<scalar_t>
          <<<blocks_for(channels), kThreads, 0, stream>>>(dy, from, ends, sum, channels, T, count);
    } else if (count > 0) {
      max_pool_spans_backward<scalar_t>
          <<<blocks_for(channels * count), kThreads, 0, stream>>>(dy, from, ends, sum, channels, T, count);
    }
    cast<scalar_t><<<blocks_for(channels * T), kThreads, 0, stream>>>(sum, write<scalar_t>(grad_x), channels * T);
    check_launch("temporal_map_max_pool_backward");
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_map_max_pool", TORCH_BOX(&temporal_map_max_pool));
  m.impl("temporal_map_max_pool_backward", TORCH_BOX(&temporal_map_max_pool_backward));
  m.impl("temporal_map_max_pool_spans", TORCH_BOX(&temporal_map_max_pool_spans));
  m.impl("temporal_map_max_pool_spans_backward", TORCH_BOX(&temporal_map_max_pool_spans_backward));
}

}  // namespace vpgfast
