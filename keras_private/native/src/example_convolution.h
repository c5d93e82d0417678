// Gradients of a convolution filter by example, without patches: tiles read the image where a patch would come from.
#ifndef KERAS_PRIVATE_NATIVE_EXAMPLE_CONVOLUTION_H_
#define KERAS_PRIVATE_NATIVE_EXAMPLE_CONVOLUTION_H_

#include <cstdint>

namespace keras_private {

// One spatial axis; pad is what stands before the first input.
struct Axis {
  int64_t input, output, kernel, stride, dilation, pad;

  // Inputs that so many neighbouring outputs span.
  int64_t Reach(int64_t outputs) const { return (outputs - 1) * stride + (kernel - 1) * dilation + 1; }
  bool NeedsPadding() const { return pad > 0 || Reach(output) > input; }
};

// images: [before, batch, after, y.input, x.input, channels]; out_backprop likewise with outputs and filters.
struct Conv {
  Axis y, x;
  int64_t channels, filters, batch, before, after;

  int64_t Rows() const { return y.kernel * x.kernel * channels; }
};

// For examples in [start, limit): gradients [batch, Rows(), filters], unless null, and squared norms [batch].
void ConvExampleGradients(const Conv& conv, const float* images, const float* out_backprop, float* gradients,
                          double* squared_norms, int64_t start, int64_t limit);

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_EXAMPLE_CONVOLUTION_H_
