// The alias table of the bins, computed once per process from nothing but + - * / of 113-bit floats.
// random/gaussian_table.py computes the same integers another way; tests/native compares every entry.
#include <memory>
#include <vector>

#include "gaussian.h"

namespace keras_private {
namespace {

using Float = __float128;
using Weight = unsigned __int128;

constexpr int kWeightBits = 76;  // Weights are integers that sum to 2^76 = 4096 columns of 2^64 each.

// exp(-x) for 0 <= x <= 2^-16 by its Taylor series; the first term left out is below 2^-160.
Float ExpOfMinusSmall(Float x) {
  Float term = 1, sum = 1;
  for (int k = 1; k <= 10; ++k) {
    term *= -x / k;
    sum += term;
  }
  return sum;
}

// Integral of exp(-(a s + s^2/2)) over |s| <= 2^-9, by the series of Hermite polynomials:
// the density's derivatives at a are its value there times (-1)^n He_n(a); odd terms cancel.
Float BinIntegral(Float a) {
  const Float half = Float(1) / 512;
  Float before = 1, now = a, scale = half, sum = half;
  for (int n = 2; n <= 20; ++n) {
    const Float next = a * now - (n - 1) * before;  // He_n
    before = now;
    now = next;
    if (n % 2 == 0) {
      scale *= half * half / (Float(n) * (n + 1));  // half^(n+1) / (n+1)!
      sum += now * scale;
    }
  }
  return 2 * sum;
}

std::vector<Weight> BinWeights() {
  std::vector<Float> mass(kBins);
  const Float step = Float(1) / 65536;
  // Density at the midpoints a_j = (j + 1/2) / 256, up to a constant: exp(-(a_(j+1)^2 - a_j^2)/2) = exp(-(j+1) 2^-16).
  const Float ratio = ExpOfMinusSmall(step);
  Float density = 1, factor = 1, total = 0;
  for (int j = 0; j < kBins; ++j) {
    mass[j] = density * BinIntegral((Float(j) + Float(0.5)) / 256);
    factor *= ratio;
    density *= factor;
  }
  for (int j = kBins - 1; j >= 0; --j) total += mass[j];
  std::vector<Weight> weights(kColumns, 0);
  const Weight whole = Weight(1) << kWeightBits;
  Weight sum = 0;
  for (int j = 0; j < kBins; ++j) {
    weights[j] = static_cast<Weight>(mass[j] / total * Float(whole) + Float(0.5));
    sum += weights[j];
  }
  weights[0] += whole - sum;  // Modulo 2^128: also right when the sum came out above.
  return weights;
}

GaussianTable* MakeTable() {
  auto table = std::make_unique<GaussianTable>();
  std::vector<Weight> weights = BinWeights();
  const Weight capacity = Weight(1) << 64;
  std::vector<int> small, large;
  for (int i = 0; i < kColumns; ++i) {
    table->threshold[i] = 0;
    table->alias[i] = static_cast<uint16_t>(i);  // A full column is its own alias.
    (weights[i] < capacity ? small : large).push_back(i);
  }
  // Integer arithmetic: every column is filled exactly, so the table realises the weights without error.
  while (!small.empty()) {
    const int poor = small.back(), rich = large.back();
    small.pop_back();
    table->threshold[poor] = static_cast<uint64_t>(weights[poor]);
    table->alias[poor] = static_cast<uint16_t>(rich);
    weights[rich] -= capacity - weights[poor];
    if (weights[rich] < capacity) {
      large.pop_back();
      small.push_back(rich);
    }
  }
  for (int i = 0; i < kColumns; ++i) {
    table->packed[i] = static_cast<uint32_t>(table->threshold[i] >> 52) | uint32_t{table->alias[i]} << 16;
  }
  return table.release();
}

}  // namespace

const GaussianTable& GetGaussianTable() {
  static const GaussianTable* table = MakeTable();
  return *table;
}

}  // namespace keras_private
