// pairwise_relevance on CUDA. See vpgfast/ops/pairwise_relevance.py for what it computes, and the CPU's file for the
// sums that its backward is made of.

#include "common/pairwise_relevance.h"

#include <tuple>

#include "cuda/launch.h"

namespace vpgfast::pairwise_relevance_cuda {
namespace {

constexpr int kBlock = 128;
constexpr int kTile = 4;                // rows of a, and of b, that are treated together
constexpr int kStep = 32;               // others whose gradients are in shared memory at a time
constexpr int64_t kBlocksWanted = 528;  // four for each of an H100's multiprocessors
constexpr int kSumThreads = 256, kSumWarps = kSumThreads / kWarp;

// Neighbouring channels that a thread takes: 16 bytes of float, where rows begin at multiples of that; else one.
template <typename scalar_t>
constexpr int kChannels = sizeof(scalar_t) == 8 ? 2 : 4;

template <typename scalar_t>
bool in_packs(const Relevance& given) {
  return given.H % kChannels<scalar_t> == 0 && is_aligned(given.a.const_data_ptr()) &&
         is_aligned(given.b.const_data_ptr()) && is_aligned(given.w.const_data_ptr());
}

template <typename scalar_t, int kWidth>
__device__ __forceinline__ void load(const scalar_t* from, accumulate_t<scalar_t> (&to)[kWidth]) {
  const auto pack = *reinterpret_cast<const Pack<scalar_t, kWidth>*>(from);
#pragma unroll
  for (int c = 0; c < kWidth; ++c) {
    to[c] = static_cast<accumulate_t<scalar_t>>(pack.value[c]);
  }
}

// Sums of 16 values over a warp, in a fixed order: lanes 2 k and 2 k + 1 get the k-th, in values[0]. Each round halves
// what a lane holds, so that it takes 16 exchanges and not 80.
template <int kHalf = 8, typename T>
__device__ __forceinline__ void sum_over_warp(T (&values)[16]) {
  const bool upper = threadIdx.x & (2 * kHalf);
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const T low = values[i], high = values[i + kHalf];
    values[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, 2 * kHalf);
  }
  if constexpr (kHalf > 1) {
    sum_over_warp<kHalf / 2>(values);
  } else {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], 1);
  }
}

// A warp takes kTile x kTile pairs, its lanes the channels. Warps that lie together have rows of a in common.
template <typename scalar_t, int kWidth>
__global__ void __launch_bounds__(kBlock, 4)
    relevance(const scalar_t* a, const scalar_t* b, const scalar_t* w, const scalar_t* bias, scalar_t* out, int64_t N,
              int64_t M, int64_t H) {
  using T = accumulate_t<scalar_t>;
  static_assert(kTile * kTile == 16);
  const int lane = threadIdx.x % kWarp;
  const int64_t columns = (M + kTile - 1) / kTile, tiles = (N + kTile - 1) / kTile * columns;
  for (int64_t tile = first_index() / kWarp; tile < tiles; tile += index_stride() / kWarp) {
    const int64_t n0 = tile / columns * kTile, m0 = (tile - tile / columns * columns) * kTile;
    const scalar_t *left_row[kTile], *right_row[kTile];
#pragma unroll
    for (int i = 0; i < kTile; ++i) {  // rows past the last are computed as the last and not written
      left_row[i] = a + min(n0 + i, N - 1) * H;
      right_row[i] = b + min(m0 + i, M - 1) * H;
    }
    T sums[kTile * kTile] = {};
    for (int64_t h = lane * kWidth; h < H; h += kWarp * kWidth) {
      T left[kTile][kWidth], right[kTile][kWidth], weight[kWidth];
      load<scalar_t, kWidth>(w + h, weight);
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        load<scalar_t, kWidth>(left_row[i] + h, left[i]);
        load<scalar_t, kWidth>(right_row[i] + h, right[i]);
      }
#pragma unroll
      for (int i = 0; i < kTile * kTile; ++i) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          const T t = left[i / kTile][c] + right[i % kTile][c];
          sums[i] += weight[c] * (t < T{0} ? T{0} : t);  // NaN stays
        }
      }
    }
    sum_over_warp(sums);
    const T x = sums[0] + static_cast<T>(*bias);
    const int64_t n = n0 + lane / 2 / kTile, m = m0 + lane / 2 % kTile;
    if (lane % 2 == 0 && n < N && m < M) {
      const T y = exp(x < T{0} ? x : -x);
      out[n * M + m] = static_cast<scalar_t>((x < T{0} ? y : T{1}) / (T{1} + y));
    }
  }
}

// Where a gradient is asked for: that of `rows` [X, H], whose pairs with `others` [Y, H] lie g_row and g_column apart.
template <typename scalar_t>
struct Side {
  using T = accumulate_t<scalar_t>;
  const scalar_t *rows, *others, *w, *grad, *out;
  scalar_t* by_rows;
  T* parts;      // [parts, X, H] of masked sums, or null where there is but one
  T* shares;     // [tiles of rows, H] of the gradient of w
  T* bias_sums;  // [tiles of rows, parts, warps of a block] of the derivatives by the logits, or null
  int64_t X, Y, H, g_row, g_column, others_per_part;

  // masked[i, c] are the whole sums of rows x0 + i: the rows' gradient, and a share of that of w.
  template <int kWidth>
  __device__ void finish(int64_t tile, int64_t h, const T (&own)[kTile][kWidth],
                         const T (&masked)[kTile][kWidth]) const {
    T share[kWidth] = {}, weight[kWidth];
    load<scalar_t, kWidth>(w + h, weight);
    for (int i = 0; i < kTile; ++i) {
      Pack<scalar_t, kWidth> by_row;
      for (int c = 0; c < kWidth; ++c) {
        share[c] += own[i][c] * masked[i][c];
        by_row.value[c] = static_cast<scalar_t>(weight[c] * masked[i][c]);
      }
      if (tile * kTile + i < X) {
        *reinterpret_cast<Pack<scalar_t, kWidth>*>(by_rows + (tile * kTile + i) * H + h) = by_row;
      }
    }
    for (int c = 0; c < kWidth; ++c) {
      shares[tile * H + h + c] = share[c];
    }
  }
};

// masked[x, h] = sum_y g(x, y) [rows[x, h] + others[y, h] > 0] for kTile rows x and one part of the others y: a thread
// has kTile rows of kWidth channels. g, the derivative by the logit, is worked out on the way to shared memory.
template <typename scalar_t, int kWidth>
__global__ void __launch_bounds__(kBlock, 4) masked_sums(Side<scalar_t> side) {
  using T = accumulate_t<scalar_t>;
  __shared__ T g[kStep][kTile];
  const int64_t tile = blockIdx.x, x0 = tile * kTile, X = side.X, H = side.H;
  const int64_t first = blockIdx.y * side.others_per_part, last = min(side.Y, first + side.others_per_part);
  const int64_t span = kBlock * kWidth;
  for (int64_t h0 = blockIdx.z * span; h0 < H || h0 == 0; h0 += gridDim.z * span) {
    const int64_t h = h0 + threadIdx.x * kWidth;
    T own[kTile][kWidth] = {}, masked[kTile][kWidth] = {}, bias_sum = 0;
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      if (h < H && x0 + i < X) {
        load<scalar_t, kWidth>(side.rows + (x0 + i) * H + h, own[i]);
      }
    }
    for (int64_t y0 = first; y0 < last; y0 += kStep) {
      const int here = static_cast<int>(min(static_cast<int64_t>(kStep), last - y0));
#pragma unroll
      for (int k = threadIdx.x; k < kStep * kTile; k += kBlock) {
        // Threads that lie together read together.
        const int i = side.g_column == 1 ? k / kStep : k % kTile, y = side.g_column == 1 ? k % kStep : k / kTile;
        T value = 0;
        if (y < here && x0 + i < X) {
          const int64_t at = (x0 + i) * side.g_row + (y0 + y) * side.g_column;
          const T p = static_cast<T>(side.out[at]);
          value = static_cast<T>(side.grad[at]) * p * (T{1} - p);
        }
        g[y][i] = value;
        bias_sum += value;
      }
      __syncthreads();
      if (h < H) {
        const scalar_t* other_row = side.others + y0 * H + h;
#pragma unroll 4
        for (int y = 0; y < here; ++y, other_row += H) {
          T other[kWidth];
          load<scalar_t, kWidth>(other_row, other);
#pragma unroll
          for (int i = 0; i < kTile; ++i) {
            const T weight = g[y][i];
#pragma unroll
            for (int c = 0; c < kWidth; ++c) {
              masked[i][c] += own[i][c] > -other[c] ? weight : T{0};  // the sum is above 0 if and only if this holds
            }
          }
        }
      }
      __syncthreads();  // before the next others' gradients
    }
    if (side.bias_sums != nullptr && h0 == 0) {
      bias_sum = warp_sum(bias_sum);
      if (threadIdx.x % kWarp == 0) {
        side.bias_sums[(tile * gridDim.y + blockIdx.y) * (kBlock / kWarp) + threadIdx.x / kWarp] = bias_sum;
      }
    }
    if (h < H && side.parts == nullptr) {
      side.template finish<kWidth>(tile, h, own, masked);
    } else if (h < H) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          if (x0 + i < X) {
            side.parts[(blockIdx.y * X + x0 + i) * H + h + c] = masked[i][c];
          }
        }
      }
    }
  }
}

// The parts' sums, in their order.
template <typename scalar_t>
__global__ void __launch_bounds__(kBlock) add_parts(Side<scalar_t> side, int parts) {
  using T = accumulate_t<scalar_t>;
  const int64_t tile = blockIdx.x, X = side.X, H = side.H;
  for (int64_t h = static_cast<int64_t>(blockIdx.y) * kBlock + threadIdx.x; h < H; h += int64_t{gridDim.y} * kBlock) {
    T own[kTile][1] = {}, masked[kTile][1] = {};
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      if (tile * kTile + i < X) {
        const T* part = side.parts + (tile * kTile + i) * H + h;
        own[i][0] = static_cast<T>(side.rows[(tile * kTile + i) * H + h]);
#pragma unroll 8
        for (int k = 0; k < parts; ++k) {
          masked[i][0] += part[k * X * H];
        }
      }
    }
    side.template finish<1>(tile, h, own, masked);
  }
}

// The last block adds up the bias's gradient, each other one that of a warp's width of w.
template <typename scalar_t>
__global__ void __launch_bounds__(kSumThreads)
    add_shares(const accumulate_t<scalar_t>* shares, int64_t count, int64_t H, scalar_t* by_w,
               const accumulate_t<scalar_t>* bias_sums, int64_t bias_count, scalar_t* by_bias) {
  using T = accumulate_t<scalar_t>;
  __shared__ T of_warp[kSumWarps][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  T sum = 0;
  if (blockIdx.x == gridDim.x - 1) {
    for (int64_t i = threadIdx.x; i < bias_count; i += kSumThreads) {
      sum += bias_sums[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      *by_bias = static_cast<scalar_t>(sum);
    }
    return;
  }
  const int64_t h = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  if (h < H) {
#pragma unroll 8
    for (int64_t i = warp; i < count; i += kSumWarps) {
      sum += shares[i * H + h];
    }
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && h < H) {
    sum = 0;
#pragma unroll
    for (int k = 0; k < kSumWarps; ++k) {
      sum += of_warp[k][lane];
    }
    by_w[h] = static_cast<scalar_t>(sum);
  }
}

int64_t tiles_of(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}

Tensor pairwise_relevance(const Tensor& a_in, const Tensor& b_in, const Tensor& w_in, const Tensor& bias_in) {
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Relevance given("pairwise_relevance", a_in, b_in, w_in, bias_in);
  Tensor out = torch::stable::new_empty(given.a, {given.N, given.M});
  if (given.N * given.M == 0) {
    return out;
  }
  dispatch_floating("pairwise_relevance", given.a.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidth = kChannels<scalar_t>;
    const int64_t tiles = tiles_of(given.N) * tiles_of(given.M), warps = kBlock / kWarp;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((tiles + warps - 1) / warps, int64_t{1} << 30));
    const cudaStream_t stream = current_stream(given.a);
    const auto *a = read<scalar_t>(given.a), *b = read<scalar_t>(given.b), *w = read<scalar_t>(given.w);
    const auto* bias = read<scalar_t>(given.bias);
    auto* to = write<scalar_t>(out);
    if (in_packs<scalar_t>(given)) {
      relevance<scalar_t, kWidth><<<blocks, kBlock, 0, stream>>>(a, b, w, bias, to, given.N, given.M, given.H);
    } else {
      relevance<scalar_t, 1><<<blocks, kBlock, 0, stream>>>(a, b, w, bias, to, given.N, given.M, given.H);
    }
    check_launch("pairwise_relevance");
  });
  return out;
}

// The masked sums of one side. The others are cut into parts only where the rows alone are too few for the card.
template <typename scalar_t>
void launch_side(Side<scalar_t> side, const Tensor& like, bool packed) {
  constexpr int kWidth = kChannels<scalar_t>;
  const int64_t X = side.X, H = side.H, tiles = tiles_of(X);
  if (tiles == 0) {
    return;
  }
  STD_TORCH_CHECK(tiles < int64_t{1} << 31, "pairwise_relevance: too many rows for one launch");
  const cudaStream_t stream = current_stream(like);
  const int64_t span = kBlock * (packed ? kWidth : 1);
  const int64_t spans = std::clamp<int64_t>((side.H + span - 1) / span, 1, 65535);
  int64_t parts = side.Y / kStep < 1 ? 1 : std::clamp<int64_t>(kBlocksWanted / (tiles * spans), 1, side.Y / kStep);
  side.others_per_part = (side.Y + parts - 1) / parts;
  Tensor sums;
  if (parts > 1) {
    sums = torch::stable::new_empty(like, {parts, X, H}, accumulate_dtype(like));
    side.parts = write<accumulate_t<scalar_t>>(sums);
  }
  const dim3 blocks(static_cast<unsigned>(tiles), static_cast<unsigned>(parts), static_cast<unsigned>(spans));
  if (packed) {
    masked_sums<scalar_t, kWidth><<<blocks, kBlock, 0, stream>>>(side);
  } else {
    masked_sums<scalar_t, 1><<<blocks, kBlock, 0, stream>>>(side);
  }
  if (parts > 1) {
    const auto columns = static_cast<unsigned>(std::clamp<int64_t>((side.H + kBlock - 1) / kBlock, 1, 65535));
    add_parts<scalar_t>
        <<<dim3(static_cast<unsigned>(tiles), columns), kBlock, 0, stream>>>(side, static_cast<int>(parts));
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_relevance_backward(const Tensor& grad_in, const Tensor& a_in,
                                                                       const Tensor& b_in, const Tensor& w_in,
                                                                       const Tensor& bias_in, const Tensor& out_in) {
  const char* op = "pairwise_relevance_backward";
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Relevance given(op, a_in, b_in, w_in, bias_in);
  const int64_t N = given.N, M = given.M, H = given.H;
  check_sizes(op, "grad", grad_in, {N, M});
  check_sizes(op, "out", out_in, {N, M});
  check_dtype(op, "grad", grad_in, given.a.scalar_type());
  check_dtype(op, "out", out_in, given.a.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in), out = torch::stable::contiguous(out_in);
  Tensor by_a = torch::stable::new_empty(given.a, {N, H}), by_b = torch::stable::new_empty(given.b, {M, H});
  Tensor by_w = torch::stable::new_empty(given.w, {H}), by_bias = torch::stable::new_empty(given.bias, {});
  dispatch_floating(op, given.a.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const cudaStream_t stream = current_stream(given.a);
    const bool packed = in_packs<scalar_t>(given);
    const int64_t a_tiles = tiles_of(N), b_tiles = tiles_of(M);
    // The bias's sums come with a's side, in one part for every kStep of the others at most.
    const int64_t most_parts = std::max<int64_t>(1, M / kStep), warps = kBlock / kWarp;
    const Tensor shares = torch::stable::new_empty(given.a, {a_tiles + b_tiles, H}, accumulate_dtype(given.a));
    const Tensor bias_sums =
        torch::stable::new_zeros(given.a, {a_tiles * most_parts * warps}, accumulate_dtype(given.a));
    const auto *a = read<scalar_t>(given.a), *b = read<scalar_t>(given.b), *w = read<scalar_t>(given.w);
    const auto *dy = read<scalar_t>(grad), *y = read<scalar_t>(out);
    launch_side<scalar_t>(
        {a, b, w, dy, y, write<scalar_t>(by_a), nullptr, write<T>(shares), write<T>(bias_sums), N, M, H, M, 1, M},
        given.a, packed);
    launch_side<scalar_t>(
        {b, a, w, dy, y, write<scalar_t>(by_b), nullptr, write<T>(shares) + a_tiles * H, nullptr, M, N, H, 1, M, N},
        given.a, packed);
    const int64_t columns = (H + kWarp - 1) / kWarp;
    add_shares<scalar_t><<<static_cast<unsigned>(columns + 1), kSumThreads, 0, stream>>>(
        read<T>(shares), a_tiles + b_tiles, H, write<scalar_t>(by_w), read<T>(bias_sums), bias_sums.size(0),
        write<scalar_t>(by_bias));
    check_launch(op);
  });
  return {by_a, by_b, by_w, by_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("pairwise_relevance", TORCH_BOX(&pairwise_relevance));
  m.impl("pairwise_relevance_backward", TORCH_BOX(&pairwise_relevance_backward));
}

}  // namespace vpgfast::pairwise_relevance_cuda
