// temporal_map_conv2d and temporal_map_conv2d_cells on the CPU. See vpgfast/ops/temporal_map_conv2d.py and
// temporal_map_conv2d_cells.py for what they compute.
//
// Winograd's algorithm F(4x4, 5x5): a tile of 4 x 4 output cells, and a kernel of 5 x 5 taps, need 8 x 8 = 64 products
// ("frequencies") where the sum itself has 16 * 25. A wider kernel is cut into sub-kernels, 4 taps apart, whose
// products are added up frequency by frequency. Only tiles with a cell of the output mask are computed, and of those
// only the sub-kernels whose 8 x 8 patch of the input holds a valid cell.
//
// Everything is channels-last, so that a frequency's products are one matrix product over all tiles. Work goes by two
// rows of frequencies at a time: what lies in memory is the transformed kernel of 16 frequencies, and the patches of a
// chunk of tiles, which stay in the cache.

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/tensor.h"
#include "cpu/panel_gemm.h"
#include "cpu/transpose.h"
#include "cpu/winograd.h"

namespace vpgfast {
namespace {

constexpr int64_t kChunkElements = 1 << 21;    // of the transformed patches of a chunk of tiles
constexpr int64_t kElementsPerTask = 1 << 15;  // below which a second thread is not worth waking
constexpr int64_t kProductsPerTask = 1 << 20;  // the same, of a matrix product
constexpr int64_t kLargestSide = 46341;        // above any map's or kernel's: its square is counted in 32 bits
constexpr int32_t kCellBlock = 64;             // cells that are moved from one layout to the other at a time

// ---- What there is to compute --------------------------------------------------------------------------------------

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
std::vector<double> inverse_counts(const Cells& in, int32_t out_T, int64_t k, int64_t padding) {
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

// ---- Moving between torch's layout and ours -------------------------------------------------------------------------

int64_t padded(int64_t channels) {
  return (channels + kLanes - 1) / kLanes * kLanes;
}

// to[cell][channel] = from(channel, cell), a block of cells of kLanes channels; zero where there are fewer channels.
template <typename Source, typename T>
void pack_block(const Source& from, int64_t first, int64_t last, int64_t channel, int32_t width, T* to,
                int64_t channels) {
  T block[kLanes][kCellBlock] = {};
  for (int64_t start = first; start < last; start += kCellBlock) {
    const int32_t cells = static_cast<int32_t>(std::min<int64_t>(kCellBlock, last - start));
    for (int32_t c = 0; c < width; ++c) {
      for (int32_t p = 0; p < cells; ++p) {
        block[c][p] = from(channel + c, start + p);
      }
    }
    transpose(block[0], kCellBlock, to + start * channels + channel, channels, kLanes, cells);
  }
}

// Runs work(image, first cell, last cell, first channel, number of channels) over blocks of all of them.
template <typename Work>
void over_blocks(int64_t images, int64_t cells, int64_t channels, const Work& work) {
  constexpr int64_t kCells = 16 * kCellBlock;
  const int64_t cell_blocks = (cells + kCells - 1) / kCells, channel_blocks = (channels + kLanes - 1) / kLanes;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (kLanes * std::clamp<int64_t>(cells, 1, kCells)));
  torch::stable::parallel_for(0, images * cell_blocks * channel_blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / (cell_blocks * channel_blocks),
                    first = index / channel_blocks % cell_blocks * kCells;
      const int64_t channel = index % channel_blocks * kLanes;
      work(image, first, std::min(first + kCells, cells), channel,
           static_cast<int32_t>(std::min<int64_t>(kLanes, channels - channel)));
    }
  });
}

// Runs work(row) over rows of so many channels.
template <typename Work>
void over_rows(int64_t rows, int64_t channels, const Work& work) {
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, channels));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      work(row);
    }
  });
}

// The listed cells of one image of a map.
template <typename scalar_t, typename T>
struct Listed {
  const scalar_t* image;
  const int32_t* cells;
  int64_t channel_stride;
  T operator()(int64_t channel, int64_t cell) const {
    return static_cast<T>(image[channel * channel_stride + cells[cell]]);
  }
};

// The same of a gradient, taken back through scale and ReLU (`out` null: there was none).
template <typename scalar_t, typename T>
struct Incoming {
  const scalar_t *grad, *out;
  const int32_t* cells;
  const T* scale;
  int64_t channel_stride;
  T operator()(int64_t channel, int64_t cell) const {
    const int64_t at = channel * channel_stride + cells[cell];
    const T value = static_cast<T>(grad[at]) * scale[cells[cell]];
    return out != nullptr && static_cast<T>(out[at]) <= 0 ? T{0} : value;
  }
};

// A dense matrix [channel][cell].
template <typename scalar_t, typename T>
struct Dense {
  const scalar_t* matrix;
  int64_t channel_stride;
  T operator()(int64_t channel, int64_t cell) const {
    return static_cast<T>(matrix[channel * channel_stride + cell]);
  }
};

// ---- The convolution ------------------------------------------------------------------------------------------------

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

std::vector<Chunk> cut(const Tiles& tiles, int64_t batch, int64_t channels) {
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

int64_t longest(const std::vector<Chunk>& chunks) {
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) {
    rows = std::max(rows, chunk.rows);
  }
  return rows;
}

// Rows whose `kFrequencies` frequencies a task transforms.
int64_t rows_per_task(int64_t channels) {
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

// Writes the tiles into a map [video][channel][cell], with zero outside the mask:
// scale[cell] * activation(result + bias[channel]).
template <typename T, typename scalar_t>
struct Epilogue {
  const scalar_t* bias;  // null: none
  const T* scale;        // null: 1
  bool relu;
};

template <typename T, typename scalar_t>
void unpack_block(const T* results, const int64_t* places, const Epilogue<T, scalar_t>& epilogue, int64_t first,
                  int64_t last, int64_t channel, int32_t width, int64_t channels, scalar_t* to,
                  int64_t channel_stride) {
  T block[kCellBlock][kLanes], bias[kLanes] = {};
  for (int32_t c = 0; c < width; ++c) {
    bias[c] = epilogue.bias != nullptr ? static_cast<T>(epilogue.bias[channel + c]) : T{0};
  }
  for (int64_t start = first; start < last; start += kCellBlock) {
    const int32_t cells = static_cast<int32_t>(std::min<int64_t>(kCellBlock, last - start));
    for (int32_t p = 0; p < cells; ++p) {
      if (places[start + p] < 0) {
        std::fill(block[p], block[p] + kLanes, T{0});
        continue;
      }
      const T* result = results + places[start + p] * channels + channel;
      const T scale = epilogue.scale != nullptr ? epilogue.scale[start + p] : T{1};
      for (int32_t c = 0; c < width; ++c) {
        const T value = result[c] + bias[c];
        block[p][c] = (epilogue.relu && value < 0 ? T{0} : value) * scale;
      }
    }
    transpose(block[0], kLanes, to + channel * channel_stride + start, channel_stride, cells, width);
  }
}

// The same of a listed cell [channel].
template <typename T, typename scalar_t>
void unpack_cell(const T* result, const Epilogue<T, scalar_t>& epilogue, T scale, int64_t channels, scalar_t* to) {
  for (int64_t c = 0; c < channels; ++c) {
    const T value = epilogue.bias != nullptr ? result[c] + static_cast<T>(epilogue.bias[c]) : result[c];
    to[c] = static_cast<scalar_t>((epilogue.relu && value < 0 ? T{0} : value) * scale);
  }
}

// Writes the tiles into a map or, `listed`, into its listed cells.
template <typename T, typename scalar_t>
void unpack_tiles(const Tensor& results, const Tiles& tiles, const Cells& cells, const Epilogue<T, scalar_t>& epilogue,
                  bool listed, const Tensor& to) {
  const int64_t batch = to.size(0), channels = to.size(listed ? 2 : 1), row = padded(channels);
  const int64_t map = int64_t{cells.T} * cells.T, count = cells.count();
  // Where the results of a cell of the map lie for the first video, and how much further for each next.
  std::vector<int64_t> first_place(map, -1), step(map);
  for (const Tiles::Group& group : tiles.groups) {
    for (int64_t t = 0; t < group.count; ++t) {
      for (int32_t i = 0; i < kTile * kTile; ++i) {
        const int32_t cell = tiles.output(group.first + t)[i];
        if (cell >= 0) {
          first_place[cells.list[cell]] = (group.first * batch + t) * kTile * kTile + i;
          step[cells.list[cell]] = group.count * kTile * kTile;
        }
      }
    }
  }
  if (listed) {
    over_rows(batch * count, channels, [&](int64_t index) {
      const int32_t cell = cells.list[index % count];
      const T* result = read<T>(results) + (first_place[cell] + index / count * step[cell]) * row;
      const T scale = epilogue.scale != nullptr ? epilogue.scale[cell] : T{1};
      unpack_cell(result, epilogue, scale, channels, write<scalar_t>(to) + index * channels);
    });
    return;
  }
  std::vector<int64_t> places(batch * map);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t p = 0; p < map; ++p) {
      places[b * map + p] = first_place[p] < 0 ? -1 : first_place[p] + b * step[p];
    }
  }
  over_blocks(batch, map, channels, [&](int64_t b, int64_t first, int64_t last, int64_t channel, int32_t width) {
    unpack_block(read<T>(results), places.data() + b * map, epilogue, first, last, channel, width, row,
                 write<scalar_t>(to) + b * channels * map, map);
  });
}

template <typename T>
Tensor new_compute(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
}

// The listed cells [video][cell][channel] of a map or, `listed`, of what holds no others.
template <typename T, typename scalar_t>
Tensor pack_cells(const Tensor& x, const Cells& cells, bool listed) {
  const int64_t batch = x.size(0), channels = x.size(listed ? 2 : 1), row = padded(channels), count = cells.count();
  if (listed && std::is_same_v<T, scalar_t> && row == channels) {
    return x;
  }
  Tensor packed = new_compute<T>(x, {batch, count, row});
  if (listed) {
    over_rows(batch * count, row, [&](int64_t index) {
      const scalar_t* from = read<scalar_t>(x) + index * channels;
      T* to = write<T>(packed) + index * row;
      std::fill(std::transform(from, from + channels, to, [](scalar_t value) { return static_cast<T>(value); }),
                to + row, T{0});
    });
    return packed;
  }
  const int64_t map = int64_t{cells.T} * cells.T;
  over_blocks(batch, count, channels, [&](int64_t b, int64_t first, int64_t last, int64_t c, int32_t width) {
    const Listed<scalar_t, T> from{read<scalar_t>(x) + b * channels * map, cells.list.data(), map};
    pack_block(from, first, last, c, width, write<T>(packed) + b * count * row, row);
  });
  return packed;
}

template <typename T, typename scalar_t>
void pack_gradient_cell(const scalar_t* grad, const scalar_t* out, T scale, int64_t channels, int64_t row, T* to) {
  for (int64_t c = 0; c < channels; ++c) {
    const T value = static_cast<T>(grad[c]) * scale;
    to[c] = out != nullptr && static_cast<T>(out[c]) <= 0 ? T{0} : value;
  }
  std::fill(to + channels, to + row, T{0});
}

// The gradient at the listed cells, taken back through scale and ReLU (`out`: its results, if there was one).
template <typename T, typename scalar_t>
Tensor pack_gradient(const Tensor& grad, const std::optional<Tensor>& out, const Cells& cells, const T* scale,
                     bool listed) {
  const int64_t batch = grad.size(0), channels = grad.size(listed ? 2 : 1), row = padded(channels);
  const int64_t map = int64_t{cells.T} * cells.T, count = cells.count();
  const scalar_t *from = read<scalar_t>(grad), *results = out ? read<scalar_t>(*out) : nullptr;
  Tensor packed = new_compute<T>(grad, {batch, count, row});
  if (listed) {
    over_rows(batch * count, row, [&](int64_t index) {
      pack_gradient_cell(from + index * channels, results != nullptr ? results + index * channels : nullptr,
                         scale[cells.list[index % count]], channels, row, write<T>(packed) + index * row);
    });
    return packed;
  }
  over_blocks(batch, count, channels, [&](int64_t b, int64_t first, int64_t last, int64_t channel, int32_t width) {
    const int64_t video = b * channels * map;
    const Incoming<scalar_t, T> incoming{from + video, results != nullptr ? results + video : nullptr,
                                         cells.list.data(), scale, map};
    pack_block(incoming, first, last, channel, width, write<T>(packed) + b * count * row, row);
  });
  return packed;
}

// The kernel [D][C][k][k] as [C][k * k][D], or, `transposed`, as [D][k * k][C].
template <typename T, typename scalar_t>
Tensor pack_kernel(const Tensor& weight, bool transposed) {
  const int64_t D = weight.size(0), C = weight.size(1), taps = weight.size(2) * weight.size(3);
  const int64_t images = transposed ? D : 1, cells = transposed ? taps : C * taps, channels = transposed ? C : D;
  const int64_t in = transposed ? D : C, row = padded(channels);
  Tensor packed = new_compute<T>(weight, {padded(in), taps, row});
  T* to = write<T>(packed);
  over_blocks(images, cells, channels, [&](int64_t d, int64_t first, int64_t last, int64_t channel, int32_t width) {
    const Dense<scalar_t, T> from{read<scalar_t>(weight) + d * C * taps, cells};
    pack_block(from, first, last, channel, width, to + d * cells * row, row);
  });
  std::fill(to + in * taps * row, to + padded(in) * taps * row, T{0});
  return packed;
}

// ---- The two ops ----------------------------------------------------------------------------------------------------

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
