// proposal_conv's own sums on CUDA: of the rows that proposals read, and of the gradients that rows are read with.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/proposal_conv_layouts.h"

namespace vpgfast {

constexpr int kMostThreads = 512;  // of a block of `gather`

// A block writes DT channels of threads * PT proposals of one video: a thread adds up DT channels of each of its PT
// proposals in registers. The rows that it reads, DT channels of a few samples, are copied to shared memory, whose
// banks neighbouring proposals share out well (skewed()); rows too long for that are read where they are.
template <typename scalar_t, int DT, int PT, bool staged>
__global__ static void __launch_bounds__(kMostThreads, sizeof(accumulate_t<scalar_t>) == 8 || !staged ? 1 : 2)
    gather(const accumulate_t<scalar_t>* product, Taps<accumulate_t<scalar_t>> taps, const scalar_t* bias,
           scalar_t* out, Sizes s, int samples) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  T* slab = reinterpret_cast<T*>(shared_bytes);
  const int of_block = blockDim.x * PT, proposal_tiles = (s.P + of_block - 1) / of_block;
  const int channel_tiles = (s.channels + DT - 1) / DT;
  const int p0 = static_cast<int>(blockIdx.x % proposal_tiles) * of_block;
  const int d0 = static_cast<int>(blockIdx.x / proposal_tiles % channel_tiles) * DT;
  const int64_t b = blockIdx.x / proposal_tiles / channel_tiles;
  const int64_t lists = s.each_video ? b * s.N : 0, columns = s.B * s.clips;
  const int held = min(DT, s.channels - d0);
  T sum[PT][DT] = {};
  bool reads = true;
  if (staged && PT == 1 &&
      samples < s.N) {  // Maps have whole rows of proposals that read nothing: nothing is copied for them.
    const int chunks = (s.P + kChunk - 1) / kChunk, first = p0 / kChunk;
    const int count = (min(p0 + of_block, s.P) - 1) / kChunk - first + 1;
    bool found = false;
    for (int i = threadIdx.x; i < count * s.N; i += blockDim.x) {
      found = found || taps.reach[(lists + i / count) * chunks + first + i % count].last >= 0;
    }
    reads = __syncthreads_or(found) != 0;
  }
  for (int n0 = 0; reads && n0 < s.N; n0 += samples) {
    const int pitch = skewed(s.clips);
    if constexpr (staged) {
      const int lane = threadIdx.x % kWarp;
      __syncthreads();  // the samples before these have been used
      for (int row = threadIdx.x / kWarp; row < min(samples, s.N - n0) * DT; row += blockDim.x / kWarp) {
        const int n = n0 + row / DT, d = row % DT;
        if (d < held) {
          const T* from = product + (static_cast<int64_t>(n) * s.channels + d0 + d) * columns + b * s.clips;
          T* to = slab + row * pitch;
          for (int t = lane; t < s.clips; t += kWarp) {
            __pipeline_memcpy_async(to + skewed(t), from + t, sizeof(T));
          }
        }
      }
      __pipeline_commit();
      __pipeline_wait_prior(0);
      __syncthreads();
    }
    for (int n = n0; n < min(n0 + samples, s.N); ++n) {
      const int64_t first = (lists + n) * s.per_bin * s.P;
      const T* rows;
      if constexpr (staged) {
        rows = slab + (n - n0) * DT * pitch;
      } else {
        rows = product + (static_cast<int64_t>(n) * s.channels + d0) * columns + b * s.clips;
      }
      const Tap<T>* list = taps.taps + first;
      const int p = p0 + threadIdx.x;
      Tap<T> next{-1, -1, T{0}, T{0}};  // the first tap of a proposal is read while the one before it is added up
      if (p < s.P) {
        next = list[p];
      }
#pragma unroll
      for (int i = 0; i < PT; ++i) {
        Tap<T> tap = next;
        if (i + 1 < PT) {
          next.low = -1;
          if (p + (i + 1) * static_cast<int>(blockDim.x) < s.P) {
            next = list[p + (i + 1) * blockDim.x];
          }
        }
        for (int k = 1; tap.low >= 0; ++k) {
          if constexpr (staged) {
            const T *low = rows + skewed(tap.low), *high = rows + skewed(tap.high);
#pragma unroll
            for (int d = 0; d < DT; ++d) {
              sum[i][d] += tap.lower * low[d * pitch];
              sum[i][d] += tap.upper * high[d * pitch];
            }
          } else {
#pragma unroll
            for (int d = 0; d < DT; ++d) {
              if (d < held) {
                sum[i][d] += tap.lower * rows[d * columns + tap.low];
                sum[i][d] += tap.upper * rows[d * columns + tap.high];
              }
            }
          }
          if (k >= s.per_bin) {
            break;
          }
          tap = list[static_cast<int64_t>(k) * s.P + p + i * blockDim.x];
        }
      }
    }
  }
  if (bias != nullptr) {
#pragma unroll
    for (int d = 0; d < DT; ++d) {
      const T offset = d < held ? static_cast<T>(bias[s.first + d0 + d]) : T{0};
#pragma unroll
      for (int i = 0; i < PT; ++i) {
        sum[i][d] += offset;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < PT; ++i) {
    const int p = p0 + i * blockDim.x + threadIdx.x;
    if (p < s.P) {
      scalar_t* to = out + (b * s.D + s.first + d0) * s.P + p;
#pragma unroll
      for (int d = 0; d < DT; ++d, to += s.P) {
        if (d < held) {
          *to = static_cast<scalar_t>(sum[i][d]);
        }
      }
    }
  }
}

constexpr int kWarps = kThreads / kWarp;

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
template <typename scalar_t, int wide>
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
  const unsigned groups = (static_cast<unsigned>(s.N) * tiles + kWarps - 1) / kWarps;
  const unsigned channel_tiles = (s.channels + kChannels - 1) / kChannels;
  const unsigned group = blockIdx.x % groups * kWarps + warp;
  const int d0 = static_cast<int>(blockIdx.x / groups % channel_tiles) * kChannels;
  const int64_t b = blockIdx.x / groups / channel_tiles;
  const bool active = group < static_cast<unsigned>(s.N) * tiles;
  const int n = static_cast<int>(group % s.N), first = static_cast<int>(group / s.N) * tile;
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
        const scalar_t* from = grad + (b * s.D + s.first + d) * s.P + p0 + lane;
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
          __syncwarp();
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

template <typename T>
__global__ static void add(const T* from, T* to, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    to[index] += from[index];
  }
}

}  // namespace vpgfast
