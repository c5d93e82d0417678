#include "grid.h"

#include <cmath>

#include "gaussian_clones.h"

namespace keras_private {
KERAS_PRIVATE_GAUSSIAN_CLONES
void RoundAndAdd(const float* x, const int32_t* cells, double cell, double output_step, size_t count,
                 float* out) {
  constexpr double kLimit = 4503599627370496.0;  // 2^52
#pragma GCC ivdep  // In place is element by element: out may be x.
  for (size_t i = 0; i < count; ++i) {
    double q = static_cast<double>(x[i]) / cell;
    q = q == q ? q : 0.0;
    q = q < kLimit ? q : kLimit;
    q = q > -kLimit ? q : -kLimit;
    // Ties to even. Exact up to the 1/2: integers below 2^53. The 1/2 and what follows is post-processing.
    out[i] = static_cast<float>(((std::rint(q) + cells[i]) + 0.5) * output_step);
  }
}

}  // namespace keras_private
