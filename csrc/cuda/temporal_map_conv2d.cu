// temporal_map_conv2d on CUDA. See vpgfast/ops/temporal_map_conv2d.py for what it computes.
//
// The taps of the listed cells are gathered into the columns of a matrix (a chunk of cells at a time, so that it never
// takes more than kColumnBytes), which one product with the kernel, as it lies in memory, turns into results. The list
// of cells is made on the host, which waits for the mask: the Triton kernel does not.

#include <optional>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "cuda/launch.h"

namespace vpgfast {
namespace {

constexpr int64_t kColumnBytes = int64_t{1} << 28;

const bool* valid_cells(const std::optional<Tensor>& mask) {
  return mask ? read<bool>(*mask) : nullptr;
}

// columns[(channel, tap)][n]: what tap reads for the n-th (video, listed cell), or, `reversed`, what the tap on the
// other side of the kernel's middle does. Zero outside the map and its mask.
template <typename scalar_t>
__global__ void gather_taps(const scalar_t* x, const bool* mask, const int64_t* cells, int64_t listed, int64_t first,
                            int64_t count, int64_t channels, int64_t T, int64_t out_T, int64_t k, int64_t padding,
                            bool reversed, scalar_t* columns) {
  const int64_t taps = k * k;
  for (int64_t index = first_index(); index < channels * taps * count; index += index_stride()) {
    const int64_t n = index % count + first, row = index / count, channel = row / taps;
    const int64_t tap = reversed ? taps - 1 - row % taps : row % taps;
    const int64_t cell = cells[n % listed], video = n / listed;
    const int64_t i = cell / out_T + tap / k - padding, j = cell % out_T + tap % k - padding;
    const bool valid = i >= 0 && j >= 0 && i < T && j < T && (mask == nullptr || mask[i * T + j]);
    columns[index] = valid ? x[((video * channels + channel) * T + i) * T + j] : scalar_t(0);
  }
}

// Into the map, [video][channel][cell]: scale * activation(result + bias) of the listed cells.
template <typename scalar_t>
__global__ void scatter_results(const scalar_t* results, const int64_t* cells, const scalar_t* bias,
                                const accumulate_t<scalar_t>* scale, bool relu, int64_t listed, int64_t first,
                                int64_t count, int64_t channels, int64_t map, scalar_t* out) {
  using compute = accumulate_t<scalar_t>;
  for (int64_t index = first_index(); index < channels * count; index += index_stride()) {
    const int64_t channel = index / count, n = index % count + first;
    const int64_t cell = cells[n % listed], video = n / listed;
    compute value = static_cast<compute>(results[index]);
    value += bias != nullptr ? static_cast<compute>(bias[channel]) : compute{0};
    value = relu && value < 0 ? compute{0} : value;
    value *= scale != nullptr ? scale[cell] : compute{1};
    out[(video * channels + channel) * map + cell] = static_cast<scalar_t>(value);
  }
}

// One over the number of valid taps of a cell, 0 where there is none.
template <typename compute>
__global__ void inverse_counts(const bool* mask, int64_t T, int64_t out_T, int64_t k, int64_t padding, compute* scale) {
  for (int64_t cell = first_index(); cell < out_T * out_T; cell += index_stride()) {
    int64_t count = 0;
    for (int64_t tap = 0; tap < k * k; ++tap) {
      const int64_t i = cell / out_T + tap / k - padding, j = cell % out_T + tap % k - padding;
      count += i >= 0 && j >= 0 && i < T && j < T && (mask == nullptr || mask[i * T + j]);
    }
    scale[cell] = count > 0 ? compute{1} / static_cast<compute>(count) : compute{0};
  }
}

// The incoming gradient taken back through mask, scale and ReLU (`out` null: there was none).
template <typename scalar_t>
__global__ void through_epilogue(const scalar_t* grad, const scalar_t* out, const bool* mask,
                                 const accumulate_t<scalar_t>* scale, int64_t count, int64_t map, scalar_t* to) {
  using compute = accumulate_t<scalar_t>;
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    const int64_t cell = index % map;
    const bool passes = (mask == nullptr || mask[cell]) && !(out != nullptr && static_cast<compute>(out[index]) <= 0);
    const compute factor = scale != nullptr ? scale[cell] : compute{1};
    to[index] = passes ? static_cast<scalar_t>(static_cast<compute>(grad[index]) * factor) : scalar_t(0);
  }
}

// A block sums one channel over all videos and cells, in a fixed order.
template <typename scalar_t>
__global__ void sum_channels(const scalar_t* grad, int64_t videos, int64_t channels, int64_t map, scalar_t* sums) {
  using compute = accumulate_t<scalar_t>;
  for (int64_t channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    compute sum = 0;
    for (int64_t n = threadIdx.x; n < videos * map; n += kThreads) {
      sum += static_cast<compute>(grad[(n / map * channels + channel) * map + n % map]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      sums[channel] = static_cast<scalar_t>(sum);
    }
  }
}

// [D][C][taps] as [C][D][taps].
template <typename scalar_t>
__global__ void swap_channels(const scalar_t* weight, int64_t D, int64_t C, int64_t taps, scalar_t* to) {
  for (int64_t index = first_index(); index < D * C * taps; index += index_stride()) {
    const int64_t d = index / taps % D, c = index / (taps * D);
    to[index] = weight[(d * C + c) * taps + index % taps];
  }
}

// [channel][cell] of a chunk of the listed cells of a map [video][channel][cell].
template <typename scalar_t>
__global__ void gather_cells(const scalar_t* x, const int64_t* cells, int64_t listed, int64_t first, int64_t count,
                             int64_t channels, int64_t map, scalar_t* to) {
  for (int64_t index = first_index(); index < channels * count; index += index_stride()) {
    const int64_t channel = index / count, n = index % count + first;
    to[index] = x[(n / listed * channels + channel) * map + cells[n % listed]];
  }
}

template <typename scalar_t>
__global__ void add(const scalar_t* term, accumulate_t<scalar_t>* sums, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    sums[index] += static_cast<accumulate_t<scalar_t>>(term[index]);
  }
}

template <typename scalar_t>
__global__ void round_to(const accumulate_t<scalar_t>* from, scalar_t* to, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    to[index] = static_cast<scalar_t>(from[index]);
  }
}

// The cells of a mask on the device, in reading order. Waits for the mask.
Tensor list_cells(const std::optional<Tensor>& mask, int64_t T, const Tensor& like) {
  std::vector<int64_t> cells;
  std::optional<Tensor> on_host;
  if (mask) {
    on_host = torch::stable::to(*mask, std::nullopt, std::nullopt, torch::headeronly::DeviceType::CPU);
  }
  const bool* valid = on_host ? read<bool>(*on_host) : nullptr;
  for (int64_t cell = 0; cell < T * T; ++cell) {
    if (valid == nullptr || valid[cell]) {
      cells.push_back(cell);
    }
  }
  Tensor list = torch::stable::new_empty(like, {static_cast<int64_t>(cells.size())}, ScalarType::Long);
  // Pageable memory: the copy has left the vector when the call returns.
  const cudaError_t error = cudaMemcpyAsync(write<int64_t>(list), cells.data(), cells.size() * sizeof(int64_t),
                                            cudaMemcpyHostToDevice, current_stream(like));
  STD_TORCH_CHECK(error == cudaSuccess, "temporal_map_conv2d: ", cudaGetErrorString(error));
  return list;
}

// What a convolution reads and where: a map, the cells of it that are valid, and the cells of the result.
struct Taps {
  Tensor x;
  std::optional<Tensor> mask;
  Tensor cells;
  int64_t out_T, k, padding;
  bool reversed;

  int64_t columns() const {
    return x.size(0) * cells.size(0);
  }
  int64_t rows() const {
    return x.size(1) * k * k;
  }
  int64_t columns_of_chunk(int64_t element) const {
    const int64_t fit = kColumnBytes / (element * std::max<int64_t>(1, rows()));
    return std::clamp<int64_t>(fit, 1, std::max<int64_t>(1, columns()));
  }
  template <typename scalar_t>
  Tensor gather(int64_t first, int64_t count) const {
    const Tensor columns = torch::stable::new_empty(x, {rows(), count});
    if (rows() > 0) {
      gather_taps<scalar_t><<<blocks_for(rows() * count), kThreads, 0, current_stream(x)>>>(
          read<scalar_t>(x), valid_cells(mask), read<int64_t>(cells), cells.size(0), first, count, x.size(1), x.size(2),
          out_T, k, padding, reversed, write<scalar_t>(columns));
    }
    return columns;
  }
};

// kernel: [output channel][input channel * k * k]. Writes the listed cells of `out`, which is zero elsewhere.
template <typename scalar_t>
void convolve(const Taps& taps, const Tensor& kernel, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& scale, bool relu, const Tensor& out) {
  const int64_t channels = out.size(1), most = taps.columns_of_chunk(sizeof(scalar_t));
  const cudaStream_t stream = current_stream(out);
  for (int64_t first = 0; first < taps.columns() && channels > 0; first += most) {
    const int64_t count = std::min(most, taps.columns() - first);
    const Tensor results = torch::stable::new_empty(out, {channels, count});
    matrix_product(kernel, taps.gather<scalar_t>(first, count), results);
    scatter_results<scalar_t><<<blocks_for(channels * count), kThreads, 0, stream>>>(
        read<scalar_t>(results), read<int64_t>(taps.cells), bias ? read<scalar_t>(*bias) : nullptr,
        scale ? read<accumulate_t<scalar_t>>(*scale) : nullptr, relu, taps.cells.size(0), first, count, channels,
        taps.out_T * taps.out_T, write<scalar_t>(out));
  }
}

template <typename scalar_t>
std::optional<Tensor> scale_of(const Tensor& x, const std::optional<Tensor>& mask, int64_t out_T, int64_t k,
                               int64_t padding, bool normalize) {
  using compute = accumulate_t<scalar_t>;
  if (!normalize) {
    return std::nullopt;
  }
  const auto dtype = std::is_same_v<compute, double> ? ScalarType::Double : ScalarType::Float;
  Tensor scale = torch::stable::new_empty(x, {out_T * out_T}, dtype);
  inverse_counts<<<blocks_for(out_T * out_T), kThreads, 0, current_stream(x)>>>(valid_cells(mask), x.size(2), out_T, k,
                                                                                padding, write<compute>(scale));
  return scale;
}

std::optional<Tensor> checked_mask(const char* op, const char* name, const std::optional<Tensor>& mask, int64_t T) {
  if (!mask) {
    return std::nullopt;
  }
  check_sizes(op, name, *mask, {T, T});
  check_dtype(op, name, *mask, ScalarType::Bool);
  return torch::stable::contiguous(*mask);
}

Tensor temporal_map_conv2d(const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
                           const std::optional<Tensor>& in_mask_in, const std::optional<Tensor>& out_mask_in,
                           int64_t padding, bool relu, bool normalize) {
  constexpr const char* kOp = "temporal_map_conv2d";
  check_sizes(kOp, "x", x_in, {-1, -1, -1, x_in.size(2)});
  const int64_t B = x_in.size(0), C = x_in.size(1), T = x_in.size(2), D = weight_in.size(0), k = weight_in.size(2);
  const int64_t out_T = T + 2 * padding - k + 1;
  check_sizes(kOp, "weight", weight_in, {-1, C, k, k});
  check_dtype(kOp, "weight", weight_in, x_in.scalar_type());
  STD_TORCH_CHECK(k >= 1 && padding >= 0 && out_T >= 0, kOp, ": the kernel does not fit");
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const std::optional<Tensor> in_mask = checked_mask(kOp, "in_mask", in_mask_in, T);
  const std::optional<Tensor> out_mask = checked_mask(kOp, "out_mask", out_mask_in, out_T);
  std::optional<Tensor> bias;
  if (bias_in) {
    check_sizes(kOp, "bias", *bias_in, {D});
    check_dtype(kOp, "bias", *bias_in, x_in.scalar_type());
    bias = torch::stable::contiguous(*bias_in);
  }
  const Tensor x = torch::stable::contiguous(x_in);
  const Tensor kernel = torch::stable::view(torch::stable::contiguous(weight_in), {D, C * k * k});
  Tensor out = torch::stable::new_zeros(x, {B, D, out_T, out_T});
  if (out.numel() == 0) {
    return out;
  }
  const Taps taps{x, in_mask, list_cells(out_mask, out_T, x), out_T, k, padding, false};
  dispatch_floating(kOp, x.scalar_type(), [&]<typename scalar_t>() {
    convolve<scalar_t>(taps, kernel, bias, scale_of<scalar_t>(x, in_mask, out_T, k, padding, normalize), relu, out);
    check_launch(kOp);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> temporal_map_conv2d_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& out_in,
    const std::optional<Tensor>& in_mask_in, const std::optional<Tensor>& out_mask_in, int64_t padding, bool normalize,
    bool needs_x, bool needs_weight, bool needs_bias) {
  constexpr const char* kOp = "temporal_map_conv2d_backward";
  check_sizes(kOp, "x", x_in, {-1, -1, -1, x_in.size(2)});
  const int64_t B = x_in.size(0), C = x_in.size(1), T = x_in.size(2), D = weight_in.size(0), k = weight_in.size(2);
  const int64_t out_T = T + 2 * padding - k + 1, map = out_T * out_T, taps = k * k;
  check_sizes(kOp, "weight", weight_in, {-1, C, k, k});
  check_sizes(kOp, "grad", grad_in, {B, D, out_T, out_T});
  check_dtype(kOp, "weight", weight_in, x_in.scalar_type());
  check_dtype(kOp, "grad", grad_in, x_in.scalar_type());
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const std::optional<Tensor> in_mask = checked_mask(kOp, "in_mask", in_mask_in, T);
  const std::optional<Tensor> out_mask = checked_mask(kOp, "out_mask", out_mask_in, out_T);
  std::optional<Tensor> out;
  if (out_in) {
    check_sizes(kOp, "out", *out_in, {B, D, out_T, out_T});
    check_dtype(kOp, "out", *out_in, x_in.scalar_type());
    out = torch::stable::contiguous(*out_in);
  }
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const Tensor grad_out = torch::stable::contiguous(grad_in);
  Tensor grad_x = torch::stable::new_zeros(x, {needs_x ? B : 0, C, T, T});
  Tensor grad_weight = torch::stable::new_zeros(x, {needs_weight ? D : 0, C, k, k});
  Tensor grad_bias = torch::stable::new_zeros(x, {needs_bias ? D : 0});
  dispatch_floating(kOp, x.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const cudaStream_t stream = current_stream(x);
    const Tensor grad = torch::stable::empty_like(grad_out);
    if (grad.numel() > 0) {
      const std::optional<Tensor> scale = scale_of<scalar_t>(x, in_mask, out_T, k, padding, normalize);
      through_epilogue<scalar_t><<<blocks_for(grad.numel()), kThreads, 0, stream>>>(
          read<scalar_t>(grad_out), out ? read<scalar_t>(*out) : nullptr, valid_cells(out_mask),
          scale ? read<compute>(*scale) : nullptr, grad.numel(), map, write<scalar_t>(grad));
    }
    if (grad_bias.numel() > 0) {
      const unsigned blocks = blocks_for(D * kThreads);
      sum_channels<scalar_t>
          <<<blocks, kThreads, 0, stream>>>(read<scalar_t>(grad), B, D, map, write<scalar_t>(grad_bias));
    }
    if (grad_weight.numel() > 0 && grad.numel() > 0) {
      const Taps read_taps{x, in_mask, list_cells(out_mask, out_T, x), out_T, k, padding, false};
      const int64_t most = read_taps.columns_of_chunk(sizeof(scalar_t)), count = grad_weight.numel();
      const auto dtype = std::is_same_v<compute, double> ? ScalarType::Double : ScalarType::Float;
      const Tensor sums = torch::stable::new_zeros(x, {D, C * taps}, dtype);
      const Tensor term = torch::stable::new_empty(x, {D, C * taps});
      for (int64_t first = 0; first < read_taps.columns(); first += most) {
        const int64_t cells = std::min(most, read_taps.columns() - first);
        const Tensor listed = torch::stable::new_empty(x, {D, cells});
        gather_cells<scalar_t><<<blocks_for(D * cells), kThreads, 0, stream>>>(
            read<scalar_t>(grad), read<int64_t>(read_taps.cells), read_taps.cells.size(0), first, cells, D, map,
            write<scalar_t>(listed));
        const Tensor columns = read_taps.gather<scalar_t>(first, cells);
        matrix_product(listed, torch::stable::transpose(columns, 0, 1), term);
        add<scalar_t><<<blocks_for(count), kThreads, 0, stream>>>(read<scalar_t>(term), write<compute>(sums), count);
      }
      round_to<scalar_t>
          <<<blocks_for(count), kThreads, 0, stream>>>(read<compute>(sums), write<scalar_t>(grad_weight), count);
    }
    if (grad_x.numel() > 0) {  // the same convolution of the gradient, kernel reversed, masks exchanged
      const Tensor swapped = torch::stable::new_empty(x, {C, D * taps});
      if (swapped.numel() > 0) {
        swap_channels<scalar_t><<<blocks_for(swapped.numel()), kThreads, 0, stream>>>(read<scalar_t>(weight), D, C,
                                                                                      taps, write<scalar_t>(swapped));
      }
      const Taps written{grad, out_mask, list_cells(in_mask, T, x), T, k, k - 1 - padding, true};
      convolve<scalar_t>(written, swapped, std::nullopt, std::nullopt, false, grad_x);
    }
    check_launch(kOp);
  });
  const Tensor none = torch::stable::new_empty(x, {0});
  return {needs_x ? grad_x : none, needs_weight ? grad_weight : none, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("temporal_map_conv2d", TORCH_BOX(&temporal_map_conv2d));
  m.impl("temporal_map_conv2d_backward", TORCH_BOX(&temporal_map_conv2d_backward));
}

}  // namespace vpgfast
