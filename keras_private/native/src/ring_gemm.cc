#include "ring_gemm.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

namespace keras_private {
namespace {

// A panel of the right factor (16 kB) stays in the first-level cache, blocks of both in the second.
constexpr int64_t kDepthBlock = 128;
constexpr int64_t kRowBlock = 120;  // Whole tiles of 8 rows, of 4 and of 2.
constexpr int64_t kColumnBlock = 512;
constexpr double kScattering = 1.3;      // How much more a product costs whose sums are scattered.
constexpr int64_t kLeastWork = 1 << 15;  // Multiplications worth a task of their own.

struct Freed {
  void operator()(uint64_t* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<uint64_t[], Freed>;

Buffer Allocate(int64_t words) {
  return Buffer(static_cast<uint64_t*>(::operator new[](words * sizeof(uint64_t), std::align_val_t(64))));
}

int64_t RoundUp(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Depths of a block: where they stand, and from which of them on a vector's lanes of depths stand side by side.
struct Steps {
  int64_t count;
  int64_t offsets[kDepthBlock];
  bool together[kDepthBlock];

  void Fill(const Grid& grid, int64_t first, int64_t length, int lanes) {
    count = length;
    grid.Fill(first, length, offsets);
    int64_t run = 0;  // Of depths side by side, from k on.
    for (int64_t k = count - 1; k >= 0; --k) {
      run = k + 1 < count && offsets[k + 1] == offsets[k] + 1 ? run + 1 : 1;
      together[k] = run >= lanes;
    }
  }
};

template <int Width, bool Sum>
void FillPanel(const RingFactor& factor, const int64_t* lines, int64_t used, const int64_t* steps, int64_t depth,
               uint64_t* out) {
  for (int64_t k = 0; k < depth; ++k, out += Width) {
    for (int64_t i = 0; i < used; ++i) {
      const int64_t at = lines[i] + steps[k];
      out[i] = Sum ? factor.values[at] + factor.added[at] : factor.values[at];
    }
    for (int64_t i = used; i < Width; ++i) out[i] = 0;
  }
}

// The lines stand side by side.
template <int Width, bool Sum>
void CopyPanel(const RingFactor& factor, int64_t line, const Steps& steps, uint64_t* out) {
  for (int64_t k = 0; k < steps.count; ++k, out += Width) {
    const int64_t at = line + steps.offsets[k];
    for (int i = 0; i < Width; ++i) out[i] = Sum ? factor.values[at + i] + factor.added[at + i] : factor.values[at + i];
  }
}

// The depths stand side by side, mostly.
template <int Width>
void TransposePanel(const RingFactor& factor, const int64_t* lines, const Steps& steps, const RingTile& tile,
                    uint64_t* out) {
  for (int64_t k = 0; k < steps.count;) {
    if (!steps.together[k]) {
      FillPanel<Width, false>(factor, lines, Width, steps.offsets + k, 1, out + k * Width);
      ++k;
      continue;
    }
    for (int i = 0; i < Width; i += tile.lanes) {
      const uint64_t* from[kMostTileColumns];
      for (int lane = 0; lane < tile.lanes; ++lane) from[lane] = factor.values + lines[i + lane] + steps.offsets[k];
      tile.transpose(from, Width, out + k * Width + i);
    }
    k += tile.lanes;
  }
}

template <int Width, bool Sum>
void PackLines(const RingFactor& factor, int64_t first, int64_t count, const Steps& steps, const RingTile& tile,
               int64_t panel_stride, uint64_t* out) {
  int64_t lines[Width];
  for (int64_t line = 0; line < count; line += Width, out += panel_stride) {
    const int64_t used = std::min<int64_t>(Width, count - line);
    factor.lines.Fill(first + line, used, lines);
    bool together = used == Width;
    for (int i = 1; i < Width && together; ++i) together = lines[i] == lines[0] + i;
    if (together) {
      CopyPanel<Width, Sum>(factor, lines[0], steps, out);
    } else if (used == Width && !Sum && tile.transpose != nullptr && Width % tile.lanes == 0) {
      TransposePanel<Width>(factor, lines, steps, tile, out);
    } else if (used == Width) {
      FillPanel<Width, Sum>(factor, lines, Width, steps.offsets, steps.count, out);
    } else {
      FillPanel<Width, Sum>(factor, lines, used, steps.offsets, steps.count, out);
    }
  }
}

// Panels [depth, width] of `count` lines from `first` on, over the depths [from, from + depth) of all summands.
void Pack(const RingFactor* factors, int64_t factor_depth, int64_t first, int64_t count, int64_t from, int64_t depth,
          int width, const RingTile& tile, uint64_t* out) {
  Steps steps;
  for (int64_t done = 0; done < depth; done += steps.count) {
    const RingFactor& factor = factors[(from + done) / factor_depth];
    const int64_t start = (from + done) % factor_depth;
    steps.Fill(factor.depth, start, std::min(depth - done, factor_depth - start), tile.lanes);
    const auto pack = [&](auto with_sum) {
      constexpr bool kSum = decltype(with_sum)::value;
      return width == 16  ? PackLines<16, kSum>
             : width == 8 ? PackLines<8, kSum>
             : width == 4 ? PackLines<4, kSum>
                          : PackLines<2, kSum>;
    };
    (factor.added != nullptr ? pack(std::true_type()) : pack(std::false_type()))(
        factor, first, count, steps, tile, depth * width, out + done * width);
  }
}

struct Range {
  int64_t from, to;
  int64_t size() const { return to - from; }
};

// Where sums go: out[rows(first_row + i) + columns(first_column + j)].
struct Place {
  uint64_t* out;
  Grid rows;
  int64_t first_row;
  Grid columns;
  int64_t first_column;
};

// A tile of sums whose columns do not stand side by side in the result.
void AddScattered(const RingTile& tile, int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows,
                  int used_columns, const int64_t* rows, const int64_t* columns, uint64_t* out) {
  uint64_t sums[kMostTileRows * kMostTileColumns] = {};
  uint64_t* places[kMostTileRows];
  for (int r = 0; r < used_rows; ++r) places[r] = sums + r * kMostTileColumns;
  tile.add(depth, left, right, used_rows, used_columns, places);
  for (int j = 0; j < used_columns; ++j) {
    for (int r = 0; r < used_rows; ++r) out[rows[r] + columns[j]] += places[r][j];
  }
}

// Adds the part of the product at these rows, columns and depths; the first of them is place (0, 0).
void AddPart(const RingProduct& product, const RingTile& tile, Range rows, Range columns, Range depths,
             const Place& place) {
  const int64_t most_rows = std::min(kRowBlock, RoundUp(rows.size(), tile.rows));
  const int64_t most_columns = std::min(kColumnBlock, RoundUp(columns.size(), tile.columns));
  const int64_t most_depth = std::min(kDepthBlock, depths.size());
  const Buffer left = Allocate(most_rows * most_depth), right = Allocate(most_columns * most_depth);
  const bool together = place.columns.inner == Grid::Line(1).inner && place.columns.strides[2] == 1;
  int64_t row_offsets[kRowBlock], column_offsets[kColumnBlock];
  for (int64_t column = columns.from; column < columns.to; column += most_columns) {
    const int64_t width = std::min(most_columns, columns.to - column);
    place.columns.Fill(place.first_column + column - columns.from, width, column_offsets);
    for (int64_t k = depths.from; k < depths.to; k += most_depth) {
      const int64_t depth = std::min(most_depth, depths.to - k);
      Pack(product.right, product.depth, column, width, k, depth, tile.columns, tile, right.get());
      for (int64_t row = rows.from; row < rows.to; row += most_rows) {
        const int64_t height = std::min(most_rows, rows.to - row);
        Pack(product.left, product.depth, row, height, k, depth, tile.rows, tile, left.get());
        place.rows.Fill(place.first_row + row - rows.from, height, row_offsets);
        for (int64_t j = 0; j < width; j += tile.columns) {
          const int used_columns = static_cast<int>(std::min<int64_t>(tile.columns, width - j));
          for (int64_t i = 0; i < height; i += tile.rows) {
            const int used_rows = static_cast<int>(std::min<int64_t>(tile.rows, height - i));
            const uint64_t *from = left.get() + i * depth, *by = right.get() + j * depth;
            if (!together) {
              AddScattered(tile, depth, from, by, used_rows, used_columns, row_offsets + i, column_offsets + j,
                           place.out);
              continue;
            }
            uint64_t* places[kMostTileRows];
            for (int r = 0; r < used_rows; ++r) places[r] = place.out + row_offsets[i + r] + column_offsets[j];
            tile.add(depth, from, by, used_rows, used_columns, places);
          }
        }
      }
    }
  }
}

// How many parts each axis is cut into.
struct Cuts {
  int64_t rows = 1, columns = 1, depths = 1;
  int64_t tasks() const { return rows * columns * depths; }
};

// Cuts where it costs least: at a cut through the rows, both sides pack the right factor; through the columns, the left
// one; through the depth, both write all sums.
Cuts ChooseCuts(int64_t rows, int64_t columns, int64_t depth, int threads, const RingTile& tile) {
  Cuts cuts;
  const int64_t wanted = threads > 1 ? 2 * int64_t{threads} : 1;
  const double never = std::numeric_limits<double>::infinity();
  while (cuts.tasks() < wanted && static_cast<double>(rows) * columns * depth >= 2 * kLeastWork) {
    const double by_rows = rows >= 2 * tile.rows ? static_cast<double>(columns) * depth : never;
    const double by_columns = columns >= 2 * tile.columns ? static_cast<double>(rows) * depth : never;
    const double by_depth = depth >= 2 * kDepthBlock ? 2.0 * rows * columns : never;
    const double least = std::min({by_rows, by_columns, by_depth});
    if (least == never) break;
    if (least == by_rows) {
      cuts.rows *= 2;
      rows = (rows + 1) / 2;
    } else if (least == by_columns) {
      cuts.columns *= 2;
      columns = (columns + 1) / 2;
    } else {
      cuts.depths *= 2;
      depth = (depth + 1) / 2;
    }
  }
  return cuts;
}

// Part `index` of [0, size) cut into `parts` of whole units; may be empty.
Range PartOf(int64_t size, int64_t parts, int64_t index, int64_t unit) {
  const int64_t step = RoundUp((size + parts - 1) / parts, unit);
  return {std::min(size, index * step), std::min(size, (index + 1) * step)};
}

}  // namespace

void Grid::Fill(int64_t first, int64_t count, int64_t* offsets) const {
  int64_t c = first % inner, b = first / inner % middle;
  int64_t row = base + first / inner / middle * strides[0];
  int64_t at = row + b * strides[1] + c * strides[2];
  for (int64_t i = 0; i < count; ++i) {
    offsets[i] = at;
    at += strides[2];
    if (++c < inner) continue;
    c = 0;
    if (++b == middle) {
      b = 0;
      row += strides[0];
    }
    at = row + b * strides[1];
  }
}

void AddRingProduct(const RingProduct& given, int threads, const ParallelFor& parallel_for, const RingTile& tile) {
  RingProduct product = given;
  const double straight = static_cast<double>(product.rows) * RoundUp(product.columns, tile.lanes);
  const double transposed = static_cast<double>(product.columns) * RoundUp(product.rows, tile.lanes);
  if (straight > kScattering * transposed) {
    // Too few columns to fill vectors.
    std::swap(product.left, product.right);
    std::swap(product.rows, product.columns);
    std::swap(product.out_rows, product.out_columns);
  }
  const int64_t rows = product.rows, columns = product.columns, depth = product.depth * product.summands;
  if (rows <= 0 || columns <= 0 || depth <= 0) return;
  const Cuts cuts = ChooseCuts(rows, columns, depth, threads, tile);
  std::mutex mutex;
  const auto run = [&](int64_t start, int64_t limit) {
    for (int64_t task = start; task < limit; ++task) {
      const Range part_rows = PartOf(rows, cuts.rows, task / cuts.depths % cuts.rows, tile.rows);
      const Range part_columns = PartOf(columns, cuts.columns, task / cuts.depths / cuts.rows, tile.columns);
      const Range part_depths = PartOf(depth, cuts.depths, task % cuts.depths, 1);
      const int64_t height = part_rows.size(), width = part_columns.size();
      if (height <= 0 || width <= 0 || part_depths.size() <= 0) continue;
      const Place place = {product.out, product.out_rows, part_rows.from, product.out_columns, part_columns.from};
      if (cuts.depths == 1) {
        AddPart(product, tile, part_rows, part_columns, part_depths, place);
        continue;
      }
      const Buffer sums = Allocate(height * width);
      std::fill_n(sums.get(), height * width, 0);
      AddPart(product, tile, part_rows, part_columns, part_depths,
              {sums.get(), Grid::Line(width), 0, Grid::Line(1), 0});
      const std::unique_ptr<int64_t[]> row_offsets(new int64_t[height]), column_offsets(new int64_t[width]);
      place.rows.Fill(place.first_row, height, row_offsets.get());
      place.columns.Fill(place.first_column, width, column_offsets.get());
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          product.out[row_offsets[i] + column_offsets[j]] += sums[i * width + j];
        }
      }
    }
  };
  const double work = static_cast<double>(rows) * columns * depth / cuts.tasks() / 4;
  parallel_for(cuts.tasks(), static_cast<int64_t>(std::min(work, 1e15)), run);
}

}  // namespace keras_private
