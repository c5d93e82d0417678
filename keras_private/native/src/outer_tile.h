// The innermost loops, compiled once per instruction set: outer_kernel.cc includes this file several times, each time
// with other macros, so there is no include guard. target_clones would not do: GCC splits vector types to the
// machine's width before it clones.
//
// KP_ISA: namespace. KP_TARGET: attribute of every function. KP_LANES: floats of a vector. KP_ROWS: rows of a tile;
// KP_ROWS * 2 sums, 2 vectors of `right` and one of `left` must fit the registers. KP_FMA(x, y, z): x * y + z, x a
// float. KP_WIDEN(p): the KP_LANES / 2 floats at p as doubles.

namespace keras_private {
namespace KP_ISA {

typedef float Vector __attribute__((vector_size(KP_LANES * 4)));
typedef float Unaligned __attribute__((vector_size(KP_LANES * 4), aligned(4), may_alias));
constexpr int kWide = KP_LANES / 2;
typedef double Doubles __attribute__((vector_size(kWide * 8)));
typedef double StoredDoubles __attribute__((vector_size(kWide * 8), aligned(8), may_alias));

// Rows x (Vectors * KP_LANES) sums stay in registers while t runs.
template <int Rows, int Vectors>
KP_TARGET void Tile(const float* left, const ptrdiff_t* offsets, const ptrdiff_t* positions, int64_t count,
                    const float* right, int64_t stride, bool empty, float* sums) {
  const float* row[Rows];
  Vector sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    row[r] = left + offsets[r];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Vector{};
  }
  for (int64_t t = 0; t < count; ++t, right += stride) {
    const ptrdiff_t at = positions[t];
    Vector other[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) other[v] = *reinterpret_cast<const Unaligned*>(right + v * KP_LANES);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const float x = row[r][at];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] = KP_FMA(x, other[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      Unaligned* total = reinterpret_cast<Unaligned*>(sums + r * stride + v * KP_LANES);
      *total = empty ? sum[r][v] : *total + sum[r][v];
    }
  }
}

template <int Rows, int Vectors>
KP_TARGET void TileOf(int64_t rows, const float* left, const ptrdiff_t* offsets, const ptrdiff_t* positions,
                      int64_t count, const float* right, int64_t stride, bool empty, float* sums) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      Tile<Rows, Vectors>(left, offsets, positions, count, right, stride, empty, sums);
    } else {
      TileOf<Rows - 1, Vectors>(rows, left, offsets, positions, count, right, stride, empty, sums);
    }
  }
}

// right: [count, stride], sums: [rows, stride], stride a multiple of KP_LANES.
KP_TARGET void AddOuter(const float* left, const ptrdiff_t* offsets, int64_t rows, const ptrdiff_t* positions,
                        int64_t count, const float* right, int64_t stride, bool empty, float* sums) {
  for (int64_t column = 0; column < stride;) {
    const bool pair = column + 2 * KP_LANES <= stride;
    for (int64_t row = 0; row < rows; row += KP_ROWS) {
      const int64_t height = rows - row < KP_ROWS ? rows - row : KP_ROWS;
      (pair ? TileOf<KP_ROWS, 2> : TileOf<KP_ROWS, 1>)(height, left, offsets + row, positions, count, right + column,
                                                       stride, empty, sums + row * stride + column);
    }
    column += pair ? 2 * KP_LANES : KP_LANES;
  }
}

// Sixteen partial sums on every machine, so that the order of summation is the same on all.
KP_TARGET double Squares(const float* x, int64_t size) {
  constexpr int kChains = 16 / kWide;
  Doubles sums[kChains] = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) {
      const Doubles wide = KP_WIDEN(x + i + kWide * k);
      sums[k] += wide * wide;
    }
  }
  double total = 0;
  for (int k = 0; k < 16; ++k) total += sums[k / kWide][k % kWide];
  for (; i < size; ++i) total += static_cast<double>(x[i]) * x[i];
  return total;
}

// sums[q] += sum_k weights[k] * rows[k][from + q], Rows rows at a time: each sum is loaded and stored once for all.
template <int Rows>
KP_TARGET void AddRows(const float* const* rows, const float* weights, int64_t from, int64_t size, double* sums) {
  const float* row[Rows];
  double weight[Rows];
#pragma GCC unroll 8
  for (int k = 0; k < Rows; ++k) {
    row[k] = rows[k] + from;
    weight[k] = weights[k];
  }
  int64_t q = 0;
  for (; q + kWide <= size; q += kWide) {
    Doubles sum = *reinterpret_cast<const StoredDoubles*>(sums + q);
#pragma GCC unroll 8
    for (int k = 0; k < Rows; ++k) sum += KP_WIDEN(row[k] + q) * weight[k];
    *reinterpret_cast<StoredDoubles*>(sums + q) = sum;
  }
  for (; q < size; ++q) {
    for (int k = 0; k < Rows; ++k) sums[q] += static_cast<double>(row[k][q]) * weight[k];
  }
}

constexpr OuterFunctions kFunctions = {KP_LANES, AddOuter, Squares, AddRows<8>, AddRows<1>};

}  // namespace KP_ISA
}  // namespace keras_private

#undef KP_ISA
#undef KP_TARGET
#undef KP_LANES
#undef KP_ROWS
#undef KP_FMA
#undef KP_WIDEN
