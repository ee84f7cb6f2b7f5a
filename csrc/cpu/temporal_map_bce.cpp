// temporal_map_bce on the CPU. See vpgfast/ops/temporal_map_bce.py for what it computes.

#include <algorithm>
#include <numeric>
#include <optional>

#include "common/temporal_map_bce.h"
#include "cpu/intervals_cpu.h"
#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

// Loops over a row start at the multiple of this at or before the diagonal, so that they run in whole vectors.
constexpr int32_t kLanes = 16;

// Target of the cell that spans clips i to j of `size`.
template <typename T>
inline __attribute__((always_inline)) T cell_target(T cell_start, int32_t j, T size, T start, T end, T min_iou,
                                                    T scale) {
  return scaled_iou(interval_iou<false>(cell_start, static_cast<T>(j + 1) / size, start, end), min_iou, scale);
}

// 1 where a cell counts. A loop of its own: bytes beside floats would make the vectors of the other loops span 64
// cells.
inline __attribute__((always_inline)) void row_mask(const uint8_t* valid, int32_t i, int32_t first, int32_t size,
                                                    int32_t* __restrict keep) {
  for (int32_t j = first; j < size; ++j) {
    keep[j] = valid[j];
  }
  for (int32_t j = first; j < i; ++j) {
    keep[j] = 0;
  }
}

// Sum over a row's valid cells of -t log p - (1 - t) log(1 - p) = max(z, 0) - z t + log(1 + exp(-|z|)), p = sigmoid(z).
// Adds their number to `count`.
template <typename T, typename scalar_t>
T row_loss(const scalar_t* logits, const uint8_t* valid, int32_t i, int32_t size, T start, T end, T min_iou, T scale,
           int32_t* __restrict keep, T* __restrict each, int64_t& count) {
  const T cell_start = static_cast<T>(i) / static_cast<T>(size);
  const int32_t first = i / kLanes * kLanes;
  row_mask(valid, i, first, size, keep);
  for (int32_t j = first; j < size; ++j) {
    const T z = static_cast<T>(logits[j]);
    const T t = cell_target(cell_start, j, static_cast<T>(size), start, end, min_iou, scale);
    const T tail = log1p_of_unit(exp_of_nonpositive(z < T{0} ? z : -z));
    const T loss = larger(z, T{0}) - z * t + tail;
    each[j] = keep[j] != 0 ? loss : T{0};
  }
  T sum = 0;
  int32_t kept = 0;
#pragma omp simd reduction(+ : sum, kept)
  for (int32_t j = first; j < size; ++j) {
    sum += each[j];
    kept += keep[j];
  }
  count += kept;
  return sum;
}

// d loss / d z = p - t on valid cells, 0 elsewhere, times the incoming gradient over the number of valid cells.
template <typename T, typename scalar_t>
void row_gradient(const scalar_t* logits, const uint8_t* valid, int32_t i, int32_t size, T start, T end, T min_iou,
                  T scale, T factor, int32_t* __restrict keep, scalar_t* __restrict grad) {
  const T cell_start = static_cast<T>(i) / static_cast<T>(size);
  const int32_t first = i / kLanes * kLanes;
  row_mask(valid, i, first, size, keep);
  std::fill(grad, grad + first, static_cast<scalar_t>(0.0f));
  for (int32_t j = first; j < size; ++j) {
    const T z = static_cast<T>(logits[j]);
    const T t = cell_target(cell_start, j, static_cast<T>(size), start, end, min_iou, scale);
    const T y = exp_of_nonpositive(z < T{0} ? z : -z);
    const T p = (z < T{0} ? y : T{1}) / (T{1} + y);
    const T value = (p - t) * factor;
    grad[j] = static_cast<scalar_t>(keep[j] != 0 ? value : T{0});
  }
}

struct Map : MapBceArguments {
  using MapBceArguments::MapBceArguments;

  bool has_sentence(int64_t row) const {
    return sentences() == nullptr || sentences()[row];
  }
  // As bytes: loops over bools are not vectorised.
  const uint8_t* mask_of(int64_t row) const {
    const int64_t b = mask.size(0) == 1 ? 0 : row / M, m = mask.size(1) == 1 ? 0 : row % M;
    return read<uint8_t>(mask) + (b * mask.size(1) + m) * T * T;
  }
  int64_t grain() const {
    return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, T * T));
  }
};

std::tuple<Tensor, Tensor> temporal_map_bce(const Tensor& logits, const Tensor& spans, const Tensor& mask,
                                            std::optional<Tensor> sentence_mask, double min_iou, double max_iou) {
  const Map map("temporal_map_bce", logits, spans, mask, sentence_mask, min_iou, max_iou);
  const int64_t rows = map.B * map.M, T = map.T;
  Tensor loss = torch::stable::new_empty(logits, {});
  Tensor count = torch::stable::new_empty(logits, {}, ScalarType::Long);
  dispatch_floating("temporal_map_bce", logits.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const auto* z = read<scalar_t>(map.logits);
    const auto* pairs = read<scalar_t>(map.spans);
    check_intervals("temporal_map_bce", "spans", pairs, rows);
    // One sum a sentence, added in their order afterwards: the same for any number of threads.
    std::vector<double> sums(rows, 0.0);
    std::vector<int64_t> counts(rows, 0);
    torch::stable::parallel_for(0, rows, map.grain(), [&](int64_t begin, int64_t end) {
      std::vector<compute> each(T);
      std::vector<int32_t> keep(T);
      for (int64_t row = begin; row < end; ++row) {
        if (!map.has_sentence(row)) {
          continue;
        }
        const uint8_t* valid = map.mask_of(row);
        for (int64_t i = 0; i < T; ++i) {
          sums[row] += row_loss(z + row * T * T + i * T, valid + i * T, i, T, static_cast<compute>(pairs[2 * row]),
                                static_cast<compute>(pairs[2 * row + 1]), static_cast<compute>(map.min_iou),
                                static_cast<compute>(map.scale), keep.data(), each.data(), counts[row]);
        }
      }
    });
    const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
    const int64_t cells = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    *write<int64_t>(count) = cells;
    *write<scalar_t>(loss) =
        static_cast<scalar_t>(static_cast<compute>(total / static_cast<double>(std::max<int64_t>(1, cells))));
  });
  return {loss, count};
}

Tensor temporal_map_bce_backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& spans, const Tensor& mask,
                                 std::optional<Tensor> sentence_mask, double min_iou, double max_iou,
                                 const Tensor& count) {
  const Map map("temporal_map_bce_backward", logits, spans, mask, sentence_mask, min_iou, max_iou);
  check_sizes("temporal_map_bce_backward", "grad_loss", grad_loss, {});
  check_dtype("temporal_map_bce_backward", "grad_loss", grad_loss, logits.scalar_type());
  check_dtype("temporal_map_bce_backward", "count", count, ScalarType::Long);
  const int64_t rows = map.B * map.M, T = map.T;
  Tensor grad = torch::stable::new_empty(logits, {map.B, map.M, T, T});
  dispatch_floating("temporal_map_bce_backward", logits.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const auto* z = read<scalar_t>(map.logits);
    const auto* pairs = read<scalar_t>(map.spans);
    auto* to = write<scalar_t>(grad);
    const int64_t cells = *read<int64_t>(count);
    const compute factor =
        static_cast<compute>(*read<scalar_t>(grad_loss)) / static_cast<compute>(std::max<int64_t>(1, cells));
    torch::stable::parallel_for(0, rows, map.grain(), [&](int64_t begin, int64_t end) {
      std::vector<int32_t> keep(T);
      for (int64_t row = begin; row < end; ++row) {
        if (!map.has_sentence(row)) {
          std::fill(to + row * T * T, to + (row + 1) * T * T, static_cast<scalar_t>(0.0f));
          continue;
        }
        const uint8_t* valid = map.mask_of(row);
        for (int64_t i = 0; i < T; ++i) {
          row_gradient(z + row * T * T + i * T, valid + i * T, i, T, static_cast<compute>(pairs[2 * row]),
                       static_cast<compute>(pairs[2 * row + 1]), static_cast<compute>(map.min_iou),
                       static_cast<compute>(map.scale), factor, keep.data(), to + row * T * T + i * T);
        }
      }
    });
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_map_bce", TORCH_BOX(&temporal_map_bce));
  m.impl("temporal_map_bce_backward", TORCH_BOX(&temporal_map_bce_backward));
}

}  // namespace vpgfast
