// How blocks of kThreads lie on maps of T x T cells, so that no thread divides to find its cells.
#pragma once

#include "cuda/launch.h"

namespace vpgfast {

// A block's threads are 2^log_x packs of `width` neighbouring cells, 2^log_y rows, and as many maps as that leaves;
// each takes `rows` rows, 2^log_y apart, and packs 2^log_x apart. `parts` blocks share a map's rows.
struct MapBlocks {
  MapBlocks(int64_t maps, int64_t T, int width, int rows) : maps(maps), T(static_cast<int>(T)), log_x(0), log_y(0) {
    while (log_x < 5 && static_cast<int64_t>(width) << log_x < T) {
      ++log_x;
    }
    while (kThreads >> (log_x + log_y) > 1 && static_cast<int64_t>(rows) << log_y < T) {
      ++log_y;
    }
    parts = static_cast<int>((T + (rows << log_y) - 1) / (rows << log_y));
  }
  __host__ __device__ int maps_per_block() const {
    return kThreads >> (log_x + log_y);
  }
  __host__ __device__ int64_t groups() const {
    static_assert(kThreads == 1 << 8);
    return (maps + maps_per_block() - 1) >> (8 - log_x - log_y);
  }
  // blockIdx.x is a part, blockIdx.y a group of maps; kernels loop over more groups than that.
  dim3 grid() const {
    return dim3(static_cast<unsigned>(parts), static_cast<unsigned>(std::min<int64_t>(groups(), 65535)));
  }

  __device__ int64_t map_of(int64_t group) const {
    return group * maps_per_block() + (threadIdx.x >> (log_x + log_y));
  }
  __device__ int x() const {
    return static_cast<int>(threadIdx.x) & ((1 << log_x) - 1);
  }
  __device__ int y() const {
    return (static_cast<int>(threadIdx.x) >> log_x) & ((1 << log_y) - 1);
  }

  int64_t maps;
  int T, log_x, log_y, parts;
};

}  // namespace vpgfast
