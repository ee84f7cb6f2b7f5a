// The cells of a map that count, and the tiles of the output that hold some of them.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "common/tensor.h"
#include "cpu/winograd.h"

namespace vpgfast {

constexpr int64_t kLargestSide = 46341;  // above any map's or kernel's: its square is counted in 32 bits

// The cells of a map that count, in reading order, and where each stands among them (-1: it does not count).
struct Cells {
  // Those of a mask; none: all.
  Cells(const char* op, const char* name, const std::optional<Tensor>& mask, int64_t size) : Cells(op, size) {
    if (mask) {
      check_sizes(op, name, *mask, {size, size});
      check_dtype(op, name, *mask, ScalarType::Bool);
    }
    const std::optional<Tensor> dense = mask ? std::optional(torch::stable::contiguous(*mask)) : std::nullopt;
    const bool* valid = dense ? read<bool>(*dense) : nullptr;
    for (int32_t cell = 0; cell < T * T; ++cell) {
      if (valid == nullptr || valid[cell]) {
        add(cell);
      }
    }
  }
  // Those of a list.
  Cells(const char* op, const char* name, const Tensor& numbers_in, int64_t size) : Cells(op, size) {
    check_dtype(op, name, numbers_in, ScalarType::Long);
    const Tensor numbers = torch::stable::contiguous(numbers_in);
    int64_t before = -1;
    for (int64_t i = 0; i < numbers.size(0); ++i) {
      const int64_t cell = read<int64_t>(numbers)[i];
      STD_TORCH_CHECK(cell > before && cell < size * size, op, ": ", name, " holds ", cell, " at place ", i,
                      "; it must hold rising numbers of the ", size * size, " cells");
      add(static_cast<int32_t>(cell));
      before = cell;
    }
  }
  int64_t count() const {
    return static_cast<int64_t>(list.size());
  }
  int32_t at(int64_t i, int64_t j) const {
    return i >= 0 && j >= 0 && i < T && j < T ? index[i * T + j] : -1;
  }

  int32_t T;
  std::vector<int32_t> list, index;

 private:
  Cells(const char* op, int64_t size) : T(static_cast<int32_t>(size)) {
    STD_TORCH_CHECK(size >= 0 && size < kLargestSide, op, ": a map of ", size, " clips is too large");
    index.assign(size * size, -1);
  }
  void add(int32_t cell) {
    index[cell] = static_cast<int32_t>(list.size());
    list.push_back(cell);
  }
};

// One over the number of valid taps of every output cell, 0 where there is none.
inline std::vector<double> inverse_counts(const Cells& in, int32_t out_T, int64_t k, int64_t padding) {
  const int64_t T = in.T;
  std::vector<int64_t> sums((T + 1) * (T + 1));  // of the valid cells above and left
  for (int64_t i = 0; i < T; ++i) {
    for (int64_t j = 0; j < T; ++j) {
      sums[(i + 1) * (T + 1) + j + 1] =
          (in.at(i, j) >= 0) + sums[i * (T + 1) + j + 1] + sums[(i + 1) * (T + 1) + j] - sums[i * (T + 1) + j];
    }
  }
  std::vector<double> scale(int64_t{out_T} * out_T);
  for (int64_t i = 0; i < out_T; ++i) {
    for (int64_t j = 0; j < out_T; ++j) {
      const auto clamp = [T](int64_t t) { return std::clamp<int64_t>(t, 0, T); };
      const int64_t top = clamp(i - padding) * (T + 1), bottom = clamp(i - padding + k) * (T + 1);
      const int64_t left = clamp(j - padding), right = clamp(j - padding + k);
      const int64_t count = sums[bottom + right] - sums[bottom + left] - sums[top + right] + sums[top + left];
      scale[i * out_T + j] = count > 0 ? 1.0 / static_cast<double>(count) : 0.0;
    }
  }
  return scale;
}

// The tiles that hold a cell to compute, those with the same valid sub-kernels together.
struct Tiles {
  struct Group {
    int64_t first = 0, count = 0;
    std::vector<int32_t> sub_kernels;  // those that some valid cell feeds
  };

  Tiles(const Cells& in, const Cells& out, int64_t k, int64_t padding)
      : per_axis(static_cast<int32_t>(std::max<int64_t>(1, (k + kTile - 2) / kTile))),
        sub_kernels(per_axis * per_axis) {
    using Patch = std::vector<int32_t>;
    std::map<std::vector<int32_t>, std::vector<std::pair<Patch, Patch>>> by_sub_kernels;
    for (int32_t top = 0; top < out.T; top += kTile) {
      for (int32_t left = 0; left < out.T; left += kTile) {
        const Patch results = patch(out, top, left, kTile);
        if (empty(results.data(), results.size())) {
          continue;
        }
        Patch patches;
        std::vector<int32_t> fed;
        for (int32_t s = 0; s < sub_kernels; ++s) {
          const Patch cells =
              patch(in, top + s / per_axis * kTile - padding, left + s % per_axis * kTile - padding, kPoints);
          patches.insert(patches.end(), cells.begin(), cells.end());
          if (!empty(cells.data(), cells.size())) {
            fed.push_back(s);
          }
        }
        by_sub_kernels[fed].emplace_back(patches, results);
      }
    }
    for (const auto& [fed, members] : by_sub_kernels) {
      groups.push_back({count, static_cast<int64_t>(members.size()), fed});
      for (const auto& [patches, results] : members) {
        inputs.insert(inputs.end(), patches.begin(), patches.end());
        outputs.insert(outputs.end(), results.begin(), results.end());
        ++count;
      }
    }
  }

  static std::vector<int32_t> patch(const Cells& cells, int64_t top, int64_t left, int32_t side) {
    std::vector<int32_t> indices;
    for (int32_t i = 0; i < side; ++i) {
      for (int32_t j = 0; j < side; ++j) {
        indices.push_back(cells.at(top + i, left + j));
      }
    }
    return indices;
  }
  static bool empty(const int32_t* cells, size_t count) {
    return std::all_of(cells, cells + count, [](int32_t cell) { return cell < 0; });
  }
  const int32_t* input(int64_t tile, int64_t s) const {
    return inputs.data() + (tile * sub_kernels + s) * kPoints * kPoints;
  }
  const int32_t* output(int64_t tile) const {
    return outputs.data() + tile * kTile * kTile;
  }

  int32_t per_axis, sub_kernels;
  std::vector<Group> groups;
  std::vector<int32_t> inputs, outputs;
  int64_t count = 0;
};

}  // namespace vpgfast
