// temporal_nms on CUDA. See vpgfast/ops/temporal_nms.py for what it computes.

#include <array>
#include <limits>

#include "cuda/intervals_cuda.h"

namespace vpgfast {
namespace {

// One block a list. It walks down the order of the scores from one surviving span to the next; all threads then strike
// out what overlaps that one too much.
template <typename scalar_t>
__global__ void nms(const scalar_t* spans, const scalar_t* scores, const int64_t* order, bool* alive, int64_t* kept,
                    int64_t lists, int64_t N, int64_t top_k, accumulate_t<scalar_t> threshold) {
  using T = accumulate_t<scalar_t>;
  __shared__ unsigned long long next;
  for (int64_t list = blockIdx.x; list < lists; list += gridDim.x) {
    const scalar_t* pairs = spans + list * N * 2;
    const int64_t* ranked = order + list * N;
    bool* standing = alive + list * N;
    int64_t* out = kept + list * top_k;
    for (int64_t rank = threadIdx.x; rank < N; rank += kThreads) {
      const T score = static_cast<T>(scores[list * N + ranked[rank]]);
      read_interval<T>(pairs, ranked[rank]);  // checked, even if it is never reached
      standing[rank] = score > -std::numeric_limits<T>::infinity();
    }
    int64_t count = 0, rank = 0;
    for (; count < top_k; ++count) {
      if (threadIdx.x == 0) {
        next = static_cast<unsigned long long>(N);
      }
      __syncthreads();
      for (int64_t candidate = rank + threadIdx.x; candidate < N; candidate += kThreads) {
        if (standing[candidate]) {
          atomicMin(&next, static_cast<unsigned long long>(candidate));
          break;
        }
      }
      __syncthreads();
      rank = static_cast<int64_t>(next);
      __syncthreads();  // before thread 0 writes `next` again
      if (rank >= N) {
        break;
      }
      const Interval<T> best = read_interval<T>(pairs, ranked[rank]);
      if (threadIdx.x == 0) {
        out[count] = ranked[rank];
      }
      for (int64_t other = rank + 1 + threadIdx.x; other < N; other += kThreads) {
        const Interval<T> span = read_interval<T>(pairs, ranked[other]);
        if (!(interval_iou<false>(span.start, span.end, best.start, best.end) <= threshold)) {
          standing[other] = false;
        }
      }
      ++rank;
      __syncthreads();
    }
    for (int64_t k = count + threadIdx.x; k < top_k; k += kThreads) {
      out[k] = -1;
    }
    __syncthreads();
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
  const Tensor order = torch::stable::contiguous(sorted_positions(scores));
  Tensor alive = torch::stable::new_empty(spans, {L, N}, ScalarType::Bool);
  dispatch_floating("temporal_nms", spans.scalar_type(), [&]<typename scalar_t>() {
    nms<<<blocks_for(L * kThreads), kThreads, 0, current_stream(spans)>>>(
        read<scalar_t>(spans), read<scalar_t>(scores), read<int64_t>(order), write<bool>(alive), write<int64_t>(kept),
        L, N, top_k, static_cast<accumulate_t<scalar_t>>(threshold));
    check_launch("temporal_nms");
  });
  return kept;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_nms", TORCH_BOX(&temporal_nms));
}

}  // namespace vpgfast
