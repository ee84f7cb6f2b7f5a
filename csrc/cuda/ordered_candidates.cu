// ordered_candidates on CUDA. See vpgfast/ops/ordered_candidates.py for what it computes.
//
// A block of threads owns a paragraph. The value of a candidate is the largest sum that ends with it: its score and the
// best value before it, which a thread finds by looking at all candidates of the sentence before (with a penalty: of
// all sentences before). Lists are short; sorting them would take longer.

#include "common/ordered_spans.h"

#include <tuple>

#include "cuda/intervals_cuda.h"
#include "cuda/scan.h"

namespace vpgfast::ordered_candidates_cuda {
namespace {

struct Job {
  const double *spans, *scores;
  const bool* present;
  double* value;  // M P a block
  int64_t* chosen;
  double* total;
  int64_t B, M, P;
  bool by_starts;
  double penalty;
};

__device__ double never() {
  return -std::numeric_limits<double>::infinity();
}

// One paragraph: its part of the job's arrays.
struct Paragraph {
  const double *spans, *scores;
  const bool* present;
  double* value;
  int64_t M, P;
  bool by_starts;
  double penalty;

  // Where candidate i of sentence m lets the next one begin.
  __device__ double reached(int64_t m, int64_t i) const {
    return spans[(m * P + i) * 2 + (by_starts ? 0 : 1)];
  }

  // The first sentence whose candidates count for the sentences before m: without a penalty all must have a span.
  __device__ int64_t first_before(int64_t m) const {
    int64_t first = isfinite(penalty) ? 0 : m - 1;
    while (first > 0 && !isfinite(penalty) && !present[first]) {
      --first;
    }
    return larger<int64_t>(first, 0);
  }

  // The largest sum of the sentences before m, all of whose spans end (by starts: begin) at x or before. By one thread.
  __device__ double best_before(int64_t m, double x) const {
    double best = 0;
    for (int64_t k = first_before(m); k < m; ++k) {
      if (present[k]) {
        best -= penalty;
        for (int64_t i = 0; i < P; ++i) {
          best = reached(k, i) <= x ? larger(best, value[k * P + i]) : best;
        }
      }
    }
    return best;
  }

  // The same by all threads.
  __device__ double agreed_before(int64_t m, double x) const {
    double best = 0;
    for (int64_t k = first_before(m); k < m; ++k) {
      if (present[k]) {
        double own = never();
        for (int64_t i = threadIdx.x; i < P; i += kThreads) {
          own = reached(k, i) <= x ? larger(own, value[k * P + i]) : own;
        }
        best = larger(best - penalty, block_reduce(own, [](double a, double b) { return larger(a, b); }));
      }
    }
    return best;
  }

  // The smallest x at which the largest sum of the sentences up to m is this one.
  __device__ double where_reached(int64_t m, double sum) const {
    double own = std::numeric_limits<double>::infinity();
    double nothing = 0;  // the sum without any span
    for (int64_t k = first_before(m + 1); k <= m; ++k) {
      if (!present[k]) {
        continue;
      }
      nothing -= penalty;
      for (int64_t i = threadIdx.x; i < P; i += kThreads) {
        double with_this = value[k * P + i];
        for (int64_t later = k + 1; later <= m; ++later) {
          with_this -= present[later] ? penalty : 0.0;
        }
        own = with_this == sum ? lesser(own, reached(k, i)) : own;
      }
    }
    own = nothing == sum ? never() : own;
    return block_reduce(own, [](double a, double b) { return lesser(a, b); });
  }

  // Of the candidates of sentence m that end (by starts: begin) at x with this sum, the shortest and first; or -1.
  __device__ int64_t candidate_at(int64_t m, double x, double sum) const {
    struct Found {
      double length;
      int64_t at;
    };
    Found own{std::numeric_limits<double>::infinity(), P};
    const auto first = [](const Found& a, const Found& b) {
      return a.length < b.length || (a.length == b.length && a.at < b.at) ? a : b;
    };
    for (int64_t i = threadIdx.x; i < P; i += kThreads) {
      if (value[m * P + i] == sum && reached(m, i) == x) {
        const double* span = spans + (m * P + i) * 2;
        own = first(own, {by_starts ? span[1] : -span[0], i});
      }
    }
    const Found found = block_reduce(own, first);
    return found.at < P ? found.at : -1;
  }
};

__global__ void ordered(Job job) {
  for (int64_t b = blockIdx.x; b < job.B; b += gridDim.x) {
    const int64_t list = b * job.M * job.P;
    const Paragraph a{job.spans + list * 2,
                      job.scores + list,
                      job.present + b * job.M,
                      job.value + blockIdx.x * job.M * job.P,
                      job.M,
                      job.P,
                      job.by_starts,
                      job.penalty};
    for (int64_t m = 0; m < a.M; ++m) {
      for (int64_t i = threadIdx.x; i < a.P; i += kThreads) {
        const double score = a.scores[m * a.P + i];
        const Interval<double> span = read_interval<double>(a.spans, m * a.P + i);
        const bool is_there = a.present[m] && isfinite(score) && isfinite(span.start) && isfinite(span.end);
        a.value[m * a.P + i] = is_there ? a.best_before(m, span.start) + score : never();
      }
      __syncthreads();
    }
    double x = std::numeric_limits<double>::infinity();
    const double total = a.agreed_before(a.M, x);
    double sum = total;
    for (int64_t m = a.M - 1; m >= 0; --m) {
      int64_t chosen = -1;
      if (a.present[m] && total > never()) {
        x = a.where_reached(m, sum);
        chosen = a.candidate_at(m, x, sum);
        x = chosen >= 0 ? a.spans[(m * a.P + chosen) * 2] : x;
        sum = a.agreed_before(m, x);
      }
      if (threadIdx.x == 0) {
        job.chosen[b * job.M + m] = chosen;
      }
    }
    if (threadIdx.x == 0) {
      job.total[b] = total;
    }
    // The values may be written again: whoever has read them has met all others in a reduction since.
  }
}

std::tuple<Tensor, Tensor> ordered_candidates(const Tensor& spans, const Tensor& scores, const Tensor& present,
                                              bool by_starts, double penalty) {
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const OrderedCandidates a(spans, scores, present);
  Tensor chosen = torch::stable::new_empty(a.scores, {a.B, a.M}, ScalarType::Long);
  Tensor total = torch::stable::new_empty(a.scores, {a.B});
  if (a.B > 0) {
    const int64_t blocks = std::min<int64_t>(a.B, 2048);
    Tensor value = torch::stable::new_empty(a.scores, {blocks, a.M, a.P});
    const Job job{read<double>(a.spans),
                  read<double>(a.scores),
                  read<bool>(a.present),
                  write<double>(value),
                  write<int64_t>(chosen),
                  write<double>(total),
                  a.B,
                  a.M,
                  a.P,
                  by_starts,
                  penalty};
    ordered<<<static_cast<unsigned>(blocks), kThreads, 0, current_stream(a.scores)>>>(job);
    check_launch("ordered_candidates");
  }
  return {total, chosen};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("ordered_candidates", TORCH_BOX(&ordered_candidates));
}

}  // namespace vpgfast::ordered_candidates_cuda
