// temporal_iou and temporal_giou on the CPU. See vpgfast/ops/temporal_iou.py for what they compute.

#include <algorithm>

#include "cpu/intervals_cpu.h"
#include "cpu/vector.h"

namespace vpgfast {
namespace {

constexpr int64_t kPairsPerTask = 1 << 13;
constexpr int64_t kWideEnough = 16;  // of a row for vector instructions to be worth while along it
constexpr int64_t kChunk = 512;
constexpr int64_t kRowsOfChunk = 64;  // at least, backward

template <bool generalized, typename T, typename scalar_t>
void one_with_many(T start, T end, const T* starts, const T* ends, scalar_t* out, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    out[k] = static_cast<scalar_t>(interval_iou<generalized>(start, end, starts[k], ends[k]));
  }
}

template <bool generalized, typename T, typename scalar_t>
void one_with_one(const T* start_a, const T* end_a, const T* start_b, const T* end_b, scalar_t* out, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    out[k] = static_cast<scalar_t>(interval_iou<generalized>(start_a[k], end_a[k], start_b[k], end_b[k]));
  }
}

// Short lists, `each` intervals long, that have one other interval each, which is laid out as often as it is needed:
// kChunk pairs at a time, in loops that know nothing of lists.
template <typename T>
struct RepeatedIntervals {
  template <typename scalar_t>
  RepeatedIntervals(const scalar_t* pairs, int64_t lists, int64_t each) {
    for (int64_t l = 0; l < lists; ++l) {
      for (int64_t k = 0; k < each; ++k) {
        start[l * each + k] = static_cast<T>(pairs[2 * l]);
        end[l * each + k] = static_cast<T>(pairs[2 * l + 1]);
      }
    }
  }
  T start[kChunk], end[kChunk];
};

template <bool generalized, typename T, typename scalar_t>
void lists_with_one(const scalar_t* many, const scalar_t* one, int64_t each, int64_t lists, scalar_t* out) {
  for (int64_t l = 0, at_once = kChunk / each; l < lists; l += at_once) {
    const int64_t some = std::min(at_once, lists - l), first = l * each;
    const RepeatedIntervals<T> other(one + 2 * l, some, each);
    for (int64_t k = 0; k < some * each; ++k) {
      const T start = static_cast<T>(many[2 * (first + k)]), end = static_cast<T>(many[2 * (first + k) + 1]);
      out[first + k] = static_cast<scalar_t>(interval_iou<generalized>(start, end, other.start[k], other.end[k]));
    }
  }
}

template <bool generalized, typename T, typename scalar_t>
void lists_with_one_backward(const scalar_t* many, const scalar_t* one, const scalar_t* grad, int64_t each,
                             int64_t lists, scalar_t* by_many, scalar_t* by_one) {
  T by_start[kChunk], by_end[kChunk];  // of the one, from every interval of its list
  for (int64_t l = 0, at_once = kChunk / each; l < lists; l += at_once) {
    const int64_t some = std::min(at_once, lists - l), first = l * each;
    const RepeatedIntervals<T> other(one + 2 * l, some, each);
    for (int64_t k = 0; k < some * each; ++k) {
      const int64_t at = first + k;
      const T start = static_cast<T>(many[2 * at]), end = static_cast<T>(many[2 * at + 1]);
      T many_start, many_end, one_start, one_end;
      interval_iou_gradients<generalized>(start, end, other.start[k], other.end[k], many_start, many_end, one_start,
                                          one_end);
      const T g = static_cast<T>(grad[at]);
      by_many[2 * at] = static_cast<scalar_t>(g * many_start);
      by_many[2 * at + 1] = static_cast<scalar_t>(g * many_end);
      by_start[k] = g * one_start;
      by_end[k] = g * one_end;
    }
    for (int64_t i = 0; i < some; ++i) {
      T start = 0, end = 0;
      for (int64_t k = i * each; k < (i + 1) * each; ++k) {
        start += by_start[k];
        end += by_end[k];
      }
      by_one[2 * (l + i)] = static_cast<scalar_t>(start);
      by_one[2 * (l + i) + 1] = static_cast<scalar_t>(end);
    }
  }
}

// Gradients of one interval against many, given theirs: returned for the one, added for the many.
template <bool generalized, typename T>
VPGFAST_ALWAYS_INLINE void one_with_many_backward(T start, T end, const T* starts, const T* ends, const T* grad,
                                                  int64_t count, T& by_start, T& by_end, T* __restrict by_starts,
                                                  T* __restrict by_ends) {
  T sum_start = 0, sum_end = 0;
#pragma omp simd reduction(+ : sum_start, sum_end)
  for (int64_t k = 0; k < count; ++k) {
    T one_start, one_end, many_start, many_end;
    interval_iou_gradients<generalized>(start, end, starts[k], ends[k], one_start, one_end, many_start, many_end);
    sum_start += grad[k] * one_start;
    sum_end += grad[k] * one_end;
    by_starts[k] += grad[k] * many_start;
    by_ends[k] += grad[k] * many_end;
  }
  by_start = sum_start;
  by_end = sum_end;
}

// Gradients of `rows` intervals against all M of a list, `grad` read once: by_b is the rows' share of the list's.
// Vectors run along the longer side, `wide` if that is the list.
template <bool generalized, typename T, typename scalar_t>
void rows_backward(bool wide, const T* start_a, const T* end_a, int64_t rows, const T* start_b, const T* end_b,
                   int64_t M, const scalar_t* grad, T* incoming, T* by_start_a, T* by_end_a, T* by_start_b,
                   T* by_end_b) {
  std::fill_n(by_start_a, rows, T{0});
  std::fill_n(by_end_a, rows, T{0});
  std::fill_n(by_start_b, M, T{0});
  std::fill_n(by_end_b, M, T{0});
  if (wide) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t m = 0; m < M; ++m) {
        incoming[m] = static_cast<T>(grad[r * M + m]);
      }
      one_with_many_backward<generalized>(start_a[r], end_a[r], start_b, end_b, incoming, M, by_start_a[r], by_end_a[r],
                                          by_start_b, by_end_b);
    }
    return;
  }
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t r = 0; r < rows; ++r) {
      incoming[r] = static_cast<T>(grad[r * M + m]);
    }
    one_with_many_backward<generalized>(start_b[m], end_b[m], start_a, end_a, incoming, rows, by_start_b[m],
                                        by_end_b[m], by_start_a, by_end_a);
  }
}

// Calls f.template operator()<generalized>().
template <typename F>
void dispatch_generalized(bool generalized, F&& f) {
  generalized ? f.template operator()<true>() : f.template operator()<false>();
}

void check_pairwise(const char* op, const Tensor& a, const Tensor& b) {
  check_sizes(op, "a", a, {-1, -1, 2});
  check_sizes(op, "b", b, {a.size(0), -1, 2});
  check_dtype(op, "b", b, a.scalar_type());
}

Tensor temporal_iou(const Tensor& a_in, const Tensor& b_in, bool generalized) {
  check_pairwise("temporal_iou", a_in, b_in);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t L = a.size(0), N = a.size(1), M = b.size(1);
  Tensor out = torch::stable::new_empty(a, {L, N, M});
  dispatch_floating("temporal_iou", a.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const auto* pa = read<scalar_t>(a);
    const auto* pb = read<scalar_t>(b);
    auto* to = write<scalar_t>(out);
    check_intervals("temporal_iou", "a", pa, L * N);
    check_intervals("temporal_iou", "b", pb, L * M);
    dispatch_generalized(generalized, [&]<bool general>() {
      if (M >= kWideEnough) {
        IntervalArrays<T> of_b;
        of_b.read(pb, L * M);
        const int64_t grain = std::max<int64_t>(1, kPairsPerTask / M);
        torch::stable::parallel_for(0, L * N, grain, [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            const int64_t first = r / N * M;
            one_with_many<general>(static_cast<T>(pa[2 * r]), static_cast<T>(pa[2 * r + 1]), of_b.start.data() + first,
                                   of_b.end.data() + first, to + r * M, M);
          }
        });
        return;
      }
      if (N >= kWideEnough) {  // narrow rows, many of them: along the columns
        IntervalArrays<T> of_a;
        of_a.read(pa, L * N);
        const int64_t chunks = (N + kChunk - 1) / kChunk;
        torch::stable::parallel_for(0, L * chunks, 2, [&](int64_t begin, int64_t end) {
          scalar_t column[kChunk];
          for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t l = unit / chunks, first = l * N + unit % chunks * kChunk;
            const int64_t rows = std::min(kChunk, (l + 1) * N - first);
            for (int64_t m = 0; m < M; ++m) {
              const scalar_t* pair = pb + 2 * (l * M + m);
              one_with_many<general>(static_cast<T>(pair[0]), static_cast<T>(pair[1]), of_a.start.data() + first,
                                     of_a.end.data() + first, column, rows);
              for (int64_t r = 0; r < rows; ++r) {
                to[(first + r) * M + m] = column[r];
              }
            }
          }
        });
        return;
      }
      if (std::min(N, M) == 1) {
        const int64_t each = std::max(N, M);
        torch::stable::parallel_for(0, L, kPairsPerTask / each, [&](int64_t begin, int64_t end) {
          const scalar_t *many = (M == 1 ? pa : pb) + 2 * begin * each, *one = (M == 1 ? pb : pa) + 2 * begin;
          lists_with_one<general, T>(many, one, each, end - begin, to + begin * each);
        });
        return;
      }
      // Narrow and short: lay a chunk of pairs out side by side, then go over them all at once.
      torch::stable::parallel_for(0, L * N * M, kPairsPerTask, [&](int64_t begin, int64_t end) {
        T start_a[kChunk], end_a[kChunk], start_b[kChunk], end_b[kChunk];
        int64_t row = begin / M, m = begin % M;
        for (int64_t first = begin; first < end; first += kChunk) {
          const int64_t count = std::min(kChunk, end - first);
          for (int64_t k = 0; k < count; ++k) {
            const int64_t other = row / N * M + m;
            start_a[k] = static_cast<T>(pa[2 * row]);
            end_a[k] = static_cast<T>(pa[2 * row + 1]);
            start_b[k] = static_cast<T>(pb[2 * other]);
            end_b[k] = static_cast<T>(pb[2 * other + 1]);
            if (++m == M) {
              m = 0;
              ++row;
            }
          }
          one_with_one<general>(start_a, end_a, start_b, end_b, to + first, count);
        }
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> temporal_iou_backward(const Tensor& grad_in, const Tensor& a_in, const Tensor& b_in,
                                                 bool generalized) {
  check_pairwise("temporal_iou_backward", a_in, b_in);
  check_sizes("temporal_iou_backward", "grad", grad_in, {a_in.size(0), a_in.size(1), b_in.size(1)});
  check_dtype("temporal_iou_backward", "grad", grad_in, a_in.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in);
  const Tensor a = torch::stable::contiguous(a_in), b = torch::stable::contiguous(b_in);
  const int64_t L = a.size(0), N = a.size(1), M = b.size(1);
  Tensor grad_a = torch::stable::empty_like(a), grad_b = torch::stable::empty_like(b);
  dispatch_floating("temporal_iou_backward", a.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const auto* pa = read<scalar_t>(a);
    const auto* pb = read<scalar_t>(b);
    const auto* g = read<scalar_t>(grad);
    auto* ga = write<scalar_t>(grad_a);
    auto* gb = write<scalar_t>(grad_b);
    if (const int64_t each = std::max(N, M); std::min(N, M) == 1 && each < kWideEnough) {
      dispatch_generalized(generalized, [&]<bool general>() {
        torch::stable::parallel_for(0, L, kPairsPerTask / each, [&](int64_t begin, int64_t end) {
          const int64_t of_many = 2 * begin * each, of_one = 2 * begin;
          const scalar_t *many = (M == 1 ? pa : pb) + of_many, *one = (M == 1 ? pb : pa) + of_one;
          scalar_t *by_many = (M == 1 ? ga : gb) + of_many, *by_one = (M == 1 ? gb : ga) + of_one;
          lists_with_one_backward<general, T>(many, one, g + begin * each, each, end - begin, by_many, by_one);
        });
      });
      return;
    }
    IntervalArrays<T> of_a, of_b;
    of_a.read(pa, L * N);
    of_b.read(pb, L * M);
    // Chunks of a's rows, of a size that does not depend on the threads: each leaves its share of the gradients by b,
    // which are added in order.
    const int64_t rows_of_chunk = std::max(kRowsOfChunk, kPairsPerTask / std::max<int64_t>(1, M));
    const int64_t chunks = (N + rows_of_chunk - 1) / rows_of_chunk, longest = std::min(rows_of_chunk, N);
    const int64_t grain = std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, longest * M));
    std::vector<T> by_start_a(L * N), by_end_a(L * N), shares(2 * L * chunks * M);
    dispatch_generalized(generalized, [&]<bool general>() {
      torch::stable::parallel_for(0, L * chunks, grain, [&](int64_t begin, int64_t end) {
        std::vector<T> incoming(std::max(longest, M));
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t l = unit / chunks, first = l * N + unit % chunks * rows_of_chunk;
          const int64_t rows = std::min(rows_of_chunk, (l + 1) * N - first);
          T* share = shares.data() + 2 * unit * M;
          rows_backward<general>(M >= kWideEnough || M > rows, of_a.start.data() + first, of_a.end.data() + first, rows,
                                 of_b.start.data() + l * M, of_b.end.data() + l * M, M, g + first * M, incoming.data(),
                                 by_start_a.data() + first, by_end_a.data() + first, share, share + M);
        }
      });
    });
    for (int64_t r = 0; r < L * N; ++r) {
      ga[2 * r] = static_cast<scalar_t>(by_start_a[r]);
      ga[2 * r + 1] = static_cast<scalar_t>(by_end_a[r]);
    }
    std::vector<T> sum(2 * M);
    for (int64_t l = 0; l < L; ++l) {
      std::fill(sum.begin(), sum.end(), T{0});
      for (int64_t c = 0; c < chunks; ++c) {
        const T* share = shares.data() + 2 * (l * chunks + c) * M;
        for (int64_t k = 0; k < 2 * M; ++k) {
          sum[k] += share[k];
        }
      }
      for (int64_t m = 0; m < M; ++m) {
        gb[2 * (l * M + m)] = static_cast<scalar_t>(sum[m]);
        gb[2 * (l * M + m) + 1] = static_cast<scalar_t>(sum[M + m]);
      }
    }
  });
  return {grad_a, grad_b};
}

Tensor temporal_iou_elementwise(const Tensor& a_in, const Tensor& b_in, bool generalized) {
  check_sizes("temporal_iou", "a", a_in, {-1, 2});
  const Tensor a = torch::stable::view(torch::stable::contiguous(a_in), {a_in.size(0), 1, 2});
  check_sizes("temporal_iou", "b", b_in, {a_in.size(0), 2});
  const Tensor b = torch::stable::view(torch::stable::contiguous(b_in), {b_in.size(0), 1, 2});
  return torch::stable::view(temporal_iou(a, b, generalized), {a_in.size(0)});
}

std::tuple<Tensor, Tensor> temporal_iou_elementwise_backward(const Tensor& grad_in, const Tensor& a_in,
                                                             const Tensor& b_in, bool generalized) {
  const int64_t N = a_in.size(0);
  const auto rows = [&](const Tensor& t, std::initializer_list<int64_t> sizes) {
    return torch::stable::view(torch::stable::contiguous(t), sizes);
  };
  auto [grad_a, grad_b] =
      temporal_iou_backward(rows(grad_in, {N, 1, 1}), rows(a_in, {N, 1, 2}), rows(b_in, {N, 1, 2}), generalized);
  return {torch::stable::view(grad_a, {N, 2}), torch::stable::view(grad_b, {N, 2})};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_iou", TORCH_BOX(&temporal_iou));
  m.impl("temporal_iou_backward", TORCH_BOX(&temporal_iou_backward));
  m.impl("temporal_iou_elementwise", TORCH_BOX(&temporal_iou_elementwise));
  m.impl("temporal_iou_elementwise_backward", TORCH_BOX(&temporal_iou_elementwise_backward));
}

}  // namespace vpgfast
