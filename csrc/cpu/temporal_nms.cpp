// temporal_nms on the CPU. See vpgfast/ops/temporal_nms.py for what it computes.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/intervals_cpu.h"

namespace vpgfast {
namespace {

// Whether one of the `count` kept spans overlaps a span too much; an IoU that is no number (of infinite spans) does.
template <typename T>
bool is_struck(T start, T end, const T* starts, const T* ends, int64_t count, T threshold) {
  int32_t struck = 0;
#pragma omp simd reduction(| : struck)
  for (int64_t k = 0; k < count; ++k) {
    struck |= !(interval_iou<false>(start, end, starts[k], ends[k]) <= threshold);
  }
  return struck != 0;
}

Tensor temporal_nms(const Tensor& spans_in, const Tensor& scores_in, double threshold, int64_t top_k) {
  check_sizes("temporal_nms", "spans", spans_in, {-1, -1, 2});
  const int64_t L = spans_in.size(0), N = spans_in.size(1);
  check_sizes("temporal_nms", "scores", scores_in, {L, N});
  check_dtype("temporal_nms", "scores", scores_in, spans_in.scalar_type());
  STD_TORCH_CHECK(top_k >= 0, "temporal_nms: top_k is ", top_k, "; it must be 0 or more");
  const Tensor spans = torch::stable::contiguous(spans_in), scores = torch::stable::contiguous(scores_in);
  Tensor kept = torch::stable::new_empty(spans, {L, top_k}, ScalarType::Long);
  auto* to = write<int64_t>(kept);
  dispatch_floating("temporal_nms", spans.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const auto* pairs = read<scalar_t>(spans);
    const auto* score = read<scalar_t>(scores);
    check_intervals("temporal_nms", "spans", pairs, L * N);
    torch::stable::parallel_for(0, L, 1, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> order;
      std::vector<T> value(N), starts(top_k), ends(top_k);
      for (int64_t row = begin; row < end; ++row) {
        order.clear();
        for (int64_t n = 0; n < N; ++n) {
          value[n] = static_cast<T>(score[row * N + n]);
          const scalar_t* pair = pairs + 2 * (row * N + n);
          const bool known = !std::isnan(static_cast<T>(pair[0])) && !std::isnan(static_cast<T>(pair[1]));
          if (value[n] > -std::numeric_limits<T>::infinity() && known) {  // else the place holds no span
            order.push_back(n);
          }
        }
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return value[a] > value[b]; });
        int64_t count = 0;
        for (auto it = order.begin(); it != order.end() && count < top_k; ++it) {
          const scalar_t* pair = pairs + 2 * (row * N + *it);
          const T start = static_cast<T>(pair[0]), finish = static_cast<T>(pair[1]);
          if (!is_struck(start, finish, starts.data(), ends.data(), count, static_cast<T>(threshold))) {
            starts[count] = start;
            ends[count] = finish;
            to[row * top_k + count++] = *it;
          }
        }
        std::fill(to + row * top_k + count, to + (row + 1) * top_k, int64_t{-1});
      }
    });
  });
  return kept;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_nms", TORCH_BOX(&temporal_nms));
}

}  // namespace vpgfast
