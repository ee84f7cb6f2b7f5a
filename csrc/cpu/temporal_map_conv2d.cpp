// temporal_map_conv2d on the CPU. See vpgfast/ops/temporal_map_conv2d.py for what it computes.
//
// Winograd's algorithm F(4x4, 5x5): a tile of 4 x 4 output cells, and a kernel of 5 x 5 taps, need 8 x 8 = 64 products
// ("frequencies") where the sum itself has 16 * 25. A wider kernel is cut into sub-kernels, 4 taps apart, whose
// products are added up frequency by frequency. Only tiles with a cell of the output mask are computed, and of those
// only the sub-kernels whose 8 x 8 patch of the input holds a valid cell.
//
// Everything is channels-last, so that a frequency's products are one matrix product over all tiles. The 64
// frequencies are the pairs (u, v) of 8 points an axis. Work goes by two rows u of them at a time: what lies in memory
// is the transformed kernel of 16 frequencies, and the patches of a chunk of tiles, which stay in the cache.

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "common/aten.h"
#include "common/multiversion.h"
#include "common/tensor.h"
#include "cpu/panel_gemm.h"
#include "cpu/transpose.h"

namespace vpgfast {
namespace {

constexpr int32_t kTile = 4;                    // output cells of a tile, along an axis
constexpr int32_t kTaps = 5;                    // taps of a sub-kernel
constexpr int32_t kPoints = kTile + kTaps - 1;  // input cells of a patch, and products, along an axis
constexpr int32_t kPasses = kPoints / 2;        // two rows of frequencies each
constexpr int32_t kFrequencies = 2 * kPoints;   // of a pass
constexpr int64_t kChunkElements = 1 << 21;     // of the transformed patches of a chunk of tiles
constexpr int64_t kElementsPerTask = 1 << 15;   // below which a second thread is not worth waking
constexpr int64_t kProductsPerTask = 1 << 20;   // the same, of a matrix product
constexpr int32_t kLanes = kPanel;              // numbers of channels are rounded up to a multiple of this, with zeros
constexpr int64_t kLargestSide = 46341;         // above any map's or kernel's: its square is counted in 32 bits
constexpr int32_t kCellBlock = 64;              // cells that are moved from one layout to the other at a time

// ---- The transforms ------------------------------------------------------------------------------------------------

// Multiplying the polynomials of a row of `kTile` cells and one of `kTaps` taps by their values at `kPoints` points
// (Toom and Cook), transposed: output = sum_f kOutput[f][.] * (kKernel[f] . taps) * (kInput[f] . patch).
// float32's error is the least with points that are close to one and exact in binary. Infinity is the last.
constexpr double kPoint[kPoints - 1] = {1, -1, 2, -2, 0.5, -0.5, 0};

template <int32_t kSides>
struct Matrix {
  static constexpr int32_t kSide = kSides;
  double at[kPoints][kSides] = {};
};

// Powers of the points, as many as there are cells or taps.
template <int32_t kSide>
constexpr Matrix<kSide> powers() {
  Matrix<kSide> matrix;
  for (int32_t f = 0; f < kPoints - 1; ++f) {
    double power = 1;
    for (int32_t i = 0; i < kSide; ++i) {
      matrix.at[f][i] = power;
      power *= kPoint[f];
    }
  }
  matrix.at[kPoints - 1][kSide - 1] = 1;
  return matrix;
}

// Coefficients of the product of (x - point) over all points but f.
constexpr Matrix<kPoints> products_of_the_others() {
  Matrix<kPoints> matrix;
  for (int32_t f = 0; f < kPoints; ++f) {
    double* row = matrix.at[f];
    row[0] = 1;
    for (int32_t j = 0, degree = 0; j < kPoints - 1; ++j) {
      if (j == f) {
        continue;
      }
      ++degree;
      for (int32_t i = degree; i >= 0; --i) {
        row[i] = (i > 0 ? row[i - 1] : 0) - (i < degree ? kPoint[j] * row[i] : 0);
      }
    }
  }
  return matrix;
}

// Powers over the value of that product at the point itself (Lagrange).
constexpr Matrix<kTaps> kernel_matrix() {
  Matrix<kTaps> matrix = powers<kTaps>();
  for (int32_t f = 0; f < kPoints - 1; ++f) {
    double norm = 1;
    for (int32_t j = 0; j < kPoints - 1; ++j) {
      norm *= j == f ? 1 : kPoint[f] - kPoint[j];
    }
    for (double& value : matrix.at[f]) {
      value /= norm;
    }
  }
  return matrix;
}

constexpr Matrix<kPoints> kInput = products_of_the_others();
constexpr Matrix<kTaps> kKernel = kernel_matrix();
constexpr Matrix<kTile> kOutput = powers<kTile>();

// kLanes channels (GCC's and Clang's vector extension), at any address.
template <typename T>
struct Lanes {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
};

// Two rows of the frequencies of a square of cells, taps or results, each of which points at its channels:
// to[u][v] = sum_ij kMatrix[u][i] kMatrix[v][j] cells[i][j], for u = 2 kPass and the next. `to` has `stride` elements
// between frequencies, and `panel` between every kLanes channels.
template <typename T, const auto& kMatrix, int32_t kPass>
VPGFAST_MULTIVERSION void to_frequencies(const T* const* cells, int64_t channels, T* to, int64_t stride,
                                         int64_t panel) {
  using lanes = typename Lanes<T>::type;
  constexpr int32_t kSide = std::remove_cvref_t<decltype(kMatrix)>::kSide;
  for (int64_t first = 0; first < channels; first += kLanes) {
    lanes columns[2][kSide];
#pragma GCC unroll 8
    for (int32_t j = 0; j < kSide; ++j) {
      lanes sums[2] = {};
#pragma GCC unroll 8
      for (int32_t i = 0; i < kSide; ++i) {
        const T factors[2] = {static_cast<T>(kMatrix.at[2 * kPass][i]), static_cast<T>(kMatrix.at[2 * kPass + 1][i])};
        if (factors[0] != 0 || factors[1] != 0) {  // known when compiled
          const lanes cell = *reinterpret_cast<const lanes*>(cells[i * kSide + j] + first);
          sums[0] += factors[0] != 0 ? factors[0] * cell : lanes{};
          sums[1] += factors[1] != 0 ? factors[1] * cell : lanes{};
        }
      }
      columns[0][j] = sums[0];
      columns[1][j] = sums[1];
    }
#pragma GCC unroll 2
    for (int32_t u = 0; u < 2; ++u) {
#pragma GCC unroll 8
      for (int32_t v = 0; v < kPoints; ++v) {
        lanes sum = {};
#pragma GCC unroll 8
        for (int32_t j = 0; j < kSide; ++j) {
          const T factor = static_cast<T>(kMatrix.at[v][j]);
          sum += factor != 0 ? factor * columns[u][j] : lanes{};
        }
        *reinterpret_cast<lanes*>(to + (u * kPoints + v) * stride + first / kLanes * panel) = sum;
      }
    }
  }
}

// The transpose of that: cells[i][j] += sum_uv kMatrix[u][i] kMatrix[v][j] from[u][v]. The first pass, which has no
// zero factor, sets them.
template <typename T, const auto& kMatrix, int32_t kPass>
VPGFAST_MULTIVERSION void from_frequencies(const T* from, int64_t stride, int64_t channels, T* const* cells) {
  using lanes = typename Lanes<T>::type;
  constexpr int32_t kSide = std::remove_cvref_t<decltype(kMatrix)>::kSide;
  for (int64_t first = 0; first < channels; first += kLanes) {
    lanes columns[2][kSide] = {};
#pragma GCC unroll 2
    for (int32_t u = 0; u < 2; ++u) {
#pragma GCC unroll 8
      for (int32_t v = 0; v < kPoints; ++v) {
        const lanes product = *reinterpret_cast<const lanes*>(from + (u * kPoints + v) * stride + first);
#pragma GCC unroll 8
        for (int32_t j = 0; j < kSide; ++j) {
          const T factor = static_cast<T>(kMatrix.at[v][j]);
          columns[u][j] += factor != 0 ? factor * product : lanes{};
        }
      }
    }
#pragma GCC unroll 8
    for (int32_t i = 0; i < kSide; ++i) {
#pragma GCC unroll 8
      for (int32_t j = 0; j < kSide; ++j) {
        const T factors[2] = {static_cast<T>(kMatrix.at[2 * kPass][i]), static_cast<T>(kMatrix.at[2 * kPass + 1][i])};
        lanes* cell = reinterpret_cast<lanes*>(cells[i * kSide + j] + first);
        if (factors[0] != 0 || factors[1] != 0) {
          const lanes sum = (factors[0] != 0 ? factors[0] * columns[0][j] : lanes{}) +
                            (factors[1] != 0 ? factors[1] * columns[1][j] : lanes{});
          *cell = kPass == 0 ? sum : *cell + sum;
        }
      }
    }
  }
}

// Calls f.template operator()<pass>().
template <typename F>
void dispatch_pass(int32_t pass, const F& f) {
  static_assert(kPasses == 4);
  switch (pass) {
    case 0:
      return f.template operator()<0>();
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    default:
      return f.template operator()<3>();
  }
}

// ---- What there is to compute --------------------------------------------------------------------------------------

// The cells of a mask in reading order, and where each stands among them (-1: not in the mask).
struct Cells {
  Cells(const std::optional<Tensor>& mask_in, int64_t size) : T(static_cast<int32_t>(size)) {
    STD_TORCH_CHECK(size < kLargestSide, "temporal_map_conv2d: a map of ", size, " clips is too large");
    const std::optional<Tensor> mask = mask_in ? std::optional(torch::stable::contiguous(*mask_in)) : std::nullopt;
    const bool* valid = mask ? read<bool>(*mask) : nullptr;
    index.assign(size * size, -1);
    for (int32_t cell = 0; cell < T * T; ++cell) {
      if (valid == nullptr || valid[cell]) {
        index[cell] = static_cast<int32_t>(list.size());
        list.push_back(cell);
      }
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
VPGFAST_MULTIVERSION void pack_block(const Source& from, int64_t first, int64_t last, int64_t channel, int32_t width,
                                     T* to, int64_t channels) {
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
VPGFAST_MULTIVERSION void unpack_block(const T* results, const int64_t* places, const Epilogue<T, scalar_t>& epilogue,
                                       int64_t first, int64_t last, int64_t channel, int32_t width, int64_t channels,
                                       scalar_t* to, int64_t channel_stride) {
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

template <typename T, typename scalar_t>
void unpack_tiles(const Tensor& results, const Tiles& tiles, const Cells& cells, const Epilogue<T, scalar_t>& epilogue,
                  const Tensor& to) {
  const int64_t batch = to.size(0), channels = to.size(1), map = int64_t{cells.T} * cells.T;
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
  std::vector<int64_t> places(batch * map);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t p = 0; p < map; ++p) {
      places[b * map + p] = first_place[p] < 0 ? -1 : first_place[p] + b * step[p];
    }
  }
  over_blocks(batch, map, channels, [&](int64_t b, int64_t first, int64_t last, int64_t channel, int32_t width) {
    unpack_block(read<T>(results), places.data() + b * map, epilogue, first, last, channel, width, padded(channels),
                 write<scalar_t>(to) + b * channels * map, map);
  });
}

template <typename T>
Tensor new_compute(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
}

template <typename T, typename scalar_t>
Tensor pack_map(const Tensor& x, const Cells& cells) {
  const int64_t batch = x.size(0), channels = x.size(1), map = x.size(2) * x.size(3), row = padded(channels);
  Tensor packed = new_compute<T>(x, {batch, cells.count(), row});
  over_blocks(batch, cells.count(), channels, [&](int64_t b, int64_t first, int64_t last, int64_t c, int32_t width) {
    const Listed<scalar_t, T> from{read<scalar_t>(x) + b * channels * map, cells.list.data(), map};
    pack_block(from, first, last, c, width, write<T>(packed) + b * cells.count() * row, row);
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

template <typename T>
std::vector<T> scale_of(const Cells& in, const Cells& out, int64_t k, int64_t padding, bool normalize) {
  if (!normalize) {
    return std::vector<T>(int64_t{out.T} * out.T, T{1});
  }
  const std::vector<double> scale = inverse_counts(in, out.T, k, padding);
  return std::vector<T>(scale.begin(), scale.end());
}

void check_mask(const char* op, const char* name, const std::optional<Tensor>& mask, int64_t T) {
  if (mask) {
    check_sizes(op, name, *mask, {T, T});
    check_dtype(op, name, *mask, ScalarType::Bool);
  }
}

Tensor temporal_map_conv2d(const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& bias_in,
                           const std::optional<Tensor>& in_mask, const std::optional<Tensor>& out_mask, int64_t padding,
                           bool relu, bool normalize) {
  constexpr const char* kOp = "temporal_map_conv2d";
  check_sizes(kOp, "x", x_in, {-1, -1, -1, x_in.size(2)});
  const int64_t B = x_in.size(0), C = x_in.size(1), T = x_in.size(2), D = weight_in.size(0), k = weight_in.size(2);
  const int64_t out_T = T + 2 * padding - k + 1;
  check_sizes(kOp, "weight", weight_in, {-1, C, k, k});
  check_dtype(kOp, "weight", weight_in, x_in.scalar_type());
  STD_TORCH_CHECK(k >= 1 && padding >= 0 && out_T >= 0, kOp, ": the kernel does not fit");
  STD_TORCH_CHECK(k < kLargestSide, kOp, ": a kernel of ", k, " taps a side is too large");
  check_mask(kOp, "in_mask", in_mask, T);
  check_mask(kOp, "out_mask", out_mask, out_T);
  std::optional<Tensor> bias;
  if (bias_in) {
    check_sizes(kOp, "bias", *bias_in, {D});
    check_dtype(kOp, "bias", *bias_in, x_in.scalar_type());
    bias = torch::stable::contiguous(*bias_in);
  }
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  Tensor out = torch::stable::new_empty(x, {B, D, out_T, out_T});
  if (B * D * out_T == 0) {
    return out;
  }
  const Cells in_cells(in_mask, T), out_cells(out_mask, out_T);
  const Tiles tiles(in_cells, out_cells, k, padding);
  dispatch_floating(kOp, x.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const Tensor results =
        convolve<compute>(pack_map<compute, scalar_t>(x, in_cells), pack_kernel<compute, scalar_t>(weight, false),
                          false, tiles, static_cast<int32_t>(k));
    const std::vector<compute> scale = scale_of<compute>(in_cells, out_cells, k, padding, normalize);
    unpack_tiles<compute, scalar_t>(results, tiles, out_cells,
                                    {bias ? read<scalar_t>(*bias) : nullptr, scale.data(), relu}, out);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> temporal_map_conv2d_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& out_in,
    const std::optional<Tensor>& in_mask, const std::optional<Tensor>& out_mask, int64_t padding, bool normalize,
    bool needs_x, bool needs_weight, bool needs_bias) {
  constexpr const char* kOp = "temporal_map_conv2d_backward";
  check_sizes(kOp, "x", x_in, {-1, -1, -1, x_in.size(2)});
  const int64_t B = x_in.size(0), C = x_in.size(1), T = x_in.size(2), D = weight_in.size(0), k = weight_in.size(2);
  const int64_t out_T = T + 2 * padding - k + 1, map = out_T * out_T;
  check_sizes(kOp, "weight", weight_in, {-1, C, k, k});
  check_sizes(kOp, "grad", grad_in, {B, D, out_T, out_T});
  check_dtype(kOp, "weight", weight_in, x_in.scalar_type());
  check_dtype(kOp, "grad", grad_in, x_in.scalar_type());
  check_mask(kOp, "in_mask", in_mask, T);
  check_mask(kOp, "out_mask", out_mask, out_T);
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const Tensor grad = torch::stable::contiguous(grad_in);
  std::optional<Tensor> out;
  if (out_in) {
    check_sizes(kOp, "out", *out_in, {B, D, out_T, out_T});
    check_dtype(kOp, "out", *out_in, x_in.scalar_type());
    out = torch::stable::contiguous(*out_in);
  }
  Tensor grad_x = needs_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor grad_weight = needs_weight ? torch::stable::empty_like(weight) : torch::stable::new_empty(x, {0});
  Tensor grad_bias = torch::stable::new_empty(x, {needs_bias ? D : 0});
  const Cells in_cells(in_mask, T), out_cells(out_mask, out_T);
  dispatch_floating(kOp, x.scalar_type(), [&]<typename scalar_t>() {
    using compute = accumulate_t<scalar_t>;
    const std::vector<compute> scale = scale_of<compute>(in_cells, out_cells, k, padding, normalize);
    const int64_t listed = out_cells.count();
    Tensor packed = new_compute<compute>(x, {B, listed, padded(D)});
    over_blocks(B, listed, D, [&](int64_t b, int64_t first, int64_t last, int64_t channel, int32_t width) {
      const Incoming<scalar_t, compute> from{read<scalar_t>(grad) + b * D * map,
                                             out ? read<scalar_t>(*out) + b * D * map : nullptr, out_cells.list.data(),
                                             scale.data(), map};
      pack_block(from, first, last, channel, width, write<compute>(packed) + b * listed * padded(D), padded(D));
    });
    if (needs_bias) {
      const compute* rows = read<compute>(packed);
      torch::stable::parallel_for(0, D, kLanes, [&](int64_t begin, int64_t end) {
        std::vector<double> sums(end - begin);
        for (int64_t row = 0; row < B * listed; ++row) {
          for (int64_t d = begin; d < end; ++d) {
            sums[d - begin] += rows[row * padded(D) + d];
          }
        }
        std::transform(sums.begin(), sums.end(), write<scalar_t>(grad_bias) + begin,
                       [](double sum) { return static_cast<scalar_t>(static_cast<compute>(sum)); });
      });
    }
    if (needs_weight && grad_weight.numel() > 0) {
      const Tiles tiles(in_cells, out_cells, k, padding);
      const Tensor kernel = convolve_backward_kernel<compute>(pack_map<compute, scalar_t>(x, in_cells), packed, tiles,
                                                              static_cast<int32_t>(k));
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
    if (needs_x && grad_x.numel() > 0) {  // the same convolution of the gradient, kernel reversed, masks exchanged
      const Tiles tiles(out_cells, in_cells, k, k - 1 - padding);
      const Tensor results =
          convolve<compute>(packed, pack_kernel<compute, scalar_t>(weight, true), true, tiles, static_cast<int32_t>(k));
      unpack_tiles<compute, scalar_t>(results, tiles, in_cells, {nullptr, nullptr, false}, grad_x);
    }
  });
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_map_conv2d", TORCH_BOX(&temporal_map_conv2d));
  m.impl("temporal_map_conv2d_backward", TORCH_BOX(&temporal_map_conv2d_backward));
}

}  // namespace vpgfast
