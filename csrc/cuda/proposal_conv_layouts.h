// proposal_conv: the layouts that its matrix products want and give, rearranged by as few launches as there can be.
#pragma once

#include "cuda/sampling_taps.h"

namespace vpgfast {

// The sizes of a call; channels first .. first + channels - 1 of D are held.
struct Sizes {
  int64_t B, C, D, first;
  int clips, P, N, per_bin, channels;
  bool each_video;
};

constexpr int kTile = 2048;   // elements of the weight that a block turns
constexpr int kSamples = 64;  // of them at most
constexpr int kSwapped = 8 * kChunk;

// Shared memory with one element skipped after every 32: neither rows nor columns, nor steps of any power of two up to
// 32 lie in one bank.
__host__ __device__ __forceinline__ int skewed(int i) {
  return i + i / kWarp;
}

struct WeightTile {
  __host__ __device__ explicit WeightTile(const Sizes& s)
      : samples(s.N < kSamples ? s.N : kSamples),
        inputs(kTile / samples),
        sample_tiles((s.N + samples - 1) / samples),
        input_tiles((s.C + inputs - 1) / inputs) {
  }
  __host__ __device__ int64_t count(const Sizes& s) const {
    return s.channels * input_tiles * sample_tiles;
  }
  int samples, inputs, sample_tiles;
  int64_t input_tiles;
};

// Between channels first .. first + channels - 1 of a weight [D, C, N] and kernel slices [N * channels, C]; both sides
// are read and written along their last dimension. A block of kChunk threads does one tile.
template <bool back, typename From, typename To>
__device__ void turn_weight(const From* in, To* out, int64_t block, const Sizes& s) {
  __shared__ To tile[kTile + kTile / kWarp];
  const WeightTile cut(s);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int n0 = static_cast<int>(block % cut.sample_tiles) * cut.samples;
  const int64_t c0 = block / cut.sample_tiles % cut.input_tiles * cut.inputs;
  const int64_t d = block / (cut.sample_tiles * cut.input_tiles);
  const int samples = min(cut.samples, s.N - n0);
  const int inputs = static_cast<int>(min(static_cast<int64_t>(cut.inputs), s.C - c0));
  const int64_t weight = ((s.first + d) * s.C + c0) * s.N + n0;
  const int64_t slices = (static_cast<int64_t>(n0) * s.channels + d) * s.C + c0;
  const int64_t slice = s.channels * s.C;  // from a sample to the next one
  if constexpr (!back) {
#pragma unroll 4
    for (int i = threadIdx.x; i < inputs * samples; i += kChunk) {
      const int c = i / samples;
      tile[skewed(i)] = static_cast<To>(in[weight + static_cast<int64_t>(c) * s.N + i - c * samples]);
    }
  } else {
    for (int n = warp; n < samples; n += kChunk / kWarp) {
#pragma unroll 4
      for (int c = lane; c < inputs; c += kWarp) {
        tile[skewed(c * samples + n)] = static_cast<To>(in[slices + n * slice + c]);
      }
    }
  }
  __syncthreads();
  if constexpr (!back) {
    for (int n = warp; n < samples; n += kChunk / kWarp) {
      for (int c = lane; c < inputs; c += kWarp) {
        out[slices + n * slice + c] = tile[skewed(c * samples + n)];
      }
    }
  } else {
    for (int i = threadIdx.x; i < inputs * samples; i += kChunk) {
      const int c = i / samples;
      out[weight + static_cast<int64_t>(c) * s.N + i - c * samples] = tile[skewed(i)];
    }
  }
}

// [J, I, clips] to [I, J, clips]; a block of kChunk threads does kSwapped elements.
template <typename From, typename To>
__device__ void swap_rows(const From* in, To* out, int64_t I, int64_t J, int clips, int64_t block) {
  const int64_t count = I * J * clips, begin = block * kSwapped;
#pragma unroll
  for (int k = 0; k < kSwapped / kChunk; ++k) {
    const int64_t index = begin + k * kChunk + threadIdx.x;
    if (index < count) {
      const bool small = count <= UINT_MAX;  // then the divisions are of 32 bits
      const int64_t row = small ? static_cast<unsigned>(index) / static_cast<unsigned>(clips) : index / clips;
      const int64_t i = small ? static_cast<unsigned>(row) / static_cast<unsigned>(J) : row / J;
      out[index] = static_cast<To>(in[((row - i * J) * I + i) * clips + index - row * clips]);
    }
  }
}
inline int64_t swap_blocks(int64_t B, int64_t C, int64_t clips) {
  return (B * C * clips + kSwapped - 1) / kSwapped;
}

// How many blocks of a launch do what.
struct Blocks {
  int64_t taps, weight, x;
  int64_t count() const {
    return taps + weight + x;
  }
};

// Before the products: the taps, the weight as kernel slices [N * channels, C] and x as [C, B * clips].
template <typename scalar_t, typename To>
__global__ static void __launch_bounds__(kChunk)
    prepare(const double* ends, Tap<accumulate_t<scalar_t>>* taps, Reach* reach, const scalar_t* weight, To* slices,
            const scalar_t* x, To* columns, Sizes s, Blocks blocks) {
  int64_t block = blockIdx.x;
  if (block < blocks.weight) {
    turn_weight<false>(weight, slices, block, s);
  } else if ((block -= blocks.weight) < blocks.x) {
    swap_rows(x, columns, s.C, s.B, s.clips, block);
  } else {
    write_taps(ends, s.clips, s.P, s.N, s.per_bin, block - blocks.x, taps, reach);
  }
}

// Behind them: the slices' gradient into the weight's, and x's gradient from [C, B * clips]; rounded here, once.
template <typename scalar_t>
__global__ static void __launch_bounds__(kChunk)
    finish(const accumulate_t<scalar_t>* slices, scalar_t* grad_weight, const accumulate_t<scalar_t>* columns,
           scalar_t* grad_x, Sizes s, Blocks blocks) {
  const int64_t block = blockIdx.x;
  if (block < blocks.weight) {
    turn_weight<true>(slices, grad_weight, block, s);
  } else {
    swap_rows(columns, grad_x, s.B, s.C, s.clips, block - blocks.weight);
  }
}

}  // namespace vpgfast
