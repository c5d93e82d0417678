#include "ring_gemm.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>

namespace keras_private {
namespace {

// A panel of the right factor (16 kB) stays in the first-level cache, blocks of both in the second.
constexpr int64_t kDepthBlock = 128;
constexpr int64_t kRowBlock = 120;  // Whole tiles of 8 rows, of 6 and of 2.
constexpr int64_t kColumnBlock = 512;
constexpr int64_t kLeastWork = 1 << 15;  // Multiplications worth a task of their own.

struct Freed {
  void operator()(uint64_t* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<uint64_t[], Freed>;

Buffer Allocate(int64_t words) {
  return Buffer(static_cast<uint64_t*>(::operator new[](words * sizeof(uint64_t), std::align_val_t(64))));
}

int64_t RoundUp(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

template <int Width, bool Sum>
void FillPanel(const uint64_t* values, const uint64_t* added, const int64_t* lines, const int64_t* steps,
               int64_t depth, uint64_t* out) {
  for (int64_t k = 0; k < depth; ++k, out += Width) {
    for (int i = 0; i < Width; ++i) {
      const int64_t at = lines[i] + steps[k];
      out[i] = Sum ? values[at] + added[at] : values[at];
    }
  }
}

// The lines stand side by side.
template <int Width, bool Sum>
void CopyPanel(const uint64_t* values, const uint64_t* added, int64_t line, const int64_t* steps, int64_t depth,
               uint64_t* out) {
  for (int64_t k = 0; k < depth; ++k, out += Width) {
    const uint64_t *from = values + line + steps[k], *other = added + (Sum ? line + steps[k] : 0);
    for (int i = 0; i < Width; ++i) out[i] = Sum ? from[i] + other[i] : from[i];
  }
}

template <int Width, bool Sum>
void PackPanel(const RingFactor& factor, const int64_t* lines, int64_t used, const int64_t* steps, int64_t depth,
               uint64_t* out) {
  if (used < Width) {
    for (int64_t k = 0; k < depth; ++k, out += Width) {
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = lines[i] + steps[k];
        out[i] = Sum ? factor.values[at] + factor.added[at] : factor.values[at];
      }
      std::fill(out + used, out + Width, 0);
    }
    return;
  }
  bool together = true;
  for (int i = 1; i < Width; ++i) together &= lines[i] == lines[0] + i;
  if (together) {
    CopyPanel<Width, Sum>(factor.values, factor.added, lines[0], steps, depth, out);
  } else {
    FillPanel<Width, Sum>(factor.values, factor.added, lines, steps, depth, out);
  }
}

template <int Width>
void PackLines(const RingFactor& factor, int64_t first, int64_t count, const int64_t* steps, int64_t depth,
               int64_t panel_stride, uint64_t* out) {
  int64_t lines[Width];
  for (int64_t line = 0; line < count; line += Width, out += panel_stride) {
    const int64_t used = std::min<int64_t>(Width, count - line);
    factor.lines.Fill(first + line, used, lines);
    (factor.added != nullptr ? PackPanel<Width, true> : PackPanel<Width, false>)(factor, lines, used, steps, depth,
                                                                                  out);
  }
}

// Panels [depth, width] of `count` lines from `first` on, over the depths [from, from + depth) of all summands.
void Pack(const RingFactor* factors, int64_t factor_depth, int64_t first, int64_t count, int64_t from, int64_t depth,
          int width, uint64_t* out) {
  int64_t steps[kDepthBlock];
  for (int64_t done = 0; done < depth;) {
    const int64_t summand = (from + done) / factor_depth, start = (from + done) % factor_depth;
    const int64_t length = std::min(depth - done, factor_depth - start);
    const RingFactor& factor = factors[summand];
    factor.depth.Fill(start, length, steps);
    const auto pack = width == 16  ? PackLines<16>
                      : width == 8 ? PackLines<8>
                      : width == 6 ? PackLines<6>
                      : width == 4 ? PackLines<4>
                                   : PackLines<2>;
    pack(factor, first, count, steps, length, depth * width, out + done * width);
    done += length;
  }
}

struct Range {
  int64_t from, to;
  int64_t size() const { return to - from; }
};

// Adds the part of the product at these rows, columns and depths to out, whose first row and column are theirs.
void AddPart(const RingProduct& product, const RingTile& tile, Range rows, Range columns, Range depths, uint64_t* out,
             const Grid& out_rows, int64_t first_row) {
  const int64_t most_rows = std::min(kRowBlock, RoundUp(rows.size(), tile.rows));
  const int64_t most_columns = std::min(kColumnBlock, RoundUp(columns.size(), tile.columns));
  const int64_t most_depth = std::min(kDepthBlock, depths.size());
  const Buffer left = Allocate(most_rows * most_depth), right = Allocate(most_columns * most_depth);
  int64_t offsets[kRowBlock];
  for (int64_t column = columns.from; column < columns.to; column += most_columns) {
    const int64_t width = std::min(most_columns, columns.to - column);
    for (int64_t k = depths.from; k < depths.to; k += most_depth) {
      const int64_t depth = std::min(most_depth, depths.to - k);
      Pack(product.right, product.depth, column, width, k, depth, tile.columns, right.get());
      for (int64_t row = rows.from; row < rows.to; row += most_rows) {
        const int64_t height = std::min(most_rows, rows.to - row);
        Pack(product.left, product.depth, row, height, k, depth, tile.rows, left.get());
        out_rows.Fill(row - first_row, height, offsets);
        for (int64_t j = 0; j < width; j += tile.columns) {
          const int used_columns = static_cast<int>(std::min<int64_t>(tile.columns, width - j));
          for (int64_t i = 0; i < height; i += tile.rows) {
            const int used_rows = static_cast<int>(std::min<int64_t>(tile.rows, height - i));
            uint64_t* places[kMostTileRows];
            for (int r = 0; r < used_rows; ++r) places[r] = out + offsets[i + r] + (column - columns.from) + j;
            tile.add(depth, left.get() + i * depth, right.get() + j * depth, used_rows, used_columns, places);
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

void AddRingProduct(const RingProduct& product, int threads, const ParallelFor& parallel_for, const RingTile& tile) {
  const int64_t rows = product.rows, columns = product.columns, depth = product.depth * product.summands;
  if (rows <= 0 || columns <= 0 || depth <= 0) return;
  const Cuts cuts = ChooseCuts(rows, columns, depth, threads, tile);
  std::mutex mutex;
  const auto run = [&](int64_t start, int64_t limit) {
    for (int64_t task = start; task < limit; ++task) {
      const Range part_rows = PartOf(rows, cuts.rows, task / cuts.depths % cuts.rows, tile.rows);
      const Range part_columns = PartOf(columns, cuts.columns, task / cuts.depths / cuts.rows, tile.columns);
      const Range part_depths = PartOf(depth, cuts.depths, task % cuts.depths, 1);
      if (part_rows.size() <= 0 || part_columns.size() <= 0 || part_depths.size() <= 0) continue;
      if (cuts.depths == 1) {
        AddPart(product, tile, part_rows, part_columns, part_depths, product.out + part_columns.from, product.out_rows,
                0);
        continue;
      }
      const int64_t width = part_columns.size();
      const Buffer sums = Allocate(part_rows.size() * width);
      std::fill_n(sums.get(), part_rows.size() * width, 0);
      AddPart(product, tile, part_rows, part_columns, part_depths, sums.get(), Grid::Line(width), part_rows.from);
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t row = 0; row < part_rows.size(); ++row) {
        int64_t offset;
        product.out_rows.Fill(part_rows.from + row, 1, &offset);
        uint64_t* to = product.out + offset + part_columns.from;
        for (int64_t j = 0; j < width; ++j) to[j] += sums[row * width + j];
      }
    }
  };
  const double work = static_cast<double>(rows) * columns * depth / cuts.tasks() / 4;
  parallel_for(cuts.tasks(), static_cast<int64_t>(std::min(work, 1e15)), run);
}

}  // namespace keras_private
