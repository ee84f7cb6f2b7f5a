// proposal_conv on CUDA. See vpgfast/ops/proposal_conv.py for what it computes.
//
// As on the CPU: all clips are convolved with all N kernel slices by one matrix product (cuBLAS), then each proposal's
// output is a sum of a few of its columns. The product is in float32 for 16-bit tensors too, so that a sum is rounded
// once. Lists of what is read (sampling_taps.h) are made by the launch that turns the weight and x round for cuBLAS.

#include <cuda_pipeline.h>

#include <optional>

#include "cuda/proposal_conv_layouts.h"

namespace vpgfast {
namespace {

constexpr int64_t kProductBytes = int64_t{1} << 30;  // of the matrix product that is held at a time
constexpr int kMostThreads = 512;
constexpr int kBlocks = 132;               // that fill a large GPU
constexpr int64_t kWork = 1024 * kBlocks;  // threads that do
constexpr int kDefaultShared = 48 << 10;   // bytes of shared memory that a block may have without asking

// What follows from the shape and the GPU alone: how a block of `gather` is cut.
struct GatherPlan {
  int channels, proposals;  // of a thread
  bool staged;              // through shared memory
  int threads, samples;     // of a block; samples staged at a time
  int shared;               // bytes
};

// A block writes DT channels of threads * PT proposals of one video: a thread adds up DT channels of each of its PT
// proposals in registers. The rows that it reads, DT channels of a few samples, are copied to shared memory, whose
// banks neighbouring proposals share out well (skewed()); rows too long for that are read where they are.
template <typename scalar_t, int DT, int PT, bool staged>
__global__ void __launch_bounds__(kMostThreads, sizeof(accumulate_t<scalar_t>) == 8 ? 1 : 2)
    gather(const accumulate_t<scalar_t>* product, Taps<accumulate_t<scalar_t>> taps, const scalar_t* bias,
           scalar_t* out, Sizes s, int samples) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  T* slab = reinterpret_cast<T*>(shared_bytes);
  const int of_block = blockDim.x * PT, proposal_tiles = (s.P + of_block - 1) / of_block;
  const int channel_tiles = (s.channels + DT - 1) / DT;
  const int p0 = static_cast<int>(blockIdx.x % proposal_tiles) * of_block;
  const int d0 = static_cast<int>(blockIdx.x / proposal_tiles % channel_tiles) * DT;
  const int64_t b = blockIdx.x / proposal_tiles / channel_tiles;
  const int64_t lists = s.each_video ? b * s.N : 0, columns = s.B * s.clips;
  const int held = min(DT, s.channels - d0);
  T sum[PT][DT] = {};
  bool reads = true;
  if (staged && samples < s.N) {  // Maps have whole rows of proposals that read nothing: nothing is copied for them.
    const int chunks = (s.P + kChunk - 1) / kChunk, first = p0 / kChunk;
    const int count = (min(p0 + of_block, s.P) - 1) / kChunk - first + 1;
    bool found = false;
    for (int i = threadIdx.x; i < count * s.N; i += blockDim.x) {
      found = found || taps.reach[(lists + i / count) * chunks + first + i % count].last >= 0;
    }
    reads = __syncthreads_or(found) != 0;
  }
  for (int n0 = 0; reads && n0 < s.N; n0 += samples) {
    const int pitch = skewed(s.clips);
    if constexpr (staged) {
      const int lane = threadIdx.x % kWarp;
      __syncthreads();  // the samples before these have been used
      for (int row = threadIdx.x / kWarp; row < min(samples, s.N - n0) * DT; row += blockDim.x / kWarp) {
        const int n = n0 + row / DT, d = row % DT;
        if (d < held) {
          const T* from = product + (static_cast<int64_t>(n) * s.channels + d0 + d) * columns + b * s.clips;
          T* to = slab + row * pitch;
          for (int t = lane; t < s.clips; t += kWarp) {
            __pipeline_memcpy_async(to + skewed(t), from + t, sizeof(T));
          }
        }
      }
      __pipeline_commit();
      __pipeline_wait_prior(0);
      __syncthreads();
    }
    for (int n = n0; n < min(n0 + samples, s.N); ++n) {
      const int64_t first = (lists + n) * s.per_bin * s.P;
      const T* rows;
      if constexpr (staged) {
        rows = slab + (n - n0) * DT * pitch;
      } else {
        rows = product + (static_cast<int64_t>(n) * s.channels + d0) * columns + b * s.clips;
      }
#pragma unroll
      for (int i = 0; i < PT; ++i) {
        const int p = p0 + i * blockDim.x + threadIdx.x;
        if (p >= s.P) {
          break;
        }
        int64_t at = first + p;
        for (int k = 0; k < s.per_bin; ++k, at += s.P) {
          const int entry = taps.entries[at];
          const T lower = taps.lower[at], upper = taps.upper[at];
          if (entry < 0) {
            break;
          }
          int low = entry / 2, high = low + entry % 2;
          if constexpr (staged) {
            low = skewed(low);
            high = skewed(high);
#pragma unroll
            for (int d = 0; d < DT; ++d) {
              sum[i][d] += lower * rows[d * pitch + low];
              sum[i][d] += upper * rows[d * pitch + high];
            }
          } else {
#pragma unroll
            for (int d = 0; d < DT; ++d) {
              if (d < held) {
                sum[i][d] += lower * rows[d * columns + low];
                sum[i][d] += upper * rows[d * columns + high];
              }
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < PT; ++i) {
    const int p = p0 + i * blockDim.x + threadIdx.x;
    if (p < s.P) {
      scalar_t* to = out + (b * s.D + s.first + d0) * s.P + p;
#pragma unroll
      for (int d = 0; d < DT; ++d, to += s.P) {
        if (d < held) {
          const T offset = bias != nullptr ? static_cast<T>(bias[s.first + d0 + d]) : T{0};
          *to = static_cast<scalar_t>(sum[i][d] + offset);
        }
      }
    }
  }
}

constexpr int kWarps = kThreads / kWarp;

// Adds the gradient of the proposals up into rows [B * clips, N * channels], without sorting what reads a row.
//
// A warp owns a sample and `tile` clips of it, for 32 channels, one a lane: it walks all proposals in their order and
// adds to its rows in shared memory, which nobody else does. A block's warps own neighbouring samples, then clips, and
// share the gradient of the chunks of proposals that one of them has a tap in; the others are passed over.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    scatter(const scalar_t* grad, Taps<accumulate_t<scalar_t>> taps, accumulate_t<scalar_t>* rows, Sizes s, int tile) {
  using T = accumulate_t<scalar_t>;
  constexpr int kPitch = kChunk + 1, kRows = kWarp / kWarps, kSteps = kChunk / kWarp;
  extern __shared__ unsigned char shared_bytes[];
  __shared__ unsigned wanted[kWarps];
  T* incoming = reinterpret_cast<T*>(shared_bytes);  // [channel][proposal of the chunk]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Rows of a warp: its clips, and one before and behind them for the half of a pair that belongs to others.
  T* own = incoming + kWarp * kPitch + warp * (tile + 2) * kWarp + lane;
  const int chunks = (s.P + kChunk - 1) / kChunk, tiles = (s.clips + tile - 1) / tile;
  const int64_t groups = (static_cast<int64_t>(s.N) * tiles + kWarps - 1) / kWarps;
  const int channel_tiles = (s.channels + kWarp - 1) / kWarp;
  const int64_t group = blockIdx.x % groups * kWarps + warp;
  const int d0 = static_cast<int>(blockIdx.x / groups % channel_tiles) * kWarp;
  const int64_t b = blockIdx.x / groups / channel_tiles;
  const bool active = group < static_cast<int64_t>(s.N) * tiles;
  const int n = static_cast<int>(group % s.N), first = static_cast<int>(group / s.N) * tile;
  const int64_t list = (s.each_video ? b * s.N : 0) + n;
  for (int t = 0; t < tile + 2; ++t) {
    own[t * kWarp] = 0;
  }
  for (int c0 = 0; c0 < chunks; c0 += kWarp) {
    bool reached = false;
    if (active && c0 + lane < chunks) {
      const Reach reach = taps.reach[list * chunks + c0 + lane];
      reached = reach.last >= first && reach.first < first + tile;
    }
    const unsigned mine = __ballot_sync(0xffffffffu, reached);
    if (lane == 0) {
      wanted[warp] = mine;
    }
    __syncthreads();
    unsigned of_block = 0;
    for (const unsigned bits : wanted) {
      of_block |= bits;
    }
    __syncthreads();
    for (; of_block != 0; of_block &= of_block - 1) {
      const int c = __ffs(static_cast<int>(of_block)) - 1, p0 = (c0 + c) * kChunk;
      scalar_t values[kRows][kSteps];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int d = d0 + warp * kRows + r;
        const scalar_t* from = grad + (b * s.D + s.first + d) * s.P + p0 + lane;
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          values[r][j] = d < s.channels && p0 + j * kWarp + lane < s.P ? from[j * kWarp] : static_cast<scalar_t>(0.f);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          incoming[(warp * kRows + r) * kPitch + j * kWarp + lane] = static_cast<T>(values[r][j]);
        }
      }
      __syncthreads();
      if (mine >> c & 1u) {
        for (int j = 0; j < kSteps; ++j) {
          const int p = p0 + j * kWarp + lane;
          const T* gradient = incoming + lane * kPitch + j * kWarp;
          int64_t at = list * s.per_bin * s.P + p;
          bool ended = p >= s.P;
          for (int k = 0; k < s.per_bin; ++k, at += s.P) {
            const int entry = ended ? -1 : taps.entries[at];
            ended = entry < 0;
            if (__ballot_sync(0xffffffffu, !ended) == 0) {
              break;
            }
            const int row = entry / 2 - first + 1;
            const bool hit = !ended && static_cast<unsigned>(row) <= static_cast<unsigned>(tile);
            const T lower = hit ? taps.lower[at] : T{0}, upper = hit ? taps.upper[at] : T{0};
            unsigned hits = __ballot_sync(0xffffffffu, hit);
            while (hits != 0) {
              const int from = __ffs(static_cast<int>(hits)) - 1;
              hits &= hits - 1;
              const int pair = __shfl_sync(0xffffffffu, 2 * row + entry % 2, from);
              const T low = __shfl_sync(0xffffffffu, lower, from), high = __shfl_sync(0xffffffffu, upper, from);
              const T value = gradient[from];
              T* target = own + (pair / 2) * kWarp;
              if (pair % 2 == 0) {
                target[0] += (low + high) * value;
              } else {
                const T before = target[0], behind = target[kWarp];
                target[0] = before + low * value;
                target[kWarp] = behind + high * value;
              }
            }
          }
        }
      }
      __syncthreads();
    }
  }
  if (active && d0 + lane < s.channels) {
    for (int t = 0; t < tile && first + t < s.clips; ++t) {
      rows[((b * s.clips + first + t) * s.N + n) * s.channels + d0 + lane] = own[(t + 1) * kWarp];
    }
  }
}

template <typename T>
__global__ void add(const T* from, T* to, int64_t count) {
  for (int64_t index = first_index(); index < count; index += index_stride()) {
    to[index] += from[index];
  }
}

unsigned grid(const char* op, int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT_MAX, op, ": more than 2^31 blocks");
  return static_cast<unsigned>(blocks);
}

// Bytes of shared memory that a block can ask for here.
int most_shared(const Tensor& x) {
  int bytes = kDefaultShared;
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, std::max(0, int{x.get_device_index()}));
  return bytes;
}

template <typename Kernel>
void allow_shared(const char* op, Kernel* kernel, int bytes) {
  if (bytes > kDefaultShared) {
    STD_TORCH_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess, op,
                    ": ", bytes, " bytes of shared memory were refused");
  }
}

// Many channels a thread spare reading the taps again, few give more blocks; long rows leave room for few channels, of
// which each then has many proposals, so that rows are copied once or twice altogether.
GatherPlan gather_plan(const Sizes& s, int element, int most_shared) {
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
  } else if (4 * row <= most_shared) {
    plan = {4, 8, true, kMostThreads, 1, 0};
    while (plan.threads > 64 && blocks(plan.threads * plan.proposals) < kBlocks) {
      plan.threads /= 2;
    }
    plan.threads = share_out(plan.threads);
  }
  if (plan.staged) {
    const int64_t bytes = plan.channels * row, room = std::min<int64_t>(int64_t{128} * plan.threads, most_shared);
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
  allow_shared("proposal_conv", &gather<scalar_t, DT, PT, staged>, plan.shared);
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
        call.proposals.ends, write<int>(storage.entries), write<T>(storage.weights), storage.count,
        write<Reach>(storage.reach), read<scalar_t>(call.weight), write<To>(slices), read<scalar_t>(call.x),
        columns != nullptr ? write<To>(*columns) : nullptr, s, blocks);
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
      const GatherPlan plan = gather_plan(s, sizeof(T), most_shared(call.x));
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
      // Long videos: more clips a warp, so that proposals are passed over less often.
      const int tile = sizeof(T) == 8 || clips <= 512 ? 16 : clips <= 2048 ? 32 : 64;
      const int64_t groups = (call.N * ((clips + tile - 1) / tile) + kWarps - 1) / kWarps;
      const int shared = (kWarp * (kChunk + 1) + kWarps * (tile + 2) * kWarp) * static_cast<int>(sizeof(T));
      allow_shared(op, &scatter<scalar_t>, shared);
      scatter<scalar_t><<<grid(op, B * groups * ((s.channels + kWarp - 1) / kWarp)), kThreads, shared, stream>>>(
          read<scalar_t>(grad), storage.taps(), write<T>(rows), s, tile);
      check_launch(op);
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

}  // namespace vpgfast
