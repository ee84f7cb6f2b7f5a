// proposal_conv on CUDA. See vpgfast/ops/proposal_conv.py for what it computes.
//
// As on the CPU: all clips are convolved with all N kernel slices by one matrix product (cuBLAS), then each proposal's
// output is a sum of a few of its columns. The product is in float32 for 16-bit tensors too, so that a sum is rounded
// once. Lists of what is read (sampling_taps.h) are made by the launch that turns the weight and x round for cuBLAS.

#include <optional>
#include <vector>

#include "cuda/proposal_conv_kernels.h"

namespace vpgfast::proposal_conv_cuda {
namespace {

constexpr int64_t kProductBytes = int64_t{1} << 30;  // of the matrix product that is held at a time
constexpr int64_t kWork = 1024 * kBlocks;            // threads that do
constexpr int kDefaultShared = 48 << 10;             // bytes of shared memory that a block may have without asking

// What follows from the shape and the GPU alone: how a block of `gather` is cut.
struct GatherPlan {
  int channels, proposals;  // of a thread
  bool staged;              // through shared memory
  int threads, samples;     // of a block; samples staged at a time
  int shared;               // bytes
};

// Many channels a thread spare reading the taps again, few give more blocks; long rows leave room for few channels, of
// which each then has many proposals, so that rows are copied once or twice altogether.
GatherPlan gather_plan(const Sizes& s, int element, int shared) {
  GatherPlan plan{8, 1, false, kThreads, s.N, 0};
  const int64_t row = std::max<int64_t>(1, skewed(s.clips)) * element;
  const auto blocks = [&](int64_t proposals) {
    return s.B * ((s.channels + plan.channels - 1) / plan.channels) * ((s.P + proposals - 1) / proposals);
  };
  const auto share_out = [&](int most) {  // proposals evenly over blocks, in whole warps
    const int of_block = most * plan.proposals, tiles = (s.P + of_block - 1) / of_block;
    const int of_thread = tiles * plan.proposals, threads = (s.P + of_thread - 1) / of_thread;
    return (threads + kWarp - 1) / kWarp * kWarp;
  };
  if (8 * row <= kDefaultShared) {
    plan.staged = true;
    for (plan.channels = 32; plan.channels > 8; plan.channels /= 2) {
      if (plan.channels * row <= kDefaultShared && blocks(1) >= kWork) {
        break;
      }
    }
    plan.threads = share_out(plan.channels == 32 ? kMostThreads : kThreads);
  } else if (4 * row <= shared) {
    plan = {4, 8, true, kMostThreads, 1, 0};
    while (plan.threads > 64 && blocks(plan.threads * plan.proposals) < kBlocks) {
      plan.threads /= 2;
    }
    plan.threads = share_out(plan.threads);
  }
  if (plan.staged) {
    const int64_t bytes = plan.channels * row, room = std::min<int64_t>(int64_t{128} * plan.threads, shared);
    plan.samples = static_cast<int>(std::clamp<int64_t>(room / bytes, 1, s.N));
    plan.shared = static_cast<int>(plan.samples * bytes);
  }
  return plan;
}

template <typename scalar_t, int DT, int PT, bool staged>
void launch_gather(const Tensor& product, const Taps<accumulate_t<scalar_t>>& taps, const std::optional<Tensor>& bias,
                   const Tensor& out, const Sizes& s, const GatherPlan& plan) {
  const int64_t of_block = int64_t{plan.threads} * PT;
  const int64_t blocks = s.B * ((s.channels + DT - 1) / DT) * ((s.P + of_block - 1) / of_block);
  allow_shared(&gather<scalar_t, DT, PT, staged>, plan.shared);
  gather<scalar_t, DT, PT, staged><<<grid("proposal_conv", blocks), plan.threads, plan.shared, current_stream(out)>>>(
      read<accumulate_t<scalar_t>>(product), taps, bias ? read<scalar_t>(*bias) : nullptr, write<scalar_t>(out), s,
      plan.samples);
  check_launch("proposal_conv");
}

// The call's tensors, checked and contiguous, and what the products and kernels need of them.
struct Call {
  Call(const char* op, const Tensor& x_in, const Tensor& proposals_in, const Tensor& weight_in, int64_t samples_per_bin)
      : x(x_in), weight(weight_in), proposals(op, proposals_in, x_in.size(0), weight_in.size(2), samples_per_bin) {
    x = torch::stable::contiguous(x);
    weight = torch::stable::contiguous(weight);
    B = x.size(0), C = x.size(1), clips = x.size(2), D = weight.size(0), N = weight.size(2), P = proposals.P;
    // Output channels at a time, so that the matrix product stays within its bound.
    const int64_t element = x.scalar_type() == ScalarType::Double ? 8 : 4;
    const int64_t channel = std::max<int64_t>(1, B * clips * N * element);
    step = std::clamp<int64_t>(kProductBytes / channel, std::min<int64_t>(D, 64), std::max<int64_t>(D, 1));
    STD_TORCH_CHECK(step <= INT_MAX, op, ": more than 2^31 channels");
  }
  Sizes sizes(int64_t first, int64_t channels) const {
    return {B,
            C,
            D,
            first,
            static_cast<int>(clips),
            static_cast<int>(P),
            static_cast<int>(N),
            static_cast<int>(proposals.per_bin),
            static_cast<int>(channels),
            proposals.each_video};
  }
  // x as [C, B * clips], in `dtype`; a copy that `prepare` is yet to fill, unless x lies that way.
  Tensor columns(ScalarType dtype, bool& is_copy) const {
    is_copy = B != 1 || dtype != x.scalar_type();
    if (!is_copy) {
      Tensor same = x;
      return torch::stable::view(same, {C, clips});
    }
    return torch::stable::new_empty(x, {C, B * clips}, dtype);
  }
  Tensor x, weight;
  Proposals proposals;
  int64_t B, C, clips, D, N, P, step;
};

void check_inputs(const char* op, const Tensor& x, const Tensor& weight) {
  check_sizes(op, "x", x, {-1, -1, -1});
  check_sizes(op, "weight", weight, {-1, x.size(1), -1});
  check_dtype(op, "weight", weight, x.scalar_type());
}

// Kernel slices of channels first .. of the weight, x's columns and the taps; the latter two with the first slices.
template <typename scalar_t, typename To>
void launch_prepare(const char* op, const Call& call, const Sizes& s, const TapStorage<accumulate_t<scalar_t>>& storage,
                    const Tensor& slices, const Tensor* columns) {
  using T = accumulate_t<scalar_t>;
  const Blocks blocks{s.first == 0 ? storage.blocks : 0, WeightTile(s).count(s),
                      columns != nullptr && s.first == 0 ? swap_blocks(s.B, s.C, s.clips) : 0};
  if (blocks.count() > 0) {
    prepare<scalar_t, To><<<grid(op, blocks.count()), kChunk, 0, current_stream(call.x)>>>(
        call.proposals.ends, write<Tap<T>>(storage.list), write<Reach>(storage.reach), read<scalar_t>(call.weight),
        write<To>(slices), read<scalar_t>(call.x), columns != nullptr ? write<To>(*columns) : nullptr, s, blocks);
    check_launch(op);
  }
}

Tensor proposal_conv(const Tensor& x_in, const Tensor& proposals_in, const Tensor& weight_in,
                     const std::optional<Tensor>& bias_in, int64_t samples_per_bin) {
  check_inputs("proposal_conv", x_in, weight_in);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Call call("proposal_conv", x_in, proposals_in, weight_in, samples_per_bin);
  std::optional<Tensor> bias;
  if (bias_in) {
    check_sizes("proposal_conv", "bias", *bias_in, {call.D});
    check_dtype("proposal_conv", "bias", *bias_in, call.x.scalar_type());
    bias = torch::stable::contiguous(*bias_in);
  }
  Tensor out = torch::stable::new_empty(call.x, {call.B, call.D, call.P});
  if (call.B * call.D * call.P == 0) {
    return out;
  }
  dispatch_floating("proposal_conv", call.x.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const TapStorage<T> storage("proposal_conv", call.proposals, call.x, call.B, call.clips);
    bool is_copy = false;
    const Tensor columns = call.columns(call.x.scalar_type(), is_copy);
    for (int64_t first = 0; first < call.D; first += call.step) {
      const Sizes s = call.sizes(first, std::min(call.step, call.D - first));
      const int64_t slice_rows = call.N * s.channels;
      const Tensor slices = torch::stable::new_empty(call.x, {slice_rows, call.C});
      launch_prepare<scalar_t, scalar_t>("proposal_conv", call, s, storage, slices, is_copy ? &columns : nullptr);
      Tensor product = torch::stable::new_empty(call.x, {slice_rows, call.B * call.clips}, accumulate_dtype(call.x));
      if (call.C == 0) {
        torch::stable::zero_(product);
      } else if (call.clips > 0) {
        matrix_product_float(slices, columns, product);
      }
      const GatherPlan plan = gather_plan(s, sizeof(T), static_cast<int>(most_shared()));
      const auto launch = [&]<int DT, int PT, bool staged>() {
        launch_gather<scalar_t, DT, PT, staged>(product, storage.taps(), bias, out, s, plan);
      };
      if (!plan.staged) {
        launch.template operator()<8, 1, false>();
      } else if (plan.channels == 4) {
        launch.template operator()<4, 8, true>();
      } else if (plan.channels == 8) {
        launch.template operator()<8, 1, true>();
      } else if (plan.channels == 16) {
        launch.template operator()<16, 1, true>();
      } else {
        launch.template operator()<32, 1, true>();
      }
    }
  });
  return out;
}

// Gradients by x and by the weight; one that is not asked for is empty. In float32 for 16-bit tensors, up to the end.
std::tuple<Tensor, Tensor> proposal_conv_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& proposals_in,
                                                  const Tensor& weight_in, int64_t samples_per_bin, bool by_x,
                                                  bool by_weight) {
  const char* op = "proposal_conv_backward";
  check_inputs(op, x_in, weight_in);
  const torch::stable::accelerator::DeviceGuard guard(x_in.get_device_index());
  const Call call(op, x_in, proposals_in, weight_in, samples_per_bin);
  const Tensor& x = call.x;
  const int64_t B = call.B, C = call.C, clips = call.clips, D = call.D;
  check_sizes(op, "grad", grad_in, {B, D, call.P});
  check_dtype(op, "grad", grad_in, x.scalar_type());
  if (B * C * clips * D * call.P == 0) {
    return {torch::stable::new_zeros(x, by_x ? std::vector<int64_t>{B, C, clips} : std::vector<int64_t>{0}),
            torch::stable::new_zeros(x, by_weight ? std::vector<int64_t>{D, C, call.N} : std::vector<int64_t>{0})};
  }
  const Tensor grad = torch::stable::contiguous(grad_in);
  Tensor grad_x = torch::stable::new_empty(x, by_x ? std::vector<int64_t>{B, C, clips} : std::vector<int64_t>{0});
  Tensor grad_weight =
      torch::stable::new_empty(x, by_weight ? std::vector<int64_t>{D, C, call.N} : std::vector<int64_t>{0});
  dispatch_floating(op, x.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const ScalarType dtype = accumulate_dtype(x);
    const cudaStream_t stream = current_stream(x);
    const TapStorage<T> storage(op, call.proposals, x, B, clips);
    bool is_copy = false;
    const Tensor columns = call.columns(dtype, is_copy);
    Tensor grad_columns, more;  // [C, B * clips]; the products of later channels, which are added to it
    if (by_x) {
      grad_columns =
          is_copy ? torch::stable::new_empty(x, {C, B * clips}, dtype) : torch::stable::view(grad_x, {C, clips});
      more = call.step < D ? torch::stable::new_empty(x, {C, B * clips}, dtype) : grad_columns;
    }
    for (int64_t first = 0; first < D; first += call.step) {
      const Sizes s = call.sizes(first, std::min(call.step, D - first));
      const int64_t slice_rows = call.N * s.channels;
      Tensor slices = torch::stable::new_empty(x, {slice_rows, C}, dtype);
      launch_prepare<scalar_t, T>(op, call, s, storage, slices, is_copy ? &columns : nullptr);
      Tensor rows = torch::stable::new_empty(x, {B * clips, slice_rows}, dtype);
      launch_scatter<scalar_t, false>(op, grad, storage.taps(), rows, s, stream);
      if (by_x) {
        const Tensor& target = first == 0 ? grad_columns : more;
        matrix_product(torch::stable::transpose(slices, 0, 1), torch::stable::transpose(rows, 0, 1), target);
        if (first > 0) {
          add<<<blocks_for(C * B * clips), kThreads, 0, stream>>>(read<T>(more), write<T>(grad_columns), C * B * clips);
          check_launch(op);
        }
      }
      if (by_weight) {  // the slices are no longer needed: their gradient takes their place
        matrix_product(torch::stable::transpose(rows, 0, 1), torch::stable::transpose(columns, 0, 1), slices);
      }
      const bool last = first + s.channels == D;
      const Blocks blocks{0, by_weight ? WeightTile(s).count(s) : 0,
                          by_x && is_copy && last ? swap_blocks(B, C, clips) : 0};
      if (blocks.count() > 0) {
        finish<scalar_t><<<grid(op, blocks.count()), kChunk, 0, stream>>>(
            read<T>(slices), by_weight ? write<scalar_t>(grad_weight) : nullptr, by_x ? read<T>(grad_columns) : nullptr,
            by_x ? write<scalar_t>(grad_x) : nullptr, s, blocks);
        check_launch(op);
      }
    }
  });
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("proposal_conv", TORCH_BOX(&proposal_conv));
  m.impl("proposal_conv_backward", TORCH_BOX(&proposal_conv_backward));
}

}  // namespace vpgfast::proposal_conv_cuda
