#include "ring_tile.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define KERAS_PRIVATE_X86 1
#endif

namespace keras_private {
namespace {

// Calls Kernel<Rows>::Run for the number of rows used: a tile at the lower edge costs what it holds.
template <template <int, int> class Kernel, int Rows, int Vectors>
void ForRows(int used_rows, int64_t depth, const uint64_t* left, const uint64_t* right, int used_columns,
             uint64_t* const* out) {
  if constexpr (Rows > 1) {
    if (used_rows < Rows) {
      ForRows<Kernel, Rows - 1, Vectors>(used_rows, depth, left, right, used_columns, out);
      return;
    }
  }
  Kernel<Rows, Vectors>::Run(depth, left, right, used_columns, out);
}

template <int Rows, int Unused>
struct Portable {
  static void Run(int64_t depth, const uint64_t* left, const uint64_t* right, int used_columns,
                  uint64_t* const* out) {
    uint64_t sums[Rows][4] = {};
    for (int64_t k = 0; k < depth; ++k, left += 2, right += 4) {
      for (int r = 0; r < Rows; ++r) {
        for (int j = 0; j < 4; ++j) sums[r][j] += left[r] * right[j];
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int j = 0; j < used_columns; ++j) out[r][j] += sums[r][j];
    }
  }
};

constexpr RingTile kPortable = {
    2, 4,
    [](int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
       uint64_t* const* out) { ForRows<Portable, 2, 1>(used_rows, depth, left, right, used_columns, out); }};

#ifdef KERAS_PRIVATE_X86

// x y = low(x) low(y) + 2^32 (low(x) high(y) + high(x) low(y)): the first product keeps 64 bits, of the other two only
// the lower 32 count, so that one multiplication of 32-bit lanes with y's halves swapped gives both.
template <int Rows, int Unused>
struct Avx2 {
  __attribute__((target("avx2"))) static void Run(int64_t depth, const uint64_t* left, const uint64_t* right,
                                                  int used_columns, uint64_t* const* out) {
    __m256i low[Rows], cross[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) low[r] = cross[r] = _mm256_setzero_si256();
    for (int64_t k = 0; k < depth; ++k, left += 6, right += 4) {
      const __m256i y = _mm256_load_si256(reinterpret_cast<const __m256i*>(right));
      const __m256i swapped = _mm256_shuffle_epi32(y, 0xb1);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256i x = _mm256_set1_epi64x(static_cast<int64_t>(left[r]));
        low[r] = _mm256_add_epi64(low[r], _mm256_mul_epu32(x, y));
        cross[r] = _mm256_add_epi32(cross[r], _mm256_mullo_epi32(x, swapped));
      }
    }
    const __m256i upper = _mm256_set1_epi64x(static_cast<int64_t>(0xffffffff00000000));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m256i both = _mm256_add_epi64(_mm256_slli_epi64(cross[r], 32), _mm256_and_si256(cross[r], upper));
      const __m256i sum = _mm256_add_epi64(low[r], both);
      if (used_columns == 4) {
        __m256i* place = reinterpret_cast<__m256i*>(out[r]);
        _mm256_storeu_si256(place, _mm256_add_epi64(_mm256_loadu_si256(place), sum));
      } else {
        alignas(32) uint64_t parts[4];
        _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum);
        for (int j = 0; j < used_columns; ++j) out[r][j] += parts[j];
      }
    }
  }
};

constexpr RingTile kAvx2 = {
    6, 4,
    [](int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
       uint64_t* const* out) { ForRows<Avx2, 6, 1>(used_rows, depth, left, right, used_columns, out); }};

typedef uint64_t Lanes __attribute__((vector_size(64)));
typedef uint64_t StoredLanes __attribute__((vector_size(64), aligned(8)));

template <int Rows, int Vectors>
struct Avx512 {
  __attribute__((target("avx512f,avx512dq"))) static void Run(int64_t depth, const uint64_t* left,
                                                              const uint64_t* right, int used_columns,
                                                              uint64_t* const* out) {
    Lanes sums[Rows][Vectors] = {};
    for (int64_t k = 0; k < depth; ++k, left += 8, right += 16) {
      Lanes y[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) y[v] = *reinterpret_cast<const Lanes*>(right + 8 * v);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sums[r][v] += left[r] * y[v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        const int used = used_columns - 8 * v;
        if (used >= 8) {
          *reinterpret_cast<StoredLanes*>(out[r] + 8 * v) += sums[r][v];
        } else {
          for (int j = 0; j < used; ++j) out[r][8 * v + j] += sums[r][v][j];
        }
      }
    }
  }
};

constexpr RingTile kAvx512 = {
    8, 16,
    [](int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
       uint64_t* const* out) {
      (used_columns > 8 ? ForRows<Avx512, 8, 2> : ForRows<Avx512, 8, 1>)(used_rows, depth, left, right, used_columns,
                                                                         out);
    }};

#endif  // KERAS_PRIVATE_X86

struct Usable {
  const RingTile* tiles[3];
  int count = 0;

  Usable() {
#ifdef KERAS_PRIVATE_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) tiles[count++] = &kAvx512;
    if (__builtin_cpu_supports("avx2")) tiles[count++] = &kAvx2;
#endif
    tiles[count++] = &kPortable;
  }
};

const Usable& UsableTiles() {
  static const Usable usable;
  return usable;
}

}  // namespace

const RingTile& WidestRingTile() { return *UsableTiles().tiles[0]; }

const RingTile* const* RingTiles(int* count) {
  *count = UsableTiles().count;
  return UsableTiles().tiles;
}

}  // namespace keras_private
