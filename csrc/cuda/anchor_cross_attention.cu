// anchor_cross_attention on CUDA. See vpgfast/ops/anchor_cross_attention.py for what it computes.
//
// Forward is one launch: a block holds a few queries of one head and passes once over the clips. Backward recomputes
// the attention, once for the gradients of the queries, once for those of the clips: no atomics, no attention matrix.

#include <optional>
#include <tuple>

#include "common/anchor_cross_attention.h"
#include "cuda/launch.h"

namespace vpgfast {
namespace {

constexpr int kBlock = 128;  // threads, and clips of a tile where a block holds queries
constexpr int kWarps = kBlock / kWarp;
constexpr int64_t kSharedBytes = 46 * 1024;  // what every device grants without being asked, less what is static

// A [B, H, N, width] tensor whose rows are whole; one for the whole batch has a batch stride of 0.
template <typename scalar_t>
struct HeadRows {
  scalar_t* data;
  int64_t of_b, of_h, of_row;

  __device__ __forceinline__ scalar_t* row(int64_t b, int64_t h, int64_t i) const {
    return data + b * of_b + h * of_h + i * of_row;
  }
};
template <typename scalar_t>
HeadRows<const scalar_t> reading(const Tensor& t) {
  return {read<scalar_t>(t), t.size(0) == 1 ? 0 : t.stride(0), t.stride(1), t.stride(2)};
}
template <typename scalar_t>
HeadRows<scalar_t> writing(const Tensor& t) {
  return {write<scalar_t>(t), t.size(0) == 1 ? 0 : t.stride(0), t.stride(1), t.stride(2)};
}

template <typename scalar_t>
struct Inputs {
  using compute = accumulate_t<scalar_t>;
  explicit Inputs(const AnchorAttention& a)
      : q_content(reading<scalar_t>(a.q_content)),
        q_pos(reading<scalar_t>(a.q_pos)),
        k_content(reading<scalar_t>(a.k_content)),
        k_pos(reading<scalar_t>(a.k_pos)),
        v(reading<scalar_t>(a.v)),
        key_mask(a.key_mask ? read<bool>(*a.key_mask) : nullptr),
        intervals(a.intervals ? read<double>(*a.intervals) : nullptr),
        B(a.B),
        H(a.H),
        Q(a.Q),
        T(a.T),
        d(a.d),
        e(a.e),
        f(a.f),
        scale(static_cast<compute>(a.scale())) {
  }

  HeadRows<const scalar_t> q_content, q_pos, k_content, k_pos, v;
  const bool* key_mask;
  const double* intervals;
  int64_t B, H, Q, T, d, e, f;
  compute scale;

  __device__ __forceinline__ compute minus_infinity() const {
    return -static_cast<compute>(INFINITY);
  }
  // Logit of a query that lies in shared memory, content before position, with clip t.
  __device__ compute logit(const compute* query, int64_t b, int64_t h, int64_t t) const {
    if (key_mask != nullptr && !key_mask[b * T + t]) {
      return minus_infinity();
    }
    const scalar_t* content = k_content.row(b, h, t);
    const scalar_t* position = k_pos.row(b, h, t);
    compute sum = 0;
    for (int64_t j = 0; j < d; ++j) {
      sum += query[j] * static_cast<compute>(content[j]);
    }
    for (int64_t j = 0; j < e; ++j) {
      sum += query[d + j] * static_cast<compute>(position[j]);
    }
    return sum * scale;
  }
  __device__ __forceinline__ bool inside(int64_t b, int64_t q, int64_t t) const {
    const double* interval = intervals + 2 * (b * Q + q);
    return interval[0] <= static_cast<double>(t) && static_cast<double>(t) <= interval[1];
  }
  __device__ __forceinline__ void check_interval(int64_t b, int64_t q) const {
    if (intervals != nullptr) {
      const double* interval = intervals + 2 * (b * Q + q);
      assert(!(interval[1] < interval[0]) && "vpgfast: an interval's end must not lie before its start");
    }
  }
  // Queries first .. first + count - 1 to shared memory.
  __device__ void load_queries(compute* to, int64_t b, int64_t h, int64_t first, int64_t count) const {
    const int64_t width = d + e;
    for (int64_t i = threadIdx.x; i < count * width; i += kBlock) {
      const int64_t q = first + i / width, j = i % width;
      to[i] = static_cast<compute>(j < d ? q_content.row(b, h, q)[j] : q_pos.row(b, h, q)[j - d]);
    }
  }
};

template <typename T>
__device__ __forceinline__ T warp_sum_everywhere(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}
template <typename T>
__device__ __forceinline__ T warp_max_everywhere(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// exp(x - shift), 0 for -inf even where the shift is -inf as well (no clip has taken part yet).
template <typename T>
__device__ __forceinline__ T shifted_exp(T x, T shift) {
  return x == -static_cast<T>(INFINITY) ? T{0} : exp(x - shift);
}

// Sums over the clips seen so far of one query, in units of exp(largest).
template <typename T>
struct Running {
  T largest, total, first, second;
};

template <typename scalar_t>
__global__ void attend(Inputs<scalar_t> in, HeadRows<scalar_t> out, accumulate_t<scalar_t>* centroid,
                       accumulate_t<scalar_t>* mass, scalar_t* weights, int64_t queries) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  const int64_t width = in.d + in.e;
  T* query = reinterpret_cast<T*>(shared_bytes);  // [queries, d + e]
  T* p = query + queries * width;                 // [queries, kBlock]
  T* sums = p + queries * kBlock;                 // [queries, f]
  T* rescale = sums + queries * in.f;             // [queries]
  auto* running = reinterpret_cast<Running<T>*>(rescale + queries);

  const int64_t groups = (in.Q + queries - 1) / queries;
  const int64_t head = blockIdx.x / groups, b = head / in.H, h = head % in.H;
  const int64_t first = blockIdx.x % groups * queries, count = min(queries, in.Q - first);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  in.load_queries(query, b, h, first, count);
  for (int64_t i = threadIdx.x; i < count * in.f; i += kBlock) {
    sums[i] = 0;
  }
  for (int64_t q = threadIdx.x; q < count; q += kBlock) {
    running[q] = {in.minus_infinity(), T{0}, T{0}, T{0}};
    in.check_interval(b, first + q);
  }
  __syncthreads();
  for (int64_t begin = 0; begin < in.T; begin += kBlock) {
    const int64_t t = begin + threadIdx.x;
    for (int64_t q = 0; q < count; ++q) {
      p[q * kBlock + threadIdx.x] = t < in.T ? in.logit(query + q * width, b, h, t) : in.minus_infinity();
    }
    __syncthreads();
    for (int64_t q = warp; q < count; q += kWarps) {
      T* row = p + q * kBlock;
      const Running<T> before = running[q];
      T largest = before.largest;
      for (int i = lane; i < kBlock; i += kWarp) {
        largest = row[i] > largest ? row[i] : largest;
      }
      largest = warp_max_everywhere(largest);
      T total = 0, position = 0, within = 0;
      for (int i = lane; i < kBlock; i += kWarp) {
        const T value = shifted_exp(row[i], largest);
        row[i] = value;
        total += value;
        position += value * static_cast<T>(begin + i);
        if (in.intervals != nullptr && in.inside(b, first + q, begin + i)) {
          within += value;
        }
      }
      total = warp_sum_everywhere(total);
      position = warp_sum_everywhere(position);
      within = warp_sum_everywhere(within);
      if (lane == 0) {
        const T factor = shifted_exp(before.largest, largest);
        rescale[q] = factor;
        running[q] = {largest, before.total * factor + total, before.first * factor + position,
                      before.second * factor + within};
      }
    }
    __syncthreads();
    const int64_t clips = min(static_cast<int64_t>(kBlock), in.T - begin);
    for (int64_t i = threadIdx.x; i < count * in.f; i += kBlock) {
      const int64_t q = i / in.f, j = i % in.f;
      T sum = sums[i] * rescale[q];
      for (int64_t k = 0; k < clips; ++k) {
        const T weight = p[q * kBlock + k];
        // A clip that takes no part must not spoil the sum, whatever it holds.
        sum += weight == T{0} ? T{0} : weight * static_cast<T>(in.v.row(b, h, begin + k)[j]);
      }
      sums[i] = sum;
    }
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < count * in.f; i += kBlock) {
    const int64_t q = i / in.f;
    const T total = running[q].total;
    out.row(b, h, first + q)[i % in.f] = static_cast<scalar_t>(total == T{0} ? T{0} : sums[i] / total);
  }
  for (int64_t q = threadIdx.x; q < count; q += kBlock) {
    const Running<T> r = running[q];
    const T inverse = r.total == T{0} ? T{0} : T{1} / r.total;
    centroid[head * in.Q + first + q] = r.first * inverse;
    if (in.intervals != nullptr) {
      mass[head * in.Q + first + q] = r.second * inverse;
    }
  }
  if (weights != nullptr) {
    for (int64_t i = threadIdx.x; i < count * in.T; i += kBlock) {
      const int64_t q = i / in.T, t = i % in.T;
      const Running<T> r = running[q];
      const T value = r.total == T{0} ? T{0} : shifted_exp(in.logit(query + q * width, b, h, t), r.largest) / r.total;
      weights[(head * in.Q + first + q) * in.T + t] = static_cast<scalar_t>(value);
    }
  }
}

// Incoming gradients; those of the averages over heads divided by their number.
template <typename scalar_t>
struct Incoming {
  using T = accumulate_t<scalar_t>;
  HeadRows<const scalar_t> out;
  const T *centroid, *mass;
  const scalar_t* weights;
  T share;

  __device__ void load(T* to, const Inputs<scalar_t>& in, int64_t b, int64_t h, int64_t first, int64_t count) const {
    for (int64_t i = threadIdx.x; i < count * in.f; i += kBlock) {
      to[i] = static_cast<T>(out.row(b, h, first + i / in.f)[i % in.f]);
    }
  }
  // Derivative by the attention of query q, whose incoming gradient lies in shared memory, to clip t.
  __device__ T by_weight(const T* grad, const Inputs<scalar_t>& in, int64_t b, int64_t h, int64_t q, int64_t t) const {
    const scalar_t* value = in.v.row(b, h, t);
    T sum = centroid[b * in.Q + q] * share * static_cast<T>(t);
    for (int64_t j = 0; j < in.f; ++j) {
      sum += grad[j] * static_cast<T>(value[j]);
    }
    if (in.intervals != nullptr && in.inside(b, q, t)) {
      sum += mass[b * in.Q + q] * share;
    }
    if (weights != nullptr) {
      sum += static_cast<T>(weights[((b * in.H + h) * in.Q + q) * in.T + t]);
    }
    return sum;
  }
};

// Gradients of a few queries. Leaves what the clips' gradients need of each: log of the sum of exponentials, and the
// mean of the derivatives by the attention.
template <typename scalar_t>
__global__ void backward_queries(Inputs<scalar_t> in, Incoming<scalar_t> incoming, HeadRows<scalar_t> by_q_content,
                                 HeadRows<scalar_t> by_q_pos, accumulate_t<scalar_t>* log_sum,
                                 accumulate_t<scalar_t>* mean, int64_t queries) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  const int64_t width = in.d + in.e;
  T* query = reinterpret_cast<T*>(shared_bytes);  // [queries, d + e]
  T* grad = query + queries * width;              // [queries, f]
  T* p = grad + queries * in.f;                   // [queries, kBlock]
  T* by = p + queries * kBlock;                   // [queries, kBlock]
  T* sums = by + queries * kBlock;                // [queries, d + e]
  auto* running = reinterpret_cast<Running<T>*>(sums + queries * width);

  const int64_t groups = (in.Q + queries - 1) / queries;
  const int64_t head = blockIdx.x / groups, b = head / in.H, h = head % in.H;
  const int64_t first = blockIdx.x % groups * queries, count = min(queries, in.Q - first);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  in.load_queries(query, b, h, first, count);
  incoming.load(grad, in, b, h, first, count);
  for (int64_t i = threadIdx.x; i < count * width; i += kBlock) {
    sums[i] = 0;
  }
  for (int64_t q = threadIdx.x; q < count; q += kBlock) {
    running[q] = {in.minus_infinity(), T{0}, T{0}, T{0}};
  }
  __syncthreads();
  const auto derivatives = [&](int64_t t) {
    for (int64_t q = 0; q < count; ++q) {
      const T logit = t < in.T ? in.logit(query + q * width, b, h, t) : in.minus_infinity();
      p[q * kBlock + threadIdx.x] = logit;
      by[q * kBlock + threadIdx.x] =
          logit == in.minus_infinity() ? T{0} : incoming.by_weight(grad + q * in.f, in, b, h, first + q, t);
    }
  };
  for (int64_t begin = 0; begin < in.T; begin += kBlock) {
    derivatives(begin + threadIdx.x);
    __syncthreads();
    for (int64_t q = warp; q < count; q += kWarps) {
      const Running<T> before = running[q];
      T largest = before.largest;
      for (int i = lane; i < kBlock; i += kWarp) {
        const T value = p[q * kBlock + i];
        largest = value > largest ? value : largest;
      }
      largest = warp_max_everywhere(largest);
      T total = 0, weighted = 0;
      for (int i = lane; i < kBlock; i += kWarp) {
        const T value = shifted_exp(p[q * kBlock + i], largest);
        total += value;
        weighted += value * by[q * kBlock + i];
      }
      total = warp_sum_everywhere(total);
      weighted = warp_sum_everywhere(weighted);
      if (lane == 0) {
        const T factor = shifted_exp(before.largest, largest);
        running[q] = {largest, before.total * factor + total, before.first * factor + weighted, T{0}};
      }
    }
    __syncthreads();
  }
  for (int64_t q = threadIdx.x; q < count; q += kBlock) {
    const Running<T> r = running[q];
    // Where no clip takes part every logit is -inf: any finite number makes their attention 0.
    const T of_query = r.total == T{0} ? T{0} : r.largest + log(r.total);
    running[q].second = of_query;
    running[q].first = r.total == T{0} ? T{0} : r.first / r.total;
    log_sum[head * in.Q + first + q] = of_query;
    mean[head * in.Q + first + q] = running[q].first;
  }
  __syncthreads();
  for (int64_t begin = 0; begin < in.T; begin += kBlock) {
    derivatives(begin + threadIdx.x);
    for (int64_t q = 0; q < count; ++q) {
      const int64_t i = q * kBlock + threadIdx.x;
      p[i] = shifted_exp(p[i], running[q].second) * (by[i] - running[q].first) * in.scale;
    }
    __syncthreads();
    const int64_t clips = min(static_cast<int64_t>(kBlock), in.T - begin);
    for (int64_t i = threadIdx.x; i < count * width; i += kBlock) {
      const int64_t q = i / width, j = i % width;
      T sum = sums[i];
      for (int64_t k = 0; k < clips; ++k) {
        const T by_logit = p[q * kBlock + k];
        const scalar_t key = j < in.d ? in.k_content.row(b, h, begin + k)[j] : in.k_pos.row(b, h, begin + k)[j - in.d];
        sum += by_logit == T{0} ? T{0} : by_logit * static_cast<T>(key);
      }
      sums[i] = sum;
    }
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < count * width; i += kBlock) {
    const int64_t q = first + i / width, j = i % width;
    (j < in.d ? by_q_content.row(b, h, q)[j] : by_q_pos.row(b, h, q)[j - in.d]) = static_cast<scalar_t>(sums[i]);
  }
}

// Gradients of `tile` clips of one head, video by video of a slot. The gradient of the positions is summed over the
// slot if `sums_k_pos`, and written for each video otherwise.
template <typename scalar_t, typename k_pos_t>
__global__ void backward_keys(Inputs<scalar_t> in, Incoming<scalar_t> incoming, const accumulate_t<scalar_t>* log_sum,
                              const accumulate_t<scalar_t>* mean, HeadRows<scalar_t> by_k_content,
                              HeadRows<k_pos_t> by_k_pos, HeadRows<scalar_t> by_v, int64_t per_slot, bool sums_k_pos,
                              int64_t tile, int64_t queries) {
  using T = accumulate_t<scalar_t>;
  extern __shared__ unsigned char shared_bytes[];
  const int64_t width = in.d + in.e, all = width + in.f;
  T* query = reinterpret_cast<T*>(shared_bytes);  // [queries, d + e]
  T* grad = query + queries * width;              // [queries, f]
  T* p = grad + queries * in.f;                   // [queries, tile]
  T* by = p + queries * tile;                     // [queries, tile]
  T* sums = by + queries * tile;                  // [tile, d + e + f]

  const int64_t tiles = (in.T + tile - 1) / tile;
  const int64_t begin = blockIdx.x % tiles * tile, h = blockIdx.x / tiles % in.H, slot = blockIdx.x / (tiles * in.H);
  const int64_t clips = min(tile, in.T - begin);
  for (int64_t i = threadIdx.x; i < clips * all; i += kBlock) {
    sums[i] = 0;
  }
  for (int64_t b = slot * per_slot; b < min(in.B, (slot + 1) * per_slot); ++b) {
    for (int64_t first = 0; first < in.Q; first += queries) {
      const int64_t count = min(queries, in.Q - first);
      __syncthreads();
      in.load_queries(query, b, h, first, count);
      incoming.load(grad, in, b, h, first, count);
      __syncthreads();
      for (int64_t i = threadIdx.x; i < count * clips; i += kBlock) {
        const int64_t q = i / clips, t = begin + i % clips, at = (b * in.H + h) * in.Q + first + q;
        const T weight = shifted_exp(in.logit(query + q * width, b, h, t), log_sum[at]);
        p[i] = weight;
        by[i] = weight == T{0}
                    ? T{0}
                    : weight * in.scale * (incoming.by_weight(grad + q * in.f, in, b, h, first + q, t) - mean[at]);
      }
      __syncthreads();
      for (int64_t i = threadIdx.x; i < clips * all; i += kBlock) {
        const int64_t k = i / all, j = i % all;
        T sum = sums[i];
        for (int64_t q = 0; q < count; ++q) {
          sum += j < width ? by[q * clips + k] * query[q * width + j] : p[q * clips + k] * grad[q * in.f + j - width];
        }
        sums[i] = sum;
      }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < clips * all; i += kBlock) {
      const int64_t t = begin + i / all, j = i % all;
      if (j < in.d) {
        by_k_content.row(b, h, t)[j] = static_cast<scalar_t>(sums[i]);
        sums[i] = 0;
      } else if (j >= width) {
        by_v.row(b, h, t)[j - width] = static_cast<scalar_t>(sums[i]);
        sums[i] = 0;
      } else if (!sums_k_pos) {
        by_k_pos.row(b, h, t)[j - in.d] = static_cast<k_pos_t>(sums[i]);
        sums[i] = 0;
      }
    }
  }
  if (sums_k_pos) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < clips * in.e; i += kBlock) {
      const int64_t k = i / in.e, j = i % in.e;
      by_k_pos.row(slot, h, begin + k)[j] = static_cast<k_pos_t>(sums[k * all + in.d + j]);
    }
  }
}

template <typename scalar_t>
__global__ void sum_slots(const accumulate_t<scalar_t>* partial, HeadRows<scalar_t> out, int64_t slots, int64_t H,
                          int64_t T, int64_t width) {
  const int64_t size = H * T * width;
  for (int64_t i = first_index(); i < size; i += index_stride()) {
    accumulate_t<scalar_t> sum = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      sum += partial[slot * size + i];
    }
    out.row(0, i / (T * width), i / width % T)[i % width] = static_cast<scalar_t>(sum);
  }
}

template <typename T>
__global__ void average_heads(const T* of_heads, T* mean, int64_t B, int64_t H, int64_t Q) {
  for (int64_t i = first_index(); i < B * Q; i += index_stride()) {
    T sum = 0;
    for (int64_t h = 0; h < H; ++h) {
      sum += of_heads[(i / Q * H + h) * Q + i % Q];
    }
    mean[i] = sum / static_cast<T>(H);
  }
}

// How many of the things that take `bytes_each` of shared memory fit beside `bytes_fixed`.
int64_t that_fit(int64_t most, int64_t bytes_each, int64_t bytes_fixed) {
  const int64_t fit = std::min(most, (kSharedBytes - bytes_fixed) / std::max<int64_t>(1, bytes_each));
  STD_TORCH_CHECK(fit >= 1,
                  "anchor_cross_attention: a head has too many channels for the CUDA kernel's shared memory (",
                  bytes_each + bytes_fixed, " bytes, at most ", kSharedBytes, ")");
  return fit;
}

unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31),
                  "anchor_cross_attention: too many heads, queries and clips for one launch");
  return static_cast<unsigned>(blocks);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> anchor_cross_attention(
    const Tensor& q_content, const Tensor& q_pos, const Tensor& k_content, const Tensor& k_pos, const Tensor& v,
    const std::optional<Tensor>& key_mask, const std::optional<Tensor>& intervals, bool need_weights) {
  const torch::stable::accelerator::DeviceGuard guard(v.get_device_index());
  const AnchorAttention a(q_content, q_pos, k_content, k_pos, v, key_mask, intervals);
  const AttentionOutputs to(a, need_weights);
  if (a.B * a.H * a.Q == 0) {
    return {to.out, to.centroid, to.mass, to.weights};
  }
  dispatch_floating("anchor_cross_attention", a.v.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Tensor centroid = torch::stable::new_empty(a.v, {a.B, a.H, a.Q}, accumulate_dtype(a.v));
    const Tensor mass = torch::stable::new_empty(a.v, {a.B, a.H, a.intervals ? a.Q : 0}, accumulate_dtype(a.v));
    const int64_t each = sizeof(T) * (a.d + a.e + kBlock + a.f + 1) + sizeof(Running<T>);
    const int64_t queries = that_fit(std::min<int64_t>(8, a.Q), each, 0);
    const cudaStream_t stream = current_stream(a.v);
    attend<scalar_t><<<grid_of(a.B * a.H * ((a.Q + queries - 1) / queries)), kBlock, queries * each, stream>>>(
        Inputs<scalar_t>(a), writing<scalar_t>(to.out), write<T>(centroid), write<T>(mass),
        need_weights ? write<scalar_t>(to.weights) : nullptr, queries);
    check_launch("anchor_cross_attention");
    const unsigned blocks = blocks_for(a.B * a.Q);
    average_heads<<<blocks, kThreads, 0, stream>>>(read<T>(centroid), write<T>(to.centroid), a.B, a.H, a.Q);
    if (a.intervals) {
      average_heads<<<blocks, kThreads, 0, stream>>>(read<T>(mass), write<T>(to.mass), a.B, a.H, a.Q);
    }
    check_launch("anchor_cross_attention");
  });
  return {to.out, to.centroid, to.mass, to.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> anchor_cross_attention_backward(
    const Tensor& grad_out, const Tensor& grad_centroid, const Tensor& grad_mass, const Tensor& grad_weights,
    const Tensor& q_content, const Tensor& q_pos, const Tensor& k_content, const Tensor& k_pos, const Tensor& v,
    const std::optional<Tensor>& key_mask, const std::optional<Tensor>& intervals) {
  const torch::stable::accelerator::DeviceGuard guard(v.get_device_index());
  const AnchorAttention a(q_content, q_pos, k_content, k_pos, v, key_mask, intervals);
  const AttentionGrads from(a, grad_out, grad_centroid, grad_mass, grad_weights);
  const Tensor by_q_content = empty_grad(q_content), by_q_pos = empty_grad(q_pos), by_k_content = empty_grad(k_content);
  const Tensor by_k_pos = empty_grad(k_pos), by_v = empty_grad(v);
  dispatch_floating("anchor_cross_attention_backward", a.v.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Inputs<scalar_t> in(a);
    const Incoming<scalar_t> incoming{
        reading<scalar_t>(from.out), read<T>(from.centroid), a.intervals ? read<T>(from.mass) : nullptr,
        from.has_weights() ? read<scalar_t>(from.weights) : nullptr, T{1} / static_cast<T>(a.H)};
    const Tensor log_sum = torch::stable::new_empty(a.v, {a.B, a.H, a.Q}, accumulate_dtype(a.v));
    const Tensor mean = torch::stable::new_empty(a.v, {a.B, a.H, a.Q}, accumulate_dtype(a.v));
    const cudaStream_t stream = current_stream(a.v);
    const int64_t row = sizeof(T) * (a.d + a.e + a.f);
    if (a.B * a.H * a.Q > 0) {
      const int64_t each = row + sizeof(T) * (2 * kBlock + a.d + a.e) + sizeof(Running<T>);
      const int64_t queries = that_fit(std::min<int64_t>(8, a.Q), each, 0);
      backward_queries<scalar_t>
          <<<grid_of(a.B * a.H * ((a.Q + queries - 1) / queries)), kBlock, queries * each, stream>>>(
              in, incoming, writing<scalar_t>(by_q_content), writing<scalar_t>(by_q_pos), write<T>(log_sum),
              write<T>(mean), queries);
      check_launch("anchor_cross_attention_backward");
    }
    const int64_t slots = a.k_pos_slots();
    const bool shared = a.shares_k_pos();
    const Tensor partial = torch::stable::new_empty(a.v, {shared ? slots : 0, a.H, a.T, a.e}, accumulate_dtype(a.v));
    if (a.B * a.H * a.T > 0) {
      const int64_t queries = std::clamp<int64_t>(a.Q, 1, 8);
      const int64_t each = row + 2 * sizeof(T) * queries;
      const int64_t tile = that_fit(std::min<int64_t>(64, a.T), each, queries * row);
      const unsigned grid = grid_of(slots * a.H * ((a.T + tile - 1) / tile));
      const int64_t per_slot = (a.B + slots - 1) / slots, bytes = queries * row + tile * each;
      if (shared) {
        backward_keys<scalar_t, T><<<grid, kBlock, bytes, stream>>>(
            in, incoming, read<T>(log_sum), read<T>(mean), writing<scalar_t>(by_k_content),
            HeadRows<T>{write<T>(partial), a.H * a.T * a.e, a.T * a.e, a.e}, writing<scalar_t>(by_v), per_slot, true,
            tile, queries);
      } else {
        backward_keys<scalar_t, scalar_t><<<grid, kBlock, bytes, stream>>>(
            in, incoming, read<T>(log_sum), read<T>(mean), writing<scalar_t>(by_k_content), writing<scalar_t>(by_k_pos),
            writing<scalar_t>(by_v), per_slot, false, tile, queries);
      }
      check_launch("anchor_cross_attention_backward");
    }
    if (shared && a.H * a.T * a.e > 0) {
      sum_slots<scalar_t><<<blocks_for(a.H * a.T * a.e), kThreads, 0, stream>>>(
          read<T>(partial), writing<scalar_t>(by_k_pos), slots, a.H, a.T, a.e);
      check_launch("anchor_cross_attention_backward");
    }
  });
  return {by_q_content, by_q_pos, by_k_content, by_k_pos, by_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("anchor_cross_attention", TORCH_BOX(&anchor_cross_attention));
  m.impl("anchor_cross_attention_backward", TORCH_BOX(&anchor_cross_attention_backward));
}

}  // namespace vpgfast
