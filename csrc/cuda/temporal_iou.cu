// temporal_iou and temporal_giou on CUDA. See vpgfast/ops/temporal_iou.py for what they compute.

#include <climits>

#include "cuda/intervals_cuda.h"

namespace vpgfast::temporal_iou_cuda {
namespace {

constexpr int kPack = 4;  // results of a thread, side by side

// Interval n of a with interval n of b.
template <bool generalized, typename scalar_t>
__global__ void iou_elementwise(const scalar_t* __restrict__ a, const scalar_t* __restrict__ b,
                                scalar_t* __restrict__ out, int64_t count) {
  using T = accumulate_t<scalar_t>;
  for (int64_t n = first_index(); n < count; n += index_stride()) {
    const Interval<T> x = read_interval<T>(a, n), y = read_interval<T>(b, n);
    out[n] = static_cast<scalar_t>(interval_iou<generalized>(x.start, x.end, y.start, y.end));
  }
}

// Of lists in which b has few intervals: pairs (list, n, m) in their order. Where `total` is below 2^31, index_t has 32
// bits: divisions are much of the work.
template <bool generalized, bool aligned, typename index_t, typename scalar_t>
__global__ void iou_few(const scalar_t* __restrict__ a, const scalar_t* __restrict__ b, scalar_t* __restrict__ out,
                        index_t total, index_t N, index_t M) {
  using T = accumulate_t<scalar_t>;
  const auto packs = static_cast<index_t>((total + kPack - 1) / kPack);
  for (auto pack = static_cast<index_t>(first_index()); pack < packs; pack += static_cast<index_t>(index_stride())) {
    const index_t first = pack * kPack;
    index_t row = first / M, m = first - row * M, list = row / N, n = row - list * N;
    Pack<scalar_t, kPack> results;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (aligned || first + k < total) {
        const Interval<T> x = read_interval<T>(a, row), y = read_interval<T>(b, list * M + m);
        results.value[k] = static_cast<scalar_t>(interval_iou<generalized>(x.start, x.end, y.start, y.end));
      }
      if (++m == M) {
        m = 0;
        ++row;
        if (++n == N) {
          n = 0;
          ++list;
        }
      }
    }
    if constexpr (aligned) {
      *reinterpret_cast<Pack<scalar_t, kPack>*>(out + first) = results;
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (first + k < total) {
          out[first + k] = results.value[k];
        }
      }
    }
  }
}

constexpr int kRows = 4;                 // of a, of a block of `iou_rows`
constexpr int64_t kBlocksWanted = 1056;  // that keep a large GPU busy

// Of lists in which b has many intervals: a thread keeps its four of them for four of a, and writes the four
// results side by side at once where they lie so (aligned).
template <bool generalized, bool aligned, typename scalar_t>
__global__ void iou_rows(const scalar_t* __restrict__ a, const scalar_t* __restrict__ b, scalar_t* __restrict__ out,
                         int64_t tiles, int64_t N, int M) {
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
    const int rows = static_cast<int>(min(int64_t{kRows}, N - n0));
    Interval<T> all[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      all[r] = read_interval<T>(a, list * N + n0 + (r < rows ? r : 0));
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) {
        break;
      }
      const int64_t row = list * N + n0 + r;
      const Interval<T> x = all[r];
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
__global__ void add_parts(const accumulate_t<scalar_t>* sums, scalar_t* to, int64_t count, int64_t parts) {
  for (int64_t k = first_index(); k < count; k += index_stride()) {
    accumulate_t<scalar_t> sum = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += sums[part * count + k];
    }
    to[k] = static_cast<scalar_t>(sum);
  }
}

// Gradient of a, whose list has `count` intervals of b: one warp an interval, its lanes along the list, so that the
// order of the sum is fixed.
template <bool generalized, typename scalar_t>
__global__ void iou_backward_rows(const scalar_t* __restrict__ grad, const scalar_t* __restrict__ a,
                                  const scalar_t* __restrict__ b, scalar_t* __restrict__ grad_a, int64_t rows,
                                  int64_t per_list, int64_t count) {
  using T = accumulate_t<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_index() / kWarp; row < rows; row += index_stride() / kWarp) {
    const int64_t list = row / per_list;
    const Interval<T> x = read_interval<T>(a, row);
    T sum_start = 0, sum_end = 0;
#pragma unroll 4
    for (int64_t k = lane; k < count; k += kWarp) {
      const Interval<T> y = read_interval<T>(b, list * count + k);
      T by_start, by_end;
      interval_iou_gradient<generalized>(x.start, x.end, y.start, y.end, by_start, by_end);
      const T g = static_cast<T>(grad[row * count + k]);
      sum_start += g * by_start;
      sum_end += g * by_end;
    }
    sum_start = warp_sum(sum_start);
    sum_end = warp_sum(sum_end);
    if (lane == 0) {
      grad_a[2 * row] = static_cast<scalar_t>(sum_start);
      grad_a[2 * row + 1] = static_cast<scalar_t>(sum_end);
    }
  }
}

// Both gradients, where b has few intervals: a thread has one of a, and walks over those of b. The block's threads add
// up what they have of b's; sums [tiles of a list, L, M, 2], a block's tile being as many of a as it has threads.
template <bool generalized, typename scalar_t>
__global__ void iou_backward_few(const scalar_t* __restrict__ grad, const scalar_t* __restrict__ a,
                                 const scalar_t* __restrict__ b, scalar_t* __restrict__ grad_a,
                                 accumulate_t<scalar_t>* __restrict__ sums, int64_t L, int64_t N, int M) {
  using T = accumulate_t<scalar_t>;
  __shared__ T of_warp[kWarps][kWarp][2];  // M is below kWarp
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int64_t of_list = (N + blockDim.x - 1) / blockDim.x;
  for (int64_t tile = blockIdx.x; tile < L * of_list; tile += gridDim.x) {
    const int64_t list = tile / of_list, n = (tile - list * of_list) * blockDim.x + threadIdx.x, row = list * N + n;
    const Interval<T> x = read_interval<T>(a, n < N ? row : list * N);
    T sum_start = 0, sum_end = 0;
    for (int m = 0; m < M; ++m) {
      const Interval<T> y = read_interval<T>(b, list * M + m);
      const T g = n < N ? static_cast<T>(grad[row * M + m]) : T{0};
      T by_start_a = 0, by_end_a = 0, by_start_b = 0, by_end_b = 0;
      if (n < N) {
        interval_iou_gradients<generalized>(x.start, x.end, y.start, y.end, by_start_a, by_end_a, by_start_b, by_end_b);
      }
      sum_start += g * by_start_a;
      sum_end += g * by_end_a;
      const T of_start = warp_sum(g * by_start_b), of_end = warp_sum(g * by_end_b);
      if (lane == 0) {
        of_warp[warp][m][0] = of_start;
        of_warp[warp][m][1] = of_end;
      }
    }
    if (n < N) {
      grad_a[2 * row] = static_cast<scalar_t>(sum_start);
      grad_a[2 * row + 1] = static_cast<scalar_t>(sum_end);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < 2 * M; k += blockDim.x) {
      T sum = 0;
      for (int w = 0; w < warps; ++w) {
        sum += of_warp[w][k / 2][k % 2];
      }
      sums[((tile - list * of_list) * L + list) * M * 2 + k] = sum;
    }
    __syncthreads();  // before another tile's shares come
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
      } else {
        const bool aligned = total % kPack == 0 && is_aligned(to);
        const unsigned blocks = blocks_for((total + kPack - 1) / kPack);
        const auto launch = [&]<bool whole, typename index_t>() {
          iou_few<general, whole, index_t><<<blocks, kThreads, 0, stream>>>(
              pa, pb, to, static_cast<index_t>(total), static_cast<index_t>(N), static_cast<index_t>(M));
        };
        if (total < int64_t{1} << 31) {
          aligned ? launch.template operator()<true, uint32_t>() : launch.template operator()<false, uint32_t>();
        } else {
          aligned ? launch.template operator()<true, int64_t>() : launch.template operator()<false, int64_t>();
        }
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
    using T = accumulate_t<scalar_t>;
    const bool many = M >= kWarp;
    const auto threads = static_cast<unsigned>(std::min<int64_t>(kThreads, (N + kWarp - 1) / kWarp * kWarp));
    int64_t parts = 0, tiles = 0;
    if (L * N > 0) {
      tiles = L * (many ? (M + kWarp - 1) / kWarp : (N + threads - 1) / threads);
      parts = many ? std::clamp<int64_t>(std::min(N / kThreads, kBlocksWanted / tiles), 1, 1024) : tiles / L;
    }
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, int64_t{1} << 20));
    const bool direct = parts == 1 && std::is_same_v<T, scalar_t>;  // nothing to add up, nothing to round
    const Tensor sums = direct ? grad_b : torch::stable::new_empty(a, {parts, L, M, 2}, accumulate_dtype(a));
    auto *to_a = write<scalar_t>(grad_a), *to_b = write<scalar_t>(grad_b);
    if (many && L * N > 0) {
      iou_backward_rows<general><<<blocks_for(L * N * kWarp), kThreads, 0, stream>>>(g, pa, pb, to_a, L * N, N, M);
      iou_backward_columns<general>
          <<<dim3(blocks, static_cast<unsigned>(parts)), kThreads, 0, stream>>>(g, pa, pb, write<T>(sums), L, N, M);
    } else if (L * N > 0) {
      iou_backward_few<general>
          <<<blocks, threads, 0, stream>>>(g, pa, pb, to_a, write<T>(sums), L, N, static_cast<int>(M));
    }
    if (L * M > 0 && !direct) {
      add_parts<scalar_t><<<blocks_for(2 * L * M), kThreads, 0, stream>>>(read<T>(sums), to_b, 2 * L * M, parts);
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
      iou_elementwise<general><<<blocks_for(N), kThreads, 0, current_stream(a)>>>(read<scalar_t>(a), read<scalar_t>(b),
                                                                                  write<scalar_t>(out), N);
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

}  // namespace vpgfast::temporal_iou_cuda
