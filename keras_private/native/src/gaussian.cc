#include "gaussian.h"

#include <algorithm>
#include <cstring>

#include "clones.h"

namespace keras_private {
namespace {

constexpr uint64_t kLow48 = (uint64_t{1} << 48) - 1;

// One draw takes two 32-bit halves. From the lowest bit, the first: 12 column, 16 alias; the second: 12 offset,
// 16 acceptance, 1 sign. Halves, so that the arithmetic below vectorises without shuffles.
inline uint32_t Column(uint32_t first) { return first & 4095; }
inline uint32_t AliasBits(uint32_t first) { return (first >> 12) & 65535; }
inline uint32_t Offset(uint32_t second) { return second & 4095; }
inline uint32_t AcceptBits(uint32_t second) { return (second >> 12) & 65535; }
inline uint32_t SignMask(uint32_t second) { return 0u - ((second >> 28) & 1); }

constexpr size_t kBlock = 64;

// Decides `count` <= kBlock draws by their 16-bit comparisons alone. Sets open[i] where those do not suffice and
// returns whether any is open; cells[i] has no meaning there.
KERAS_PRIVATE_CLONES
uint32_t DecideBlock(const uint32_t* packed_table, const uint32_t* first, const uint32_t* second, size_t count,
                     int32_t* cells, uint32_t* open) {
  uint32_t packed[kBlock];
  for (size_t i = 0; i < count; ++i) packed[i] = packed_table[Column(first[i])];
  uint32_t any = 0;
  for (size_t i = 0; i < count; ++i) {
    const int32_t margin = static_cast<int32_t>(packed[i] & 65535) - static_cast<int32_t>(AliasBits(first[i]));
    // Masks, not branches: which of the two bins it is cannot be predicted.
    const uint32_t keep = static_cast<uint32_t>(-margin >> 31);  // all ones when margin > 0
    const uint32_t bin = (Column(first[i]) & keep) | ((packed[i] >> 16) & ~keep);
    // m, or -m - 1: floor is symmetric about the cell's edge.
    cells[i] = static_cast<int32_t>((bin << 12 | Offset(second[i])) ^ SignMask(second[i]));
    // Every cell of the bin has a mass of at least 1 - (bin + 1/2) 2^-16 of the first one's.
    const uint32_t open_here = (margin == 0 ? 1u : 0u) | (AcceptBits(second[i]) + bin >= 65535 ? 1u : 0u);
    open[i] = open_here;
    any |= open_here;
  }
  return any;
}

inline uint64_t HighProduct(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}

}  // namespace

uint64_t RejectionThreshold(uint64_t bin, uint64_t offset) {
  const uint64_t n = offset * (2 * 4096 * bin + offset + 1);  // 2^41 (exponent difference of the midpoints)
  // Mass of a cell of width c at midpoint a is its density there times 1 + (a^2 - 1) c^2 / 24 + O(c^4).
  const uint64_t correction = (n + (uint64_t{6} << 17)) / (uint64_t{12} << 17);
  const uint64_t x = (n << 23) - correction;
  uint64_t h = uint64_t{1} << 63;
#pragma GCC unroll 12  // Divisions by constants become products.
  for (uint64_t k = 12; k >= 2; --k) h = (uint64_t{1} << 63) - HighProduct(x, h) / k;
  return HighProduct(x, h) << 1;
}

namespace {

// A draw left open: extends its comparisons with fresh bits; a rejection keeps the bin and redraws the offset.
Failure DecideSlowly(Stream* stream, const GaussianTable& table, uint32_t first, uint32_t second, int32_t* cell) {
  uint64_t fresh = 0;
  const uint32_t column = Column(first);
  const uint64_t threshold = table.threshold[column];
  uint64_t bin = column;
  if (AliasBits(first) > threshold >> 48) {
    bin = table.alias[column];
  } else if (AliasBits(first) == threshold >> 48) {
    if (Failure failure = stream->Next(&fresh)) return failure;
    if ((fresh & kLow48) >= (threshold & kLow48)) bin = table.alias[column];
  }
  const uint32_t sign = SignMask(second);
  while (AcceptBits(second) + bin >= 65535) {
    if (Failure failure = stream->Next(&fresh)) return failure;
    const uint64_t uniform = uint64_t{AcceptBits(second)} << 48 | (fresh & kLow48);
    if (uniform <= ~RejectionThreshold(bin, Offset(second))) break;  // uniform < 2^64 - threshold
    if (Failure failure = stream->Next(&fresh)) return failure;
    second = static_cast<uint32_t>(fresh);
  }
  *cell = static_cast<int32_t>((static_cast<uint32_t>(bin) << 12 | Offset(second)) ^ sign);
  Cleanse(&fresh, sizeof(fresh));
  return nullptr;
}

}  // namespace

Failure DrawCells(Stream* stream, const GaussianTable& table, size_t count, int32_t* cells) {
  uint32_t halves[2 * kBlock], open[kBlock];
  size_t done = 0;
  while (done < count) {
    uint64_t* words;
    size_t lent;
    if (Failure failure = stream->Lend(std::min(count - done, kBlock), &words, &lent)) return failure;
    std::memcpy(halves, words, lent * sizeof(uint64_t));
    std::memset(words, 0, lent * sizeof(uint64_t));
    const uint32_t* second = halves + lent;
    if (DecideBlock(table.packed, halves, second, lent, cells + done, open)) {
      for (size_t i = 0; i < lent; ++i) {
        if (!open[i]) continue;
        if (Failure failure = DecideSlowly(stream, table, halves[i], second[i], &cells[done + i])) return failure;
      }
    }
    done += lent;
  }
  Cleanse(halves, sizeof(halves));
  return nullptr;
}

}  // namespace keras_private
