// proposal_conv's sums on CUDA of the rows that proposals read.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/scatter_taps.h"

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

template <typename T>
__global__ static void add(const T* from, T* to, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    to[index] += from[index];
  }
}

}  // namespace vpgfast
