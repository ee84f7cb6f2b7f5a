// temporal_map_conv2d and temporal_map_conv2d_cells on the CPU. See vpgfast/ops/temporal_map_conv2d.py and
// temporal_map_conv2d_cells.py for what they compute.
//
// Winograd's algorithm F(4x4, 5x5): a tile of 4 x 4 output cells, and a kernel of 5 x 5 taps, need 8 x 8 = 64 products
// ("frequencies") where the sum itself has 16 * 25. A wider kernel is cut into sub-kernels, 4 taps apart, whose
// products are added up frequency by frequency. Only tiles with a cell of the output mask are computed, and of those
// only the sub-kernels whose 8 x 8 patch of the input holds a valid cell.
//
// Everything is channels-last, so that a frequency's products are one matrix product over all tiles.

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/tensor.h"
#include "cpu/map_layout.h"
#include "cpu/map_tiles.h"
#include "cpu/winograd_convolution.h"

namespace vpgfast {
namespace {

// What both ops have: cells of the input and of the result, and whether tensors hold only those ([B, P, C]) or whole
// maps ([B, C, T, T]).
struct Layer {
  const char* op;
  Cells in, out;
  int64_t k, padding;
  bool normalize, listed;

  void check(const char* name, const Tensor& tensor, int64_t batch, int64_t channels, const Cells& cells,
             ScalarType dtype) const {
    if (listed) {
      check_sizes(op, name, tensor, {batch, cells.count(), channels});
    } else {
      check_sizes(op, name, tensor, {batch, channels, cells.T, cells.T});
    }
    check_dtype(op, name, tensor, dtype);
  }
  Tensor empty(const Tensor& like, int64_t channels, const Cells& cells) const {
    const int64_t batch = like.size(0);
    return listed ? torch::stable::new_empty(like, {batch, cells.count(), channels})
                  : torch::stable::new_empty(like, {batch, channels, cells.T, cells.T});
  }
  Tiles tiles() const {
    return Tiles(in, out, k, padding);
  }
  template <typename T>
  std::vector<T> scale() const {
    if (!normalize) {
      return std::vector<T>(int64_t{out.T} * out.T, T{1});
    }
    const std::vector<double> inverse = inverse_counts(in, out.T, k, padding);
    return std::vector<T>(inverse.begin(), inverse.end());
  }
};

// The size of a layer's result.
int64_t out_size(const char* op, int64_t T, int64_t k, int64_t padding) {
  STD_TORCH_CHECK(k >= 1 && k < kLargestSide && padding >= 0 && T + 2 * padding - k + 1 >= 0, op,
                  ": the kernel does not fit");
  return T + 2 * padding - k + 1;
}

Tensor forward(const Layer& layer, const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
               bool relu) {
  const int64_t D = weight_in.size(0), C = weight_in.size(1);
  layer.check("x", x_in, x_in.size(0), C, layer.in, x_in.scalar_type());
  check_sizes(layer.op, "weight", weight_in, {D, C, layer.k, layer.k});
  check_dtype(layer.op, "weight", weight_in, x_in.scalar_type());
  std::optional<Tensor> bias;
  if (bias_in) {
    check_sizes(layer.op, "bias", *bias_in, {D});
    check_dtype(layer.op, "bias", *bias_in, x_in.scalar_type());
    bias = torch::stable::contiguous(*bias_in);
  }
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  Tensor out = layer.empty(x, D, layer.out);
  if (out.numel() == 0) {
    return out;
  }
  const Tiles tiles = layer.tiles();
  dispatch_floating(layer.op, x.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const Tensor results =
        convolve<compute>(pack_cells<compute, scalar_t>(x, layer.in, layer.listed),
                          pack_kernel<compute, scalar_t>(weight, false), false, tiles, static_cast<int32_t>(layer.k));
    const std::vector<compute> scale = layer.scale<compute>();
    unpack_tiles<compute, scalar_t>(results, tiles, layer.out,
                                    {bias ? read<scalar_t>(*bias) : nullptr, scale.data(), relu}, layer.listed, out);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Layer& layer, const Tensor& grad_in, const Tensor& x_in,
                                            const Tensor& weight_in, const std::optional<Tensor>& out_in, bool needs_x,
                                            bool needs_weight, bool needs_bias) {
  const int64_t B = x_in.size(0), D = weight_in.size(0), C = weight_in.size(1), k = layer.k;
  layer.check("x", x_in, B, C, layer.in, x_in.scalar_type());
  check_sizes(layer.op, "weight", weight_in, {D, C, k, k});
  check_dtype(layer.op, "weight", weight_in, x_in.scalar_type());
  layer.check("grad", grad_in, B, D, layer.out, x_in.scalar_type());
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const Tensor grad = torch::stable::contiguous(grad_in);
  std::optional<Tensor> out;
  if (out_in) {
    layer.check("out", *out_in, B, D, layer.out, x_in.scalar_type());
    out = torch::stable::contiguous(*out_in);
  }
  Tensor grad_x = needs_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor grad_weight = needs_weight ? torch::stable::empty_like(weight) : torch::stable::new_empty(x, {0});
  Tensor grad_bias = torch::stable::new_empty(x, {needs_bias ? D : 0});
  dispatch_floating(layer.op, x.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const Tensor packed =
        pack_gradient<compute, scalar_t>(grad, out, layer.out, layer.scale<compute>().data(), layer.listed);
    if (needs_bias) {
      const compute* rows = read<compute>(packed);
      torch::stable::parallel_for(0, D, kLanes, [&](int64_t begin, int64_t end) {
        std::vector<double> sums(end - begin);
        for (int64_t row = 0; row < B * layer.out.count(); ++row) {
          for (int64_t d = begin; d < end; ++d) {
            sums[d - begin] += rows[row * padded(D) + d];
          }
        }
        std::transform(sums.begin(), sums.end(), write<scalar_t>(grad_bias) + begin,
                       [](double sum) { return static_cast<scalar_t>(static_cast<compute>(sum)); });
      });
    }
    if (needs_weight && grad_weight.numel() > 0) {
      const Tensor kernel = convolve_backward_kernel<compute>(pack_cells<compute, scalar_t>(x, layer.in, layer.listed),
                                                              packed, layer.tiles(), static_cast<int32_t>(k));
      std::vector<int64_t> places(C * k * k);
      for (size_t i = 0; i < places.size(); ++i) {
        places[i] = static_cast<int64_t>(i);
      }
      const Epilogue<compute, scalar_t> plain{nullptr, nullptr, false};
      over_blocks(1, C * k * k, D, [&](int64_t, int64_t first, int64_t last, int64_t channel, int32_t width) {
        unpack_block(read<compute>(kernel), places.data(), plain, first, last, channel, width, padded(D),
                     write<scalar_t>(grad_weight), C * k * k);
      });
    }
    if (needs_x && grad_x.numel() > 0) {  // the same convolution of the gradient, kernel reversed, cells exchanged
      const Tiles tiles(layer.out, layer.in, k, k - 1 - layer.padding);
      const Tensor results =
          convolve<compute>(packed, pack_kernel<compute, scalar_t>(weight, true), true, tiles, static_cast<int32_t>(k));
      unpack_tiles<compute, scalar_t>(results, tiles, layer.in, {nullptr, nullptr, false}, layer.listed, grad_x);
    }
  });
  return {grad_x, grad_weight, grad_bias};
}

Layer layer_of_maps(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& in_mask,
                    const std::optional<Tensor>& out_mask, int64_t padding, bool normalize) {
  check_sizes(op, "x", x, {-1, -1, -1, -1});
  check_sizes(op, "weight", weight, {-1, -1, -1, -1});
  const int64_t T = x.size(2), k = weight.size(2), out_T = out_size(op, T, k, padding);
  return {op, Cells(op, "in_mask", in_mask, T), Cells(op, "out_mask", out_mask, out_T), k, padding, normalize, false};
}

Layer layer_of_cells(const char* op, const Tensor& x, const Tensor& weight, const Tensor& in_cells,
                     const Tensor& out_cells, int64_t T, int64_t padding, bool normalize) {
  check_sizes(op, "x", x, {-1, -1, -1});
  check_sizes(op, "weight", weight, {-1, -1, -1, -1});
  check_sizes(op, "in_cells", in_cells, {-1});
  check_sizes(op, "out_cells", out_cells, {-1});
  const int64_t k = weight.size(2), out_T = out_size(op, T, k, padding);
  return {op,  Cells(op, "in_cells", in_cells, T), Cells(op, "out_cells", out_cells, out_T), k, padding, normalize,
          true};
}

Tensor temporal_map_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& in_mask, const std::optional<Tensor>& out_mask, int64_t padding,
                           bool relu, bool normalize) {
  return forward(layer_of_maps("temporal_map_conv2d", x, weight, in_mask, out_mask, padding, normalize), x, weight,
                 bias, relu);
}

std::tuple<Tensor, Tensor, Tensor> temporal_map_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                                const Tensor& weight, const std::optional<Tensor>& out,
                                                                const std::optional<Tensor>& in_mask,
                                                                const std::optional<Tensor>& out_mask, int64_t padding,
                                                                bool normalize, bool needs_x, bool needs_weight,
                                                                bool needs_bias) {
  return backward(layer_of_maps("temporal_map_conv2d_backward", x, weight, in_mask, out_mask, padding, normalize), grad,
                  x, weight, out, needs_x, needs_weight, needs_bias);
}

Tensor temporal_map_conv2d_cells(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const Tensor& in_cells, const Tensor& out_cells, int64_t T, int64_t padding, bool relu,
                                 bool normalize) {
  return forward(layer_of_cells("temporal_map_conv2d_cells", x, weight, in_cells, out_cells, T, padding, normalize), x,
                 weight, bias, relu);
}

std::tuple<Tensor, Tensor, Tensor> temporal_map_conv2d_cells_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& out, const Tensor& in_cells,
    const Tensor& out_cells, int64_t T, int64_t padding, bool normalize, bool needs_x, bool needs_weight,
    bool needs_bias) {
  return backward(
      layer_of_cells("temporal_map_conv2d_cells_backward", x, weight, in_cells, out_cells, T, padding, normalize), grad,
      x, weight, out, needs_x, needs_weight, needs_bias);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_map_conv2d", TORCH_BOX(&temporal_map_conv2d));
  m.impl("temporal_map_conv2d_backward", TORCH_BOX(&temporal_map_conv2d_backward));
  m.impl("temporal_map_conv2d_cells", TORCH_BOX(&temporal_map_conv2d_cells));
  m.impl("temporal_map_conv2d_cells_backward", TORCH_BOX(&temporal_map_conv2d_cells_backward));
}

}  // namespace vpgfast
