// What the points of proposals read, worked out once: lists that the kernels walk without double precision or division.
#pragma once

#include <cassert>
#include <climits>

#include "common/aten.h"
#include "common/proposals.h"
#include "common/sampling_points.h"
#include "cuda/launch.h"

namespace vpgfast {

// The points of proposal `index` of a list.
__device__ __forceinline__ SamplingPoints proposal_points(const double* ends, int64_t index, int64_t points) {
  const double start = ends[2 * index], end = ends[2 * index + 1];
  assert(isfinite(start) && isfinite(end) && start <= end &&
         "vpgfast: a proposal must be two finite numbers, its end not before its start");
  return SamplingPoints(start, end, points);
}

constexpr int kChunk = 128;  // neighbouring proposals, whose reach is known together

// First and last clip that a sample of a chunk of proposals reads; last < first where it reads nothing.
struct alignas(8) Reach {
  int first, last;
};

// Two clips that a sample reads, and how much of each; below zero: the list has ended. The weights have the division by
// samples_per_bin in them. A clip that is read alone has its weight in two halves, of the same clip: readers need no
// branch, and what is not read (it may be infinite, or outside) is not multiplied by zero either.
template <typename T>
struct alignas(sizeof(T) == 4 ? 16 : 8) Tap {
  int low, high;
  T lower, upper;
};

// The taps of each sample of each proposal, [videos, N, per_bin, P], so that neighbouring proposals lie side by side.
template <typename T>
struct Taps {
  const Tap<T>* taps;
  const Reach* reach;  // [videos, N, chunks]
};

// Makes the list of one sample of one proposal. Points come in their order, so what lies beside each other is merged:
// the points of BMN's samples are often less than a clip apart.
template <typename T>
struct TapWriter {
  Tap<T>* taps;
  int64_t step;  // from a tap of the list to the next one
  int room;      // taps that may still be written
  Tap<T> tap{-1, -1, T{0}, T{0}};
  Reach reach{INT_MAX, -1};

  __device__ void add(int clip, double weight) {
    const T value = static_cast<T>(weight);
    if (value == 0) {
      return;
    }
    if (tap.low >= 0 && clip == tap.low + 1 && tap.high < 0) {
      tap.high = clip;
      tap.upper = value;
      return;
    }
    flush();
    tap = {clip, -1, value, T{0}};
  }
  __device__ void flush() {
    if (tap.low < 0) {
      return;
    }
    if (tap.high < 0) {
      tap.high = tap.low;
      tap.upper = tap.lower / 2;
      tap.lower -= tap.upper;
    }
    reach.first = min(reach.first, tap.low);
    reach.last = max(reach.last, tap.high);
    *taps = tap;
    taps += step;
    --room;
  }
  __device__ void end() {
    flush();
    if (room > 0) {
      *taps = {-1, -1, T{0}, T{0}};
    }
  }
};

// A block of kChunk threads: sample n of one chunk of proposals. `block` counts chunks, then samples, then videos.
template <typename T>
__device__ void write_taps(const double* ends, int clips, int P, int N, int per_bin, int64_t block, Tap<T>* taps,
                           Reach* reach) {
  __shared__ Reach of_warp[kChunk / kWarp];
  const int chunks = (P + kChunk - 1) / kChunk, chunk = static_cast<int>(block % chunks);
  const int64_t row = block / chunks;  // of samples
  const int p = chunk * kChunk + threadIdx.x;
  Reach all{INT_MAX, -1};
  if (p < P) {
    const int64_t points = static_cast<int64_t>(N) * per_bin, proposal = row / N * P + p;
    const SamplingPoints point = proposal_points(ends, proposal, points);
    TapWriter<T> list{taps + row * per_bin * P + p, P, per_bin};
    int clip = -1;  // weights of it and of the next one are still being added up
    double low = 0, high = 0;
    for (int k = 0; k < per_bin; ++k) {
      const Neighbours near(point[row % N * per_bin + k], clips);
      const int next = static_cast<int>(near.lower);
      if (near.lower_weight == 0 && near.upper_weight == 0) {
        continue;
      }
      if (clip >= 0 && next != clip) {
        list.add(clip, low / per_bin);
        if (next != clip + 1) {
          list.add(clip + 1, high / per_bin);
          high = 0;
        }
        low = high;
        high = 0;
      }
      clip = next;
      low += near.lower_weight;
      high += near.upper_weight;
    }
    if (clip >= 0) {
      list.add(clip, low / per_bin);
      list.add(clip + 1, high / per_bin);
    }
    list.end();
    all = list.reach;
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    all.first = min(all.first, __shfl_xor_sync(0xffffffffu, all.first, offset));
    all.last = max(all.last, __shfl_xor_sync(0xffffffffu, all.last, offset));
  }
  if (threadIdx.x % kWarp == 0) {
    of_warp[threadIdx.x / kWarp] = all;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (const Reach& part : of_warp) {
      all.first = min(all.first, part.first);
      all.last = max(all.last, part.last);
    }
    reach[block] = all;
  }
}

// The memory of the lists of one call. T: accumulate_t of the features.
template <typename T>
struct TapStorage {
  TapStorage(const char* op, const Proposals& proposals, const Tensor& x, int64_t B, int64_t clips) {
    const int64_t P = proposals.P, N = proposals.N, videos = proposals.each_video ? B : 1;
    STD_TORCH_CHECK(clips < (1 << 30) && P < (1 << 30) && N < (1 << 30) && proposals.per_bin < (1 << 30), op,
                    ": more than 2^30 clips, proposals or samples");
    blocks = videos * N * ((P + kChunk - 1) / kChunk);
    list = torch::stable::new_empty(x, {videos * N * proposals.per_bin * P * static_cast<int64_t>(sizeof(Tap<T>) / 4)},
                                    ScalarType::Int);
    reach = torch::stable::new_empty(x, {2 * blocks}, ScalarType::Int);
  }
  Taps<T> taps() const {
    return {read<Tap<T>>(list), read<Reach>(reach)};
  }
  Tensor list, reach;
  int64_t blocks;
};

}  // namespace vpgfast
