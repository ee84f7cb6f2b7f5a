// temporal_map_bce on CUDA. See vpgfast/ops/temporal_map_bce.py for what it computes.

#include <optional>

#include "common/temporal_map_bce.h"
#include "cuda/intervals_cuda.h"

namespace vpgfast {
namespace {

constexpr int64_t kCellsPerBlock = kThreads * 8;

// The map, and which of its cells count.
template <typename scalar_t>
struct Map {
  using T = accumulate_t<scalar_t>;

  __device__ bool counts(int64_t row, int64_t i, int64_t j) const {
    if (j < i || (sentences != nullptr && !sentences[row])) {
      return false;
    }
    const int64_t b = mask_B == 1 ? 0 : row / M, m = mask_M == 1 ? 0 : row % M;
    return valid[((b * mask_M + m) * size + i) * size + j];
  }
  __device__ T target(int64_t row, int64_t i, int64_t j) const {
    const Interval<T> span = read_interval<T>(spans, row), cell = map_cell<T>(i, j, size);
    return scaled_iou(interval_iou<false>(cell.start, cell.end, span.start, span.end), min_iou, scale);
  }

  const scalar_t* logits;
  const scalar_t* spans;
  const bool* valid;
  const bool* sentences;
  int64_t M, size, mask_B, mask_M;
  T min_iou, scale;
};

// Each block sums its share of one sentence's map: blocks of a sentence lie side by side.
template <typename scalar_t>
__global__ void loss_parts(Map<scalar_t> map, double* sums, int64_t* counts, int64_t rows, int64_t parts) {
  using T = accumulate_t<scalar_t>;
  const int64_t cells = map.size * map.size;
  for (int64_t block = blockIdx.x; block < rows * parts; block += gridDim.x) {
    const int64_t row = block / parts, first = block % parts * kCellsPerBlock;
    const int64_t last = first + kCellsPerBlock < cells ? first + kCellsPerBlock : cells;
    double sum = 0;
    int64_t count = 0;
    for (int64_t cell = first + threadIdx.x; cell < last; cell += kThreads) {
      const int64_t i = cell / map.size, j = cell % map.size;
      if (map.counts(row, i, j)) {
        const T z = static_cast<T>(map.logits[row * cells + cell]);
        sum += larger(z, T{0}) - z * map.target(row, i, j) + log1p(exp(z < T{0} ? z : -z));
        ++count;
      }
    }
    sum = block_sum(sum);
    count = block_sum(count);
    if (threadIdx.x == 0) {
      sums[block] = sum;
      counts[block] = count;
    }
  }
}

template <typename scalar_t>
__global__ void loss_total(const double* sums, const int64_t* counts, int64_t parts, scalar_t* loss,
                           int64_t* valid_cells) {
  double sum = 0;
  int64_t count = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
    sum += sums[part];
    count += counts[part];
  }
  sum = block_sum(sum);
  count = block_sum(count);
  if (threadIdx.x == 0) {
    *loss = static_cast<scalar_t>(static_cast<accumulate_t<scalar_t>>(sum / (count > 0 ? count : 1)));
    *valid_cells = count;
  }
}

template <typename scalar_t>
__global__ void loss_gradient(Map<scalar_t> map, const scalar_t* grad_loss, const int64_t* valid_cells, scalar_t* grad,
                              int64_t total) {
  using T = accumulate_t<scalar_t>;
  const T factor = static_cast<T>(*grad_loss) / static_cast<T>(*valid_cells > 0 ? *valid_cells : 1);
  for (int64_t index = first_index(); index < total; index += index_stride()) {
    const int64_t j = index % map.size, i = index / map.size % map.size, row = index / (map.size * map.size);
    T value = 0;
    if (map.counts(row, i, j)) {
      const T z = static_cast<T>(map.logits[index]);
      const T y = exp(z < T{0} ? z : -z);
      value = ((z < T{0} ? y : T{1}) / (T{1} + y) - map.target(row, i, j)) * factor;
    }
    grad[index] = static_cast<scalar_t>(value);
  }
}

template <typename scalar_t>
Map<scalar_t> map_of(const MapBceArguments& given) {
  using T = accumulate_t<scalar_t>;
  return {read<scalar_t>(given.logits),
          read<scalar_t>(given.spans),
          read<bool>(given.mask),
          given.sentences(),
          given.M,
          given.T,
          given.mask.size(0),
          given.mask.size(1),
          static_cast<T>(given.min_iou),
          static_cast<T>(given.scale)};
}

std::tuple<Tensor, Tensor> temporal_map_bce(const Tensor& logits, const Tensor& spans, const Tensor& mask,
                                            std::optional<Tensor> sentence_mask, double min_iou, double max_iou) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const MapBceArguments given("temporal_map_bce", logits, spans, mask, sentence_mask, min_iou, max_iou);
  const int64_t rows = given.B * given.M;
  const int64_t parts = (given.T * given.T + kCellsPerBlock - 1) / kCellsPerBlock;
  Tensor loss = torch::stable::new_empty(logits, {});
  Tensor count = torch::stable::new_empty(logits, {}, ScalarType::Long);
  Tensor sums = torch::stable::new_empty(logits, {rows * parts}, ScalarType::Double);
  Tensor counts = torch::stable::new_empty(logits, {rows * parts}, ScalarType::Long);
  dispatch_floating("temporal_map_bce", logits.scalar_type(), [&]<typename scalar_t>() {
    const cudaStream_t stream = current_stream(logits);
    auto* sum = write<double>(sums);
    auto* valid = write<int64_t>(counts);
    if (rows * parts > 0) {
      loss_parts<<<blocks_for(rows * parts * kThreads), kThreads, 0, stream>>>(map_of<scalar_t>(given), sum, valid,
                                                                               rows, parts);
    }
    loss_total<<<1, kThreads, 0, stream>>>(sum, valid, rows * parts, write<scalar_t>(loss), write<int64_t>(count));
    check_launch("temporal_map_bce");
  });
  return {loss, count};
}

Tensor temporal_map_bce_backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& spans, const Tensor& mask,
                                 std::optional<Tensor> sentence_mask, double min_iou, double max_iou,
                                 const Tensor& count) {
  check_sizes("temporal_map_bce_backward", "grad_loss", grad_loss, {});
  check_dtype("temporal_map_bce_backward", "grad_loss", grad_loss, logits.scalar_type());
  check_dtype("temporal_map_bce_backward", "count", count, ScalarType::Long);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const MapBceArguments given("temporal_map_bce_backward", logits, spans, mask, sentence_mask, min_iou, max_iou);
  const int64_t total = given.B * given.M * given.T * given.T;
  Tensor grad = torch::stable::new_empty(logits, {given.B, given.M, given.T, given.T});
  if (total > 0) {
    dispatch_floating("temporal_map_bce_backward", logits.scalar_type(), [&]<typename scalar_t>() {
      loss_gradient<<<blocks_for(total), kThreads, 0, current_stream(logits)>>>(
          map_of<scalar_t>(given), read<scalar_t>(grad_loss), read<int64_t>(count), write<scalar_t>(grad), total);
      check_launch("temporal_map_bce_backward");
    });
  }
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_map_bce", TORCH_BOX(&temporal_map_bce));
  m.impl("temporal_map_bce_backward", TORCH_BOX(&temporal_map_bce_backward));
}

}  // namespace vpgfast
