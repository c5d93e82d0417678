#include "outer_kernel.h"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define KERAS_PRIVATE_X86 1
#endif

namespace keras_private {

struct OuterFunctions {
  int lanes;
  void (*add_outer)(const float* left, const ptrdiff_t* offsets, int64_t rows, const ptrdiff_t* positions,
                    int64_t count, const float* right, int64_t stride, bool empty, float* sums);
  double (*squares)(const float* x, int64_t size);
  void (*add_eight_rows)(const float* const* rows, const float* weights, int64_t from, int64_t size, double* sums);
  void (*add_one_row)(const float* const* rows, const float* weights, int64_t from, int64_t size, double* sums);
};

}  // namespace keras_private

#define KP_ISA portable
#define KP_TARGET
#define KP_LANES 4
#define KP_ROWS 4
#define KP_FMA(x, y, z) ((x) * (y) + (z))
#define KP_WIDEN(p) (Doubles{(p)[0], (p)[1]})
#include "outer_tile.h"

#ifdef KERAS_PRIVATE_X86
#define KP_ISA avx2
#define KP_TARGET __attribute__((target("avx2,fma")))
#define KP_LANES 8
#define KP_ROWS 6
#define KP_FMA(x, y, z) _mm256_fmadd_ps(_mm256_set1_ps(x), y, z)
#define KP_WIDEN(p) (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(p))
#include "outer_tile.h"

#define KP_ISA avx512
#define KP_TARGET __attribute__((target("avx512f,avx2,fma")))
#define KP_LANES 16
#define KP_ROWS 8
#define KP_FMA(x, y, z) _mm512_fmadd_ps(_mm512_set1_ps(x), y, z)
// The form with a mask: GCC 12 warns of an uninitialized value in the one without.
#define KP_WIDEN(p) (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p))
#include "outer_tile.h"
#endif

namespace keras_private {
namespace {

// Positions taken at a time: a tile's part of `right` stays in the first-level cache, and rounding errors grow with the
// chunk and with the number of chunks, not with their product. One size for all machines and widths: it is part of
// the order of summation.
constexpr int64_t kChunk = 128;
constexpr int64_t kPanelFloats = 1 << 16;
constexpr int64_t kWholeTiles = 24;  // Of 6 rows, of 8 and of 4.
constexpr int64_t kColumnBlock = 1024;

// The widest vectors that the processor has and the columns fill.
const OuterFunctions* FunctionsFor(int64_t columns) {
#ifdef KERAS_PRIVATE_X86
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx512 && columns > 8) return &avx512::kFunctions;
  if (has_avx2) return &avx2::kFunctions;
#endif
  return &portable::kFunctions;
}

const OuterFunctions* WidestFunctions() { return FunctionsFor(int64_t{1} << 20); }

}  // namespace

int64_t PanelRows(int64_t rows, int64_t columns) {
  const int64_t fitting = kPanelFloats / std::max<int64_t>(columns, 1) / kWholeTiles * kWholeTiles;
  return std::min(rows, std::max(fitting, kWholeTiles));
}

OuterSum::OuterSum(int64_t max_rows, int64_t columns) : columns_(columns), functions_(FunctionsFor(columns)) {
  const int64_t lanes = functions_->lanes;
  padded_ = (columns + lanes - 1) / lanes * lanes;
  if (padded_ != columns) {
    padded_sums_.reset(new float[max_rows * padded_]);
    padded_right_.reset(new float[kChunk * padded_]());
  }
}

void OuterSum::Start(float* out, int64_t rows) {
  rows_ = rows;
  out_ = out;
  sums_ = padded_sums_ ? padded_sums_.get() : out;
  empty_ = true;
}

void OuterSum::Add(const float* left, const ptrdiff_t* offsets, const ptrdiff_t* positions, int64_t count,
                   const float* right) {
  for (int64_t t = 0; t < count; t += kChunk) {
    const int64_t length = std::min(kChunk, count - t);
    const float* part = right + t * columns_;
    if (padded_right_) {
      for (int64_t k = 0; k < length; ++k) {
        std::copy_n(part + k * columns_, columns_, padded_right_.get() + k * padded_);
      }
      part = padded_right_.get();
    }
    functions_->add_outer(left, offsets, rows_, positions + t, length, part, padded_, empty_, sums_);
    empty_ = false;
  }
}

double OuterSum::Finish() {
  if (empty_) {
    std::fill_n(out_, rows_ * columns_, 0.0f);
  } else if (padded_sums_) {
    for (int64_t row = 0; row < rows_; ++row) {
      std::copy_n(sums_ + row * padded_, columns_, out_ + row * columns_);
    }
  }
  return SquaredNorm(out_, rows_ * columns_);
}

double SquaredNorm(const float* x, int64_t size) { return WidestFunctions()->squares(x, size); }

void WeightedSum(const float* const* rows, const float* weights, int64_t count, int64_t from, int64_t limit,
                 float* out) {
  const OuterFunctions* functions = WidestFunctions();
  double sums[kColumnBlock];
  for (int64_t at = from; at < limit; at += kColumnBlock) {
    const int64_t width = std::min(kColumnBlock, limit - at);
    std::fill_n(sums, width, 0.0);
    int64_t k = 0;
    for (; k + 8 <= count; k += 8) functions->add_eight_rows(rows + k, weights + k, at, width, sums);
    for (; k < count; ++k) functions->add_one_row(rows + k, weights + k, at, width, sums);
    for (int64_t q = 0; q < width; ++q) out[at + q] = static_cast<float>(sums[q]);
  }
}

}  // namespace keras_private
