// temporal_map_max_pool on CUDA. See vpgfast/ops/temporal_map_max_pool.py for what it computes.

#include "cuda/maxima.h"

namespace vpgfast::temporal_map_max_pool_cuda {
namespace {

constexpr int64_t kMostClips = int64_t{1} << 20;  // a channel's map would take terabytes

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

// right[k]: the nearest later clip that beats clip k, or T. One warp a clip.
template <typename scalar_t>
__global__ void find_right(const scalar_t* x, int32_t* right, int64_t channels, int T) {
  using compute = accumulate_t<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t channel = blockIdx.y; channel < channels; channel += gridDim.y) {
    const scalar_t* values = x + channel * T;
    for (int k = static_cast<int>(first_index() / kWarp); k < T; k += static_cast<int>(index_stride() / kWarp)) {
      const compute own = static_cast<compute>(values[k]);
      int found_at = T;
      for (int first = k + 1; first < T && found_at == T; first += kWarp) {
        const bool taller = first + lane < T && beats(static_cast<compute>(values[first + lane]), own);
        const unsigned found = __ballot_sync(0xffffffffu, taller);
        found_at = found ? first + __ffs(found) - 1 : T;
      }
      if (lane == 0) {
        right[channel * T + k] = found_at;
      }
    }
  }
}

constexpr int kBackwardThreads = 128;

// `lanes` neighbouring lanes walk down the rows of one channel's map together, each with kWidth columns: 16 bytes of
// every row. `pending` holds a column's gradient of the cells (0..i, j) whose maximum lies at or after clip i; clip i
// takes that of the columns from its own up to the first later clip that beats it. Those are sums over lanes in a fixed
// order. Rows below a lane's columns are not read.
//
// A map wider than a warp's columns (kTiled) is shared out by tiles of columns, whose sums `add_tiles` adds up, and
// `right` has been found before; otherwise the lanes find it from each other's clips.
template <typename scalar_t, int kWidth, bool kPacked, bool kTiled>
__global__ void __launch_bounds__(kBackwardThreads, 3)
    max_pool_columns_backward(const scalar_t* grad, const scalar_t* x, const int32_t* right,
                              std::conditional_t<kTiled, accumulate_t<scalar_t>, scalar_t>* sums, int64_t channels,
                              int T, int lanes) {
  using compute = accumulate_t<scalar_t>;
  using out_t = std::conditional_t<kTiled, compute, scalar_t>;
  const int in_warp = threadIdx.x % kWarp, lane = in_warp & (lanes - 1), head = in_warp - lane, maps = kWarp / lanes;
  const int first = static_cast<int>(blockIdx.y) * kWarp * kWidth * kTiled + lane * kWidth;
  const int rows = kTiled ? min(T, static_cast<int>(blockIdx.y + 1) * kWarp * kWidth) : T;
  const int rows_of_lane = first < T ? min(first + kWidth, T) : 0, steps = (rows + kWidth - 1) / kWidth;
  const int64_t stride = index_stride() / kWarp * maps;
  for (int64_t head_channel = first_index() / kWarp * maps; head_channel < channels; head_channel += stride) {
    // Lanes without a channel go along, as the warp's shuffles need all of them.
    const int64_t mine = head_channel + in_warp / lanes, channel = min(mine, channels - 1);
    const scalar_t* row = grad + channel * T * T + first;
    int beaten_at[kWidth];  // of the clips whose rows this lane will have the sums of
    if constexpr (!kTiled) {
      compute own[kWidth];
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        own[c] = first + c < T ? static_cast<compute>(x[channel * T + first + c]) : compute{0};
        beaten_at[c] = T;
      }
      for (int step = steps - 1; step >= 0; --step) {
#pragma unroll
        for (int u = kWidth - 1; u >= 0; --u) {
          const int j = step * kWidth + u;
          const compute later = __shfl_sync(0xffffffffu, own[u], head + step);
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            beaten_at[c] = beats(later, own[c]) && first + c < j && j < T ? j : beaten_at[c];
          }
        }
      }
    }
    compute pending[kWidth] = {}, result[kWidth] = {};
    for (int step = 0; step < steps; ++step, row += kWidth * T) {
      Pack<scalar_t, kWidth> cells[kWidth] = {};
#pragma unroll
      for (int u = 0; u < kWidth; ++u) {
        if (step * kWidth + u < rows_of_lane) {
          if constexpr (kPacked) {
            cells[u] = *reinterpret_cast<const Pack<scalar_t, kWidth>*>(row + u * T);
          } else {
#pragma unroll
            for (int c = 0; c < kWidth; ++c) {
              cells[u].value[c] = first + c < T ? row[u * T + c] : scalar_t{0};
            }
          }
        }
      }
      compute sum[kWidth];
#pragma unroll
      for (int u = 0; u < kWidth; ++u) {
        const int i = step * kWidth + u;
        int end;
        if constexpr (kTiled) {
          end = i < rows ? right[channel * T + i] : 0;
        } else {
          end = __shfl_sync(0xffffffffu, beaten_at[u], head + step);
        }
        sum[u] = 0;
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          // Below the diagonal `pending` gathers what nobody takes.
          pending[c] += static_cast<compute>(cells[u].value[c]);
          const bool won = first + c >= i && first + c < end;
          sum[u] += won ? pending[c] : compute{0};
          pending[c] = won ? compute{0} : pending[c];
        }
      }
      for (int apart = lanes / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int u = 0; u < kWidth; ++u) {
          sum[u] += __shfl_xor_sync(0xffffffffu, sum[u], apart);
        }
      }
      const int owner = step & (lanes - 1);
#pragma unroll
      for (int u = 0; u < kWidth; ++u) {
        result[u] = owner == lane ? sum[u] : result[u];
      }
      if (owner == lanes - 1 || step == steps - 1) {
        const int done = (step - owner + lane) * kWidth;
        out_t* to = sums + (kTiled ? blockIdx.y * channels + channel : channel) * T + done;
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          if (mine < channels && done + c < rows) {
            to[c] = static_cast<out_t>(result[c]);
          }
        }
      }
    }
  }
}

// Row i has cells in its own tile of columns and in those to the right.
template <typename scalar_t>
__global__ void add_tiles(const accumulate_t<scalar_t>* parts, scalar_t* grad_x, int64_t channels, int T, int tiles,
                          int tile_width) {
  for (int64_t channel = blockIdx.y; channel < channels; channel += gridDim.y) {
    for (int i = static_cast<int>(first_index()); i < T; i += static_cast<int>(index_stride())) {
      accumulate_t<scalar_t> sum = 0;
      for (int tile = i / tile_width; tile < tiles; ++tile) {
        sum += parts[(tile * channels + channel) * T + i];
      }
      grad_x[channel * T + i] = static_cast<scalar_t>(sum);
    }
  }
}

Tensor temporal_map_max_pool(const Tensor& x_in) {
  check_sizes("temporal_map_max_pool", "x", x_in, {-1, -1, -1});
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t channels = x.size(0) * x.size(1), T = x.size(2);
  STD_TORCH_CHECK(T < kMostClips, "temporal_map_max_pool: T is ", T, "; it must be below ", kMostClips);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), T, T});
  if (channels * T == 0) {
    return out;
  }
  dispatch_floating("temporal_map_max_pool", x.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidest = 16 / sizeof(scalar_t);
    const auto* from = read<scalar_t>(x);
    auto* to = write<scalar_t>(out);
    const cudaStream_t stream = current_stream(x);
    if (T % kWidest == 0 && is_aligned(to)) {
      const unsigned blocks = blocks_for(channels * T / kWidest);
      max_pool_columns<scalar_t, kWidest><<<blocks, kThreads, 0, stream>>>(from, to, channels, T);
    } else {
      max_pool_columns<scalar_t, 1><<<blocks_for(channels * T), kThreads, 0, stream>>>(from, to, channels, T);
    }
    check_launch("temporal_map_max_pool");
  });
  return out;
}

template <typename scalar_t, bool kPacked>
void launch_backward(const Tensor& grad, const Tensor& x, const Tensor& grad_x, int64_t channels, int T) {
  using compute = accumulate_t<scalar_t>;
  constexpr int kWidth = 16 / sizeof(scalar_t), kTileWidth = kWarp * kWidth;
  const cudaStream_t stream = current_stream(x);
  const auto* dy = read<scalar_t>(grad);
  const auto* from = read<scalar_t>(x);
  auto* to = write<scalar_t>(grad_x);
  int lanes = 1;
  while (lanes < kWarp && lanes * kWidth < T) {
    lanes *= 2;
  }
  const int64_t warps = (channels * lanes + kWarp - 1) / kWarp, warps_per_block = kBackwardThreads / kWarp;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((warps + warps_per_block - 1) / warps_per_block, 1 << 20));
  if (T <= kTileWidth) {
    max_pool_columns_backward<scalar_t, kWidth, kPacked, false>
        <<<blocks, kBackwardThreads, 0, stream>>>(dy, from, nullptr, to, channels, T, lanes);
    return;
  }
  const int tiles = (T + kTileWidth - 1) / kTileWidth;
  const Tensor right = torch::stable::new_empty(x, {channels, T}, ScalarType::Int);
  const Tensor parts = torch::stable::new_empty(x, {tiles, channels, T}, accumulate_dtype(x));
  const auto rows = static_cast<unsigned>(std::min<int64_t>(channels, 65535));
  find_right<<<dim3(blocks_for(int64_t{T} * kWarp), rows), kThreads, 0, stream>>>(from, write<int32_t>(right), channels,
                                                                                  T);
  max_pool_columns_backward<scalar_t, kWidth, kPacked, true><<<dim3(blocks, tiles), kBackwardThreads, 0, stream>>>(
      dy, from, read<int32_t>(right), write<compute>(parts), channels, T, lanes);
  add_tiles<scalar_t>
      <<<dim3(blocks_for(T), rows), kThreads, 0, stream>>>(read<compute>(parts), to, channels, T, tiles, kTileWidth);
}

Tensor temporal_map_max_pool_backward(const Tensor& grad_in, const Tensor& x_in) {
  const int64_t channels = x_in.size(0) * x_in.size(1), T = x_in.size(2);
  check_sizes("temporal_map_max_pool_backward", "grad", grad_in, {x_in.size(0), x_in.size(1), T, T});
  check_dtype("temporal_map_max_pool_backward", "grad", grad_in, x_in.scalar_type());
  STD_TORCH_CHECK(T < kMostClips, "temporal_map_max_pool: T is ", T, "; it must be below ", kMostClips);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in), grad = torch::stable::contiguous(grad_in);
  Tensor grad_x = torch::stable::empty_like(x);
  if (channels * T == 0) {
    return grad_x;
  }
  dispatch_floating("temporal_map_max_pool_backward", x.scalar_type(), [&]<typename scalar_t>() {
    if (T % (16 / sizeof(scalar_t)) == 0 && is_aligned(grad.const_data_ptr())) {
      launch_backward<scalar_t, true>(grad, x, grad_x, channels, static_cast<int>(T));
    } else {
      launch_backward<scalar_t, false>(grad, x, grad_x, channels, static_cast<int>(T));
    }
    check_launch("temporal_map_max_pool_backward");
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_map_max_pool", TORCH_BOX(&temporal_map_max_pool));
  m.impl("temporal_map_max_pool_backward", TORCH_BOX(&temporal_map_max_pool_backward));
}

}  // namespace vpgfast::temporal_map_max_pool_cuda
