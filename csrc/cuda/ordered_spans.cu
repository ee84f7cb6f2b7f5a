// ordered_spans on CUDA. See vpgfast/ops/ordered_spans.py for what it computes.
//
// A block of threads owns a paragraph and takes its sentences one after the other, each by scans over the positions.
// Largest values over sliding windows are found in blocks of a window's width, as on the CPU. By starts the windows lie
// behind their position: all of it then runs over the positions from the last to the first.

#include "common/ordered_spans.h"

#include <tuple>

#include "cuda/scan.h"

namespace vpgfast::ordered_spans_cuda {
namespace {

struct Top {
  double value;
  int32_t at;
};

// A largest value since the last element that begins anew.
struct Running {
  Top top;
  bool anew;
};

// The best sum up to a position, the position that has it, and what the sentence does there.
struct Choice {
  double value;
  int32_t at, chosen;
};

// What the sentence does at a position or before, and where.
struct Place {
  int32_t at, chosen;
};

struct Job {
  const bool* present;
  double *best, *sums;  // T + 1 a block
  Top *prefix, *suffix;
  int32_t* piece;  // of a position: the first one that no unusable clip separates from it
  Place* choice;   // M rows of T + 1 a block
  int64_t* spans;
  double* total;
  int64_t B, M, T, min, width;
  bool by_starts;
  double penalty;
};

// How far `steps` positions, fewer than 2^31, go past a whole number of windows, which are no wider.
__device__ __forceinline__ int64_t past_windows(int64_t steps, const Job& job) {
  return static_cast<uint32_t>(steps) % static_cast<uint32_t>(job.width);
}

__device__ double never() {
  return -std::numeric_limits<double>::infinity();
}

template <typename scalar_t>
__device__ void find_pieces_and_sums(const scalar_t* gains, const Job& job) {
  block_scan(
      job.T, 0.0, [](double a, double b) { return a + b; },
      [&](int64_t t) {
        const double gain = static_cast<double>(gains[t]);
        return isfinite(gain) ? gain : 0.0;
      },
      [&](int64_t t, double sum) { job.sums[t + 1] = sum; });
  block_scan(
      job.T, int32_t{0}, [](int32_t a, int32_t b) { return larger(a, b); },
      [&](int64_t q) {
        const int64_t t = job.by_starts ? job.T - 1 - q : q;
        return isfinite(static_cast<double>(gains[t])) ? int32_t{0} : static_cast<int32_t>(q + 1);
      },
      [&](int64_t q, int32_t piece) { job.piece[q + 1] = piece; });
  if (threadIdx.x == 0) {
    job.sums[0] = 0;
    job.piece[0] = 0;
  }
  __syncthreads();
}

// For each block of `width` positions of a piece, the largest up to and from each position; of equals the later one.
__device__ void find_maxima(const Job& job) {
  const auto key = [&](int64_t q) { return job.by_starts ? job.sums[job.T - q] : job.best[q] - job.sums[q]; };
  block_scan(
      job.T + 1, Running{{never(), -1}, false},
      [](const Running& a, const Running& b) {
        return Running{b.anew || b.top.value >= a.top.value ? b.top : a.top, a.anew || b.anew};
      },
      [&](int64_t q) { return Running{{key(q), static_cast<int32_t>(q)}, past_windows(q - job.piece[q], job) == 0}; },
      [&](int64_t q, const Running& running) { job.prefix[q] = running.top; });
  block_scan(
      job.T + 1, Running{{never(), -1}, false},
      [](const Running& a, const Running& b) {
        return Running{b.anew || b.top.value > a.top.value ? b.top : a.top, a.anew || b.anew};
      },
      [&](int64_t k) {
        const int64_t q = job.T - k;
        const bool last =
            q == job.T || job.piece[q + 1] != job.piece[q] || past_windows(q + 1 - job.piece[q], job) == 0;
        return Running{{key(q), static_cast<int32_t>(q)}, last};
      },
      [&](int64_t k, const Running& running) { job.suffix[job.T - k] = running.top; });
}

// The largest value within a span's reach of position q, itself in the order of the scan.
__device__ Top reach(const Job& job, int64_t q) {
  const int64_t piece = job.piece[q], last = q - job.min, first = larger(last - job.width + 1, piece);
  if (job.width <= 0 || last < first) {
    return {never(), kBefore};
  }
  const Top near = job.prefix[last];
  if (last - past_windows(last - piece, job) <= first) {
    return near;
  }
  const Top far = job.suffix[first];
  return far.value > near.value ? far : near;
}

__device__ void choose(const Job& job, Place* choice) {
  const auto at = [&](int64_t p) {
    Top top = reach(job, job.by_starts ? job.T - p : p);
    double value = top.value + job.sums[p];
    if (job.by_starts) {
      value = job.best[p] + (top.value - job.sums[p]);
      top.at = static_cast<int32_t>(job.T) - top.at;
    }
    const double without = job.best[p] - job.penalty;
    const bool skip = without > value;
    return Choice{skip ? without : value, static_cast<int32_t>(p), skip ? kSkipped : top.at};
  };
  block_scan(
      job.T + 1, Choice{never(), -1, kBefore},
      [](const Choice& a, const Choice& b) { return a.value >= b.value ? a : b; }, at,
      [&](int64_t p, const Choice& chosen) {
        job.best[p] = chosen.value;
        choice[p] = {chosen.at, chosen.chosen};
      });
}

template <typename scalar_t>
__global__ void ordered(const scalar_t* gains, Job job) {
  const int64_t positions = job.T + 1;
  job.best += blockIdx.x * positions;
  job.sums += blockIdx.x * positions;
  job.prefix += blockIdx.x * positions;
  job.suffix += blockIdx.x * positions;
  job.piece += blockIdx.x * positions;
  job.choice += blockIdx.x * job.M * positions;
  for (int64_t b = blockIdx.x; b < job.B; b += gridDim.x) {
    const bool* present = job.present + b * job.M;
    for (int64_t p = threadIdx.x; p <= job.T; p += kThreads) {
      job.best[p] = 0;
    }
    __syncthreads();
    for (int64_t m = 0; m < job.M; ++m) {
      if (present[m]) {
        find_pieces_and_sums(gains + (b * job.M + m) * job.T, job);
        if (job.width > 0) {
          find_maxima(job);
        }
        choose(job, job.choice + m * positions);
      }
    }
    if (threadIdx.x == 0) {
      const double total = job.best[job.T];
      job.total[b] = total;
      int64_t p = job.T;
      for (int64_t m = job.M - 1; m >= 0; --m) {
        int64_t* span = job.spans + (b * job.M + m) * 2;
        span[0] = span[1] = -1;
        if (present[m] && total > never()) {
          const Place choice = job.choice[m * positions + p];
          p = choice.at;
          if (choice.chosen != kSkipped) {
            span[0] = job.by_starts ? p : choice.chosen;
            span[1] = job.by_starts ? choice.chosen : p;
            p = span[0];
          }
        }
      }
    }
    __syncthreads();  // before the space is written again
  }
}

std::tuple<Tensor, Tensor> ordered_spans(const Tensor& gains, const Tensor& present, int64_t min_length,
                                         int64_t max_length, bool by_starts, double penalty) {
  const torch::stable::accelerator::DeviceGuard guard(gains.get_device_index());
  const OrderedSpans a(gains, present, min_length, max_length);
  Tensor spans = torch::stable::new_empty(a.gains, {a.B, a.M, 2}, ScalarType::Long);
  Tensor total = torch::stable::new_empty(a.gains, {a.B}, ScalarType::Double);
  if (a.B > 0) {
    // No more paragraphs at a time than can run, so that what they work in stays bounded.
    const int64_t blocks = std::min<int64_t>(a.B, 512), positions = a.T + 1;
    static_assert(sizeof(Top) == 2 * sizeof(double) && sizeof(Place) == 2 * sizeof(int32_t));
    Tensor doubles = torch::stable::new_empty(a.gains, {6, blocks, positions}, ScalarType::Double);
    Tensor pieces = torch::stable::new_empty(a.gains, {blocks, positions}, ScalarType::Int);
    Tensor choice = torch::stable::new_empty(a.gains, {blocks, a.M, positions, 2}, ScalarType::Int);
    double* const at = write<double>(doubles);
    const int64_t size = blocks * positions;
    const Job job{read<bool>(a.present),
                  at,
                  at + size,
                  reinterpret_cast<Top*>(at + 2 * size),
                  reinterpret_cast<Top*>(at + 4 * size),
                  write<int32_t>(pieces),
                  reinterpret_cast<Place*>(write<int32_t>(choice)),
                  write<int64_t>(spans),
                  write<double>(total),
                  a.B,
                  a.M,
                  a.T,
                  a.min,
                  a.width,
                  by_starts,
                  penalty};
    dispatch_floating("ordered_spans", a.gains.scalar_type(), [&]<typename scalar_t>() {
      ordered<<<static_cast<unsigned>(blocks), kThreads, 0, current_stream(a.gains)>>>(read<scalar_t>(a.gains), job);
      check_launch("ordered_spans");
    });
  }
  return {total, spans};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("ordered_spans", TORCH_BOX(&ordered_spans));
}

}  // namespace vpgfast::ordered_spans_cuda
