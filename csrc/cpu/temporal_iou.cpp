// temporal_iou and temporal_giou on the CPU. See vpgfast/ops/temporal_iou.py for what they compute.

#include <algorithm>

#include "common/multiversion.h"
#include "cpu/intervals_cpu.h"

namespace vpgfast {
namespace {

constexpr int64_t kPairsPerTask = 1 << 13;
constexpr int64_t kWideEnough = 16;  // of a row for vector instructions to be worth while along it
constexpr int64_t kChunk = 512;

template <bool generalized, typename T, typename scalar_t>
VPGFAST_MULTIVERSION void one_with_many(T start, T end, const T* starts, const T* ends, scalar_t* out, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    out[k] = static_cast<scalar_t>(interval_iou<generalized>(start, end, starts[k], ends[k]));
  }
}

template <bool generalized, typename T, typename scalar_t>
VPGFAST_MULTIVERSION void one_with_one(const T* start_a, const T* end_a, const T* start_b, const T* end_b,
                                       scalar_t* out, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    out[k] = static_cast<scalar_t>(interval_iou<generalized>(start_a[k], end_a[k], start_b[k], end_b[k]));
  }
}

// Gradient of one interval against many, whose incoming gradients lie `stride` apart.
template <bool generalized, typename T, typename scalar_t>
VPGFAST_MULTIVERSION void one_with_many_backward(T start, T end, const T* starts, const T* ends, const scalar_t* grad,
                                                 int64_t stride, int64_t count, scalar_t* grad_pair) {
  T sum_start = 0, sum_end = 0;
#pragma omp simd reduction(+ : sum_start, sum_end)
  for (int64_t k = 0; k < count; ++k) {
    T by_start, by_end;
    interval_iou_gradient<generalized>(start, end, starts[k], ends[k], by_start, by_end);
    const T g = static_cast<T>(grad[k * stride]);
    sum_start += g * by_start;
    sum_end += g * by_end;
  }
  grad_pair[0] = static_cast<scalar_t>(sum_start);
  grad_pair[1] = static_cast<scalar_t>(sum_end);
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
      // Narrow rows: lay a chunk of pairs out side by side, then go over them all at once.
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
    IntervalArrays<T> of_a, of_b;
    of_a.read(pa, L * N);
    of_b.read(pb, L * M);
    dispatch_generalized(generalized, [&]<bool general>() {
      torch::stable::parallel_for(
          0, L * N, std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, M)), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
              const int64_t first = r / N * M;
              one_with_many_backward<general>(of_a.start[r], of_a.end[r], of_b.start.data() + first,
                                              of_b.end.data() + first, g + r * M, 1, M, ga + 2 * r);
            }
          });
      torch::stable::parallel_for(
          0, L * M, std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, N)), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
              const int64_t first = r / M * N;
              one_with_many_backward<general>(of_b.start[r], of_b.end[r], of_a.start.data() + first,
                                              of_a.end.data() + first, g + first * M + r % M, M, N, gb + 2 * r);
            }
          });
    });
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
