// temporal_map_bce on CUDA. See vpgfast/ops/temporal_map_bce.py for what it computes.

#include <optional>

#include "common/temporal_map_bce.h"
#include "cuda/intervals_cuda.h"
#include "cuda/map_blocks.h"

namespace vpgfast::temporal_map_bce_cuda {
namespace {

constexpr int kRows = 2;  // of a map that a thread has a pack of cells of, loaded together

// Which sentence's mask a map has: [1, 1], [B, 1], [1, M] or [B, M] of them.
enum class Masks { one, of_video, of_sentence, all };

struct Layout : MapBlocks {
  int64_t M;
  Masks masks;
};

template <typename scalar_t>
struct Map {
  using T = accumulate_t<scalar_t>;

  __device__ T target(const Interval<T>& span, int i, int j) const {
    const T start = static_cast<T>(i) * clip, end = static_cast<T>(j + 1) * clip;
    return scaled_iou(interval_iou<false>(start, end, span.start, span.end), min_iou, scale);
  }

  const scalar_t* logits;
  const scalar_t* spans;
  const bool* valid;
  const bool* sentences;
  T clip;  // a clip's share of the duration
  T min_iou, scale;
};

// use(cell, i, j, span, logits, counts) for this thread's packs of the maps and rows of a block: the first cell's place
// among all, its row and column, and of each cell its logit and whether it counts. Where `kAll`, also for packs below
// the diagonal, of which nothing is read.
template <typename scalar_t, int kWidth, bool kPacked, bool kAll, typename Use>
__device__ __forceinline__ void for_each_pack(const Map<scalar_t>& map, const Layout& layout, int64_t group, int part,
                                              const Use& use) {
  using compute = accumulate_t<scalar_t>;
  const int T = layout.T, y = layout.y(), first_column = layout.x() * kWidth;
  const int64_t row = layout.map_of(group);
  if (row >= layout.maps) {
    return;
  }
  const bool wanted = map.sentences == nullptr || map.sentences[row];
  int64_t mask = 0;
  if (layout.masks == Masks::all) {
    mask = row;
  } else if (layout.masks != Masks::one) {
    const int64_t video = row >> 31 == 0 && layout.M >> 31 == 0
                              ? static_cast<uint32_t>(row) / static_cast<uint32_t>(layout.M)
                              : row / layout.M;
    mask = layout.masks == Masks::of_video ? video : row - video * layout.M;
  }
  const int64_t cells_of_map = static_cast<int64_t>(T) * T;
  const Interval<compute> span = read_interval<compute>(map.spans, row);
  for (int j = first_column; j < T; j += kWidth << layout.log_x) {
    Pack<scalar_t, kWidth> logits[kRows] = {};
    Pack<bool, kWidth> valid[kRows] = {};
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int i = ((part * kRows + k) << layout.log_y) + y;
      if (i < T && j + kWidth > i && wanted) {
        const int64_t cell = static_cast<int64_t>(i) * T + j;
        if constexpr (kPacked) {
          valid[k] = *reinterpret_cast<const Pack<bool, kWidth>*>(map.valid + mask * cells_of_map + cell);
          logits[k] = *reinterpret_cast<const Pack<scalar_t, kWidth>*>(map.logits + row * cells_of_map + cell);
        } else {
#pragma unroll
          for (int c = 0; c < kWidth; ++c) {
            if (j + c < T) {
              valid[k].value[c] = map.valid[mask * cells_of_map + cell + c];
              logits[k].value[c] = map.logits[row * cells_of_map + cell + c];
            }
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int i = ((part * kRows + k) << layout.log_y) + y;
      if (i < T && (kAll || j + kWidth > i)) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          valid[k].value[c] = valid[k].value[c] && j + c >= i;
        }
        use(row * cells_of_map + static_cast<int64_t>(i) * T + j, i, j, span, logits[k], valid[k]);
      }
    }
  }
}

// Each block sums its share of the maps: a thread its cells in accumulate_t, of which it has few, the rest in double.
template <typename scalar_t, int kWidth, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2)
    loss_parts(Map<scalar_t> map, Layout layout, double* sums, int64_t* counts, int64_t groups) {
  using T = accumulate_t<scalar_t>;
  for (int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    for (int part = blockIdx.x; part < layout.parts; part += gridDim.x) {
      T sum = 0;
      int count = 0;
      for_each_pack<scalar_t, kWidth, kPacked, false>(
          map, layout, group, part,
          [&](int64_t, int i, int j, const Interval<T>& span, const auto& logits, const auto& counted) {
#pragma unroll
            for (int c = 0; c < kWidth; ++c) {
              if (counted.value[c]) {
                const T z = static_cast<T>(logits.value[c]);
                sum += larger(z, T{0}) - z * map.target(span, i, j + c) + log1p(exp(z < T{0} ? z : -z));
                ++count;
              }
            }
          });
      const double total = block_sum(static_cast<double>(sum));
      const int64_t cells = block_sum(static_cast<int64_t>(count));
      if (threadIdx.x == 0) {
        sums[group * layout.parts + part] = total;
        counts[group * layout.parts + part] = cells;
      }
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

template <typename scalar_t, int kWidth, bool kPacked>
__global__ void __launch_bounds__(kThreads, 2)
    loss_gradient(Map<scalar_t> map, Layout layout, const scalar_t* grad_loss, const int64_t* valid_cells,
                  scalar_t* grad, int64_t groups) {
  using T = accumulate_t<scalar_t>;
  const T factor = static_cast<T>(*grad_loss) / static_cast<T>(*valid_cells > 0 ? *valid_cells : 1);
  for (int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    for (int part = blockIdx.x; part < layout.parts; part += gridDim.x) {
      for_each_pack<scalar_t, kWidth, kPacked, true>(
          map, layout, group, part,
          [&](int64_t cell, int i, int j, const Interval<T>& span, const auto& logits, const auto& counted) {
            Pack<scalar_t, kWidth> out = {};
#pragma unroll
            for (int c = 0; c < kWidth; ++c) {
              if (counted.value[c]) {
                const T z = static_cast<T>(logits.value[c]);
                const T y = exp(z < T{0} ? z : -z);
                const T difference = (z < T{0} ? y : T{1}) / (T{1} + y) - map.target(span, i, j + c);
                out.value[c] = static_cast<scalar_t>(difference * factor);
              }
            }
            if constexpr (kPacked) {
              *reinterpret_cast<Pack<scalar_t, kWidth>*>(grad + cell) = out;
            } else {
#pragma unroll
              for (int c = 0; c < kWidth; ++c) {
                if (j + c < layout.T) {
                  grad[cell + c] = out.value[c];
                }
              }
            }
          });
    }
  }
}

template <typename scalar_t>
Map<scalar_t> map_of(const MapBceArguments& given) {
  using T = accumulate_t<scalar_t>;
  return {read<scalar_t>(given.logits),   read<scalar_t>(given.spans),   read<bool>(given.mask),     given.sentences(),
          T{1} / static_cast<T>(given.T), static_cast<T>(given.min_iou), static_cast<T>(given.scale)};
}

Layout layout_of(const MapBceArguments& given, int width) {
  Layout layout{MapBlocks(given.B * given.M, given.T, width, kRows), given.M, Masks::one};
  const bool by_video = given.mask.size(0) > 1, by_sentence = given.mask.size(1) > 1;
  layout.masks = by_video && by_sentence ? Masks::all
                 : by_video              ? (given.M == 1 ? Masks::all : Masks::of_video)
                 : by_sentence           ? (given.B == 1 ? Masks::all : Masks::of_sentence)
                                         : Masks::one;
  return layout;
}

// 16 bytes of logits at a time where every row begins at a multiple of that, and as many bytes of the mask.
template <int kWidth>
bool in_packs(const MapBceArguments& given) {
  return given.T % kWidth == 0 && is_aligned(given.logits.const_data_ptr()) &&
         reinterpret_cast<uintptr_t>(given.mask.const_data_ptr()) % kWidth == 0;
}

std::tuple<Tensor, Tensor> temporal_map_bce(const Tensor& logits, const Tensor& spans, const Tensor& mask,
                                            std::optional<Tensor> sentence_mask, double min_iou, double max_iou) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const MapBceArguments given("temporal_map_bce", logits, spans, mask, sentence_mask, min_iou, max_iou);
  Tensor loss = torch::stable::new_empty(logits, {});
  Tensor count = torch::stable::new_empty(logits, {}, ScalarType::Long);
  dispatch_floating("temporal_map_bce", logits.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidth = 16 / sizeof(scalar_t);
    const cudaStream_t stream = current_stream(logits);
    const Layout layout = layout_of(given, kWidth);
    const int64_t groups = layout.groups(), blocks = groups * layout.parts;
    const Tensor sums = torch::stable::new_empty(logits, {blocks}, ScalarType::Double);
    const Tensor counts = torch::stable::new_empty(logits, {blocks}, ScalarType::Long);
    auto* sum = write<double>(sums);
    auto* valid = write<int64_t>(counts);
    if (blocks > 0 && in_packs<kWidth>(given)) {
      loss_parts<scalar_t, kWidth, true>
          <<<layout.grid(), kThreads, 0, stream>>>(map_of<scalar_t>(given), layout, sum, valid, groups);
    } else if (blocks > 0) {
      loss_parts<scalar_t, kWidth, false>
          <<<layout.grid(), kThreads, 0, stream>>>(map_of<scalar_t>(given), layout, sum, valid, groups);
    }
    loss_total<<<1, kThreads, 0, stream>>>(sum, valid, blocks, write<scalar_t>(loss), write<int64_t>(count));
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
  Tensor grad = torch::stable::new_empty(logits, {given.B, given.M, given.T, given.T});
  if (grad.numel() == 0) {
    return grad;
  }
  dispatch_floating("temporal_map_bce_backward", logits.scalar_type(), [&]<typename scalar_t>() {
    constexpr int kWidth = 16 / sizeof(scalar_t);
    const Layout layout = layout_of(given, kWidth);
    const cudaStream_t stream = current_stream(logits);
    const auto* by_loss = read<scalar_t>(grad_loss);
    const auto* cells = read<int64_t>(count);
    if (in_packs<kWidth>(given)) {
      loss_gradient<scalar_t, kWidth, true><<<layout.grid(), kThreads, 0, stream>>>(
          map_of<scalar_t>(given), layout, by_loss, cells, write<scalar_t>(grad), layout.groups());
    } else {
      loss_gradient<scalar_t, kWidth, false><<<layout.grid(), kThreads, 0, stream>>>(
          map_of<scalar_t>(given), layout, by_loss, cells, write<scalar_t>(grad), layout.groups());
    }
    check_launch("temporal_map_bce_backward");
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_map_bce", TORCH_BOX(&temporal_map_bce));
  m.impl("temporal_map_bce_backward", TORCH_BOX(&temporal_map_bce_backward));
}

}  // namespace vpgfast::temporal_map_bce_cuda
