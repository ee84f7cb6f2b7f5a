// Sampling proposals on the CPU: sums of weighted rows.
//
// Features lie channels-last, a row of channels a clip. What a proposal reads is a short list of taps (row, weight), so
// the same two loops serve sample_proposals (a list for every sample) and proposal_conv (a list for every proposal,
// over the rows of all its samples): `gather` adds up a list's rows in registers, `scatter` adds a list's gradient to
// its rows. Results lie channels-first; 64 lists at a time are transposed in the cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/proposals.h"
#include "common/sampling_points.h"
#include "cpu/transpose.h"
#include "cpu/vector.h"

namespace vpgfast {

constexpr int64_t kListsPerTile = 64;
constexpr int64_t kTapBytes = 1 << 20;  // of the lists that are made at a time: they stay in the second cache
constexpr int kWidest = 4;              // registers of channels that a list's sum is kept in

// Distance between rows of `width` elements: not a multiple of 4 KiB, at which all rows would share few cache lines.
template <typename T>
int64_t row_stride(int64_t width) {
  return width * sizeof(T) % 4096 == 0 ? width + Vector<T>::kWidth : width;
}

inline void check_values(const char* op, const Proposals& proposals, int64_t B) {
  for (int64_t p = 0; p < (proposals.each_video ? B : 1) * proposals.P; ++p) {
    const double start = proposals.ends[2 * p], end = proposals.ends[2 * p + 1];
    STD_TORCH_CHECK(std::isfinite(start) && std::isfinite(end) && start <= end, op, ": proposal ", p, " is (", start,
                    ", ", end, "); it must be two finite numbers, its end not before its start");
  }
}

template <typename T>
struct Tap {
  int64_t row;  // offset of the row's first channel
  T weight;
};

// Lists of taps, `capacity` places each.
template <typename T>
struct TapLists {
  const Tap<T>* of(int64_t list) const {
    return taps.data() + list * capacity;
  }
  int64_t capacity;
  std::vector<Tap<T>> taps;
  std::vector<int64_t> count;
};

// How rows are laid out, and which taps make a list.
struct RowLayout {
  int64_t T;
  int64_t clip_stride;    // from a clip's row to the next clip's
  int64_t sample_stride;  // from sample n's row to sample n + 1's of the same clip; 0 where samples share one row
  bool list_per_sample;   // list n * P + p is sample n of proposal p; otherwise list p is all samples of proposal p
};

// The taps of sample n, merged where neighbouring points of a bin read the same clips. Returns how many.
template <typename T>
int64_t sample_taps(const SamplingPoints& points, int64_t n, int64_t per_bin, const RowLayout& layout, Tap<T>* taps) {
  int64_t count = 0;
  const auto add = [&](int64_t clip, double weight) {
    const int64_t row = clip * layout.clip_stride + n * layout.sample_stride;
    for (int64_t k = count - 1; k >= std::max<int64_t>(0, count - 2); --k) {  // points go up: only the last two match
      if (taps[k].row == row) {
        taps[k].weight += static_cast<T>(weight);
        return;
      }
    }
    taps[count++] = {row, static_cast<T>(weight)};
  };
  const double share = 1.0 / static_cast<double>(per_bin);
  for (int64_t m = n * per_bin; m < (n + 1) * per_bin; ++m) {
    const Neighbours clips(points[m], layout.T);
    if (clips.lower_weight != 0) {
      add(clips.lower, clips.lower_weight * share);
    }
    if (clips.upper_weight != 0) {
      add(clips.lower + 1, clips.upper_weight * share);
    }
  }
  return count;
}

template <typename T>
void make_lists(const Proposals& proposals, const double* ends, const RowLayout& layout, int64_t first, int64_t last,
                TapLists<T>& lists) {
  const int64_t N = proposals.N, P = proposals.P, per_bin = proposals.per_bin;
  torch::stable::parallel_for(first, last, kListsPerTile, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      const int64_t p = layout.list_per_sample ? q % P : q;
      const SamplingPoints points(ends[2 * p], ends[2 * p + 1], N * per_bin);
      Tap<T>* taps = lists.taps.data() + (q - first) * lists.capacity;
      int64_t& count = lists.count[q - first];
      count = 0;
      if (layout.list_per_sample) {
        count = sample_taps(points, q / P, per_bin, layout, taps);
      } else {
        for (int64_t n = 0; n < N; ++n) {
          count += sample_taps(points, n, per_bin, layout, taps + count);
        }
      }
    }
  });
}

// Calls use(first_batch, batches, first_list, count, lists) for every block of lists, with as many videos at a time as
// share them. What one block uses is gone when the next is made.
template <typename T, typename Use>
void for_blocks_of_lists(const Proposals& proposals, const RowLayout& layout, int64_t first_batch, int64_t batches,
                         const Use& use) {
  const int64_t Q = layout.list_per_sample ? proposals.N * proposals.P : proposals.P;
  TapLists<T> lists;
  lists.capacity = 2 * proposals.per_bin * (layout.list_per_sample ? 1 : proposals.N);
  const int64_t fitting = kTapBytes / (lists.capacity * static_cast<int64_t>(sizeof(Tap<T>)));
  const int64_t block = std::min(std::max<int64_t>(1, fitting / kListsPerTile) * kListsPerTile, Q);
  lists.taps.resize(block * lists.capacity);
  lists.count.resize(block);
  const int64_t together = proposals.each_video ? 1 : batches;
  for (int64_t b = first_batch; b < first_batch + batches; b += together) {
    for (int64_t first = 0; first < Q; first += block) {
      const int64_t last = std::min(first + block, Q);
      make_lists(proposals, proposals.ends + (proposals.each_video ? 2 * b * proposals.P : 0), layout, first, last,
                 lists);
      use(b, together, first, last - first, lists);
    }
  }
}

// tile[q] = bias + sum of the weighted rows of list q; kVectors registers of channels.
template <typename T, int kVectors>
static void gather_tile(const T* rows, const TapLists<T>& lists, int64_t first, int64_t count, const T* bias, T* tile) {
  using vector_t = typename Vector<T>::type;
  constexpr int64_t kLanes = Vector<T>::kWidth;
  for (int64_t q = 0; q < count; ++q) {
    vector_t sum[kVectors];
    std::memcpy(sum, bias, sizeof(sum));
    const Tap<T>* taps = lists.of(first + q);
    const Tap<T>* end = taps + lists.count[first + q];
    for (const Tap<T>* tap = taps; tap < end; ++tap) {
      const T* row = rows + tap->row;
      for (int v = 0; v < kVectors; ++v) {
        vector_t value;
        std::memcpy(&value, row + v * kLanes, sizeof(value));
        sum[v] += tap->weight * value;
      }
    }
    std::memcpy(tile + q * kVectors * kLanes, sum, sizeof(sum));
  }
}

// Adds tile[q], weighted, to every row of list q.
template <typename T, int kVectors>
static void scatter_tile(const T* tile, const TapLists<T>& lists, int64_t first, int64_t count, T* rows) {
  using vector_t = typename Vector<T>::type;
  constexpr int64_t kLanes = Vector<T>::kWidth;
  for (int64_t q = 0; q < count; ++q) {
    vector_t grad[kVectors];
    std::memcpy(grad, tile + q * kVectors * kLanes, sizeof(grad));
    const Tap<T>* taps = lists.of(first + q);
    const Tap<T>* end = taps + lists.count[first + q];
    for (const Tap<T>* tap = taps; tap < end; ++tap) {
      T* row = rows + tap->row;
      for (int v = 0; v < kVectors; ++v) {
        vector_t value;
        std::memcpy(&value, row + v * kLanes, sizeof(value));
        value += tap->weight * grad[v];
        std::memcpy(row + v * kLanes, &value, sizeof(value));
      }
    }
  }
}

// A share of the channels, as many registers as a sum is kept in, and how to run over it: widest first.
template <typename T, typename Run>
void for_registers(int64_t first, int64_t channels, const Run& run) {
  constexpr int64_t kLanes = Vector<T>::kWidth;
  const int64_t last = std::min(first + kWidest * kLanes, padded<T>(channels));
  if (last - first == kWidest * kLanes) {
    run.template operator()<kWidest>(first);
    return;
  }
  for (int64_t d = first; d < last; d += kLanes) {
    run.template operator()<1>(d);
  }
}

// out[b, d, first + q] for `batches` videos, `channels` channels and `count` lists. `rows` points to the first video's
// first row, `out` to element (first video, first channel, list 0) of [B, D, Q].
template <typename T, typename scalar_t>
void gather(const TapLists<T>& lists, int64_t first, int64_t count, const T* rows, int64_t video_stride,
            int64_t batches, int64_t channels, const T* bias, scalar_t* out, int64_t D, int64_t Q) {
  constexpr int64_t kLanes = Vector<T>::kWidth, kShare = kWidest * kLanes;
  const int64_t tiles = (count + kListsPerTile - 1) / kListsPerTile, shares = (channels + kShare - 1) / kShare;
  torch::stable::parallel_for(0, batches * shares * tiles, 1, [&](int64_t begin, int64_t end) {
    alignas(64) T tile[kListsPerTile * kShare];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t q = unit % tiles * kListsPerTile, length = std::min(kListsPerTile, count - q);
      const int64_t share = unit / tiles % shares * kShare, b = unit / (tiles * shares);
      for_registers<T>(share, channels, [&]<int kVectors>(int64_t d) {
        gather_tile<T, kVectors>(rows + b * video_stride + d, lists, q, length, bias + d, tile);
        transpose(tile, kVectors * kLanes, out + (b * D + d) * Q + first + q, Q, length,
                  std::min(kVectors * kLanes, channels - d));
      });
    }
  });
}

// The other way: adds grad[b, d, first + q] to the rows of list q. A row is only ever added to by one thread, in the
// order of the lists.
template <typename T, typename scalar_t>
void scatter(const TapLists<T>& lists, int64_t first, int64_t count, const scalar_t* grad, int64_t D, int64_t Q,
             int64_t batches, int64_t channels, T* rows, int64_t video_stride) {
  constexpr int64_t kLanes = Vector<T>::kWidth, kShare = kWidest * kLanes;
  const int64_t shares = (channels + kShare - 1) / kShare;
  torch::stable::parallel_for(0, batches * shares, 1, [&](int64_t begin, int64_t end) {
    alignas(64) T tile[kListsPerTile * kShare];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t share = unit % shares * kShare, b = unit / shares;
      for_registers<T>(share, channels, [&]<int kVectors>(int64_t d) {
        const int64_t width = std::min(kVectors * kLanes, channels - d);
        std::fill(tile, tile + kListsPerTile * kVectors * kLanes, T{0});  // the padding adds zero to its rows
        for (int64_t q = 0; q < count; q += kListsPerTile) {
          const int64_t length = std::min(kListsPerTile, count - q);
          const scalar_t* from = grad + (b * D + d) * Q + first + q;
          transpose(from, Q, tile, kVectors * kLanes, width, length);
          scatter_tile<T, kVectors>(tile, lists, q, length, rows + b * video_stride + d);
        }
      });
    }
  });
}

// Features [B, C, T] as rows: [B * T, stride] in the dtype of sums, what lies beyond C is zero.
template <typename scalar_t, typename T>
void channels_last(const scalar_t* x, int64_t B, int64_t C, int64_t clips, T* rows, int64_t stride) {
  torch::stable::parallel_for(0, B * ((clips + 63) / 64), 1, [&](int64_t begin, int64_t end) {
    const int64_t tiles = (clips + 63) / 64;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / tiles, t = unit % tiles * 64, length = std::min<int64_t>(64, clips - t);
      transpose(x + b * C * clips + t, clips, rows + (b * clips + t) * stride, stride, C, length);
      for (int64_t k = 0; k < length && C < stride; ++k) {
        std::fill(rows + (b * clips + t + k) * stride + C, rows + (b * clips + t + k + 1) * stride, T{0});
      }
    }
  });
}

template <typename scalar_t, typename T>
void channels_first(const T* rows, int64_t stride, int64_t B, int64_t C, int64_t clips, scalar_t* x) {
  torch::stable::parallel_for(0, B * ((clips + 63) / 64), 1, [&](int64_t begin, int64_t end) {
    const int64_t tiles = (clips + 63) / 64;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / tiles, t = unit % tiles * 64, length = std::min<int64_t>(64, clips - t);
      transpose(rows + (b * clips + t) * stride, stride, x + b * C * clips + t, clips, length, C);
    }
  });
}

}  // namespace vpgfast
