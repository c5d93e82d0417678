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
    2, 4, 4,
    [](int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
       uint64_t* const* out) { ForRows<Portable, 2, 1>(used_rows, depth, left, right, used_columns, out); },
    nullptr};

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
    for (int64_t k = 0; k < depth; ++k, left += 4, right += 4) {
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

typedef uint64_t Quad __attribute__((vector_size(32)));
typedef uint64_t StoredQuad __attribute__((vector_size(32), aligned(8)));

__attribute__((target("avx2"))) void TransposeAvx2(const uint64_t* const* lines, int stride, uint64_t* out) {
  Quad from[4];
  for (int i = 0; i < 4; ++i) from[i] = *reinterpret_cast<const StoredQuad*>(lines[i]);
  // Pairs of lines, then pairs of pairs.
  const Quad even = {0, 4, 2, 6}, odd = {1, 5, 3, 7}, lower = {0, 1, 4, 5}, upper = {2, 3, 6, 7};
  for (int k = 0; k < 2; ++k) {
    const Quad left = __builtin_shuffle(from[0], from[1], k ? odd : even);
    const Quad right = __builtin_shuffle(from[2], from[3], k ? odd : even);
    *reinterpret_cast<StoredQuad*>(out + k * stride) = __builtin_shuffle(left, right, lower);
    *reinterpret_cast<StoredQuad*>(out + (k + 2) * stride) = __builtin_shuffle(left, right, upper);
  }
}

constexpr RingTile kAvx2 = {
    4, 4, 4,
    [](int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
       uint64_t* const* out) { ForRows<Avx2, 4, 1>(used_rows, depth, left, right, used_columns, out); },
    TransposeAvx2};

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

__attribute__((target("avx512f,avx512dq"))) void TransposeAvx512(const uint64_t* const* lines, int stride,
                                                                 uint64_t* out) {
  Lanes from[8], quads[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) from[i] = *reinterpret_cast<const StoredLanes*>(lines[i]);
  // Pairs of lines, pairs of pairs, then the halves.
  const Lanes even = {0, 8, 2, 10, 4, 12, 6, 14}, odd = {1, 9, 3, 11, 5, 13, 7, 15};
  const Lanes lower = {0, 1, 8, 9, 4, 5, 12, 13}, upper = {2, 3, 10, 11, 6, 7, 14, 15};
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Lanes* four = from + 4 * half;
    const Lanes even01 = __builtin_shuffle(four[0], four[1], even), odd01 = __builtin_shuffle(four[0], four[1], odd);
    const Lanes even23 = __builtin_shuffle(four[2], four[3], even), odd23 = __builtin_shuffle(four[2], four[3], odd);
    quads[half] = __builtin_shuffle(even01, even23, lower);
    quads[2 + half] = __builtin_shuffle(odd01, odd23, lower);
    quads[4 + half] = __builtin_shuffle(even01, even23, upper);
    quads[6 + half] = __builtin_shuffle(odd01, odd23, upper);
  }
  const Lanes first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    *reinterpret_cast<StoredLanes*>(out + k * stride) = __builtin_shuffle(quads[2 * k], quads[2 * k + 1], first);
    *reinterpret_cast<StoredLanes*>(out + (k + 4) * stride) = __builtin_shuffle(quads[2 * k], quads[2 * k + 1], second);
  }
}

constexpr RingTile kAvx512 = {
    8, 16, 8,
    [](int64_t depth, const uint64_t* left, const uint64_t* right, int used_rows, int used_columns,
       uint64_t* const* out) {
      (used_columns > 8 ? ForRows<Avx512, 8, 2> : ForRows<Avx512, 8, 1>)(used_rows, depth, left, right, used_columns,
                                                                         out);
    },
    TransposeAvx512};

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
