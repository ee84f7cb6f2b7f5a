// temporal_map_max_pool on the CPU. See vpgfast/ops/temporal_map_max_pool.py for what it computes.

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "common/multiversion.h"
#include "common/ordered_bits.h"
#include "common/tensor.h"

namespace vpgfast {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;
constexpr int64_t kLanes = 16;
constexpr int64_t kCachedMap = 1 << 14;  // cells of a map that fits into the first two caches

// One vector register's worth of neighbouring columns (GCC's and Clang's vector extension).
template <typename key_t>
struct Columns {
  static constexpr int32_t kWidth = 64 / sizeof(key_t);
  typedef key_t type __attribute__((vector_size(64)));
};

// One channel of one video, a register of columns at a time: going up from the last row, the register holds
// out[i, j] = max(x[i], out[i + 1, j]) and is written, with zero below the diagonal. Nothing is read but x[i].
template <typename scalar_t>
VPGFAST_MULTIVERSION void max_pool_columns(const typename OrderedBits<scalar_t>::key_t* keys,
                                           typename OrderedBits<scalar_t>::key_t* out, int64_t T) {
  using Bits = OrderedBits<scalar_t>;
  using key_t = typename Bits::key_t;
  using columns_t = typename Columns<key_t>::type;
  constexpr int64_t kWidth = Columns<key_t>::kWidth;
  columns_t lane;
  for (int64_t w = 0; w < kWidth; ++w) {
    lane[w] = static_cast<key_t>(w);
  }
  for (int64_t first = 0; first < T; first += kWidth) {
    const int64_t width = std::min(kWidth, T - first);
    columns_t largest = {};
    for (int64_t i = T - 1; i >= 0; --i) {
      const columns_t key = keys[i] - columns_t{};
      // Where the diagonal lies in these columns; in rows of this block the lanes before it are below the diagonal.
      const columns_t diagonal = static_cast<key_t>(std::clamp<int64_t>(i - first, -1, kWidth)) - columns_t{};
      largest = lane == diagonal ? key : (largest > key ? largest : key);
      const columns_t decoded = largest ^ ((largest >> (8 * sizeof(key_t) - 1)) & Bits::kNaN);
      const columns_t cells = lane >= diagonal ? decoded : columns_t{};
      if (width == kWidth) {
        std::memcpy(out + i * T + first, &cells, sizeof(cells));  // a constant size: one store
      } else {
        std::memcpy(out + i * T + first, &cells, width * sizeof(key_t));
      }
    }
  }
}

// For each clip, the first later one that beats it (T if none): a larger value, or any NaN, as in torch's MaxPool1d.
template <typename scalar_t>
void next_larger(const typename OrderedBits<scalar_t>::key_t* x, typename OrderedBits<scalar_t>::key_t* key,
                 int64_t* next, int64_t* stack, int64_t T) {
  using Bits = OrderedBits<scalar_t>;
  int64_t depth = 0;
  for (int64_t j = 0; j < T; ++j) {
    key[j] = Bits::encode_for_ties(x[j]);
    while (depth > 0 && (key[j] > key[stack[depth - 1]] || key[j] == Bits::kNaN)) {
      next[stack[--depth]] = j;
    }
    stack[depth++] = j;
  }
  while (depth > 0) {
    next[stack[--depth]] = T;
  }
}

// Going down from the first row, `pending[j]` holds the gradient of the cells (0..i, j) whose maximum lies at or after
// clip i. Clip i is the maximum of exactly the columns i <= j < next[i]; it takes theirs, the rest is passed on down.
template <typename scalar_t, typename accumulate>
VPGFAST_MULTIVERSION void max_pool_rows_backward(const scalar_t* grad, const int64_t* next,
                                                 accumulate* __restrict pending, scalar_t* grad_x, int64_t T) {
  for (int64_t j = 0; j < T; ++j) {
    pending[j] = 0;
  }
  for (int64_t i = 0; i < T; ++i) {
    const scalar_t* row = grad + i * T;
    // From a multiple of the vector's width on: columns before i are never looked at again.
    for (int64_t j = i / kLanes * kLanes; j < T; ++j) {
      pending[j] += static_cast<accumulate>(row[j]);
    }
    accumulate sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = i; j < next[i]; ++j) {
      sum += pending[j];
      pending[j] = 0;
    }
    grad_x[i] = static_cast<scalar_t>(sum);
  }
}

Tensor temporal_map_max_pool(const Tensor& x_in) {
  check_sizes("temporal_map_max_pool", "x", x_in, {-1, -1, -1});
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t rows = x.size(0) * x.size(1), T = x.size(2);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), T, T});
  dispatch_floating("temporal_map_max_pool", x.scalar_type(), [&]<typename scalar_t>() {
    using Bits = OrderedBits<scalar_t>;
    using key_t = typename Bits::key_t;
    const auto* from = read<key_t>(x);
    auto* to = write<key_t>(out);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<key_t> keys(T), map(T * T <= kCachedMap ? T * T : 0);
      for (int64_t r = begin; r < end; ++r) {
        std::transform(from + r * T, from + (r + 1) * T, keys.begin(), Bits::encode);
        if (map.empty()) {
          max_pool_columns<scalar_t>(keys.data(), to + r * T * T, T);
        } else {  // columns are written a stride apart: do that in the cache, and memory in one go
          max_pool_columns<scalar_t>(keys.data(), map.data(), T);
          std::copy(map.begin(), map.end(), to + r * T * T);
        }
      }
    });
  });
  return out;
}

Tensor temporal_map_max_pool_backward(const Tensor& grad_in, const Tensor& x_in) {
  const int64_t T = x_in.size(2);
  check_sizes("temporal_map_max_pool_backward", "grad", grad_in, {x_in.size(0), x_in.size(1), T, T});
  check_dtype("temporal_map_max_pool_backward", "grad", grad_in, x_in.scalar_type());
  const Tensor x = torch::stable::contiguous(x_in), grad = torch::stable::contiguous(grad_in);
  const int64_t rows = x.size(0) * x.size(1);
  Tensor grad_x = torch::stable::empty_like(x);
  dispatch_floating("temporal_map_max_pool_backward", x.scalar_type(), [&]<typename scalar_t>() {
    using key_t = typename OrderedBits<scalar_t>::key_t;
    const auto* from = read<key_t>(x);
    const auto* dy = read<scalar_t>(grad);
    auto* dx = write<scalar_t>(grad_x);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<key_t> key(T);
      std::vector<int64_t> next(T), stack(T);
      std::vector<accumulate_t<scalar_t>> pending(T);
      for (int64_t r = begin; r < end; ++r) {
        next_larger<scalar_t>(from + r * T, key.data(), next.data(), stack.data(), T);
        max_pool_rows_backward(dy + r * T * T, next.data(), pending.data(), dx + r * T, T);
      }
    });
  });
  return grad_x;
}

// The spans of a list, checked once before any work is shared out.
struct Spans {
  Spans(const char* op, const Tensor& spans, int64_t T) {
    check_sizes(op, "spans", spans, {-1, 2});
    check_dtype(op, "spans", spans, ScalarType::Long);
    tensor = torch::stable::contiguous(spans);
    count = tensor.size(0);
    ends = read<int64_t>(tensor);
    for (int64_t p = 0; p < count; ++p) {
      const int64_t first = ends[2 * p], last = ends[2 * p + 1];
      STD_TORCH_CHECK(0 <= first && first <= last && last < T, op, ": spans[", p, "] is (", first, ", ", last,
                      "); it must be first and last clip with 0 <= first <= last < T = ", T);
      longest = std::max(longest, last - first + 1);
    }
  }
  int64_t level(int64_t p) const {  // of the power of two that two blocks cover span p with
    return std::bit_width(static_cast<uint64_t>(ends[2 * p + 1] - ends[2 * p] + 1)) - 1;
  }
  int64_t levels() const {
    return count == 0 ? 0 : std::bit_width(static_cast<uint64_t>(longest));
  }

  Tensor tensor;
  const int64_t* ends = nullptr;
  int64_t count = 0, longest = 0;
};

// A sparse table answers the maximum over any span from two overlapping blocks of 2^level clips, so that a list of
// long spans costs T log T + P a channel, not the sum of their lengths. table[level][t] covers clips t .. t+2^level-1.
template <typename entry_t, typename Better>
VPGFAST_MULTIVERSION void fill_sparse_table(entry_t* table, int64_t levels, int64_t T, const Better& better) {
  for (int64_t level = 1; level < levels; ++level) {
    const entry_t* half = table + (level - 1) * T;
    entry_t* whole = table + level * T;
    const int64_t reach = int64_t{1} << (level - 1);
    for (int64_t t = 0; t + 2 * reach <= T; ++t) {
      whole[t] = better(half[t], half[t + reach]);
    }
  }
}

Tensor temporal_map_max_pool_spans(const Tensor& x_in, const Tensor& spans_in) {
  check_sizes("temporal_map_max_pool", "x", x_in, {-1, -1, -1});
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t rows = x.size(0) * x.size(1), T = x.size(2);
  const Spans spans("temporal_map_max_pool", spans_in, T);
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), spans.count});
  dispatch_floating("temporal_map_max_pool", x.scalar_type(), [&]<typename scalar_t>() {
    using Bits = OrderedBits<scalar_t>;
    using key_t = typename Bits::key_t;
    const auto* from = read<key_t>(x);
    auto* to = write<key_t>(out);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, T + spans.count));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<key_t> table(spans.levels() * T);
      for (int64_t r = begin; r < end && spans.count > 0; ++r) {
        std::transform(from + r * T, from + (r + 1) * T, table.begin(), Bits::encode);
        fill_sparse_table(table.data(), spans.levels(), T, [](key_t a, key_t b) { return std::max(a, b); });
        for (int64_t p = 0; p < spans.count; ++p) {
          const int64_t level = spans.level(p);
          const key_t* blocks = table.data() + level * T;
          const int64_t last_block = spans.ends[2 * p + 1] + 1 - (int64_t{1} << level);
          to[r * spans.count + p] = Bits::decode(std::max(blocks[spans.ends[2 * p]], blocks[last_block]));
        }
      }
    });
  });
  return out;
}

// `deterministic` matters on CUDA alone: here a channel's spans are always added in their order.
Tensor temporal_map_max_pool_spans_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& spans_in,
                                            bool /*deterministic*/) {
  const int64_t rows = x_in.size(0) * x_in.size(1), T = x_in.size(2);
  const Spans spans("temporal_map_max_pool_backward", spans_in, T);
  check_sizes("temporal_map_max_pool_backward", "grad", grad_in, {x_in.size(0), x_in.size(1), spans.count});
  check_dtype("temporal_map_max_pool_backward", "grad", grad_in, x_in.scalar_type());
  const Tensor x = torch::stable::contiguous(x_in), grad = torch::stable::contiguous(grad_in);
  Tensor grad_x = torch::stable::empty_like(x);
  dispatch_floating("temporal_map_max_pool_backward", x.scalar_type(), [&]<typename scalar_t>() {
    using Bits = OrderedBits<scalar_t>;
    using key_t = typename Bits::key_t;
    using accumulate = accumulate_t<scalar_t>;
    const auto* from = read<key_t>(x);
    const auto* dy = read<scalar_t>(grad);
    auto* dx = write<scalar_t>(grad_x);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, T + spans.count));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<key_t> key(T);
      std::vector<int64_t> table(spans.levels() * T);  // positions of the maxima
      std::vector<accumulate> sum(T);
      // Of two blocks the earlier one's maximum wins ties, and the last NaN wins over all: MaxPool1d's rule.
      const auto better = [&](int64_t a, int64_t b) { return key[b] > key[a] || key[b] == Bits::kNaN ? b : a; };
      for (int64_t r = begin; r < end; ++r) {
        std::transform(from + r * T, from + (r + 1) * T, key.begin(), Bits::encode_for_ties);
        for (int64_t t = 0; t < T && spans.count > 0; ++t) {
          table[t] = t;
        }
        fill_sparse_table(table.data(), spans.levels(), T, better);
        std::fill(sum.begin(), sum.end(), accumulate{0});
        for (int64_t p = 0; p < spans.count; ++p) {
          const int64_t level = spans.level(p);
          const int64_t* blocks = table.data() + level * T;
          const int64_t last_block = spans.ends[2 * p + 1] + 1 - (int64_t{1} << level);
          sum[better(blocks[spans.ends[2 * p]], blocks[last_block])] +=
              static_cast<accumulate>(dy[r * spans.count + p]);
        }
        std::transform(sum.begin(), sum.end(), dx + r * T, [](accumulate v) { return static_cast<scalar_t>(v); });
      }
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_map_max_pool", TORCH_BOX(&temporal_map_max_pool));
  m.impl("temporal_map_max_pool_backward", TORCH_BOX(&temporal_map_max_pool_backward));
  m.impl("temporal_map_max_pool_spans", TORCH_BOX(&temporal_map_max_pool_spans));
  m.impl("temporal_map_max_pool_spans_backward", TORCH_BOX(&temporal_map_max_pool_spans_backward));
}

}  // namespace vpgfast
