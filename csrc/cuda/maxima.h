// Which of two clips is the maximum: the rule of temporal_map_max_pool, for its map and its lists.
#pragma once

#include "cuda/launch.h"

namespace vpgfast {

template <typename T>
__device__ __forceinline__ bool beats(T later, T earlier) {
  return later > earlier || later != later;  // torch's MaxPool1d: the first maximum on ties, the last NaN
}

}  // namespace vpgfast
