// The convolution of the listed cells and the gradient of its kernel, by Winograd's algorithm (winograd.h).
//
// Work goes by two rows of frequencies at a time: what lies in memory is the transformed kernel of 16 frequencies, and
// the patches of a chunk of tiles, which stay in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "common/tensor.h"
#include "cpu/map_layout.h"
#include "cpu/map_tiles.h"
#include "cpu/panel_gemm.h"
#include "cpu/winograd.h"

namespace vpgfast {

constexpr int64_t kChunkElements = 1 << 21;    // of the transformed patches of a chunk of tiles
constexpr int64_t kProductsPerTask = 1 << 20;  // the same, of a matrix product

// A part of the rows (video, tile) of a group; rows of all groups lie one after the other.
struct Chunk {
  const Tiles::Group* group;
  int64_t batch, first, rows;  // first: among the rows of the group
  int64_t video(int64_t row) const {
    return (first + row) / group->count;
  }
  int64_t tile(int64_t row) const {
    return group->first + (first + row) % group->count;
  }
  int64_t place() const {  // of the first row, among all
    return group->first * batch + first;
  }
};

inline std::vector<Chunk> cut(const Tiles& tiles, int64_t batch, int64_t channels) {
  const int64_t most_rows = std::max<int64_t>(64, kChunkElements / (kFrequencies * std::max<int64_t>(1, channels)));
  std::vector<Chunk> chunks;
  for (const Tiles::Group& group : tiles.groups) {
    const int64_t rows = group.count * batch, parts = (rows + most_rows - 1) / most_rows;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = rows * part / parts;
      chunks.push_back({&group, batch, first, rows * (part + 1) / parts - first});
    }
  }
  return chunks;
}

inline int64_t longest(const std::vector<Chunk>& chunks) {
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) {
    rows = std::max(rows, chunk.rows);
  }
  return rows;
}

// Rows whose `kFrequencies` frequencies a task transforms.
inline int64_t rows_per_task(int64_t channels) {
  return std::max<int64_t>(1, kElementsPerTask / (kFrequencies * std::max<int64_t>(1, channels)));
}

// c[M, N] = a[M, K] b[K, N], plus c where `add`, for every frequency of a pass, whose matrices lie one after the other.
template <typename T>
void products(int64_t M, int64_t N, int64_t K, const T* a, Strides of_a, const T* b, Strides of_b, T* c, Strides of_c,
              bool add) {
  constexpr int64_t kColumns = 2 * kPanel;
  const int64_t parts = (N + kColumns - 1) / kColumns;
  const int64_t grain = std::max<int64_t>(1, kProductsPerTask / (std::max<int64_t>(1, M * K) * kColumns));
  torch::stable::parallel_for(0, kFrequencies * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t f = task / parts, n = task % parts * kColumns;
      panel_gemm(M, std::min(kColumns, N - n), K, a + f * M * K, of_a, b + f * K * N + of_b(n), of_b,
                 c + f * M * N + of_c(n), of_c, add);
    }
  });
}

// The frequencies of a pass of a chunk's patches, [frequency][row][channel], or, `panels`, in panels of channels.
// packed: [video][listed cell][channel]; `cells_of(tile)` are the positions in that list of the cells of a patch.
template <typename T, const auto& kMatrix, bool panels, typename CellsOf>
void patches_to_frequencies(int32_t pass, const Chunk& chunk, const Tensor& packed, const T* zeros,
                            const CellsOf& cells_of, T* to) {
  constexpr int32_t kCells = kMatrix.kSide * kMatrix.kSide;
  const int64_t listed = packed.size(1), channels = packed.size(2);
  torch::stable::parallel_for(0, chunk.rows, rows_per_task(channels), [&](int64_t begin, int64_t end) {
    const T* cells[kCells];
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* positions = cells_of(chunk.tile(row));
      const T* video = read<T>(packed) + chunk.video(row) * listed * channels;
      for (int32_t i = 0; i < kCells; ++i) {
        cells[i] = positions[i] < 0 ? zeros : video + positions[i] * channels;
      }
      dispatch_pass(pass, [&]<int32_t kPass>() {
        to_frequencies<T, kMatrix, kPass>(cells, channels, to + row * (panels ? kLanes : channels),
                                          chunk.rows * channels, panels ? chunk.rows * kLanes : kLanes);
      });
    }
  });
}

// Calls work(sub-kernel, pointers to the 5 x 5 taps of it among those of `kernel`), [k][k][channels]. Neighbouring
// sub-kernels share a row of taps, which is the first one's; `none` stands for a tap that is not there.
template <typename T, typename Work>
void over_sub_kernels(T* kernel, bool reversed, int32_t k, int32_t per_axis, int64_t channels, T* none,
                      const Work& work) {
  const auto tap_of = [k](int32_t a, int32_t r) {
    const int32_t tap = a * kTile + r;
    return tap < k && (a == 0 || r > 0) ? tap : -1;
  };
  T* taps[kTaps * kTaps];
  for (int32_t s = 0; s < per_axis * per_axis; ++s) {
    for (int32_t i = 0; i < kTaps * kTaps; ++i) {
      const int32_t r = tap_of(s / per_axis, i / kTaps), c = tap_of(s % per_axis, i % kTaps);
      const int32_t tap = reversed ? k * k - 1 - (r * k + c) : r * k + c;
      taps[i] = r < 0 || c < 0 ? none : kernel + tap * channels;
    }
    work(s, taps);
  }
}

// kernel: [input channel][k * k][output channel]. Returns the 4 x 4 cells of every tile, [row][16][output channel].
template <typename T>
Tensor convolve(const Tensor& packed, const Tensor& kernel, bool reversed, const Tiles& tiles, int32_t k) {
  const int64_t batch = packed.size(0), in = packed.size(2), out = kernel.size(2);
  const std::vector<Chunk> chunks = cut(tiles, batch, std::max(in, out));
  const Tensor results = torch::stable::new_empty(packed, {batch * tiles.count, kTile * kTile, out});
  const Tensor U = torch::stable::new_empty(packed, {tiles.sub_kernels, kFrequencies, in, out});
  const Tensor V = torch::stable::new_empty(packed, {kFrequencies, longest(chunks), in});
  const Tensor M = torch::stable::new_empty(packed, {kFrequencies, longest(chunks), out});
  std::vector<T> zeros(std::max(in, out));

  for (int32_t pass = 0; pass < kPasses; ++pass) {
    torch::stable::parallel_for(0, in, rows_per_task(tiles.sub_kernels * out), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        T* taps_of_channel = write<T>(kernel) + c * k * k * out;
        over_sub_kernels(taps_of_channel, reversed, k, tiles.per_axis, out, zeros.data(), [&](int32_t s, T** taps) {
          dispatch_pass(pass, [&]<int32_t kPass>() {
            to_frequencies<T, kKernel, kPass>(taps, out, write<T>(U) + s * kFrequencies * in * out + c * kLanes,
                                              in * out, in * kLanes);
          });
        });
      }
    });
    for (const Chunk& chunk : chunks) {
      const std::vector<int32_t>& sub_kernels = chunk.group->sub_kernels;
      for (const int32_t s : sub_kernels) {
        patches_to_frequencies<T, kInput, false>(
            pass, chunk, packed, zeros.data(), [&](int64_t tile) { return tiles.input(tile, s); }, write<T>(V));
        products(chunk.rows, out, in, read<T>(V), Strides::even(in, 1), read<T>(U) + s * kFrequencies * in * out,
                 Strides::panels(in), write<T>(M), Strides::even(1, out), s != sub_kernels.front());
      }
      if (sub_kernels.empty()) {  // a tile that no valid cell reaches
        std::fill_n(write<T>(M), kFrequencies * chunk.rows * out, T{0});
      }
      torch::stable::parallel_for(0, chunk.rows, rows_per_task(out), [&](int64_t begin, int64_t end) {
        T* cells[kTile * kTile];
        for (int64_t row = begin; row < end; ++row) {
          for (int64_t i = 0; i < kTile * kTile; ++i) {
            cells[i] = write<T>(results) + ((chunk.place() + row) * kTile * kTile + i) * out;
          }
          dispatch_pass(pass, [&]<int32_t kPass>() {
            from_frequencies<T, kOutput, kPass>(read<T>(M) + row * out, chunk.rows * out, out, cells);
          });
        }
      });
    }
  }
  return results;
}

// The gradient of the kernel, [input channel][k * k][output channel], from the packed input and the packed gradient.
template <typename T>
Tensor convolve_backward_kernel(const Tensor& packed, const Tensor& grad, const Tiles& tiles, int32_t k) {
  const int64_t batch = packed.size(0), in = packed.size(2), out = grad.size(2);
  const std::vector<Chunk> chunks = cut(tiles, batch, std::max(in, out));
  const Tensor kernel = torch::stable::new_empty(packed, {in, k * k, out});
  const Tensor U = torch::stable::new_empty(packed, {tiles.sub_kernels, kFrequencies, in, out});
  const Tensor V = torch::stable::new_empty(packed, {kFrequencies, longest(chunks), in});
  const Tensor M = torch::stable::new_empty(packed, {kFrequencies, longest(chunks), out});
  const std::vector<T> zeros(std::max(in, out));

  for (int32_t pass = 0; pass < kPasses; ++pass) {
    std::vector<bool> begun(tiles.sub_kernels, false);
    for (const Chunk& chunk : chunks) {
      patches_to_frequencies<T, kOutput, true>(
          pass, chunk, grad, zeros.data(), [&](int64_t tile) { return tiles.output(tile); }, write<T>(M));
      for (const int32_t s : chunk.group->sub_kernels) {
        patches_to_frequencies<T, kInput, true>(
            pass, chunk, packed, zeros.data(), [&](int64_t tile) { return tiles.input(tile, s); }, write<T>(V));
        products(in, out, chunk.rows, read<T>(V), Strides::panels(chunk.rows), read<T>(M), Strides::panels(chunk.rows),
                 write<T>(U) + s * kFrequencies * in * out, Strides::even(1, out), begun[s]);
        begun[s] = true;
      }
    }
    for (int32_t s = 0; s < tiles.sub_kernels; ++s) {
      if (!begun[s]) {  // no tile uses it
        std::fill_n(write<T>(U) + s * kFrequencies * in * out, kFrequencies * in * out, T{0});
      }
    }
    torch::stable::parallel_for(0, in, rows_per_task(tiles.sub_kernels * out), [&](int64_t begin, int64_t end) {
      std::vector<T> unused(out);
      for (int64_t c = begin; c < end; ++c) {
        T* taps_of_channel = write<T>(kernel) + c * k * k * out;
        over_sub_kernels(taps_of_channel, false, k, tiles.per_axis, out, unused.data(), [&](int32_t s, T** taps) {
          dispatch_pass(pass, [&]<int32_t kPass>() {
            from_frequencies<T, kKernel, kPass>(read<T>(U) + (s * kFrequencies * in + c) * out, in * out, out, taps);
          });
        });
      }
    });
  }
  return kernel;
}

}  // namespace vpgfast
