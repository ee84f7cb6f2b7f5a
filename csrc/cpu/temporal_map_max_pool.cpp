// temporal_map_max_pool on the CPU. See vpgfast/ops/temporal_map_max_pool.py for what it computes.

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "common/ordered_bits.h"
#include "common/tensor.h"
#include "cpu/vector.h"

namespace vpgfast {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;
constexpr int64_t kCachedMap = 1 << 14;                // cells of a map that fits into the first two caches
constexpr int64_t kPastCacheBytes = int64_t{1} << 25;  // of results that no cache would keep

template <typename Bits, typename columns_t>
VPGFAST_ALWAYS_INLINE columns_t decoded(const columns_t& keys) {
  return keys ^ ((keys >> (8 * sizeof(keys[0]) - 1)) & Bits::kNaN);
}

template <bool kPastCache, typename columns_t, typename key_t>
VPGFAST_ALWAYS_INLINE void store_columns(const columns_t& cells, int64_t width, key_t* to) {
  if (width < Vector<key_t>::kWidth) {
    std::memcpy(to, &cells, width * sizeof(key_t));
  } else if constexpr (kPastCache) {
    store_past_cache(to, cells);
  } else {
    std::memcpy(to, &cells, sizeof(cells));  // a constant size: one store
  }
}

// One channel of one video, a register of columns at a time: going up from the last row, the register holds
// out[i, j] = max(x[i], out[i + 1, j]) and is written, with zero below the diagonal. Nothing is read but x[i].
template <typename scalar_t, bool kPastCache>
void max_pool_columns(const typename OrderedBits<scalar_t>::key_t* keys, typename OrderedBits<scalar_t>::key_t* out,
                      int64_t T) {
  using Bits = OrderedBits<scalar_t>;
  using key_t = typename Bits::key_t;
  using columns_t = typename Vector<key_t>::type;
  constexpr int64_t kWidth = Vector<key_t>::kWidth;
  columns_t lane;
  for (int64_t w = 0; w < kWidth; ++w) {
    lane[w] = static_cast<key_t>(w);
  }
  for (int64_t first = 0; first < T; first += kWidth) {
    const int64_t width = std::min(kWidth, T - first);
    for (int64_t i = T - 1; i >= first + width; --i) {
      store_columns<kPastCache>(columns_t{}, width, out + i * T + first);
    }
    columns_t largest = {};
    for (int64_t i = first + width - 1; i >= first; --i) {  // rows that the diagonal crosses in these columns
      const columns_t key = keys[i] - columns_t{}, diagonal = static_cast<key_t>(i - first) - columns_t{};
      const columns_t later = lane == diagonal ? std::numeric_limits<key_t>::min() - columns_t{} : largest;
      largest = later > key ? later : key;
      store_columns<kPastCache>(lane >= diagonal ? decoded<Bits>(largest) : columns_t{}, width, out + i * T + first);
    }
    for (int64_t i = first - 1; i >= 0; --i) {
      const columns_t key = keys[i] - columns_t{};
      largest = largest > key ? largest : key;
      store_columns<kPastCache>(decoded<Bits>(largest), width, out + i * T + first);
    }
  }
}

// What the backward of one channel's map needs beside the gradient.
template <typename scalar_t>
struct MapBackward {
  using Bits = OrderedBits<scalar_t>;
  using accumulate = accumulate_t<scalar_t>;
  using lane_t = typename Vector<accumulate>::index_t;
  static constexpr int64_t kWidth = Vector<accumulate>::kWidth;
  static constexpr lane_t kNaN = std::numeric_limits<lane_t>::max();
  explicit MapBackward(int64_t T) : keys(T), won(T * kWidth), sums(T * kWidth) {
  }

  void begin(const typename Bits::key_t* x) {
    std::transform(x, x + keys.size(), keys.begin(), [](auto bits) {
      const auto key = Bits::encode_for_ties(bits);
      return key == Bits::kNaN ? kNaN : lane_t{key};
    });
    std::fill(sums.begin(), sums.end(), accumulate{0});
  }

  std::vector<lane_t> keys;
  std::vector<lane_t> won;       // [T, kWidth], all ones where the clip is the column's maximum from itself on, else 0
  std::vector<accumulate> sums;  // [T, kWidth], parts of the clip's gradient
};

template <typename accumulate, typename grad_t>
VPGFAST_ALWAYS_INLINE typename Vector<accumulate>::type load_columns(const grad_t* grad, int64_t width) {
  typename Vector<accumulate>::type columns = {};
  if (std::is_same_v<grad_t, accumulate> && width >= Vector<accumulate>::kWidth) {
    std::memcpy(&columns, grad, sizeof(columns));
  } else {
    for (int64_t w = 0; w < std::min(width, Vector<accumulate>::kWidth); ++w) {
      columns[w] = static_cast<accumulate>(grad[w]);
    }
  }
  return columns;
}

// A register of columns at a time. Going up from the last row tells which columns' maximum clip i is: those where it
// beats all later clips, the first one on ties and the last NaN, as in torch's MaxPool1d. Going down, `pending` holds
// the gradient of the cells (0..i, j) whose maximum lies at or after clip i; clip i takes that of the columns it won.
template <typename scalar_t, typename grad_t>
void max_pool_columns_backward(const grad_t* grad, MapBackward<scalar_t>& map, scalar_t* grad_x, int64_t T) {
  using accumulate = accumulate_t<scalar_t>;
  using columns_t = typename Vector<accumulate>::type;
  using lanes_t = typename Vector<accumulate>::index;
  using lane_t = typename MapBackward<scalar_t>::lane_t;
  constexpr int64_t kWidth = MapBackward<scalar_t>::kWidth;
  constexpr lane_t kUnbeaten = MapBackward<scalar_t>::kNaN;
  const lane_t* keys = map.keys.data();
  lanes_t lane;
  for (int64_t w = 0; w < kWidth; ++w) {
    lane[w] = static_cast<lane_t>(w);
  }
  for (int64_t first = 0; first < T; first += kWidth) {
    const int64_t end = std::min(first + kWidth, T);
    lanes_t largest = kUnbeaten - lanes_t{};  // so that no clip wins a column left of the diagonal or past the last
    for (int64_t i = end - 1; i >= 0; --i) {
      __builtin_prefetch(grad + (end - 1 - i) * T + first);  // for the way down
      const lanes_t key = keys[i] - lanes_t{}, diagonal = static_cast<lane_t>(i - first) - lanes_t{};
      const lanes_t beaten = (keys[i] == kUnbeaten ? keys[i] : keys[i] + 1) - lanes_t{};
      // Two plain choices: GCC would take a vector of truth values apart.
      const lanes_t later = lane == diagonal ? std::numeric_limits<lane_t>::min() - lanes_t{} : largest;
      const lanes_t won = later < beaten ? ~lanes_t{} : lanes_t{};
      largest = later > key ? later : key;
      std::memcpy(map.won.data() + i * kWidth, &won, sizeof(won));
    }
    columns_t pending = {};
    for (int64_t i = 0; i < end; ++i) {
      const int64_t cell = i * T + first;
      columns_t sum;
      lanes_t won;
      std::memcpy(&sum, map.sums.data() + i * kWidth, sizeof(sum));
      std::memcpy(&won, map.won.data() + i * kWidth, sizeof(won));
      // A whole register wherever the map does not end: what lies past the row's end is never won.
      pending += load_columns<accumulate>(grad + cell, T * T - cell);
      const lanes_t bits = reinterpret_cast<lanes_t>(pending);
      sum += reinterpret_cast<columns_t>(bits & won);
      pending = reinterpret_cast<columns_t>(bits & ~won);
      std::memcpy(map.sums.data() + i * kWidth, &sum, sizeof(sum));
    }
  }
  for (int64_t i = 0; i < T; ++i) {
    const accumulate* sums = map.sums.data() + i * kWidth;
    accumulate sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int32_t w = 0; w < static_cast<int32_t>(kWidth); ++w) {
      sum += sums[w];
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
    const int64_t map_bytes = T * T * sizeof(key_t), row_bytes = T * sizeof(key_t);
    const bool past_cache = rows * map_bytes >= kPastCacheBytes && row_bytes % kPastCacheAlignment == 0;
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<key_t> keys(T), map(!past_cache && T * T <= kCachedMap ? T * T : 0);
      for (int64_t r = begin; r < end; ++r) {
        std::transform(from + r * T, from + (r + 1) * T, keys.begin(), Bits::encode);
        if (past_cache) {
          max_pool_columns<scalar_t, true>(keys.data(), to + r * T * T, T);
        } else if (map.empty()) {
          max_pool_columns<scalar_t, false>(keys.data(), to + r * T * T, T);
        } else {  // columns are written a stride apart: do that in the cache, and memory in one go
          max_pool_columns<scalar_t, false>(keys.data(), map.data(), T);
          std::copy(map.begin(), map.end(), to + r * T * T);
        }
      }
      finish_stores_past_cache();
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
    const auto* from = read<typename OrderedBits<scalar_t>::key_t>(x);
    const auto* dy = read<scalar_t>(grad);
    auto* dx = write<scalar_t>(grad_x);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, T * T));
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      MapBackward<scalar_t> map(T);
      for (int64_t r = begin; r < end; ++r) {
        map.begin(from + r * T);
        max_pool_columns_backward<scalar_t>(dy + r * T * T, map, dx + r * T, T);
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
    if (T * T <= kCachedMap && 8 * count >= T * T) {
      for (int64_t p = 0; p < count; ++p) {
        cells.push_back(static_cast<int32_t>(ends[2 * p] * T + ends[2 * p + 1]));
      }
    }
  }
  bool by_map() const {  // the whole map costs less than the spans one by one
    return !cells.empty();
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
  std::vector<int32_t> cells;  // of the map
};

template <typename key_t>
void pick(const key_t* map, const std::vector<int32_t>& cells, key_t* to) {
  const auto count = static_cast<int32_t>(cells.size());
  for (int32_t p = 0; p < count; ++p) {
    to[p] = map[cells[p]];
  }
}

// A sparse table answers the maximum over any span from two overlapping blocks of 2^level clips, so that a list of
// long spans costs T log T + P a channel, not the sum of their lengths. table[level][t] covers clips t .. t+2^level-1.
template <typename entry_t, typename Better>
void fill_sparse_table(entry_t* table, int64_t levels, int64_t T, const Better& better) {
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
      std::vector<key_t> map(spans.by_map() ? T * T : 0), table(std::max<int64_t>(1, spans.levels()) * T);
      for (int64_t r = begin; r < end && spans.count > 0; ++r) {
        std::transform(from + r * T, from + (r + 1) * T, table.begin(), Bits::encode);
        if (spans.by_map()) {
          max_pool_columns<scalar_t, false>(table.data(), map.data(), T);
          pick(map.data(), spans.cells, to + r * spans.count);
          continue;
        }
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
      if (spans.by_map()) {
        MapBackward<scalar_t> map(T);
        std::vector<accumulate> by_cell(T * T);
        for (int64_t r = begin; r < end; ++r) {
          std::fill(by_cell.begin(), by_cell.end(), accumulate{0});
          for (int64_t p = 0; p < spans.count; ++p) {
            by_cell[spans.cells[p]] += static_cast<accumulate>(dy[r * spans.count + p]);
          }
          map.begin(from + r * T);
          max_pool_columns_backward<scalar_t>(by_cell.data(), map, dx + r * T, T);
        }
        return;
      }
      std::vector<key_t> key(T);
      std::vector<int64_t> table(spans.levels() * T);  // positions of the maxima
      std::vector<accumulate> sum(T);
      // Of two blocks the earlier one's maximum wins ties, and the last NaN wins over all: MaxPool1d's rule. Without a
      // branch, which could not be foretold.
      const auto better = [&](int64_t a, int64_t b) {
        const bool second = (key[b] > key[a]) | (key[b] == Bits::kNaN);
        return a ^ ((a ^ b) & -static_cast<int64_t>(second));
      };
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
