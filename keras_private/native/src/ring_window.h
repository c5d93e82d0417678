// Geometry of windows over images [n, height, width, channels], and images with zeros around them.
#ifndef KERAS_PRIVATE_NATIVE_RING_WINDOW_H_
#define KERAS_PRIVATE_NATIVE_RING_WINDOW_H_

#include <vector>

#include "ring_ops.h"
#include "sharding.h"

namespace keras_private {

// Index 0 is the vertical axis, 1 the horizontal one.
struct Window {
  int64_t strides[2], dilations[2], before[2], after[2];

  // Places of a window of `taps` elements along an axis of `size`; strides and dilations are at least 1.
  int64_t Places(int axis, int64_t size, int64_t taps) const {
    const int64_t room = size + before[axis] + after[axis] - (taps - 1) * dilations[axis] - 1;
    return taps < 1 || room < 0 ? 0 : room / strides[axis] + 1;
  }
};

// From the attributes strides (2), dilations (2) and padding (top, bottom, left, right).
template <typename Context>
tensorflow::Status GetWindow(Context* context, Window* window) {
  constexpr int64_t kMost = int64_t{1} << 24;  // So that no product of these with each other passes 64 bits.
  std::vector<int64_t> strides, dilations, padding;
  TF_RETURN_IF_ERROR(context->GetAttr("strides", &strides));
  TF_RETURN_IF_ERROR(context->GetAttr("dilations", &dilations));
  TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
  if (strides.size() != 2 || dilations.size() != 2 || padding.size() != 4) {
    return tensorflow::errors::InvalidArgument("strides and dilations must have 2 numbers, padding 4");
  }
  for (int axis = 0; axis < 2; ++axis) {
    window->strides[axis] = strides[axis];
    window->dilations[axis] = dilations[axis];
    window->before[axis] = padding[2 * axis];
    window->after[axis] = padding[2 * axis + 1];
    if (strides[axis] < 1 || dilations[axis] < 1 || window->before[axis] < 0 || window->after[axis] < 0 ||
        std::max({strides[axis], dilations[axis], window->before[axis], window->after[axis]}) > kMost) {
      return tensorflow::errors::InvalidArgument("strides and dilations must be 1 to 2^24, padding 0 to 2^24");
    }
  }
  return tensorflow::OkStatus();
}

template <typename Context>
tensorflow::Status GetSizes(Context* context, const char* name, std::vector<int64_t>* sizes) {
  TF_RETURN_IF_ERROR(context->GetAttr(name, sizes));
  if (sizes->size() == 2 && sizes->front() >= 0 && sizes->back() >= 0 &&
      std::max(sizes->front(), sizes->back()) <= int64_t{1} << 31) {
    return tensorflow::OkStatus();
  }
  return tensorflow::errors::InvalidArgument(name, " must be two sizes");
}

// Filters and images above this size along an axis are refused: products with dilations stay within 64 bits.
inline tensorflow::Status CheckAxes(const tensorflow::TensorShape& shape) {
  for (int axis = 0; axis < shape.dims(); ++axis) {
    if (shape.dim_size(axis) > int64_t{1} << 31) {
      return tensorflow::errors::InvalidArgument("a size above 2^31: ", shape.DebugString());
    }
  }
  return tensorflow::OkStatus();
}

inline tensorflow::shape_inference::DimensionHandle PlacesDim(tensorflow::shape_inference::InferenceContext* c,
                                                              const Window& window, int axis,
                                                              tensorflow::shape_inference::DimensionHandle size,
                                                              tensorflow::shape_inference::DimensionHandle taps) {
  if (!c->ValueKnown(size) || !c->ValueKnown(taps)) return c->UnknownDim();
  return c->MakeDim(window.Places(axis, c->Value(size), c->Value(taps)));
}

// Images with `before` rows and columns of zeros before them, cut or filled up to `sizes`; *images is replaced by the
// copy, or left alone where nothing would change. `held` keeps the copy.
inline tensorflow::Status PadImages(tensorflow::OpKernelContext* context, const tensorflow::TensorShape& shape,
                                    const int64_t before[2], const int64_t sizes[2], tensorflow::Tensor* held,
                                    const uint64_t** images) {
  const int64_t n = shape.dim_size(0), height = shape.dim_size(1), width = shape.dim_size(2), c = shape.dim_size(3);
  if (before[0] == 0 && before[1] == 0 && sizes[0] == height && sizes[1] == width) return tensorflow::OkStatus();
  tensorflow::TensorShape padded;
  TF_RETURN_IF_ERROR(tensorflow::TensorShape::BuildTensorShape({n, sizes[0], sizes[1], c}, &padded));
  TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_INT64, padded, held));
  const uint64_t* from = *images;
  uint64_t* to = RingWords(held);
  const int64_t rows = sizes[0], columns = sizes[1], top = before[0], left = before[1];
  const int64_t kept = std::max<int64_t>(0, std::min(width, columns - left));
  Sharded(context, n * rows, columns * c / 2, [=](int64_t start, int64_t limit) {
    for (int64_t row = start; row < limit; ++row) {
      uint64_t* out = to + row * columns * c;
      const int64_t y = row % rows - top;
      if (y < 0 || y >= height || kept == 0) {
        std::fill_n(out, columns * c, 0);
        continue;
      }
      std::fill_n(out, left * c, 0);
      std::copy_n(from + ((row / rows) * height + y) * width * c, kept * c, out + left * c);
      std::fill(out + (left + kept) * c, out + columns * c, 0);
    }
  });
  *images = to;
  return tensorflow::OkStatus();
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_RING_WINDOW_H_
