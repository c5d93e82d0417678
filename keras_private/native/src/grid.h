// The grid of a noisy release: rounding to it, adding the integer noise, leaving it.
#ifndef KERAS_PRIVATE_NATIVE_GRID_H_
#define KERAS_PRIVATE_NATIVE_GRID_H_

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "tensorflow/core/platform/errors.h"

namespace keras_private {

// out[i] = float((nearest(x[i] / cell) + cells[i] + 1/2) * output_step). The nearest integer has ties to even and is
// clamped to +-2^52; NaN counts as 0. May run in place.
void RoundAndAdd(const float* x, const int32_t* cells, double cell, double output_step, size_t count, float* out);

inline tensorflow::Status CheckGrid(double cell, double scale) {
  // From 2^-125 on a subnormal x rounds to 0, whether or not the thread flushes subnormals.
  if (!std::isfinite(cell) || cell < 2 * static_cast<double>(FLT_MIN)) {
    return tensorflow::errors::InvalidArgument("cell must be finite and at least 2^-125, got ", cell);
  }
  if (!std::isfinite(scale) || !std::isfinite(cell * scale)) {
    return tensorflow::errors::InvalidArgument("scale and cell * scale must be finite, got ", scale, " and ",
                                               cell * scale);
  }
  return tensorflow::OkStatus();
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_GRID_H_
