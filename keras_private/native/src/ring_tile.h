// The innermost product of matrices over the integers modulo 2^64, once per instruction set.
#ifndef KERAS_PRIVATE_NATIVE_RING_TILE_H_
#define KERAS_PRIVATE_NATIVE_RING_TILE_H_

#include <cstdint>

namespace keras_private {

// Sizes of a tile on any machine are at most these.
constexpr int kMostTileRows = 8;
constexpr int kMostTileColumns = 16;

// left is [depth, rows], right [depth, columns] of the panel sizes `rows` and `columns`; of the tile only the first
// used_rows rows and used_columns columns are written: out[r][j] += sum_k left[k, r] * right[k, j].
struct RingTile {
  int rows;
  int columns;
  int lanes;  // Columns are computed in whole groups of so many; rows one by one.
  void (*add)(int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
              uint64_t* const* out);
  // out[k * stride + i] = lines[i][k] for i and k < lanes; null where the processor has no such shuffles.
  void (*transpose)(const uint64_t* const* lines, int stride, uint64_t* out);
};

// For the widest vectors that this processor has.
const RingTile& WidestRingTile();

// All that this processor can run, the widest first: for tests.
const RingTile* const* RingTiles(int* count);

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_RING_TILE_H_
