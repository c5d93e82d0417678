// Rounded Gaussian cells: m = floor(2^20 Z), Z standard normal, to a total variation below 2^-60 a draw.
// Construction and error budget: docs/guarantees/randomness.md.
#ifndef KERAS_PRIVATE_NATIVE_GAUSSIAN_H_
#define KERAS_PRIVATE_NATIVE_GAUSSIAN_H_

#include <cstddef>
#include <cstdint>

#include "generator.h"

namespace keras_private {

constexpr int kBins = 3328;     // |Z| up to 13 sigma in bins of 2^-8.
constexpr int kColumns = 4096;  // Alias columns; those past kBins have weight zero.

// Walker alias table with integer thresholds (Walker 1977, Vose 1991).
struct GaussianTable {
  // Column i keeps bin i when a uniform 64-bit integer is below threshold[i], else gives alias[i].
  uint64_t threshold[kColumns];
  uint16_t alias[kColumns];
  // Hot copy: threshold's upper 12 bits below, alias above. 16 KiB, fits the first-level cache.
  uint32_t packed[kColumns];
};

const GaussianTable& GetGaussianTable();

constexpr size_t kChunk = 1024;

// 2^64 (1 - mass of cell `offset` / mass of cell 0) in a bin; see docs/guarantees/randomness.md for its error.
uint64_t RejectionThreshold(uint64_t bin, uint64_t offset);

// uniform < 2^64 - RejectionThreshold(bin, offset), in most cases without computing it.
bool Accepted(uint64_t bin, uint64_t offset, uint64_t uniform);

// Draws `count` independent cells.
Failure DrawCells(Stream* stream, const GaussianTable& table, size_t count, int32_t* cells);

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_GAUSSIAN_H_
