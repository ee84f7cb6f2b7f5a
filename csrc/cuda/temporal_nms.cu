// temporal_nms on CUDA. See vpgfast/ops/temporal_nms.py for what it computes.
//
// Where few spans are wanted, or lists are short, a block selects them one after the other from its list, unsorted: no
// launch but one. Else the list is sorted and taken in tiles of 1,024 ranks: a block a list settles a tile, and then
// all blocks strike what the tile's kept spans overlap from the ranks behind it.

#include <array>
#include <limits>

#include "cuda/intervals_cuda.h"

namespace vpgfast::temporal_nms_cuda {
namespace {

constexpr int64_t kMostSelected = 128;      // of a long list; a step costs a pass over what still stands
constexpr int64_t kShortList = 256;         // whatever is wanted of it
constexpr int kTile = 1024;                 // ranks that a block settles, one a thread
constexpr int64_t kMostListsAtOnce = 512;   // of long lists: more than a GPU can run
constexpr int64_t kMostScratchLists = 256;  // at a time, where lists do not fit into shared memory

// A place holds a span if its score is above -inf and neither its score nor an end of it is NaN.
template <typename T>
__device__ __forceinline__ bool holds_span(T score, const Interval<T>& span) {
  return score > -std::numeric_limits<T>::infinity() && span.start == span.start && span.end == span.end;
}

// Whether a span survives a better one's being kept; an IoU that is no number (of infinite spans) strikes.
template <typename T>
__device__ __forceinline__ bool survives(T start, T end, T best_start, T best_end, T threshold) {
  return interval_iou<false>(start, end, best_start, best_end) <= threshold;
}

template <typename T>
struct alignas(16) Entry {
  T score, start, end;
  int index;

  __device__ static Entry none() {
    return {-std::numeric_limits<T>::infinity(), 0, 0, std::numeric_limits<int>::max()};
  }
};

template <typename T>
__device__ __forceinline__ bool is_better(T score, int index, T than_score, int than_index) {
  return score > than_score || (score == than_score && index < than_index);
}

// The best of all threads' entries, to every thread. `slots` hold one a warp, and take turns: there is one barrier.
template <typename T>
__device__ Entry<T> best_of_block(const Entry<T>& own, Entry<T>* slots) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const unsigned all = 0xffffffffu;
  const auto best_of_warp = [&](const Entry<T>& entry) {
    T score = entry.score;
    int index = entry.index;
    for (int apart = kWarp / 2; apart > 0; apart /= 2) {
      const T other_score = __shfl_xor_sync(all, score, apart);
      const int other_index = __shfl_xor_sync(all, index, apart);
      const bool other = is_better(other_score, other_index, score, index);
      score = other ? other_score : score;
      index = other ? other_index : index;
    }
    return index;
  };
  const int best_here = best_of_warp(own);
  const int holder = __ffs(static_cast<int>(__ballot_sync(all, own.index == best_here))) - 1;
  if (lane == holder) {
    slots[warp] = own;
  }
  __syncthreads();
  Entry<T> best = lane < warps ? slots[lane] : Entry<T>::none();
  const int index = best_of_warp(best);
  const int source = __ffs(static_cast<int>(__ballot_sync(all, best.index == index))) - 1;
  best.start = __shfl_sync(all, best.start, source);
  best.end = __shfl_sync(all, best.end, source);
  best.index = index;
  return best;
}

// One block a list. Every thread has its own entries that still stand, a block's width apart; a step takes the best of
// all, and in one pass each thread drops what overlaps it and finds the best of what is left.
template <typename scalar_t>
__global__ void __launch_bounds__(1024, 1)
    nms_by_selection(const scalar_t* spans, const scalar_t* scores, int64_t* kept,
                     Entry<accumulate_t<scalar_t>>* scratch, int64_t lists, int N, int capacity, int64_t top_k,
                     accumulate_t<scalar_t> threshold) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  auto* slots = reinterpret_cast<Entry<T>*>(shared_bytes);
  Entry<T>* own = (scratch ? scratch + static_cast<int64_t>(blockIdx.x) * capacity : slots + 2 * kWarp) + threadIdx.x;
  int turn = 0;
  for (int64_t list = blockIdx.x; list < lists; list += gridDim.x) {
    const scalar_t* pairs = spans + list * N * 2;
    int64_t* out = kept + list * top_k;
    Entry<T> best = Entry<T>::none();
    int count = 0;
    for (int n = threadIdx.x; n < N; n += blockDim.x) {
      const Interval<T> span = read_interval<T>(pairs, n);
      const T score = static_cast<T>(scores[list * N + n]);
      if (holds_span(score, span)) {
        const Entry<T> entry{score, span.start, span.end, n};
        own[count++ * blockDim.x] = entry;
        best = is_better(score, n, best.score, best.index) ? entry : best;
      }
    }
    int64_t step = 0;
    for (; step < top_k; ++step) {
      turn ^= 1;
      const Entry<T> taken = best_of_block(best, slots + turn * kWarp);
      if (taken.index == Entry<T>::none().index) {
        break;
      }
      if (threadIdx.x == 0) {
        out[step] = taken.index;
      }
      best = Entry<T>::none();
      int left = 0;
      for (int k = 0; k < count; ++k) {
        const Entry<T> entry = own[k * blockDim.x];
        if (entry.index != taken.index && survives(entry.start, entry.end, taken.start, taken.end, threshold)) {
          own[left++ * blockDim.x] = entry;
          best = is_better(entry.score, entry.index, best.score, best.index) ? entry : best;
        }
      }
      count = left;
    }
    for (int64_t k = step + threadIdx.x; k < top_k; k += blockDim.x) {
      out[k] = -1;
    }
  }
}

// What the tiles work on, of every list.
template <typename T>
struct Ranked {
  Interval<T>* spans;   // [L, N] in rank order
  bool* standing;       // [L, N]
  Interval<T>* news;    // [L, kTile] kept spans of the last tile
  int* news_count;      // [L]
  int64_t* kept_count;  // [L]
};

template <typename scalar_t>
__global__ void arrange(const scalar_t* spans, const scalar_t* scores, const int64_t* order,
                        Ranked<accumulate_t<scalar_t>> ranked, int64_t* kept, int64_t lists, int64_t N, int64_t top_k) {
  using T = accumulate_t<scalar_t>;
  for (int64_t list = blockIdx.y; list < lists; list += gridDim.y) {
    for (int64_t rank = first_index(); rank < N; rank += index_stride()) {
      const int64_t n = order[list * N + rank];
      const Interval<T> span = read_interval<T>(spans + list * N * 2, n);
      ranked.spans[list * N + rank] = span;
      ranked.standing[list * N + rank] = holds_span(static_cast<T>(scores[list * N + n]), span);
    }
    for (int64_t k = first_index(); k < top_k; k += index_stride()) {
      kept[list * top_k + k] = -1;
    }
    if (first_index() == 0) {
      ranked.kept_count[list] = 0;
    }
  }
}

// A warp at a time, in rank order: it settles its own 32 ranks, then those behind it strike what its kept spans
// overlap.
template <typename T>
__global__ void __launch_bounds__(kTile, 1)
    settle_tile(Ranked<T> ranked, const int64_t* order, int64_t* kept, int64_t lists, int64_t N, int64_t first,
                int64_t top_k, T threshold) {
  __shared__ Interval<T> news[kTile];
  __shared__ int totals[kTile / kWarp + 1];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const unsigned all = 0xffffffffu;
  for (int64_t list = blockIdx.x; list < lists; list += gridDim.x) {
    const int64_t before = ranked.kept_count[list], rank = first + threadIdx.x;
    const int room = static_cast<int>(min(top_k - before, static_cast<int64_t>(kTile)));
    bool stands = rank < N && ranked.standing[list * N + rank];
    const Interval<T> own = stands ? ranked.spans[list * N + rank] : Interval<T>{0, 0};
    int total = 0;
    for (int turn = 0; turn < kTile / kWarp && total < room; ++turn) {
      if (warp == turn) {
        int added = total;
        unsigned left = __ballot_sync(all, stands);
        while (left != 0 && added < room) {
          const int best = __ffs(static_cast<int>(left)) - 1;
          const T start = __shfl_sync(all, own.start, best), end = __shfl_sync(all, own.end, best);
          if (lane == best) {
            news[added] = own;
            kept[list * top_k + before + added] = order[list * N + rank];
          }
          ++added;
          stands = stands && lane > best && survives(own.start, own.end, start, end, threshold);
          left = __ballot_sync(all, stands);
        }
        if (lane == 0) {
          totals[turn + 1] = added;
        }
      }
      __syncthreads();
      const int now = totals[turn + 1];
      if (warp > turn && stands) {
        for (int k = total; k < now && stands; ++k) {
          stands = survives(own.start, own.end, news[k].start, news[k].end, threshold);
        }
      }
      total = now;
    }
    if (static_cast<int>(threadIdx.x) < total) {
      ranked.news[list * kTile + threadIdx.x] = news[threadIdx.x];
    }
    if (threadIdx.x == 0) {
      ranked.news_count[list] = total;
    }
    __syncthreads();  // all have read the count of kept spans
    if (threadIdx.x == 0) {
      ranked.kept_count[list] = before + total;
    }
  }
}

template <typename T>
__global__ void strike(Ranked<T> ranked, int64_t lists, int64_t N, int64_t first, int64_t top_k, T threshold) {
  __shared__ Interval<T> news[kTile];
  for (int64_t list = blockIdx.y; list < lists; list += gridDim.y) {
    const int count = ranked.kept_count[list] < top_k ? ranked.news_count[list] : 0;
    for (int k = threadIdx.x; k < count; k += kThreads) {
      news[k] = ranked.news[list * kTile + k];
    }
    __syncthreads();
    for (int64_t rank = first + first_index(); rank < N && count > 0; rank += index_stride()) {
      if (!ranked.standing[list * N + rank]) {
        continue;
      }
      const Interval<T> own = ranked.spans[list * N + rank];
      bool stands = true;
      for (int k = 0; k < count && stands; ++k) {
        stands = survives(own.start, own.end, news[k].start, news[k].end, threshold);
      }
      if (!stands) {
        ranked.standing[list * N + rank] = false;
      }
    }
    __syncthreads();  // before the next list's
  }
}

// Positions of a tensor's rows in falling order, equals in their own order: torch.sort(stable=True, descending=True).
Tensor sorted_positions(const Tensor& scores) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(scores), from(std::optional<bool>(true)), from(int64_t{-1}), from(true)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor values = torch::stable::detail::to<Tensor>(stack[0]);  // takes ownership, so that it is freed
  return torch::stable::detail::to<Tensor>(stack[1]);
}

// `count` of T as a tensor to be freed with.
template <typename T>
Tensor scratch(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {static_cast<int64_t>((count * sizeof(T) + 7) / 8)}, ScalarType::Long);
}

template <typename scalar_t>
void select(const Tensor& spans, const Tensor& scores, const Tensor& kept, accumulate_t<scalar_t> threshold) {
  using T = accumulate_t<scalar_t>;
  const int64_t L = spans.size(0), N = spans.size(1);
  unsigned threads = kWarp;
  while (threads < 1024 && 2 * static_cast<int64_t>(threads) < N) {
    threads *= 2;
  }
  const int64_t capacity = (N + threads - 1) / threads * threads, slots = 2 * kWarp * sizeof(Entry<T>);
  int64_t shared = slots + capacity * static_cast<int64_t>(sizeof(Entry<T>)), blocks = std::min<int64_t>(L, 1 << 20);
  Tensor entries;
  Entry<T>* outside = nullptr;
  if (shared > most_shared()) {
    shared = slots;
    blocks = std::min(blocks, kMostScratchLists);
    entries = scratch<Entry<T>>(spans, blocks * capacity);
    outside = static_cast<Entry<T>*>(entries.mutable_data_ptr());
  }
  allow_shared(nms_by_selection<scalar_t>, shared);
  nms_by_selection<scalar_t><<<static_cast<unsigned>(blocks), threads, shared, current_stream(spans)>>>(
      read<scalar_t>(spans), read<scalar_t>(scores), write<int64_t>(kept), outside, L, static_cast<int>(N),
      static_cast<int>(capacity), kept.size(1), threshold);
}

template <typename scalar_t>
void take_tiles(const Tensor& spans, const Tensor& scores, const Tensor& kept, accumulate_t<scalar_t> threshold) {
  using T = accumulate_t<scalar_t>;
  const int64_t L = spans.size(0), N = spans.size(1), top_k = kept.size(1);
  const cudaStream_t stream = current_stream(spans);
  const Tensor order = torch::stable::contiguous(sorted_positions(scores));
  const Tensor ordered = scratch<Interval<T>>(spans, L * N), standing = scratch<bool>(spans, L * N);
  const Tensor news = scratch<Interval<T>>(spans, L * kTile), news_count = scratch<int>(spans, L);
  const Tensor kept_count = scratch<int64_t>(spans, L);
  const Ranked<T> ranked{static_cast<Interval<T>*>(ordered.mutable_data_ptr()),
                         static_cast<bool*>(standing.mutable_data_ptr()),
                         static_cast<Interval<T>*>(news.mutable_data_ptr()),
                         static_cast<int*>(news_count.mutable_data_ptr()), write<int64_t>(kept_count)};
  const auto* ranks = read<int64_t>(order);
  auto* to = write<int64_t>(kept);
  const auto lists = static_cast<unsigned>(std::min<int64_t>(L, kMostListsAtOnce));
  arrange<scalar_t><<<dim3(blocks_for(std::max(N, top_k)), lists), kThreads, 0, stream>>>(
      read<scalar_t>(spans), read<scalar_t>(scores), ranks, ranked, to, L, N, top_k);
  for (int64_t first = 0; first < N; first += kTile) {
    settle_tile<T><<<lists, kTile, 0, stream>>>(ranked, ranks, to, L, N, first, top_k, threshold);
    if (const int64_t behind = first + kTile; behind < N) {
      strike<T><<<dim3(blocks_for(N - behind), lists), kThreads, 0, stream>>>(ranked, L, N, behind, top_k, threshold);
    }
  }
}

Tensor temporal_nms(const Tensor& spans_in, const Tensor& scores_in, double threshold, int64_t top_k) {
  check_sizes("temporal_nms", "spans", spans_in, {-1, -1, 2});
  const int64_t L = spans_in.size(0), N = spans_in.size(1);
  check_sizes("temporal_nms", "scores", scores_in, {L, N});
  check_dtype("temporal_nms", "scores", scores_in, spans_in.scalar_type());
  STD_TORCH_CHECK(top_k >= 0, "temporal_nms: top_k is ", top_k, "; it must be 0 or more");
  const torch::stable::accelerator::DeviceGuard guard(spans_in.get_device_index());
  const Tensor spans = torch::stable::contiguous(spans_in), scores = torch::stable::contiguous(scores_in);
  Tensor kept = torch::stable::new_empty(spans, {L, top_k}, ScalarType::Long);
  if (L * top_k == 0) {
    return kept;
  }
  dispatch_floating("temporal_nms", spans.scalar_type(), [&]<typename scalar_t>() {
    const auto limit = static_cast<accumulate_t<scalar_t>>(threshold);
    if (N <= kShortList || (top_k <= kMostSelected && N < int64_t{1} << 30)) {
      select<scalar_t>(spans, scores, kept, limit);
    } else {
      take_tiles<scalar_t>(spans, scores, kept, limit);
    }
    check_launch("temporal_nms");
  });
  return kept;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_nms", TORCH_BOX(&temporal_nms));
}

}  // namespace vpgfast::temporal_nms_cuda
