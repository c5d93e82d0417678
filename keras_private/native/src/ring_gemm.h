// Products of matrices over the integers modulo 2^64, whose elements stand anywhere in memory.
//
// A convolution is such a product: the offset of a pixel's window plus the offset of a place in it. So windows are
// never written out; they are gathered into the panels that a product needs anyway, a block at a time.
#ifndef KERAS_PRIVATE_NATIVE_RING_GEMM_H_
#define KERAS_PRIVATE_NATIVE_RING_GEMM_H_

#include <cstdint>
#include <functional>
#include <limits>

#include "ring_tile.h"

namespace keras_private {

// index = (a * middle + b) * inner + c  ->  base + a * strides[0] + b * strides[1] + c * strides[2].
struct Grid {
  int64_t middle, inner;
  int64_t strides[3];
  int64_t base = 0;

  static Grid Line(int64_t stride) { return {1, std::numeric_limits<int64_t>::max(), {0, 0, stride}}; }

  // Offsets of `count` indices from `first` on.
  void Fill(int64_t first, int64_t count, int64_t* offsets) const;
};

// Element (line, k) is values[lines(line) + depth(k)], plus the same of `added` unless that is null.
struct RingFactor {
  const uint64_t* values;
  const uint64_t* added;
  Grid lines, depth;
};

// out[out_rows(i) + out_columns(j)] += sum over summands s and k < depth of left[s](i, k) * right[s](j, k), for
// i < rows and j < columns.
struct RingProduct {
  int summands = 1;
  RingFactor left[2], right[2];
  int64_t rows, columns, depth;
  uint64_t* out;
  Grid out_rows, out_columns = Grid::Line(1);
};

// Runs its second argument over [0, total), in parts; the first argument and the estimated cycles of one unit.
using ParallelFor = std::function<void(int64_t total, int64_t cycles, const std::function<void(int64_t, int64_t)>&)>;

// Sums in a ring do not depend on their order: the result is the same for any number of threads and any tile.
void AddRingProduct(const RingProduct& product, int threads, const ParallelFor& parallel_for,
                    const RingTile& tile = WidestRingTile());

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_RING_GEMM_H_
