// Sampling proposals on CUDA: their points, and the taps of all points sorted by the row that they read.
#pragma once

#include <cassert>
#include <optional>

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

template <typename T>
struct alignas(16) SortedTap {
  int64_t list;  // p, or n * P + p where samples do not have rows of their own
  T weight;
};

// For every point two taps: the row it reads, (video * sample_rows + n) * clips + clip, and with what weight. A tap
// that reads nothing has the row behind the last.
template <typename T>
__global__ static void make_taps(const double* ends, int64_t proposals, int64_t N, int64_t per_bin, int64_t clips,
                                 int64_t P, bool row_per_sample, int64_t no_row, int64_t* rows, T* weights) {
  const int64_t points = N * per_bin;
  for (int64_t index = first_index(); index < proposals * points; index += index_stride()) {
    const int64_t proposal = index / points, m = index % points, n = m / per_bin;
    const Neighbours near(proposal_points(ends, proposal, points)[m], clips);
    const int64_t first = (proposal / P * (row_per_sample ? N : 1) + (row_per_sample ? n : 0)) * clips + near.lower;
    rows[2 * index] = near.lower_weight != 0 ? first : no_row;
    rows[2 * index + 1] = near.upper_weight != 0 ? first + 1 : no_row;
    weights[2 * index] = static_cast<T>(near.lower_weight);
    weights[2 * index + 1] = static_cast<T>(near.upper_weight);
  }
}

template <typename T>
__global__ static void arrange_taps(const int64_t* order, const T* weights, int64_t taps, int64_t N, int64_t per_bin,
                                    int64_t P, bool row_per_sample, SortedTap<T>* sorted) {
  for (int64_t index = first_index(); index < taps; index += index_stride()) {
    const int64_t point = order[index] / 2, p = point / (N * per_bin) % P, n = point % (N * per_bin) / per_bin;
    sorted[index] = {row_per_sample ? p : n * P + p, weights[order[index]]};
  }
}

// starts[row]: position of the first tap of that row or of a later one.
__global__ static void find_rows(const int64_t* sorted_rows, int64_t taps, int64_t rows, int64_t* starts) {
  for (int64_t row = first_index(); row <= rows; row += index_stride()) {
    int64_t low = 0, high = taps;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      (sorted_rows[middle] < row ? low : high) = sorted_rows[middle] < row ? middle + 1 : middle;
    }
    starts[row] = low;
  }
}

// The taps of every row, in the order of the proposals: a row's gradient is then one sum, without atomics and the same
// every time.
template <typename T>
struct TapsOfRows {
  TapsOfRows(const char* op, const Proposals& proposals, int64_t B, int64_t clips, bool row_per_sample) {
    const int64_t N = proposals.N, P = proposals.P, videos = proposals.each_video ? B : 1;
    const int64_t taps = 2 * videos * P * N * proposals.per_bin;
    const int64_t rows = videos * (row_per_sample ? N : 1) * clips;
    video_rows = proposals.each_video ? rows / std::max<int64_t>(1, videos) : 0;
    const auto empty = [&](int64_t bytes) {
      return torch::stable::new_empty(proposals.tensor, {bytes / 8}, ScalarType::Long);
    };
    const cudaStream_t stream = current_stream(proposals.tensor);
    Tensor row_of_tap = empty(8 * taps);
    const Tensor weights = empty(8 * taps);
    if (taps > 0) {
      make_taps<T><<<blocks_for(taps / 2), kThreads, 0, stream>>>(proposals.ends, videos * P, N, proposals.per_bin,
                                                                  clips, P, row_per_sample, rows,
                                                                  write<int64_t>(row_of_tap), write<T>(weights));
      check_launch(op);
    }
    Tensor order;
    stable_sort(row_of_tap, row_of_tap, order);
    starts = empty(8 * (rows + 1));
    sorted = empty(static_cast<int64_t>(sizeof(SortedTap<T>)) * taps);
    find_rows<<<blocks_for(rows + 1), kThreads, 0, stream>>>(read<int64_t>(row_of_tap), taps, rows,
                                                             write<int64_t>(starts));
    if (taps > 0) {
      arrange_taps<T><<<blocks_for(taps), kThreads, 0, stream>>>(read<int64_t>(order), read<T>(weights), taps, N,
                                                                 proposals.per_bin, P, row_per_sample,
                                                                 write<SortedTap<T>>(sorted));
    }
    check_launch(op);
  }
  Tensor starts, sorted;
  int64_t video_rows;  // from a video's rows to the next one's; 0 where all share them
};

}  // namespace vpgfast
