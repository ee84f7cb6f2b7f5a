// temporal_map_conv2d on the CPU. See vpgfast/ops/temporal_map_conv2d.py for what it computes.
//
// Winograd's algorithm F(4x4, 5x5): a tile of 4 x 4 output cells, and a kernel of 5 x 5 taps, need 8 x 8 = 64 products
// ("frequencies") where the sum itself has 16 * 25. A wider kernel is cut into sub-kernels, 4 taps apart, whose products
// are added up frequency by frequency. Only tiles with a cell of the output mask are computed, and of those only the
// sub-kernels whose 8 x 8 patch of the input holds a valid cell.
//
// Everything is channels-last, so that a frequency's products are one matrix product over all tiles. The 64
// frequencies are the pairs (u, v) of 8 points an axis, and all work goes by rows u of 8 frequencies: what lies in
// memory at a time is the transformed kernel of one u, and the patches of a chunk of tiles, which stay in the cache.

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "common/aten.h"
#include "common/multiversion.h"
#include "common/tensor.h"

namespace vpgfast {
namespace {

constexpr int32_t kTile = 4;                   // output cells of a tile, along an axis
constexpr int32_t kTaps = 5;                   // taps of a sub-kernel
constexpr int32_t kPoints = kTile + kTaps - 1;  // input cells of a patch, and products, along an axis
constexpr int64_t kChunkElements = 1 << 21;    // of the transformed patches of a chunk of tiles
constexpr int32_t kLanes = 16;                 // channels of a block
constexpr int32_t kCellBlock = 64;

// Multiplying the polynomials of a row of `kTile` cells and one of `kTaps` taps by their values at `kPoints` points
// (Toom and Cook), transposed: output = sum_f output[f][.] * (kernel[f] . taps) * (input[f] . patch).
// The points are those whose powers are exact in binary and close to one: float32's error is the least with them.
struct Transform {
  double input[kPoints][kPoints] = {};
  double kernel[kPoints][kTaps] = {};
  double output[kPoints][kTile] = {};
};

constexpr Transform make_transform() {
  constexpr double points[kPoints - 1] = {1, -1, 2, -2, 0.5, -0.5, 0};  // and infinity, the last
  Transform t;
  for (int32_t f = 0; f < kPoints; ++f) {
    const bool infinite = f == kPoints - 1;
    double polynomial[kPoints] = {1};  // the product of (x - p) over the other points
    double norm = 1;
    for (int32_t j = 0, degree = 0; j < kPoints - 1; ++j) {
      if (j == f) {
        continue;
      }
      ++degree;
      for (int32_t i = degree; i >= 0; --i) {
        polynomial[i] = (i > 0 ? polynomial[i - 1] : 0) - (i < degree ? points[j] * polynomial[i] : 0);
      }
      norm *= infinite ? 1 : points[f] - points[j];
    }
    for (int32_t i = 0; i < kPoints; ++i) {
      t.input[f][i] = polynomial[i];
    }
    double power = 1;
    for (int32_t i = 0; i < kTaps; ++i) {
      t.kernel[f][i] = infinite ? (i == kTaps - 1) : power / norm;
      if (i < kTile) {
        t.output[f][i] = infinite ? (i == kTile - 1) : power;
      }
      power *= infinite ? 1 : points[f];
    }
  }
  return t;
}

constexpr Transform kTransform = make_transform();

// The cells of a mask in reading order, and where each stands among them (-1: not in the mask).
struct Cells {
  Cells(const std::optional<Tensor>& mask_in, int64_t size) : T(static_cast<int32_t>(size)) {
    STD_TORCH_CHECK(size < 46341, "temporal_map_conv2d: a map of ", size, " clips is too large");
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
      : per_axis(static_cast<int32_t>(std::max<int64_t>(1, (k + kTile - 2) / kTile))), sub_kernels(per_axis * per_axis) {
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

// to[cell][channel] = from(channel, cell), a block of cells of a block of channels.
template <typename Source, typename T>
VPGFAST_MULTIVERSION void pack_block(const Source& from, int64_t first, int64_t last, int64_t channel, int32_t width,
                                     T* to, int64_t channels) {
  T block[kLanes][kCellBlock];
  for (int64_t start = first; start < last; start += kCellBlock) {
    const int32_t cells = static_cast<int32_t>(std::min<int64_t>(kCellBlock, last - start));
    for (int32_t c = 0; c < width; ++c) {
      for (int32_t p = 0; p < cells; ++p) {
        block[c][p] = from(channel + c, start + p);
      }
    }
    for (int32_t p = 0; p < cells; ++p) {
      for (int32_t c = 0; c < width; ++c) {
        to[(start + p) * channels + channel + c] = block[c][p];
      }
    }
  }
}

// Runs work(image, first cell, last cell, first channel, number of channels) over blocks of all of them.
template <typename Work>
void over_blocks(int64_t images, int64_t cells, int64_t channels, const Work& work) {
  constexpr int64_t kCells = 16 * kCellBlock;
  const int64_t cell_blocks = (cells + kCells - 1) / kCells, channel_blocks = (channels + kLanes - 1) / kLanes;
  torch::stable::parallel_for(0, images * cell_blocks * channel_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / (cell_blocks * channel_blocks), first = index / channel_blocks % cell_blocks * kCells;
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

// ---- The transforms ------------------------------------------------------------------------------------------------

template <typename T>
struct Coefficients {
  T input[kPoints][kPoints], kernel[kPoints][kTaps], output[kPoints][kTile];
};

template <typename T>
constexpr Coefficients<T> rounded() {
  Coefficients<T> c = {};
  for (int32_t f = 0; f < kPoints; ++f) {
    for (int32_t i = 0; i < kPoints; ++i) {
      c.input[f][i] = static_cast<T>(kTransform.input[f][i]);
      if (i < kTaps) {
        c.kernel[f][i] = static_cast<T>(kTransform.kernel[f][i]);
      }
      if (i < kTile) {
        c.output[f][i] = static_cast<T>(kTransform.output[f][i]);
      }
    }
  }
  return c;
}

template <typename T>
constexpr Coefficients<T> kCoefficients = rounded<T>();

constexpr int32_t kStrip = 64;  // channels transformed at a time: the patch's columns stay in the first cache

// Row u of the frequencies of a patch of kSide x kSide cells, each of which points at its channels:
// to[v] = sum_ij matrix[u][i] matrix[v][j] cells[i][j].
template <typename T, int32_t kSide>
VPGFAST_MULTIVERSION void to_frequencies(const T (&matrix)[kPoints][kSide], int32_t u, const T* const* cells,
                                         int64_t channels, T* to, int64_t v_stride) {
  T columns[kSide][kStrip];
  for (int64_t first = 0; first < channels; first += kStrip) {
    const int32_t width = static_cast<int32_t>(std::min<int64_t>(kStrip, channels - first));
    for (int32_t j = 0; j < kSide; ++j) {
      T* column = columns[j];
      std::fill(column, column + kStrip, T{0});
      for (int32_t i = 0; i < kSide; ++i) {
        const T factor = matrix[u][i];
        const T* cell = cells[i * kSide + j] + first;
        if (factor != 0) {
          for (int32_t c = 0; c < width; ++c) {
            column[c] += factor * cell[c];
          }
        }
      }
    }
    for (int32_t v = 0; v < kPoints; ++v) {
      T sums[kStrip] = {};
      for (int32_t j = 0; j < kSide; ++j) {
        const T factor = matrix[v][j];
        for (int32_t c = 0; c < kStrip; ++c) {
          sums[c] += factor * columns[j][c];
        }
      }
      std::copy(sums, sums + width, to + v * v_stride + first);
    }
  }
}

// Adds what row u of the frequencies gives to the 4 x 4 cells of a tile: result[i][j] += sum_v output[u][i]
// output[v][j] products[v]. The first row, whose factors are all 1, sets them.
template <typename T>
VPGFAST_MULTIVERSION void from_frequencies(int32_t u, const T* products, int64_t v_stride, int64_t channels,
                                           T* results) {
  const auto& output = kCoefficients<T>.output;
  for (int64_t first = 0; first < channels; first += kStrip) {
    const int32_t width = static_cast<int32_t>(std::min<int64_t>(kStrip, channels - first));
    for (int32_t j = 0; j < kTile; ++j) {
      T sums[kStrip] = {};
      for (int32_t v = 0; v < kPoints; ++v) {
        const T factor = output[v][j];
        const T* product = products + v * v_stride + first;
        if (factor != 0) {
          for (int32_t c = 0; c < width; ++c) {
            sums[c] += factor * product[c];
          }
        }
      }
      for (int32_t i = 0; i < kTile; ++i) {
        const T factor = output[u][i];
        T* result = results + (i * kTile + j) * channels + first;
        if (u == 0) {
          std::copy(sums, sums + width, result);
        } else if (factor != 0) {
          for (int32_t c = 0; c < width; ++c) {
            result[c] += factor * sums[c];
          }
        }
      }
    }
  }
}

// Which of the k taps of an axis tap r of sub-kernel a is; -1: none. Neighbours share a place, which the first one has.
inline int32_t tap_of(int32_t a, int32_t r, int32_t k) {
  const int32_t tap = a * kTile + r;
  return tap < k && (a == 0 || r > 0) ? tap : -1;
}

// Row u of the frequencies of the kernel between one input channel and all output channels.
// taps [k][k][channels] (`flipped`: in reverse order); to [sub-kernel][v][.][channels].
template <typename T>
VPGFAST_MULTIVERSION void kernel_to_frequencies(int32_t u, const T* taps, bool flipped, int32_t k, int32_t per_axis,
                                                int64_t channels, T* to, int64_t v_stride) {
  const auto& kernel = kCoefficients<T>.kernel;
  for (int64_t first = 0; first < channels; first += kStrip) {
    const int32_t width = static_cast<int32_t>(std::min<int64_t>(kStrip, channels - first));
    for (int32_t a = 0; a < per_axis; ++a) {
      for (int32_t b = 0; b < per_axis; ++b) {
        T columns[kTaps][kStrip] = {};
        for (int32_t s = 0; s < kTaps; ++s) {
          for (int32_t r = 0; r < kTaps; ++r) {
            const int32_t i = tap_of(a, r, k), j = tap_of(b, s, k);
            const T factor = kernel[u][r];
            if (i >= 0 && j >= 0 && factor != 0) {
              const int32_t tap = flipped ? k * k - 1 - (i * k + j) : i * k + j;
              const T* values = taps + tap * channels + first;
              for (int32_t c = 0; c < width; ++c) {
                columns[s][c] += factor * values[c];
              }
            }
          }
        }
        T* sub_kernel = to + (a * per_axis + b) * kPoints * v_stride;
        for (int32_t v = 0; v < kPoints; ++v) {
          T sums[kStrip] = {};
          for (int32_t s = 0; s < kTaps; ++s) {
            for (int32_t c = 0; c < kStrip; ++c) {
              sums[c] += kernel[v][s] * columns[s][c];
            }
          }
          std::copy(sums, sums + width, sub_kernel + v * v_stride + first);
        }
      }
    }
  }
}

// The transpose of that: adds to the gradient of the taps what row u of their frequencies' gradients gives.
template <typename T>
VPGFAST_MULTIVERSION void kernel_from_frequencies(int32_t u, const T* frequencies, int64_t v_stride, int32_t k,
                                                  int32_t per_axis, int64_t channels, T* taps) {
  const auto& kernel = kCoefficients<T>.kernel;
  for (int64_t first = 0; first < channels; first += kStrip) {
    const int32_t width = static_cast<int32_t>(std::min<int64_t>(kStrip, channels - first));
    for (int32_t a = 0; a < per_axis; ++a) {
      for (int32_t b = 0; b < per_axis; ++b) {
        const T* sub_kernel = frequencies + (a * per_axis + b) * kPoints * v_stride + first;
        for (int32_t s = 0; s < kTaps; ++s) {
          T sums[kStrip] = {};
          for (int32_t v = 0; v < kPoints; ++v) {
            const T factor = kernel[v][s];
            for (int32_t c = 0; c < width; ++c) {
              sums[c] += factor * sub_kernel[v * v_stride + c];
            }
          }
          for (int32_t r = 0; r < kTaps; ++r) {
            const int32_t i = tap_of(a, r, k), j = tap_of(b, s, k);
            const T factor = kernel[u][r];
            if (i >= 0 && j >= 0) {
              T* values = taps + (i * k + j) * channels + first;
              for (int32_t c = 0; c < width; ++c) {
                values[c] = (u == 0 ? T{0} : values[c]) + factor * sums[c];
              }
            }
          }
        }
      }
    }
  }
}

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

int64_t rows_of_chunk(int64_t channels) {
  return std::max<int64_t>(64, kChunkElements / (kPoints * std::max<int64_t>(1, channels)));
}

std::vector<Chunk> cut(const Tiles& tiles, int64_t batch, int64_t most_rows) {
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

// Row u of the frequencies of a chunk's patches, [v][row][channel]. packed: [video][listed cell][channel];
// `cells(tile)` are the indices of the cells of a patch.
template <typename T, int32_t kSide, typename CellsOf>
void patches_to_frequencies(const T (&matrix)[kPoints][kSide], int32_t u, const Chunk& chunk, const T* packed,
                            int64_t listed, int64_t channels, const T* zeros, const CellsOf& cells_of, T* to) {
  torch::stable::parallel_for(0, chunk.rows, 1, [&](int64_t begin, int64_t end) {
    const T* cells[kSide * kSide];
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* indices = cells_of(chunk.tile(row));
      const T* video = packed + chunk.video(row) * listed * channels;
      for (int32_t i = 0; i < kSide * kSide; ++i) {
        cells[i] = indices[i] < 0 ? zeros : video + indices[i] * channels;
      }
      to_frequencies<T, kSide>(matrix, u, cells, channels, to + row * channels, chunk.rows * channels);
    }
  });
}

// taps: [input channel][k][k][output channel]. Returns the 4 x 4 cells of every tile, [row][16][output channel].
template <typename T>
Tensor convolve(const Tensor& packed, const Tensor& taps, bool flipped, const Tiles& tiles, int32_t k) {
  const int64_t batch = packed.size(0), listed = packed.size(1), in = packed.size(2), out = taps.size(2);
  const int64_t frequencies = kPoints * tiles.sub_kernels;
  Tensor results = torch::stable::new_empty(packed, {batch * tiles.count, kTile * kTile, out});
  Tensor kernel = torch::stable::new_empty(packed, {frequencies, in, out});
  const int64_t most_rows = rows_of_chunk(std::max(in, out));
  const std::vector<Chunk> chunks = cut(tiles, batch, most_rows);
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) {
    rows = std::max(rows, chunk.rows);
  }
  Tensor patches = torch::stable::new_empty(packed, {kPoints, rows, in});
  Tensor products = torch::stable::new_empty(packed, {kPoints, rows, out});
  const std::vector<T> zeros(in);
  T* U = write<T>(kernel);
  T* V = write<T>(patches);
  T* M = write<T>(products);
  T* Y = write<T>(results);

  for (int32_t u = 0; u < kPoints; ++u) {
    torch::stable::parallel_for(0, in, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        kernel_to_frequencies(u, read<T>(taps) + c * k * k * out, flipped, k, tiles.per_axis, out, U + c * out,
                              in * out);
      }
    });
    for (const Chunk& chunk : chunks) {
      const Tensor product = view_of(M, {kPoints, chunk.rows, out}, {chunk.rows * out, out, 1}, packed);
      bool add = false;
      for (const int32_t s : chunk.group->sub_kernels) {
        const auto cells_of = [&](int64_t tile) { return tiles.input(tile, s); };
        patches_to_frequencies<T, kPoints>(kCoefficients<T>.input, u, chunk, read<T>(packed), listed, in, zeros.data(),
                                           cells_of, V);
        cpu_bmm(product, view_of(V, {kPoints, chunk.rows, in}, {chunk.rows * in, in, 1}, packed),
                view_of(U + s * kPoints * in * out, {kPoints, in, out}, {in * out, out, 1}, packed), add);
        add = true;
      }
      if (!add) {
        std::fill(M, M + kPoints * chunk.rows * out, T{0});
      }
      torch::stable::parallel_for(0, chunk.rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          from_frequencies(u, M + row * out, chunk.rows * out, out, Y + (chunk.place() + row) * kTile * kTile * out);
        }
      });
    }
  }
  return results;
}

// The gradient of the taps, [input channel][k][k][output channel], from the packed input and the packed gradient.
template <typename T>
Tensor convolve_backward_taps(const Tensor& packed, const Tensor& grad, const Tiles& tiles, int32_t k) {
  const int64_t batch = packed.size(0), listed = packed.size(1), in = packed.size(2), out = grad.size(2);
  const int64_t results = grad.size(1);
  Tensor taps = torch::stable::new_empty(packed, {in, k * k, out});
  Tensor kernel = torch::stable::new_empty(packed, {kPoints * tiles.sub_kernels, in, out});
  const std::vector<Chunk> chunks = cut(tiles, batch, rows_of_chunk(std::max(in, out)));
  int64_t rows = 0;
  for (const Chunk& chunk : chunks) {
    rows = std::max(rows, chunk.rows);
  }
  Tensor patches = torch::stable::new_empty(packed, {kPoints, rows, in});
  Tensor products = torch::stable::new_empty(packed, {kPoints, rows, out});
  const std::vector<T> zeros(std::max(in, out));
  T* U = write<T>(kernel);
  T* V = write<T>(patches);
  T* M = write<T>(products);

  for (int32_t u = 0; u < kPoints; ++u) {
    torch::stable::zero_(kernel);
    for (const Chunk& chunk : chunks) {
      patches_to_frequencies<T, kTile>(kCoefficients<T>.output, u, chunk, read<T>(grad), results, out, zeros.data(),
                                       [&](int64_t tile) { return tiles.output(tile); }, M);
      const Tensor product = view_of(M, {kPoints, chunk.rows, out}, {chunk.rows * out, out, 1}, packed);
      for (const int32_t s : chunk.group->sub_kernels) {
        const auto cells_of = [&](int64_t tile) { return tiles.input(tile, s); };
        patches_to_frequencies<T, kPoints>(kCoefficients<T>.input, u, chunk, read<T>(packed), listed, in, zeros.data(),
                                           cells_of, V);
        cpu_bmm(view_of(U + s * kPoints * in * out, {kPoints, in, out}, {in * out, out, 1}, packed),
                view_of(V, {kPoints, in, chunk.rows}, {chunk.rows * in, 1, in}, packed), product, true);
      }
    }
    torch::stable::parallel_for(0, in, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        kernel_from_frequencies(u, U + c * out, in * out, k, tiles.per_axis, out, write<T>(taps) + c * k * k * out);
      }
    });
  }
  return taps;
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
    for (int32_t c = 0; c < width; ++c) {
      for (int32_t p = 0; p < cells; ++p) {
        to[(channel + c) * channel_stride + start + p] = static_cast<scalar_t>(block[p][c]);
      }
    }
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
    unpack_block(read<T>(results), places.data() + b * map, epilogue, first, last, channel, width, channels,
                 write<scalar_t>(to) + b * channels * map, map);
  });
}

template <typename T>
Tensor new_compute(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
}

template <typename T, typename scalar_t>
Tensor pack_map(const Tensor& x, const Cells& cells) {
  const int64_t batch = x.size(0), channels = x.size(1), map = x.size(2) * x.size(3);
  Tensor packed = new_compute<T>(x, {batch, cells.count(), channels});
  over_blocks(batch, cells.count(), channels, [&](int64_t b, int64_t first, int64_t last, int64_t c, int32_t width) {
    const Listed<scalar_t, T> from{read<scalar_t>(x) + b * channels * map, cells.list.data(), map};
    pack_block(from, first, last, c, width, write<T>(packed) + b * cells.count() * channels, channels);
  });
  return packed;
}

// The kernel [D][C][k][k] as [C][k][k][D], or, `transposed`, as [D][k][k][C].
template <typename T, typename scalar_t>
Tensor pack_taps(const Tensor& weight, bool transposed) {
  const int64_t D = weight.size(0), C = weight.size(1), taps = weight.size(2) * weight.size(3);
  const int64_t images = transposed ? D : 1, cells = transposed ? taps : C * taps, channels = transposed ? C : D;
  Tensor packed = new_compute<T>(weight, {transposed ? D : C, taps, channels});
  over_blocks(images, cells, channels, [&](int64_t d, int64_t first, int64_t last, int64_t channel, int32_t width) {
    const Dense<scalar_t, T> from{read<scalar_t>(weight) + d * C * taps, cells};
    pack_block(from, first, last, channel, width, write<T>(packed) + d * cells * channels, channels);
  });
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
    const Tensor results = convolve<compute>(pack_map<compute, scalar_t>(x, in_cells),
                                             pack_taps<compute, scalar_t>(weight, false), false, tiles,
                                             static_cast<int32_t>(k));
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
    Tensor packed = new_compute<compute>(x, {B, listed, D});
    over_blocks(B, listed, D, [&](int64_t b, int64_t first, int64_t last, int64_t channel, int32_t width) {
      const Incoming<scalar_t, compute> from{read<scalar_t>(grad) + b * D * map,
                                             out ? read<scalar_t>(*out) + b * D * map : nullptr, out_cells.list.data(),
                                             scale.data(), map};
      pack_block(from, first, last, channel, width, write<compute>(packed) + b * listed * D, D);
    });
    if (needs_bias) {
      const compute* rows = read<compute>(packed);
      torch::stable::parallel_for(0, D, kLanes, [&](int64_t begin, int64_t end) {
        std::vector<double> sums(end - begin);
        for (int64_t row = 0; row < B * listed; ++row) {
          for (int64_t d = begin; d < end; ++d) {
            sums[d - begin] += rows[row * D + d];
          }
        }
        std::transform(sums.begin(), sums.end(), write<scalar_t>(grad_bias) + begin,
                       [](double sum) { return static_cast<scalar_t>(static_cast<compute>(sum)); });
      });
    }
    if (needs_weight && grad_weight.numel() > 0) {
      const Tiles tiles(in_cells, out_cells, k, padding);
      const Tensor taps = convolve_backward_taps<compute>(pack_map<compute, scalar_t>(x, in_cells), packed, tiles,
                                                          static_cast<int32_t>(k));
      std::vector<int64_t> places(C * k * k);
      for (size_t i = 0; i < places.size(); ++i) {
        places[i] = static_cast<int64_t>(i);
      }
      const Epilogue<compute, scalar_t> plain{nullptr, nullptr, false};
      over_blocks(1, C * k * k, D, [&](int64_t, int64_t first, int64_t last, int64_t channel, int32_t width) {
        unpack_block(read<compute>(taps), places.data(), plain, first, last, channel, width, D,
                     write<scalar_t>(grad_weight), C * k * k);
      });
    }
    if (needs_x && grad_x.numel() > 0) {  // the same convolution of the gradient, kernel reversed, masks exchanged
      const Tiles tiles(out_cells, in_cells, k, k - 1 - padding);
      const Tensor results = convolve<compute>(packed, pack_taps<compute, scalar_t>(weight, true), true, tiles,
                                               static_cast<int32_t>(k));
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
