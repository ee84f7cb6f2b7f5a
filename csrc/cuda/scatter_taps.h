// Gradients of samples added up into the rows that they were read from, without sorting and without atomics.
#pragma once

#include "cuda/proposal_conv_layouts.h"

namespace vpgfast {

constexpr int kBlocks = 132;  // that fill a large GPU

inline unsigned grid(const char* op, int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT_MAX, op, ": more than 2^31 blocks");
  return static_cast<unsigned>(blocks);
}

// What a warp of `scatter` is about to add: where, of which of 32 proposals, and how much of its gradient.
template <typename T>
struct alignas(4 * sizeof(T)) Hit {
  int rows;  // places of two rows among the warp's, the second in the upper half
  int from;
  T lower, upper;
};

// Adds the gradient of the proposals up into rows [B * clips, N * channels], without sorting what reads a row.
//
// A warp owns a sample and `tile` clips of it, for 32 * wide channels, `wide` a lane: it walks all proposals in their
// order and adds to its rows in shared memory, which nobody else does. A block's warps own neighbouring samples, then
// clips, and share the gradient of the chunks of proposals that one of them has a tap in; the others are passed over.
// Where each sample has a gradient of its own (of_samples: [B, D, N, P], else [B, D, P]) they own clips of one sample.
template <typename scalar_t, int wide, bool of_samples>
__global__ static void __launch_bounds__(kThreads, sizeof(accumulate_t<scalar_t>) == 8 || wide > 1 ? 2 : 4)
    scatter(const scalar_t* grad, Taps<accumulate_t<scalar_t>> taps, accumulate_t<scalar_t>* rows, Sizes s, int tile) {
  using T = accumulate_t<scalar_t>;
  constexpr int kChannels = wide * kWarp, kPitch = kChunk + 1, kRows = kChannels / kWarps, kSteps = kChunk / kWarp;
  extern __shared__ unsigned char shared_bytes[];
  __shared__ unsigned wanted[kWarps];
  __shared__ Hit<T> hits[kWarps][kWarp + 1];         // one more, which is read but not used
  T* incoming = reinterpret_cast<T*>(shared_bytes);  // [channel][proposal of the chunk]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Rows of a warp: its clips, and one before and behind them for the half of a pair that belongs to others.
  T* own = incoming + kChannels * kPitch + warp * (tile + 2) * kChannels + lane;
  const int chunks = (s.P + kChunk - 1) / kChunk, tiles = (s.clips + tile - 1) / tile;
  const unsigned of_sample = (tiles + kWarps - 1) / kWarps;  // blocks, where they have one sample each
  const unsigned groups = of_samples ? s.N * of_sample : (static_cast<unsigned>(s.N) * tiles + kWarps - 1) / kWarps;
  const unsigned channel_tiles = (s.channels + kChannels - 1) / kChannels;
  const int d0 = static_cast<int>(blockIdx.x / groups % channel_tiles) * kChannels;
  const int64_t b = blockIdx.x / groups / channel_tiles;
  const unsigned group = blockIdx.x % groups * kWarps + warp;
  const unsigned own_tile = of_samples ? blockIdx.x % groups % of_sample * kWarps + warp : group / s.N;
  const int n = static_cast<int>(of_samples ? blockIdx.x % groups / of_sample : group % s.N);
  const bool active = own_tile < static_cast<unsigned>(tiles);
  const int first = static_cast<int>(own_tile) * tile;
  const int64_t list = (s.each_video ? b * s.N : 0) + n;
  for (int i = 0; i < (tile + 2) * wide; ++i) {
    own[i * kWarp] = 0;
  }
  for (int c0 = 0; c0 < chunks; c0 += kWarp) {
    bool reached = false;
    if (active && c0 + lane < chunks) {
      const Reach reach = taps.reach[list * chunks + c0 + lane];
      reached = reach.last >= first && reach.first < first + tile;
    }
    const unsigned mine = __ballot_sync(0xffffffffu, reached);
    if (lane == 0) {
      wanted[warp] = mine;
    }
    __syncthreads();
    unsigned of_block = 0;
    for (const unsigned bits : wanted) {
      of_block |= bits;
    }
    __syncthreads();
    for (; of_block != 0; of_block &= of_block - 1) {
      const int c = __ffs(static_cast<int>(of_block)) - 1, p0 = (c0 + c) * kChunk;
      scalar_t values[kRows][kSteps];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int d = d0 + warp * kRows + r;
        const int64_t row = of_samples ? (b * s.D + s.first + d) * s.N + n : b * s.D + s.first + d;
        const scalar_t* from = grad + row * s.P + p0 + lane;
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          values[r][j] = d < s.channels && p0 + j * kWarp + lane < s.P ? from[j * kWarp] : static_cast<scalar_t>(0.f);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          incoming[(warp * kRows + r) * kPitch + j * kWarp + lane] = static_cast<T>(values[r][j]);
        }
      }
      __syncthreads();
      for (int j = 0; j < kSteps && (mine >> c & 1u) != 0; ++j) {
        const int p = p0 + j * kWarp + lane;
        const T* gradient = incoming + lane * kPitch + j * kWarp;
        const Tap<T>* at = taps.taps + list * s.per_bin * s.P + p;
        bool ended = p >= s.P;
        for (int k = 0; k < s.per_bin; ++k, at += s.P) {
          Tap<T> tap{-1, -1, T{0}, T{0}};
          if (!ended) {
            tap = *at;
          }
          ended = tap.low < 0;
          if (__ballot_sync(0xffffffffu, !ended) == 0) {
            break;
          }
          // A clip read alone: all of it to its row, and nothing of a number to the row before the first, which is
          // thrown away, so that two different rows are added to, always.
          const bool pair = tap.high > tap.low;
          const int row = tap.low - first + 1;
          const bool hit = !ended && row >= (pair ? 0 : 1) && row <= tile;
          const unsigned found = __ballot_sync(0xffffffffu, hit);
          if (hit) {
            hits[warp][__popc(found & ((1u << lane) - 1))] = {row * kChannels | (pair ? row + 1 : 0) * kChannels << 16,
                                                              lane, pair ? tap.lower : tap.lower + tap.upper,
                                                              tap.upper};
          }
          __syncwarp();
          const int count = __popc(found);
          Hit<T> next = hits[warp][0];
#pragma unroll 2
          for (int i = 0; i < count; ++i) {
            const Hit<T> hit_now = next;
            T *here = own + (hit_now.rows & 0xffff), *behind = own + (hit_now.rows >> 16);
            T value[wide], at_here[wide], at_behind[wide];
#pragma unroll
            for (int w = 0; w < wide; ++w) {
              value[w] = gradient[w * kWarp * kPitch + hit_now.from];
              at_here[w] = here[w * kWarp];
              at_behind[w] = behind[w * kWarp];
            }
            next = hits[warp][i + 1];  // before what is stored, for which it would have to wait
#pragma unroll
            for (int w = 0; w < wide; ++w) {
              here[w * kWarp] = at_here[w] + hit_now.lower * value[w];
              behind[w * kWarp] = at_behind[w] + hit_now.upper * value[w];
            }
          }
          // The hits may be written again: before that all lanes meet in a vote, and what they have used they have
          // read.
        }
      }
      __syncthreads();
    }
  }
  if (!active) {
    return;
  }
  for (int t = 0; t < tile && first + t < s.clips; ++t) {
    T* to = rows + ((b * s.clips + first + t) * s.N + n) * s.channels + d0 + lane;
#pragma unroll
    for (int w = 0; w < wide; ++w) {
      if (d0 + w * kWarp + lane < s.channels) {
        to[w * kWarp] = own[((t + 1) * wide + w) * kWarp];
      }
    }
  }
}

template <typename scalar_t, bool of_samples>
void launch_scatter(const char* op, const Tensor& grad, const Taps<accumulate_t<scalar_t>>& taps, const Tensor& rows,
                    const Sizes& s, cudaStream_t stream) {
  using T = accumulate_t<scalar_t>;
  // Long videos: more clips a warp, so that proposals are passed over less often. Short ones: one or more for each.
  int tile = sizeof(T) == 8 || s.clips <= 512 ? 16 : s.clips <= 2048 ? 32 : 64;
  if (of_samples) {
    tile = std::min(tile, std::max(1, (s.clips + kWarps - 1) / kWarps));
  }
  const int64_t tiles = (s.clips + tile - 1) / tile, warps = s.N * tiles;
  STD_TORCH_CHECK(warps <= INT_MAX, op, ": more than 2^31 warps");
  const int64_t groups = of_samples ? s.N * ((tiles + kWarps - 1) / kWarps) : (warps + kWarps - 1) / kWarps;
  const auto blocks = [&](int wide) { return s.B * groups * ((s.channels + wide * kWarp - 1) / (wide * kWarp)); };
  const auto launch = [&]<int wide>() {
    const int shared = wide * kWarp * (kChunk + 1 + kWarps * (tile + 2)) * static_cast<int>(sizeof(T));
    constexpr int kFixed = kWarps * (sizeof(unsigned) + (kWarp + 1) * sizeof(Hit<T>));
    allow_shared(&scatter<scalar_t, wide, of_samples>, shared, kFixed);
    scatter<scalar_t, wide, of_samples>
        <<<grid(op, blocks(wide)), kThreads, shared, stream>>>(read<scalar_t>(grad), taps, write<T>(rows), s, tile);
    check_launch(op);
  };
  // Two channels a lane halve what a tap costs besides adding, where blocks are enough all the same.
  if constexpr (sizeof(T) == 4) {
    if (tile <= 16 && blocks(2) >= kBlocks) {
      return launch.template operator()<2>();
    }
  }
  launch.template operator()<1>();
}

}  // namespace vpgfast
