// ordered_suppression_scan on the CPU. See vpgfast/ops/ordered_suppression_scan.py for what it computes.

#include "common/ordered_suppression_scan.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

constexpr int32_t kCells = 512;  // of a task: what is left of them stays in the first cache
constexpr int64_t kNumbersPerTask = 1 << 14;

// One sentence on `count` cells: p = sigmoid(s z + bias), s -= p.
template <typename T, typename scalar_t>
void suppress(const scalar_t* __restrict z, T bias, T* __restrict s, scalar_t* __restrict out, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    const T logit = s[i] * static_cast<T>(z[i]) + bias;
    const T y = exp_of_nonpositive(logit < T{0} ? logit : -logit);
    const T p = (logit < T{0} ? y : T{1}) / (T{1} + y);
    out[i] = static_cast<scalar_t>(p);
    s[i] -= p;
  }
}

// The same sentence backward: `s` becomes what it was before the sentence, `by_s` the derivative by that. Returns the
// sum of the derivatives by the logits.
template <typename T, typename scalar_t>
T suppress_backward(const scalar_t* __restrict grad, const scalar_t* __restrict z, const scalar_t* __restrict P,
                    T* __restrict s, T* __restrict by_s, scalar_t* __restrict by_z, int32_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t i = 0; i < count; ++i) {
    const T p = static_cast<T>(P[i]);
    s[i] += p;
    const T by_logit = (static_cast<T>(grad[i]) - by_s[i]) * p * (T{1} - p);
    by_z[i] = static_cast<scalar_t>(by_logit * s[i]);
    by_s[i] += by_logit * static_cast<T>(z[i]);
    sum += by_logit;
  }
  return sum;
}

template <typename T, typename scalar_t>
void subtract(const scalar_t* __restrict P, T* __restrict s, int32_t count) {
  for (int32_t i = 0; i < count; ++i) {
    s[i] -= static_cast<T>(P[i]);
  }
}

// Calls f(task, b, first cell, number of cells) for every block of cells, in parallel.
template <typename F>
void for_cells(const SuppressionScan& scan, const F& f) {
  const int64_t blocks = (scan.cells + kCells - 1) / kCells;
  const int64_t grain = std::max<int64_t>(1, kNumbersPerTask / (kCells * std::max<int64_t>(1, scan.M)));
  torch::stable::parallel_for(0, scan.B * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kCells;
      f(task, task / blocks, first, static_cast<int32_t>(std::min<int64_t>(kCells, scan.cells - first)));
    }
  });
}

Tensor ordered_suppression_scan(const Tensor& z, const Tensor& bias, const std::optional<Tensor>& sentence_mask,
                                bool reverse) {
  const SuppressionScan scan("ordered_suppression_scan", z, bias, sentence_mask, reverse);
  Tensor out = torch::stable::new_empty(scan.z, {scan.B, scan.M, scan.cells});
  dispatch_floating("ordered_suppression_scan", scan.z.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const T b0 = static_cast<T>(*read<scalar_t>(scan.bias));
    for_cells(scan, [&](int64_t, int64_t b, int64_t first, int32_t count) {
      T s[kCells];
      std::fill(s, s + count, T{1});
      for (int64_t k = 0; k < scan.M; ++k) {
        const int64_t m = b * scan.M + (scan.reverse ? scan.M - 1 - k : k), at = m * scan.cells + first;
        if (scan.sentences() != nullptr && !scan.sentences()[m]) {
          std::fill_n(write<scalar_t>(out) + at, count, static_cast<scalar_t>(0.0f));
        } else {
          suppress<T>(read<scalar_t>(scan.z) + at, b0, s, write<scalar_t>(out) + at, count);
        }
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> ordered_suppression_scan_backward(const Tensor& grad_in, const Tensor& z, const Tensor& bias,
                                                             const Tensor& P_in,
                                                             const std::optional<Tensor>& sentence_mask, bool reverse) {
  const char* op = "ordered_suppression_scan_backward";
  const SuppressionScan scan(op, z, bias, sentence_mask, reverse);
  check_sizes(op, "grad", grad_in, {scan.B, scan.M, scan.cells});
  check_sizes(op, "P", P_in, {scan.B, scan.M, scan.cells});
  check_dtype(op, "grad", grad_in, scan.z.scalar_type());
  check_dtype(op, "P", P_in, scan.z.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in), P = torch::stable::contiguous(P_in);
  Tensor by_z = torch::stable::new_empty(scan.z, {scan.B, scan.M, scan.cells});
  Tensor by_bias = torch::stable::new_empty(scan.bias, {});
  dispatch_floating(op, scan.z.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    std::vector<T> sums(scan.B * ((scan.cells + kCells - 1) / kCells));
    for_cells(scan, [&](int64_t task, int64_t b, int64_t first, int32_t count) {
      T s[kCells], by_s[kCells];
      std::fill(s, s + count, T{1});
      std::fill(by_s, by_s + count, T{0});
      for (int64_t m = 0; m < scan.M; ++m) {
        subtract<T>(read<scalar_t>(P) + (b * scan.M + m) * scan.cells + first, s, count);
      }
      for (int64_t k = scan.M - 1; k >= 0; --k) {
        const int64_t m = b * scan.M + (scan.reverse ? scan.M - 1 - k : k), at = m * scan.cells + first;
        if (scan.sentences() != nullptr && !scan.sentences()[m]) {
          std::fill_n(write<scalar_t>(by_z) + at, count, static_cast<scalar_t>(0.0f));
        } else {
          sums[task] += suppress_backward<T>(read<scalar_t>(grad) + at, read<scalar_t>(scan.z) + at,
                                             read<scalar_t>(P) + at, s, by_s, write<scalar_t>(by_z) + at, count);
        }
      }
    });
    T sum = 0;
    for (const T& part : sums) {
      sum += part;
    }
    *write<scalar_t>(by_bias) = static_cast<scalar_t>(sum);
  });
  return {by_z, by_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("ordered_suppression_scan", TORCH_BOX(&ordered_suppression_scan));
  m.impl("ordered_suppression_scan_backward", TORCH_BOX(&ordered_suppression_scan_backward));
}

}  // namespace vpgfast
