// temporal_contrast_spans on CUDA. See vpgfast/ops/temporal_contrast_spans.py for what it computes.
//
// A block of threads owns a curve. Pairs of a block of 256 starts and a block of 256 ends are bounded by a thread each
// (csrc/common/contrast.h); what is left of them is split into 16 by 16 pairs of 16, again a thread each, which looks
// at every window of a pair that may hold a better one than the best so far. Windows of a few lengths are tried before,
// so that most pairs are left out.

#include <tuple>

#include "common/contrast.h"
#include "cuda/scan.h"

namespace vpgfast::temporal_contrast_spans_cuda {
namespace {

constexpr int kFine = 16;
constexpr int kCoarse = kFine * kFine;
static_assert(kThreads == kCoarse, "a thread for each pair of small blocks in a pair of large ones");

// What a curve is given to work in: D and E of Curve and `piece`, T + 1 each; the smallest and the largest E of each
// fine and each coarse block.
struct Space {
  double *D, *E, *fine_low, *fine_high, *coarse_low, *coarse_high;
  int32_t* piece;
  int64_t fine, coarse;  // how many blocks
};

struct Sums {
  double D, P;
  int32_t piece;
};

template <typename scalar_t>
__device__ bool is_usable(const scalar_t* x, const bool* usable, const double* weights, int64_t t) {
  return isfinite(static_cast<double>(x[t])) && (usable == nullptr || usable[t]) &&
         (weights == nullptr || (isfinite(weights[t]) && weights[t] > 0));
}

// Fills the space. `clips`: the first usable clip and the one after the last; returns whether there is any.
template <typename scalar_t>
__device__ bool read_curve(const scalar_t* x, const bool* usable, const double* weights, int64_t T, const Space& space,
                           Range& clips) {
  const auto least = [](int64_t a, int64_t b) { return lesser(a, b); };
  Range own{T, T};  // of the last one, its distance from the end
  for (int64_t t = threadIdx.x; t < T; t += kThreads) {
    if (is_usable(x, usable, weights, t)) {
      own = {lesser(own.first, t), lesser(own.last, T - t - 1)};
    }
  }
  clips = {block_reduce(own.first, least), T - block_reduce(own.last, least)};
  const bool any = clips.first < T;
  const double level = any ? static_cast<double>(x[clips.first]) : 0.0;
  block_scan(
      T, Sums{0, 0, 0},
      [](const Sums& a, const Sums& b) { return Sums{a.D + b.D, a.P + b.P, larger(a.piece, b.piece)}; },
      [&](int64_t t) {
        if (!is_usable(x, usable, weights, t)) {
          return Sums{0, 0, static_cast<int32_t>(t + 1)};
        }
        const double weight = weights == nullptr ? 1.0 : weights[t];
        return Sums{weight, weight * (static_cast<double>(x[t]) - level), 0};
      },
      [&](int64_t t, const Sums& sums) {
        space.D[t + 1] = sums.D;
        space.E[t + 1] = sums.P;
        space.piece[t + 1] = sums.piece;
      });
  if (threadIdx.x == 0) {
    space.D[0] = space.E[0] = 0;
    space.piece[0] = 0;
  }
  __syncthreads();
  const double n = space.D[T], P = space.E[T];
  __syncthreads();  // before E is written
  for (int64_t p = threadIdx.x; p <= T; p += kThreads) {
    space.E[p] = n * space.E[p] - P * space.D[p];
  }
  __syncthreads();
  return any;
}

// Smallest and largest of every `size` values.
__device__ void read_blocks(const double* low, const double* high, int64_t count, int size, double* out_low,
                            double* out_high) {
  for (int64_t block = threadIdx.x; block * size < count; block += kThreads) {
    double least = low[block * size], most = high[block * size];
    for (int64_t k = block * size + 1; k < lesser<int64_t>((block + 1) * size, count); ++k) {
      least = lesser(least, low[k]);
      most = larger(most, high[k]);
    }
    out_low[block] = least;
    out_high[block] = most;
  }
  __syncthreads();
}

// The least and the largest weight of a window: every longer or shorter one weighs no less or no more.
__device__ void read_weights(Curve& curve, const Range& clips) {
  double least = std::numeric_limits<double>::infinity(), most = 0;
  for (int64_t p = threadIdx.x; p <= curve.T; p += kThreads) {
    if (p + curve.min_length <= curve.T && curve.piece[p + curve.min_length] <= p) {
      least = lesser(least, curve.D[p + curve.min_length] - curve.D[p]);
    }
    most = larger(most, curve.D[lesser(p + curve.max_length, curve.T)] - curve.D[p]);
  }
  curve.least = block_reduce(least, [](double a, double b) { return lesser(a, b); });
  curve.most = block_reduce(most, [](double a, double b) { return larger(a, b); });
  curve.most = lesser(curve.most, larger(curve.n - curve.D[clips.first + 1], curve.D[clips.last - 1]));
}

// The search for the next window; every thread has a best one of its own.
struct Search {
  const Curve& curve;
  const Space& space;
  const int64_t* kept;  // spans
  int64_t count;        // how many of them
  double threshold;
  Window best;
  int64_t pairs;

  __device__ void take(int64_t start, int64_t end) {
    if (!curve.is_window(start, end)) {
      return;
    }
    const Window window{curve.contrast(start, end), start, end};
    if (comes_before(window, best)) {
      for (int64_t k = 0; k < count; ++k) {
        if (!curve.apart(start, end, kept[2 * k], kept[2 * k + 1], threshold)) {
          return;
        }
      }
      best = window;
    }
  }

  __device__ void agree() {
    best = block_reduce(best, [](const Window& a, const Window& b) { return comes_before(b, a) ? b : a; });
  }

  // Windows of the shortest length and of two, four, eight ... times as much.
  __device__ void try_lengths() {
    for (int64_t length = curve.min_length; length <= curve.max_length; length *= 2) {
      for (int64_t start = threadIdx.x; start + length <= curve.T; start += kThreads) {
        take(start, start + length);
      }
    }
    agree();
  }

  // Whether the pair of blocks of `size` positions may hold a window that comes before the best one.
  __device__ bool promises(int64_t starts, int64_t ends, int size, const double* low, const double* high) {
    Range from{starts * size, lesser((starts + 1) * size - 1, curve.T)};
    Range to{ends * size, lesser((ends + 1) * size - 1, curve.T)};
    if (!curve.narrow(from, to)) {
      return false;
    }
    ++pairs;
    const double bound = curve.bound(from, to, high[ends] - low[starts]);
    if (!comes_before({bound, from.first, to.first}, best)) {
      return false;
    }
    for (int64_t k = 0; k < count; ++k) {
      if (curve.all_overlap(from, to, kept[2 * k], kept[2 * k + 1], threshold)) {
        return false;
      }
    }
    return true;
  }

  __device__ void look_at(int64_t starts, int64_t ends) {
    Range from{starts * kFine, lesser((starts + 1) * kFine - 1, curve.T)};
    Range to{ends * kFine, lesser((ends + 1) * kFine - 1, curve.T)};
    if (!curve.narrow(from, to)) {
      return;
    }
    for (int64_t start = from.first; start <= from.last; ++start) {
      for (int64_t end = to.first; end <= to.last; ++end) {
        take(start, end);
      }
    }
  }

  __device__ void run() {
    __shared__ bool promising[kThreads];
    const int64_t total = space.coarse * space.coarse;
    for (int64_t first = 0; first < total; first += kThreads) {
      const int64_t own = first + threadIdx.x;
      promising[threadIdx.x] =
          own < total && promises(own / space.coarse, own % space.coarse, kCoarse, space.coarse_low, space.coarse_high);
      __syncthreads();
      for (int64_t pair = first; pair < lesser(first + kThreads, total); ++pair) {
        if (promising[pair - first]) {
          const int64_t starts = pair / space.coarse * kFine + threadIdx.x / kFine;
          const int64_t ends = pair % space.coarse * kFine + threadIdx.x % kFine;
          if (starts < space.fine && ends < space.fine &&
              promises(starts, ends, kFine, space.fine_low, space.fine_high)) {
            look_at(starts, ends);
          }
          agree();
        }
      }
      __syncthreads();  // before `promising` is written again
    }
  }
};

template <typename scalar_t>
__global__ void contrast_spans(const scalar_t* curves, const bool* usable, const double* weights, double* doubles,
                               int32_t* pieces, double* scores, int64_t* spans, int64_t* pairs_out, int64_t rows,
                               int64_t M, int64_t T, int64_t shortest, int64_t longest, int64_t top_k,
                               double threshold) {
  const int64_t fine = T / kFine + 1, coarse = T / kCoarse + 1;
  double* at = doubles + blockIdx.x * 2 * (T + 1 + fine + coarse);
  const Space space{at,
                    at + (T + 1),
                    at + 2 * (T + 1),
                    at + 2 * (T + 1) + fine,
                    at + 2 * (T + 1 + fine),
                    at + 2 * (T + 1 + fine) + coarse,
                    pieces + blockIdx.x * (T + 1),
                    fine,
                    coarse};
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t clips_before = row / M * T;
    Range clips{};
    const bool any = read_curve(curves + row * T, usable == nullptr ? nullptr : usable + clips_before,
                                weights == nullptr ? nullptr : weights + clips_before, T, space, clips);
    Curve curve{space.D, space.E, space.piece, T, shortest, longest, space.D[T], 0, 0};
    if (any) {
      read_blocks(space.E, space.E, T + 1, kFine, space.fine_low, space.fine_high);
      read_blocks(space.fine_low, space.fine_high, fine, kFine, space.coarse_low, space.coarse_high);
      read_weights(curve, clips);
    }
    const double never = -std::numeric_limits<double>::infinity();
    const Window none{never, T + 1, T + 1};
    Search search{curve, space, spans + row * top_k * 2, 0, threshold, none, 0};
    bool left = any;
    for (int64_t k = 0; k < top_k; ++k) {
      search.best = none;
      if (left) {
        search.count = k;
        search.take(clips.first, clips.last);
        search.try_lengths();
        search.run();
        left = search.best.score > never;
      }
      if (threadIdx.x == 0) {
        scores[row * top_k + k] = search.best.score;
        spans[(row * top_k + k) * 2] = left ? search.best.start : -1;
        spans[(row * top_k + k) * 2 + 1] = left ? search.best.end : -1;
      }
      __syncthreads();
    }
    const int64_t pairs = block_reduce(search.pairs, [](int64_t a, int64_t b) { return a + b; });
    if (threadIdx.x == 0) {
      pairs_out[row] = pairs;
    }
    // The space may be written again: whoever has read it has met all others in the reduction since.
  }
}

std::tuple<Tensor, Tensor, Tensor> temporal_contrast_spans(const Tensor& curves, const std::optional<Tensor>& mask,
                                                           const std::optional<Tensor>& weights, int64_t min_length,
                                                           int64_t max_length, int64_t top_k, double threshold) {
  const torch::stable::accelerator::DeviceGuard guard(curves.get_device_index());
  const ContrastSpans a(curves, mask, weights, min_length, max_length, top_k);
  if (a.B * a.M > 0) {
    // No more curves at a time than can run, so that what they work in stays bounded.
    const int64_t rows = a.B * a.M, blocks = std::min<int64_t>(rows, 1024);
    const int64_t doubles = 2 * (a.T + 1 + a.T / kFine + 1 + a.T / kCoarse + 1);
    Tensor space = torch::stable::new_empty(a.curves, {blocks, doubles}, ScalarType::Double);
    Tensor pieces = torch::stable::new_empty(a.curves, {blocks, a.T + 1}, ScalarType::Int);
    dispatch_floating("temporal_contrast_spans", a.curves.scalar_type(), [&]<typename scalar_t>() {
      contrast_spans<<<static_cast<unsigned>(blocks), kThreads, 0, current_stream(a.curves)>>>(
          read<scalar_t>(a.curves), a.usable(), a.weight(), write<double>(space), write<int32_t>(pieces),
          write<double>(a.scores), write<int64_t>(a.spans), write<int64_t>(a.pairs), rows, a.M, a.T, a.shortest,
          a.longest, top_k, threshold);
      check_launch("temporal_contrast_spans");
    });
  }
  return {a.scores, a.spans, a.pairs};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_contrast_spans", TORCH_BOX(&temporal_contrast_spans));
}

}  // namespace vpgfast::temporal_contrast_spans_cuda
