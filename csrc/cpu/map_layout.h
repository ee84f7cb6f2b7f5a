// Moving maps between torch's layout, channels first, and channels-last rows of the cells that count.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common/tensor.h"
#include "cpu/map_tiles.h"
#include "cpu/transpose.h"

namespace vpgfast {

constexpr int64_t kElementsPerTask = 1 << 15;  // below which a second thread is not worth waking
constexpr int32_t kCellBlock = 64;             // cells that are moved from one layout to the other at a time

inline int64_t padded(int64_t channels) {
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

}  // namespace vpgfast
