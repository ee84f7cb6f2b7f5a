// Running sums, maxima and the like of a long sequence, and reductions, by one block.
#pragma once

#include "common/intervals.h"
#include "cuda/launch.h"

namespace vpgfast {

constexpr int kMostItems = 8;  // consecutive elements that a thread takes at a time

// write(k, op(... op(read(0), read(1)) ..., read(k))) for every k below `count`. `op` is associative, `identity` its
// left identity. Of several reads of element k all come before its write; nothing else is promised of their order. All
// threads of the block call it, and may read what any of them has written when it returns.
template <typename T, typename Op, typename Read, typename Write>
__device__ void block_scan(int64_t count, const T& identity, const Op& op, const Read& read, const Write& write) {
  __shared__ T of_thread[2][kThreads];  // one is read while the other is written
  const int thread = threadIdx.x;
  const int items =
      static_cast<int>(lesser<int64_t>(larger<int64_t>((count + kThreads - 1) / kThreads, 1), kMostItems));
  T before_tile = identity;
  for (int64_t tile = 0; tile < count; tile += kThreads * items) {
    const int64_t first = tile + thread * items, last = lesser<int64_t>(first + items, count);
    // The threads that have elements; what the others come to is not looked at.
    const int active = static_cast<int>(lesser<int64_t>((count - tile + items - 1) / items, kThreads));
    T own = identity;
    for (int64_t k = first; k < last; ++k) {
      own = op(own, read(k));
    }
    int from = 0;
    of_thread[from][thread] = own;
    __syncthreads();
    for (int distance = 1; distance < active; distance *= 2) {
      if (thread >= distance) {
        own = op(of_thread[from][thread - distance], own);
      }
      from = 1 - from;
      of_thread[from][thread] = own;
      __syncthreads();
    }
    T running = thread > 0 ? op(before_tile, of_thread[from][thread - 1]) : before_tile;
    for (int64_t k = first; k < last; ++k) {
      running = op(running, read(k));
      write(k, running);
    }
    before_tile = op(before_tile, of_thread[from][active - 1]);
    __syncthreads();  // before `of_thread` is written again, and what was written is read
  }
}

// op over all threads' values, associative and commutative; every thread gets the result, when all have called it.
template <typename T, typename Op>
__device__ T block_reduce(const T& value, const Op& op) {
  __shared__ T of_thread[kThreads];
  const int thread = threadIdx.x;
  of_thread[thread] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) {
      of_thread[thread] = op(of_thread[thread], of_thread[thread + half]);
    }
    __syncthreads();
  }
  const T result = of_thread[0];
  __syncthreads();  // before `of_thread` is written again
  return result;
}

}  // namespace vpgfast
