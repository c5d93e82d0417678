#include "gaussian.h"

#include <algorithm>
#include <cstring>

#include "gaussian_clones.h"

namespace keras_private {
namespace {

constexpr uint64_t kLow52 = (uint64_t{1} << 52) - 1;
constexpr uint64_t kLow53 = (uint64_t{1} << 53) - 1;

// One draw takes 48 bits, in two parts that vectorise without shuffles. From the lowest bit, the first: 12 column,
// 12 offset, 8 acceptance; the second: 12 alias, 3 acceptance, 1 sign.
constexpr size_t kDrawBytes = 6;
using First = uint32_t __attribute__((may_alias));
using Second = uint16_t __attribute__((may_alias));
inline uint32_t Column(uint32_t first) { return first & 4095; }
inline uint32_t Offset(uint32_t first) { return (first >> 12) & 4095; }
inline uint32_t AliasBits(uint32_t second) { return second & 4095; }
inline uint32_t AcceptBits(uint32_t first, uint32_t second) { return first >> 24 | (second >> 4 & 0x700); }
inline uint32_t SignMask(uint32_t second) { return 0u - (second >> 15); }

// Whether 11 bits leave acceptance open. Every cell of the bin has a mass of at least 1 - (bin + 1/2) 2^-16 of the first
// one's, and (bin + 1) / 32 rounded up is bin / 32 rounded down, plus 1.
inline uint32_t AcceptanceOpen(uint32_t accept, uint32_t bin) { return accept + (bin >> 5) >= 2047 ? 1u : 0u; }

constexpr size_t kBlock = 256;

// Apart, and one load after another: gather instructions are slower where they exist.
__attribute__((noinline, optimize("no-tree-vectorize")))
void LookUp(const uint32_t* packed_table, const First* first, size_t count, uint32_t* packed) {
#pragma GCC unroll 8
  for (size_t i = 0; i < count; ++i) packed[i] = packed_table[Column(first[i])];
}

// Decides draws by their short comparisons alone. Sets open[i] where those do not suffice; cells[i] has no meaning there.
KERAS_PRIVATE_GAUSSIAN_CLONES
void DecideBlock(const uint32_t* packed, const First* first, const Second* second, size_t count, int32_t* cells,
                 uint8_t* open) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t one = first[i], two = second[i];
    const int32_t margin = static_cast<int32_t>(packed[i] & 4095) - static_cast<int32_t>(AliasBits(two));
    // Masks, not branches: which of the two bins it is cannot be predicted.
    const uint32_t keep = static_cast<uint32_t>(-margin >> 31);  // all ones when margin > 0
    const uint32_t bin = (Column(one) & keep) | ((packed[i] >> 16) & ~keep);
    // m, or -m - 1: floor is symmetric about the cell's edge.
    cells[i] = static_cast<int32_t>((bin << 12 | Offset(one)) ^ SignMask(two));
    open[i] = static_cast<uint8_t>((margin == 0 ? 1u : 0u) | AcceptanceOpen(AcceptBits(one, two), bin));
  }
}

// A draw whose short comparisons did not suffice.
struct OpenDraw {
  uint32_t place, first, second;
};

// Lists the draws left open and returns their number. `open` is zero from `count` to the next multiple of eight.
size_t ListOpen(const uint8_t* open, const First* first, const Second* second, size_t count, OpenDraw* listed) {
  size_t found = 0;
  for (size_t start = 0; start < count; start += 8) {
    uint64_t eight;
    std::memcpy(&eight, open + start, sizeof(eight));
    if (eight == 0) continue;
    for (size_t i = start; i < std::min(start + 8, count); ++i) {
      if (open[i]) listed[found++] = {static_cast<uint32_t>(i), first[i], second[i]};
    }
  }
  return found;
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

bool Accepted(uint64_t bin, uint64_t offset, uint64_t uniform) {
  // Bounds of the threshold that usually decide: with x = (n << 23) - correction as above, 0 <= x - threshold, and the
  // series' first two terms, x - x^2 / 2, fall short of it or pass it by less than 64 units.
  const uint64_t n = offset * (2 * 4096 * bin + offset + 1);
  const uint64_t above = n << 23, below = ~uniform;  // accepted when threshold <= below
  if (above <= below) return true;
  const uint64_t slack = HighProduct(above, above) / 2 + 2 * n / (uint64_t{12} << 17) + 64;
  if (above > slack && above - slack > below) return false;
  return RejectionThreshold(bin, offset) <= below;
}

namespace {

// Extends the comparisons of an open draw with fresh bits; a rejection keeps the bin and redraws the offset.
Failure DecideSlowly(Stream* stream, const GaussianTable& table, const OpenDraw& draw, int32_t* cell) {
  uint64_t fresh = 0;
  const uint32_t column = Column(draw.first), alias_bits = AliasBits(draw.second);
  const uint64_t threshold = table.threshold[column];
  uint32_t bin = column;
  if (alias_bits > threshold >> 52) {
    bin = table.alias[column];
  } else if (alias_bits == threshold >> 52) {
    if (Failure failure = stream->Next(&fresh)) return failure;
    if ((fresh & kLow52) >= (threshold & kLow52)) bin = table.alias[column];
  }
  uint32_t offset = Offset(draw.first), accept = AcceptBits(draw.first, draw.second);
  while (AcceptanceOpen(accept, bin)) {
    if (Failure failure = stream->Next(&fresh)) return failure;
    if (Accepted(bin, offset, uint64_t{accept} << 53 | (fresh & kLow53))) break;
    if (Failure failure = stream->Next(&fresh)) return failure;
    offset = fresh & 4095;
    accept = (fresh >> 12) & 2047;
  }
  *cell = static_cast<int32_t>((bin << 12 | offset) ^ SignMask(draw.second));
  // Overwritten for certain, without a call.
  *static_cast<volatile uint64_t*>(&fresh) = 0;
  return nullptr;
}

}  // namespace

Failure DrawCells(Stream* stream, const GaussianTable& table, size_t count, int32_t* cells) {
  uint32_t packed[kBlock];
  alignas(8) uint8_t open[kBlock];
  OpenDraw listed[kBlock];
  size_t done = 0, most_listed = 0;
  while (done < count) {
    const size_t wanted = std::min(count - done, kBlock);
    uint64_t* words;
    size_t lent;
    if (Failure failure = stream->Lend((wanted * kDrawBytes + 7) / 8, &words, &lent)) return failure;
    // The last words before a refill may be fewer; what is left of a word is thrown away.
    const size_t draws = std::min(wanted, lent * 8 / kDrawBytes);
    const auto* first = reinterpret_cast<const First*>(words);
    const auto* second = reinterpret_cast<const Second*>(first + draws);
    LookUp(table.packed, first, draws, packed);
    std::memset(open + draws / 8 * 8, 0, draws % 8 ? 8 : 0);
    DecideBlock(packed, first, second, draws, cells + done, open);
    const size_t found = ListOpen(open, first, second, draws, listed);
    most_listed = std::max(most_listed, found);
    // Before the next call on the stream, which may refill the buffer.
    std::memset(words, 0, lent * sizeof(uint64_t));
    for (size_t i = 0; i < found; ++i) {
      if (Failure failure = DecideSlowly(stream, table, listed[i], &cells[done + listed[i].place])) return failure;
    }
    done += draws;
  }
  Cleanse(packed, sizeof(packed));
  Cleanse(listed, most_listed * sizeof(OpenDraw));
  return nullptr;
}

}  // namespace keras_private
