// temporal_map_max_pool of a list of spans on CUDA. See vpgfast/ops/temporal_map_max_pool.py for what it computes.
//
// A block makes, in shared memory, a table of the maxima of every 1, 2, 4, ... neighbouring chunks of a channel's
// clips; any span is then covered by two of its entries. A chunk is one clip where such a table fits, which it does for
// some 4,000 clips; else a power of two of them, and the ends of a span that fill no chunk are looked at clip by clip.
//
// Backward has the table hold positions. It writes down every span's clip, and a second kernel adds up the gradients by
// clip: each warp takes spans in a fixed order, its lanes first adding up those that chose the same clip, again in a
// fixed order. So there are no atomics, and the result is the same every time.

#include <cassert>
#include <type_traits>

#include "cuda/maxima.h"

namespace vpgfast::temporal_map_max_pool_spans_cuda {
namespace {

constexpr int64_t kMostClips = int64_t{1} << 31;
constexpr int64_t kSharedOfSmallRows = 24 << 10;  // several blocks of this fit a multiprocessor
constexpr int64_t kMostRowsPerBlock = 8;          // that share the reading of the spans
constexpr int64_t kBlocksWanted = 264;            // two for each of an H100's multiprocessors
constexpr int64_t kFewestSpansPerPart = 1024;     // that pay for making the table

struct Table {
  int64_t T;
  int shift;          // log2 of a chunk's clips
  int width;          // chunks of a row
  int levels;         // of the table
  int row_bytes;      // of shared memory
  int entries_bytes;  // of it, before the copy of x
  bool copied;        // whether x is in shared memory too, for tables of positions

  // Where level `level` begins: 2^level - 1 chunks at a row's end begin no run of 2^level.
  __host__ __device__ int offset(int level) const {
    return level * (width + 1) - (1 << level) + 1;
  }
};

Table make_table(int64_t T, int64_t entry_bytes, int64_t copy_bytes) {
  Table table{T, 0, 0, 0, 0, 0, false};
  const auto padded = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
  const int64_t room = most_shared() - 1024;  // a kilobyte of every block's is the system's
  table.copied = copy_bytes > 0 && padded(T * copy_bytes) <= room / 4;
  const int64_t for_copy = table.copied ? padded(T * copy_bytes) : 0;
  for (;; ++table.shift) {
    const int64_t width = ((T - 1) >> table.shift) + 1;
    int levels = 1;
    while ((int64_t{2} << (levels - 1)) <= width) {
      ++levels;
    }
    const int64_t entries = levels * (width + 1) - (int64_t{1} << levels) + 1;
    if (padded(entries * entry_bytes) + for_copy <= room) {
      table.width = static_cast<int>(width);
      table.levels = levels;
      table.entries_bytes = static_cast<int>(padded(entries * entry_bytes));
      table.row_bytes = static_cast<int>(table.entries_bytes + for_copy);
      return table;
    }
  }
}

// What a table holds: maxima, or where they are.
template <typename scalar_t>
struct Values {
  using entry_t = scalar_t;
  using compute = accumulate_t<scalar_t>;
  static constexpr int64_t kCopied = 0;
  __device__ static entry_t leaf(const scalar_t* x, int t) {
    return x[t];
  }
  __device__ static entry_t larger_of(const scalar_t*, entry_t earlier, entry_t later) {
    return beats(static_cast<compute>(later), static_cast<compute>(earlier)) ? later : earlier;
  }
};
template <typename scalar_t, typename position_t>
struct Positions {
  using entry_t = position_t;
  using compute = accumulate_t<scalar_t>;
  static constexpr int64_t kCopied = sizeof(scalar_t);
  __device__ static entry_t leaf(const scalar_t*, int t) {
    return static_cast<entry_t>(t);
  }
  __device__ static entry_t larger_of(const scalar_t* x, entry_t earlier, entry_t later) {
    return beats(static_cast<compute>(x[later]), static_cast<compute>(x[earlier])) ? later : earlier;
  }
};

// blockIdx.x: a group of rows (channels of videos), blockIdx.y: a part of the spans. Any shape of block gives the same.
template <typename scalar_t, typename Held>
__global__ void __launch_bounds__(1024, 1)
    max_of_spans(const scalar_t* x, const int64_t* spans, typename Held::entry_t* out, int64_t rows, int64_t count,
                 Table table, int rows_per_block, int64_t spans_per_part) {
  using entry_t = typename Held::entry_t;
  extern __shared__ unsigned char shared_bytes[];
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int T = static_cast<int>(table.T), chunk = 1 << table.shift;
  const auto entries_of = [&](int r) { return reinterpret_cast<entry_t*>(shared_bytes + r * table.row_bytes); };
  const int64_t first_span = blockIdx.y * spans_per_part, end_span = min(count, first_span + spans_per_part);
  for (int64_t first_row = static_cast<int64_t>(blockIdx.x) * rows_per_block; first_row < rows;
       first_row += static_cast<int64_t>(gridDim.x) * rows_per_block) {
    const int here = static_cast<int>(min(static_cast<int64_t>(rows_per_block), rows - first_row));
    const auto clips_of = [&](int r) -> const scalar_t* {
      return table.copied ? reinterpret_cast<const scalar_t*>(shared_bytes + r * table.row_bytes + table.entries_bytes)
                          : x + (first_row + r) * table.T;
    };
    if (table.copied) {
      for (int r = threadIdx.y; r < here; r += blockDim.y) {
        auto* copy = const_cast<scalar_t*>(clips_of(r));
        for (int t = threadIdx.x; t < T; t += blockDim.x) {
          copy[t] = x[(first_row + r) * table.T + t];
        }
      }
      __syncthreads();
    }
    for (int r = threadIdx.y; r < here; r += blockDim.y) {
      const scalar_t* clips = clips_of(r);
      entry_t* entries = entries_of(r);
      for (int c = threadIdx.x; c < table.width; c += blockDim.x) {
        const int begin = c << table.shift, length = min(chunk, T - begin);
        entry_t best = Held::leaf(clips, begin);
        for (int t = 1; t < length; ++t) {
          best = Held::larger_of(clips, best, Held::leaf(clips, begin + t));
        }
        entries[c] = best;
      }
    }
    __syncthreads();
    for (int level = 1; level < table.levels; ++level) {
      const int half = 1 << (level - 1), runs = table.width - 2 * half + 1;
      for (int r = threadIdx.y; r < here; r += blockDim.y) {
        const entry_t* from = entries_of(r) + table.offset(level - 1);
        entry_t* to = entries_of(r) + table.offset(level);
        for (int c = threadIdx.x; c < runs; c += blockDim.x) {
          to[c] = Held::larger_of(clips_of(r), from[c], from[c + half]);
        }
      }
      __syncthreads();
    }
    for (int64_t p = first_span + thread; p < end_span; p += threads) {
      const longlong2 span = reinterpret_cast<const longlong2*>(spans)[p];
      assert(0 <= span.x && span.x <= span.y && span.y < table.T &&
             "vpgfast: a span must lie within the video, first <= last");
      const int first = static_cast<int>(span.x), last = static_cast<int>(span.y);
      // Chunks begin .. end-1 lie wholly within; of an int, first + chunk - 1 could be past the largest.
      const int begin = static_cast<int>((span.x + chunk - 1) >> table.shift);
      const int end = static_cast<int>((span.y + 1) >> table.shift);
      const int level = begin < end ? 31 - __clz(end - begin) : 0;
      const int low = table.offset(level) + begin, high = table.offset(level) + end - (1 << level);
      entry_t* to = out + first_row * count + p;
      for (int r = 0; r < here; ++r, to += count) {
        const entry_t* entries = entries_of(r);
        if (table.shift == 0) {
          *to = Held::larger_of(clips_of(r), entries[low], entries[high]);
          continue;
        }
        const scalar_t* clips = clips_of(r);
        entry_t best = Held::leaf(clips, first);
        const int64_t head_end = begin < end ? static_cast<int64_t>(begin) << table.shift : span.y + 1;
        for (int t = first + 1; t < head_end; ++t) {
          best = Held::larger_of(clips, best, Held::leaf(clips, t));
        }
        if (begin < end) {
          best = Held::larger_of(clips, best, entries[low]);
          best = Held::larger_of(clips, best, entries[high]);
          for (int64_t t = static_cast<int64_t>(end) << table.shift; t <= last; ++t) {
            best = Held::larger_of(clips, best, Held::leaf(clips, static_cast<int>(t)));
          }
        }
        *to = best;
      }
    }
    __syncthreads();  // before the table is made anew
  }
}

template <typename scalar_t, typename Held>
void launch_max_of_spans(const Tensor& x, const Tensor& spans, typename Held::entry_t* out) {
  const int64_t rows = x.size(0) * x.size(1), T = x.size(2), count = spans.size(0);
  const Table table = make_table(T, sizeof(typename Held::entry_t), Held::kCopied);
  int64_t per_block = std::clamp<int64_t>(kSharedOfSmallRows / table.row_bytes, 1, kMostRowsPerBlock);
  while (per_block > 1 && rows / per_block < kBlocksWanted) {
    per_block /= 2;
  }
  const int64_t groups = (rows + per_block - 1) / per_block;
  const int64_t parts =
      std::clamp<int64_t>(kBlocksWanted / groups, 1, (count + kFewestSpansPerPart - 1) / kFewestSpansPerPart);
  const int64_t bytes = per_block * table.row_bytes;
  const unsigned threads = bytes <= kSharedOfSmallRows ? kThreads : 1024;
  unsigned wide = kWarp;
  while (wide < threads && wide < static_cast<unsigned>(table.width)) {
    wide *= 2;
  }
  allow_shared(max_of_spans<scalar_t, Held>, bytes);
  max_of_spans<scalar_t, Held>
      <<<dim3(blocks_for(groups * kThreads), static_cast<unsigned>(parts)), dim3(wide, threads / wide), bytes,
         current_stream(x)>>>(read<scalar_t>(x), read<int64_t>(spans), out, rows, count, table,
                              static_cast<int>(per_block), (count + parts - 1) / parts);
}

constexpr int kTileBytes = 4096;  // of sums of a warp

// The value's sum over the lanes with the same key, in a fixed order, in the first of them: a tree over the lanes'
// ranks among their peers. Returns whether this is that lane.
template <typename T>
__device__ __forceinline__ bool sum_of_peers(unsigned key, T& value) {
  const int lane = threadIdx.x % kWarp;
  const unsigned all = 0xffffffffu;
  unsigned peers = __match_any_sync(all, key);
  unsigned rank = __popc(peers & ((1u << lane) - 1));
  const bool first = rank == 0;
  peers &= (all - 1) << lane;  // those after this one
  while (__ballot_sync(all, peers != 0)) {
    const int next = __ffs(static_cast<int>(peers));
    const T other = __shfl_sync(all, value, next == 0 ? lane : next - 1);
    value += next == 0 ? T{0} : other;
    peers &= __ballot_sync(all, !(rank & 1u));  // odd ranks have handed theirs on
    rank /= 2;
  }
  return first;
}

// A block adds up a tile of one row's clips. Warp w takes the spans 32 w + 256 k .., whatever the grid.
template <typename scalar_t, typename position_t>
__global__ void add_by_position(const scalar_t* grad, const position_t* positions, scalar_t* grad_x, int64_t rows,
                                int64_t T, int64_t count) {
  using compute = accumulate_t<scalar_t>;
  constexpr int kTile = kTileBytes / sizeof(compute);
  __shared__ compute sums[kWarps][kTile];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t tiles = (T + kTile - 1) / kTile;
  for (int64_t item = blockIdx.x; item < rows * tiles; item += gridDim.x) {
    const int64_t row = item / tiles, tile = item % tiles * kTile;
    const int here = static_cast<int>(min(static_cast<int64_t>(kTile), T - tile));
    for (int t = lane; t < here; t += kWarp) {
      sums[warp][t] = 0;
    }
    __syncwarp();
    for (int64_t first = warp * kWarp; first < count; first += kThreads) {
      const int64_t p = first + lane;
      const int64_t at = p < count ? static_cast<int64_t>(positions[row * count + p]) - tile : -1;
      const bool inside = at >= 0 && at < here;
      if (!__ballot_sync(0xffffffffu, inside)) {
        continue;
      }
      compute value = inside ? static_cast<compute>(grad[row * count + p]) : compute{0};
      const unsigned key = inside ? static_cast<unsigned>(at) : ~0u;
      if (sum_of_peers(key, value) && inside) {
        sums[warp][key] += value;
      }
      __syncwarp();
    }
    __syncthreads();
    for (int t = threadIdx.x; t < here; t += kThreads) {
      compute sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum += sums[w][t];
      }
      grad_x[row * T + tile + t] = static_cast<scalar_t>(sum);
    }
    __syncthreads();  // before the next tile's sums
  }
}

void check(const char* op, const Tensor& x, const Tensor& spans) {
  check_sizes(op, "x", x, {-1, -1, -1});
  check_sizes(op, "spans", spans, {-1, 2});
  check_dtype(op, "spans", spans, ScalarType::Long);
  STD_TORCH_CHECK(x.size(2) < kMostClips, op, ": T is ", x.size(2), "; it must be below ", kMostClips);
  STD_TORCH_CHECK(x.size(2) > 0 || spans.size(0) == 0, op, ": a video without clips has no spans");
}

// Contiguous, and where 16-byte loads may begin.
Tensor packed(const Tensor& spans_in) {
  const Tensor spans = torch::stable::contiguous(spans_in);
  return is_aligned(spans.const_data_ptr()) ? spans : torch::stable::clone(spans);
}

Tensor temporal_map_max_pool_spans(const Tensor& x_in, const Tensor& spans_in) {
  check("temporal_map_max_pool", x_in, spans_in);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in), spans = packed(spans_in);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), spans.size(0)});
  if (out.numel() == 0) {
    return out;
  }
  dispatch_floating("temporal_map_max_pool", x.scalar_type(), [&]<typename scalar_t>() {
    launch_max_of_spans<scalar_t, Values<scalar_t>>(x, spans, write<scalar_t>(out));
    check_launch("temporal_map_max_pool");
  });
  return out;
}

// `deterministic` changes nothing: there is but one order.
Tensor temporal_map_max_pool_spans_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& spans_in,
                                            bool /*deterministic*/) {
  const char* op = "temporal_map_max_pool_backward";
  check(op, x_in, spans_in);
  const int64_t rows = x_in.size(0) * x_in.size(1), T = x_in.size(2), count = spans_in.size(0);
  check_sizes(op, "grad", grad_in, {x_in.size(0), x_in.size(1), count});
  check_dtype(op, "grad", grad_in, x_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Tensor x = torch::stable::contiguous(x_in), grad = torch::stable::contiguous(grad_in);
  const Tensor spans = packed(spans_in);
  Tensor grad_x = torch::stable::empty_like(x);
  if (rows * T == 0) {
    return grad_x;
  }
  const auto run = [&]<typename scalar_t, typename position_t>(ScalarType type) {
    const Tensor positions = torch::stable::new_empty(x, {rows, count}, type);
    auto* at = static_cast<position_t*>(positions.mutable_data_ptr());
    if (count > 0) {
      launch_max_of_spans<scalar_t, Positions<scalar_t, position_t>>(x, spans, at);
    }
    constexpr int64_t kTile = kTileBytes / sizeof(accumulate_t<scalar_t>);
    const unsigned blocks = blocks_for(rows * ((T + kTile - 1) / kTile) * kThreads);
    add_by_position<scalar_t, position_t>
        <<<blocks, kThreads, 0, current_stream(x)>>>(read<scalar_t>(grad), at, write<scalar_t>(grad_x), rows, T, count);
    check_launch(op);
  };
  dispatch_floating(op, x.scalar_type(), [&]<typename scalar_t>() {
    if (T <= 1 << 16) {
      run.template operator()<scalar_t, uint16_t>(ScalarType::Short);
    } else {
      run.template operator()<scalar_t, int32_t>(ScalarType::Int);
    }
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_map_max_pool_spans", TORCH_BOX(&temporal_map_max_pool_spans));
  m.impl("temporal_map_max_pool_spans_backward", TORCH_BOX(&temporal_map_max_pool_spans_backward));
}

}  // namespace vpgfast::temporal_map_max_pool_spans_cuda
