// temporal_map_bce on the CPU. See vpgfast/ops/temporal_map_bce.py for what it computes.

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "common/temporal_map_bce.h"
#include "cpu/intervals_cpu.h"
#include "cpu/vector.h"
#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

constexpr int64_t kLargestSide = 46341;  // of a map whose cells are counted in 32 bits
constexpr int32_t kCells = 512;          // whose losses are added up in the compute type; sums of these in double

// The cells of a map that count, one after the other, and their spans as fractions.
template <typename T>
struct ValidCells {
  void read(const uint8_t* mask, int64_t size) {
    cell.clear();
    start.clear();
    end.clear();
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = i; j < size; ++j) {
        if (mask[i * size + j] != 0) {
          cell.push_back(static_cast<int32_t>(i * size + j));
          start.push_back(static_cast<T>(i) / static_cast<T>(size));
          end.push_back(static_cast<T>(j + 1) / static_cast<T>(size));
        }
      }
    }
  }
  int32_t count() const {
    return static_cast<int32_t>(cell.size());
  }
  std::vector<int32_t> cell;
  std::vector<T> start, end;
};

// What a sentence's targets are made of.
template <typename T>
struct Target {
  // Those of `count` cells. A loop of its own: with the losses in one, the registers do not suffice.
  void fill(const T* __restrict start_of_cell, const T* __restrict end_of_cell, int32_t count,
            T* __restrict targets) const {
    for (int32_t k = 0; k < count; ++k) {
      targets[k] = scaled_iou(interval_iou<false>(start_of_cell[k], end_of_cell[k], start, end), min_iou, scale);
    }
  }
  T start, end, min_iou, scale;
};

// Sum over `count` cells of -t log p - (1 - t) log(1 - p) = max(z, 0) - z t + log(1 + exp(-|z|)), p = sigmoid(z).
template <typename T, typename scalar_t>
__attribute__((noinline)) T cells_loss(const scalar_t* logits, const int32_t* cell, const T* targets, int32_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t k = 0; k < count; ++k) {
    const T z = static_cast<T>(logits[cell[k]]);
    const T tail = log1p_of_unit(exp_of_nonpositive(z < T{0} ? z : -z));
    sum += larger(z, T{0}) - z * targets[k] + tail;
  }
  return sum;
}

// d loss / d z = p - t of `count` cells, times `factor`.
template <typename T, typename scalar_t>
__attribute__((noinline)) void cells_gradient(const scalar_t* logits, const int32_t* cell, const T* __restrict targets,
                                              int32_t count, T factor, T* __restrict grads) {
  for (int32_t k = 0; k < count; ++k) {
    const T z = static_cast<T>(logits[cell[k]]);
    const T y = exp_of_nonpositive(z < T{0} ? z : -z);
    const T p = (z < T{0} ? y : T{1}) / (T{1} + y);
    grads[k] = (p - targets[k]) * factor;
  }
}

// Calls use(first, count, targets) for all cells, kCells at a time.
template <typename T, typename Use>
void for_targets(const ValidCells<T>& cells, const Target<T>& target, const Use& use) {
  T targets[kCells];
  for (int32_t first = 0; first < cells.count(); first += kCells) {
    const int32_t count = std::min(kCells, cells.count() - first);
    target.fill(cells.start.data() + first, cells.end.data() + first, count, targets);
    use(first, count, targets);
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
  template <typename compute, typename scalar_t>
  Target<compute> target(const scalar_t* pair) const {
    return {static_cast<compute>(pair[0]), static_cast<compute>(pair[1]), static_cast<compute>(min_iou),
            static_cast<compute>(scale)};
  }
  // Calls use(row, the cells that count) for every sentence, in parallel.
  template <typename compute, typename Use>
  void for_sentences(const Use& use) const {
    STD_TORCH_CHECK(T < kLargestSide, "temporal_map_bce: T is ", T, "; on a CPU it must be below ", kLargestSide);
    const int64_t grain = std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, B * M, grain, [&](int64_t begin, int64_t end) {
      ValidCells<compute> cells;
      const uint8_t* read = nullptr;
      for (int64_t row = begin; row < end; ++row) {
        if (has_sentence(row) && mask_of(row) != read) {
          read = mask_of(row);
          cells.read(read, T);
        }
        use(row, cells);
      }
    });
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
    map.for_sentences<compute>([&](int64_t row, const ValidCells<compute>& cells) {
      if (map.has_sentence(row)) {
        const auto* logits = z + row * T * T;
        for_targets(cells, map.target<compute>(pairs + 2 * row),
                    [&](int32_t first, int32_t some, const compute* targets) {
                      sums[row] += static_cast<double>(cells_loss(logits, cells.cell.data() + first, targets, some));
                    });
        counts[row] = cells.count();
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
  const int64_t T = map.T;
  Tensor grad = torch::stable::new_empty(logits, {map.B, map.M, T, T});
  dispatch_floating("temporal_map_bce_backward", logits.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const auto* z = read<scalar_t>(map.logits);
    const auto* pairs = read<scalar_t>(map.spans);
    auto* to = write<scalar_t>(grad);
    const int64_t cells = *read<int64_t>(count);
    const compute factor =
        static_cast<compute>(*read<scalar_t>(grad_loss)) / static_cast<compute>(std::max<int64_t>(1, cells));
    map.for_sentences<compute>([&](int64_t row, const ValidCells<compute>& valid) {
      std::fill(to + row * T * T, to + (row + 1) * T * T, static_cast<scalar_t>(0.0f));
      if (!map.has_sentence(row)) {
        return;
      }
      const auto* logits = z + row * T * T;
      auto* map_grad = to + row * T * T;
      for_targets(valid, map.target<compute>(pairs + 2 * row),
                  [&](int32_t first, int32_t some, const compute* targets) {
                    compute grads[kCells];
                    const int32_t* cell = valid.cell.data() + first;
                    cells_gradient(logits, cell, targets, some, factor, grads);
                    for (int32_t k = 0; k < some; ++k) {
                      map_grad[cell[k]] = static_cast<scalar_t>(grads[k]);
                    }
                  });
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
