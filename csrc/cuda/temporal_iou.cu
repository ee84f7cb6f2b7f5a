// temporal_iou and temporal_giou on CUDA. See vpgfast/ops/temporal_iou.py for what they compute.

#include <climits>

#include "cuda/intervals_cuda.h"

namespace vpgfast {
namespace {

// One thread an output: pair (n, m) of list l, or with M = 0 the element-wise form, interval n of a with interval n of
// b. Where `total` is below 2^31, index_t has 32 bits: three divisions are most of the work.
template <bool generalized, typename index_t, typename scalar_t>
__global__ void iou(const scalar_t* a, const scalar_t* b, scalar_t* out, index_t total, index_t N, index_t M) {
  using T = accumulate_t<scalar_t>;
  for (auto index = static_cast<index_t>(first_index()); index < total; index += static_cast<index_t>(index_stride())) {
    const index_t row = M == 0 ? index : index / M;
    const index_t other = M == 0 ? index : row / N * M + index % M;
    const Interval<T> x = read_interval<T>(a, row), y = read_interval<T>(b, other);
    out[index] = static_cast<scalar_t>(interval_iou<generalized>(x.start, x.end, y.start, y.end));
  }
}

constexpr int kRows = 8;                 // of a, of a block of `iou_rows`
constexpr int kPack = 4;                 // of b, of a thread
constexpr int64_t kBlocksWanted = 1056;  // that keep a large GPU busy

// As `iou`, of lists in which b has many intervals: a thread keeps its four of them for eight of a, and writes the four
// results side by side at once where they lie so (aligned).
template <bool generalized, bool aligned, typename scalar_t>
__global__ void iou_rows(const scalar_t* a, const scalar_t* b, scalar_t* out, int64_t tiles, int64_t N, int M) {
  using T = accumulate_t<scalar_t>;
  const int m = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * kPack, held = min(kPack, M - m);
  if (held <= 0) {
    return;
  }
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t of_list = (N + kRows - 1) / kRows, list = tile / of_list, n0 = (tile - list * of_list) * kRows;
    Interval<T> y[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      y[k] = read_interval<T>(b, list * M + m + (k < held ? k : 0));
    }
    for (int64_t n = n0; n < min(N, n0 + kRows); ++n) {
      const int64_t row = list * N + n;
      const Interval<T> x = read_interval<T>(a, row);
      Pack<scalar_t, kPack> results;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        results.value[k] = static_cast<scalar_t>(interval_iou<generalized>(x.start, x.end, y[k].start, y[k].end));
      }
      if constexpr (aligned) {
        *reinterpret_cast<Pack<scalar_t, kPack>*>(out + row * M + m) = results;
      } else {
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          if (k < held) {
            out[row * M + m + k] = results.value[k];
          }
        }
      }
    }
  }
}

// Shares of the gradient of b, where it has many intervals: a lane has one of them, and the warps of the blocks of one
// column of the grid take turns at those of a; sums [parts, L * M, 2]. Neighbouring lanes read what lies side by side.
template <bool generalized, typename scalar_t>
__global__ void iou_backward_columns(const scalar_t* grad, const scalar_t* a, const scalar_t* b,
                                     accumulate_t<scalar_t>* sums, int64_t L, int64_t N, int64_t M) {
  using T = accumulate_t<scalar_t>;
  __shared__ T of_warp[kThreads / kWarp][kWarp][2];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = kThreads / kWarp;
  const int64_t columns = (M + kWarp - 1) / kWarp;
  for (int64_t tile = blockIdx.x; tile < L * columns; tile += gridDim.x) {
    const int64_t list = tile / columns, m = (tile - list * columns) * kWarp + lane;
    T by_start = 0, by_end = 0;
    if (m < M) {
      const Interval<T> y = read_interval<T>(b, list * M + m);
      for (int64_t n = static_cast<int64_t>(blockIdx.y) * warps + warp; n < N; n += int64_t{gridDim.y} * warps) {
        const Interval<T> x = read_interval<T>(a, list * N + n);
        T start, end;
        interval_iou_gradient<generalized>(y.start, y.end, x.start, x.end, start, end);
        const T g = static_cast<T>(grad[(list * N + n) * M + m]);
        by_start += g * start;
        by_end += g * end;
      }
    }
    of_warp[warp][lane][0] = by_start;
    of_warp[warp][lane][1] = by_end;
    __syncthreads();
    if (warp < 2 && m < M) {
      T sum = 0;
      for (int k = 0; k < warps; ++k) {
        sum += of_warp[k][lane][warp];
      }
      sums[((blockIdx.y * L + list) * M + m) * 2 + warp] = sum;
    }
    __syncthreads();  // before another tile's shares come
  }
}

template <typename scalar_t>
__global__ void add_parts(const accumulate_t<scalar_t>* sums, scalar_t* to, int64_t count, int parts) {
  for (int64_t k = first_index(); k < count; k += index_stride()) {
    accumulate_t<scalar_t> sum = 0;
    for (int part = 0; part < parts; ++part) {
      sum += sums[part * count + k];
    }
    to[k] = static_cast<scalar_t>(sum);
  }
}

// Gradient of interval `row` of `own` against its list's `count` intervals of `other`: one warp a row, its lanes along
// the list, so that the order of the sum is fixed. grad of pair (row, k) lies at `first + k * stride`.
template <bool generalized, typename scalar_t>
__global__ void iou_backward(const scalar_t* grad, const scalar_t* own, const scalar_t* other, scalar_t* grad_own,
                             int64_t rows, int64_t per_list, int64_t count, bool transposed) {
  using T = accumulate_t<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_index() / kWarp; row < rows; row += index_stride() / kWarp) {
    const int64_t list = row / per_list;
    const int64_t first = transposed ? list * per_list * count + row % per_list : row * count;
    const int64_t stride = transposed ? per_list : 1;
    const Interval<T> x = read_interval<T>(own, row);
    T sum_start = 0, sum_end = 0;
    for (int64_t k = lane; k < count; k += kWarp) {
      const Interval<T> y = read_interval<T>(other, list * count + k);
      T by_start, by_end;
      interval_iou_gradient<generalized>(x.start, x.end, y.start, y.end, by_start, by_end);
      const T g = static_cast<T>(grad[first + k * stride]);
      sum_start += g * by_start;
      sum_end += g * by_end;
    }
    sum_start = warp_sum(sum_start);
    sum_end = warp_sum(sum_end);
    if (lane == 0) {
      grad_own[2 * row] = static_cast<scalar_t>(sum_start);
      grad_own[2 * row + 1] = static_cast<scalar_t>(sum_end);
    }
  }
}

template <bool generalized, typename scalar_t>
__global__ void iou_elementwise_backward(const scalar_t* grad, const scalar_t* a, const scalar_t* b, scalar_t* grad_a,
                                         scalar_t* grad_b, int64_t count) {
  using T = accumulate_t<scalar_t>;
  for (int64_t k = first_index(); k < count; k += index_stride()) {
    const Interval<T> x = read_interval<T>(a, k), y = read_interval<T>(b, k);
    const T g = static_cast<T>(grad[k]);
    T by_start, by_end;
    interval_iou_gradient<generalized>(x.start, x.end, y.start, y.end, by_start, by_end);
    grad_a[2 * k] = static_cast<scalar_t>(g * by_start);
    grad_a[2 * k + 1] = static_cast<scalar_t>(g * by_end);
    interval_iou_gradient<generalized>(y.start, y.end, x.start, x.end, by_start, by_end);
    grad_b[2 * k] = static_cast<scalar_t>(g * by_start);
    grad_b[2 * k + 1] = static_cast<scalar_t>(g * by_end);
  }
}

template <typename F>
void dispatch(const char* op, const Tensor& like, bool generalized, F&& f) {
  dispatch_floating(op, like.scalar_type(), [&]<typename scalar_t>() {
    generalized ? f.template operator()<scalar_t, true>() : f.template operator()<scalar_t, false>();
    check_launch(op);
  });
}

Tensor temporal_iou(const Tensor& a_in, const Tensor& b_in, bool generalized) {
  check_sizes("temporal_iou", "a", a_in, {-1, -1, 2});
  check_sizes("temporal_iou", "b", b_in, {a_in.size(0), -1, 2});
  check_dtype("temporal_iou", "b", b_in, a_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t L = a.size(0), N = a.size(1), M = b.size(1), total = L * N * M;
  Tensor out = torch::stable::new_empty(a, {L, N, M});
  if (total > 0) {
    dispatch("temporal_iou", a, generalized, [&]<typename scalar_t, bool general>() {
      const cudaStream_t stream = current_stream(a);
      const auto *pa = read<scalar_t>(a), *pb = read<scalar_t>(b);
      auto* to = write<scalar_t>(out);
      if (M >= kWarp && M <= int64_t{65535} * kPack * kThreads) {
        const int threads = static_cast<int>(std::min<int64_t>(kThreads, ((M + kPack - 1) / kPack + 31) / 32 * 32));
        const int64_t tiles = L * ((N + kRows - 1) / kRows), of_block = int64_t{threads} * kPack;
        const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(tiles, INT_MAX)),
                          static_cast<unsigned>((M + of_block - 1) / of_block));
        if (M % kPack == 0 && is_aligned(to)) {
          iou_rows<general, true><<<blocks, threads, 0, stream>>>(pa, pb, to, tiles, N, static_cast<int>(M));
        } else {
          iou_rows<general, false><<<blocks, threads, 0, stream>>>(pa, pb, to, tiles, N, static_cast<int>(M));
        }
      } else if (total < int64_t{1} << 31) {
        iou<general, uint32_t><<<blocks_for(total), kThreads, 0, stream>>>(
            pa, pb, to, static_cast<uint32_t>(total), static_cast<uint32_t>(N), static_cast<uint32_t>(M));
      } else {
        iou<general, int64_t><<<blocks_for(total), kThreads, 0, stream>>>(pa, pb, to, total, N, M);
      }
    });
  }
  return out;
}

std::tuple<Tensor, Tensor> temporal_iou_backward(const Tensor& grad_in, const Tensor& a_in, const Tensor& b_in,
                                                 bool generalized) {
  check_sizes("temporal_iou_backward", "a", a_in, {-1, -1, 2});
  check_sizes("temporal_iou_backward", "b", b_in, {a_in.size(0), -1, 2});
  check_sizes("temporal_iou_backward", "grad", grad_in, {a_in.size(0), a_in.size(1), b_in.size(1)});
  check_dtype("temporal_iou_backward", "b", b_in, a_in.scalar_type());
  check_dtype("temporal_iou_backward", "grad", grad_in, a_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_in);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t L = a.size(0), N = a.size(1), M = b.size(1);
  Tensor grad_a = torch::stable::empty_like(a), grad_b = torch::stable::empty_like(b);
  dispatch("temporal_iou_backward", a, generalized, [&]<typename scalar_t, bool general>() {
    const cudaStream_t stream = current_stream(a);
    const auto *g = read<scalar_t>(grad), *pa = read<scalar_t>(a), *pb = read<scalar_t>(b);
    if (L * N > 0) {
      iou_backward<general>
          <<<blocks_for(L * N * kWarp), kThreads, 0, stream>>>(g, pa, pb, write<scalar_t>(grad_a), L * N, N, M, false);
    }
    if (L * N > 0 && M >= kWarp) {
      const int64_t tiles = L * ((M + kWarp - 1) / kWarp);
      const int parts = static_cast<int>(std::clamp<int64_t>(std::min(N / kThreads, kBlocksWanted / tiles), 1, 1024));
      const Tensor sums = torch::stable::new_empty(a, {parts, L, M, 2}, accumulate_dtype(a));
      using T = accumulate_t<scalar_t>;
      const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(tiles, INT_MAX)), static_cast<unsigned>(parts));
      iou_backward_columns<general><<<blocks, kThreads, 0, stream>>>(g, pa, pb, write<T>(sums), L, N, M);
      add_parts<scalar_t>
          <<<blocks_for(2 * L * M), kThreads, 0, stream>>>(read<T>(sums), write<scalar_t>(grad_b), 2 * L * M, parts);
    } else if (L * M > 0) {
      iou_backward<general>
          <<<blocks_for(L * M * kWarp), kThreads, 0, stream>>>(g, pb, pa, write<scalar_t>(grad_b), L * M, M, N, true);
    }
  });
  return {grad_a, grad_b};
}

Tensor temporal_iou_elementwise(const Tensor& a_in, const Tensor& b_in, bool generalized) {
  check_sizes("temporal_iou", "a", a_in, {-1, 2});
  check_sizes("temporal_iou", "b", b_in, {a_in.size(0), 2});
  check_dtype("temporal_iou", "b", b_in, a_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t N = a.size(0);
  Tensor out = torch::stable::new_empty(a, {N});
  if (N > 0) {
    dispatch("temporal_iou", a, generalized, [&]<typename scalar_t, bool general>() {
      iou<general, int64_t><<<blocks_for(N), kThreads, 0, current_stream(a)>>>(read<scalar_t>(a), read<scalar_t>(b),
                                                                               write<scalar_t>(out), N, N, int64_t{0});
    });
  }
  return out;
}

std::tuple<Tensor, Tensor> temporal_iou_elementwise_backward(const Tensor& grad_in, const Tensor& a_in,
                                                             const Tensor& b_in, bool generalized) {
  const int64_t N = a_in.size(0);
  check_sizes("temporal_iou_backward", "a", a_in, {N, 2});
  check_sizes("temporal_iou_backward", "b", b_in, {N, 2});
  check_sizes("temporal_iou_backward", "grad", grad_in, {N});
  check_dtype("temporal_iou_backward", "b", b_in, a_in.scalar_type());
  check_dtype("temporal_iou_backward", "grad", grad_in, a_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_in);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  Tensor grad_a = torch::stable::empty_like(a), grad_b = torch::stable::empty_like(b);
  if (N > 0) {
    dispatch("temporal_iou_backward", a, generalized, [&]<typename scalar_t, bool general>() {
      iou_elementwise_backward<general><<<blocks_for(N), kThreads, 0, current_stream(a)>>>(
          read<scalar_t>(grad), read<scalar_t>(a), read<scalar_t>(b), write<scalar_t>(grad_a), write<scalar_t>(grad_b),
          N);
    });
  }
  return {grad_a, grad_b};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_iou", TORCH_BOX(&temporal_iou));
  m.impl("temporal_iou_backward", TORCH_BOX(&temporal_iou_backward));
  m.impl("temporal_iou_elementwise", TORCH_BOX(&temporal_iou_elementwise));
  m.impl("temporal_iou_elementwise_backward", TORCH_BOX(&temporal_iou_elementwise_backward));
}

}  // namespace vpgfast
