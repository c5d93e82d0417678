// Convolutions over the ring and their gradients, as products of matrices whose rows are gathered from the images.
#include <numeric>

#include "ring_product_ops.h"
#include "ring_window.h"
#include "tensorflow/core/framework/op.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

#define KERAS_PRIVATE_BILINEAR_OP(name) \
  REGISTER_OP(name)                     \
      .Input("x: shares * int64")       \
      .Input("y: shares * int64")       \
      .Input("mask: masks * int64")     \
      .Output("out: int64")             \
      .Attr("shares: int >= 1")         \
      .Attr("masks: int >= 0")          \
      .Attr("strides: list(int)")       \
      .Attr("padding: list(int)")       \
      .Attr("dilations: list(int)")

KERAS_PRIVATE_BILINEAR_OP("KerasPrivateRingConv2d")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x, w;
      Window window;
      TF_RETURN_IF_ERROR(FactorShapes(c, 4, &x, &w));
      TF_RETURN_IF_ERROR(GetWindow(c, &window));
      DimensionHandle unused;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 3), c->Dim(w, 2), &unused));
      return ProductShape(c, c->MakeShape({c->Dim(x, 0), PlacesDim(c, window, 0, c->Dim(x, 1), c->Dim(w, 0)),
                                           PlacesDim(c, window, 1, c->Dim(x, 2), c->Dim(w, 1)), c->Dim(w, 3)}));
    })
    .Doc("Convolution of images x [n, h, w, c] with filters y [kh, kw, c, o].");

KERAS_PRIVATE_BILINEAR_OP("KerasPrivateRingConv2dInput")
    .Attr("sizes: list(int)")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle w, g;
      std::vector<int64_t> sizes;
      TF_RETURN_IF_ERROR(FactorShapes(c, 4, &w, &g));
      TF_RETURN_IF_ERROR(GetSizes(c, "sizes", &sizes));
      DimensionHandle unused;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(w, 3), c->Dim(g, 3), &unused));
      return ProductShape(
          c, c->MakeShape({c->Dim(g, 0), c->MakeDim(sizes[0]), c->MakeDim(sizes[1]), c->Dim(w, 2)}));
    })
    .Doc("Its gradient with respect to images of `sizes`, from filters x and the gradient y of its result.");

KERAS_PRIVATE_BILINEAR_OP("KerasPrivateRingConv2dFilter")
    .Attr("sizes: list(int)")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x, g;
      std::vector<int64_t> sizes;
      TF_RETURN_IF_ERROR(FactorShapes(c, 4, &x, &g));
      TF_RETURN_IF_ERROR(GetSizes(c, "sizes", &sizes));
      DimensionHandle unused;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 0), c->Dim(g, 0), &unused));
      return ProductShape(
          c, c->MakeShape({c->MakeDim(sizes[0]), c->MakeDim(sizes[1]), c->Dim(x, 3), c->Dim(g, 3)}));
    })
    .Doc("Its gradient with respect to filters of `sizes`, from images x and the gradient y of its result.");

// Sizes of one convolution: images [n, size, size, channels], filters [taps, taps, channels, filters].
struct Sizes {
  int64_t n, size[2], channels, taps[2], filters, places[2];
};

Status CheckGradient(const TensorShape& g, const Sizes& sizes) {
  if (g.dim_size(0) == sizes.n && g.dim_size(1) == sizes.places[0] && g.dim_size(2) == sizes.places[1]) {
    return tensorflow::OkStatus();
  }
  return InvalidArgument("a gradient of shape ", g.DebugString(), " where the result is [", sizes.n, ",",
                         sizes.places[0], ",", sizes.places[1], ",", sizes.filters, "]");
}

class WindowOp : public OpKernel {
 public:
  WindowOp(OpKernelConstruction* context, bool has_sizes) : OpKernel(context) {
    OP_REQUIRES_OK(context, GetWindow(context, &window_));
    if (has_sizes) OP_REQUIRES_OK(context, GetSizes(context, "sizes", &sizes_));
  }

  void Compute(OpKernelContext* context) override {
    Shares x, y;
    OP_REQUIRES_OK(context, GetFactors(context, 4, &x, &y));
    OP_REQUIRES_OK(context, CheckAxes(x.shape));
    OP_REQUIRES_OK(context, CheckAxes(y.shape));
    OP_REQUIRES_OK(context, Run(context, x, y));
  }

 protected:
  virtual Status Run(OpKernelContext* context, Shares x, Shares y) = 0;

  // Both shares with their zeros around them, and where windows and their places stand.
  Status Patches(OpKernelContext* context, const Sizes& sizes, Shares* x, Tensor* held, Grid* pixels,
                 Grid* places) const {
    int64_t padded[2];
    for (int axis = 0; axis < 2; ++axis) padded[axis] = sizes.size[axis] + window_.before[axis] + window_.after[axis];
    for (int i = 0; i < x->count; ++i) {
      TF_RETURN_IF_ERROR(PadImages(context, x->shape, window_.before, padded, &held[i], &x->words[i]));
    }
    const int64_t pixel = sizes.channels, row = padded[1] * pixel;
    *pixels = {sizes.places[0], sizes.places[1],
               {padded[0] * row, window_.strides[0] * row, window_.strides[1] * pixel}};
    *places = {sizes.taps[1], sizes.channels, {window_.dilations[0] * row, window_.dilations[1] * pixel, 1}};
    return tensorflow::OkStatus();
  }

  Window window_;
  std::vector<int64_t> sizes_;
};

class Conv2dOp : public WindowOp {
 public:
  explicit Conv2dOp(OpKernelConstruction* context) : WindowOp(context, false) {}

 protected:
  Status Run(OpKernelContext* context, Shares x, Shares w) override {
    Sizes sizes = {x.shape.dim_size(0), {}, x.shape.dim_size(3), {}, w.shape.dim_size(3), {}};
    for (int axis = 0; axis < 2; ++axis) {
      sizes.size[axis] = x.shape.dim_size(1 + axis);
      sizes.taps[axis] = w.shape.dim_size(axis);
      sizes.places[axis] = window_.Places(axis, sizes.size[axis], sizes.taps[axis]);
    }
    if (w.shape.dim_size(2) != sizes.channels) {
      return InvalidArgument("images of shape ", x.shape.DebugString(), " do not fit filters of shape ",
                             w.shape.DebugString());
    }
    TensorShape shape;
    TF_RETURN_IF_ERROR(
        TensorShape::BuildTensorShape({sizes.n, sizes.places[0], sizes.places[1], sizes.filters}, &shape));
    RingProduct product;
    TF_RETURN_IF_ERROR(MaskedOutput(context, x.count + w.count, shape, &product.out));
    Tensor held[2];
    Grid pixels, places;
    TF_RETURN_IF_ERROR(Patches(context, sizes, &x, held, &pixels, &places));
    product.rows = sizes.n * sizes.places[0] * sizes.places[1];
    product.columns = sizes.filters;
    product.depth = sizes.taps[0] * sizes.taps[1] * sizes.channels;
    product.out_rows = Grid::Line(sizes.filters);
    SetFactors(x, w, pixels, places, Grid::Line(1), Grid::Line(sizes.filters), &product);
    RunProduct(context, product);
    return tensorflow::OkStatus();
  }
};

class Conv2dFilterOp : public WindowOp {
 public:
  explicit Conv2dFilterOp(OpKernelConstruction* context) : WindowOp(context, true) {}

 protected:
  Status Run(OpKernelContext* context, Shares x, Shares g) override {
    Sizes sizes = {x.shape.dim_size(0), {}, x.shape.dim_size(3), {}, g.shape.dim_size(3), {}};
    for (int axis = 0; axis < 2; ++axis) {
      sizes.size[axis] = x.shape.dim_size(1 + axis);
      sizes.taps[axis] = sizes_[axis];
      sizes.places[axis] = window_.Places(axis, sizes.size[axis], sizes.taps[axis]);
    }
    TF_RETURN_IF_ERROR(CheckGradient(g.shape, sizes));
    TensorShape shape;
    TF_RETURN_IF_ERROR(
        TensorShape::BuildTensorShape({sizes.taps[0], sizes.taps[1], sizes.channels, sizes.filters}, &shape));
    RingProduct product;
    TF_RETURN_IF_ERROR(MaskedOutput(context, x.count + g.count, shape, &product.out));
    Tensor held[2];
    Grid pixels, places;
    TF_RETURN_IF_ERROR(Patches(context, sizes, &x, held, &pixels, &places));
    product.rows = sizes.taps[0] * sizes.taps[1] * sizes.channels;
    product.columns = sizes.filters;
    product.depth = sizes.n * sizes.places[0] * sizes.places[1];
    product.out_rows = Grid::Line(sizes.filters);
    SetFactors(x, g, places, pixels, Grid::Line(1), Grid::Line(sizes.filters), &product);
    RunProduct(context, product);
    return tensorflow::OkStatus();
  }
};

// The images' places of one residue modulo the stride along an axis, and the taps of the filter that meet them:
// place first + i stride takes from place i + shift - j back of the gradient by tap tap + j tap_step.
struct Phase {
  int64_t first, count;
  int64_t tap, tap_step, taps;
  int64_t shift, back;
};

std::vector<Phase> Phases(const Window& window, int axis, int64_t size, int64_t taps) {
  std::vector<Phase> phases;
  const int64_t stride = window.strides[axis], dilation = window.dilations[axis];
  const int64_t tap_step = stride / std::gcd(stride, dilation);
  for (int64_t first = 0; first < std::min(stride, size); ++first) {
    Phase phase = {first, (size - first - 1) / stride + 1, 0, tap_step, 0, 0, tap_step * dilation / stride};
    const int64_t place = first + window.before[axis];
    while (phase.tap < std::min(tap_step, taps) && (place - phase.tap * dilation) % stride != 0) ++phase.tap;
    if (phase.tap < std::min(tap_step, taps)) {
      phase.taps = (taps - phase.tap - 1) / tap_step + 1;
      phase.shift = (place - phase.tap * dilation) / stride;
      phases.push_back(phase);
    }
  }
  return phases;
}

class Conv2dInputOp : public WindowOp {
 public:
  explicit Conv2dInputOp(OpKernelConstruction* context) : WindowOp(context, true) {}

 protected:
  Status Run(OpKernelContext* context, Shares w, Shares g) override {
    Sizes sizes = {g.shape.dim_size(0), {}, w.shape.dim_size(2), {}, w.shape.dim_size(3), {}};
    std::vector<Phase> phases[2];
    int64_t before[2] = {}, padded[2];
    for (int axis = 0; axis < 2; ++axis) {
      sizes.size[axis] = sizes_[axis];
      sizes.taps[axis] = w.shape.dim_size(axis);
      sizes.places[axis] = window_.Places(axis, sizes.size[axis], sizes.taps[axis]);
      phases[axis] = Phases(window_, axis, sizes.size[axis], sizes.taps[axis]);
      int64_t last = sizes.places[axis] - 1;
      for (const Phase& phase : phases[axis]) {
        before[axis] = std::max(before[axis], (phase.taps - 1) * phase.back - phase.shift);
        last = std::max(last, phase.count - 1 + phase.shift);
      }
      padded[axis] = before[axis] + last + 1;
    }
    TF_RETURN_IF_ERROR(CheckGradient(g.shape, sizes));
    if (g.shape.dim_size(3) != sizes.filters) {
      return InvalidArgument("a gradient of shape ", g.shape.DebugString(), " does not fit filters of shape ",
                             w.shape.DebugString());
    }
    TensorShape shape;
    TF_RETURN_IF_ERROR(
        TensorShape::BuildTensorShape({sizes.n, sizes.size[0], sizes.size[1], sizes.channels}, &shape));
    RingProduct product;
    TF_RETURN_IF_ERROR(MaskedOutput(context, w.count + g.count, shape, &product.out));
    Tensor held[2];
    for (int i = 0; i < g.count; ++i) {
      TF_RETURN_IF_ERROR(PadImages(context, g.shape, before, padded, &held[i], &g.words[i]));
    }
    const int64_t channels = sizes.channels, filters = sizes.filters, row = padded[1] * filters;
    const int64_t tap_size = channels * filters, tap_row = sizes.taps[1] * tap_size;
    for (const Phase& down : phases[0]) {
      for (const Phase& across : phases[1]) {
        const Grid pixels = {down.count, across.count, {padded[0] * row, row, filters},
                             (before[0] + down.shift) * row + (before[1] + across.shift) * filters};
        const Grid places = {across.taps, filters, {-down.back * row, -across.back * filters, 1}};
        const Grid weights = {across.taps, filters, {down.tap_step * tap_row, across.tap_step * tap_size, 1},
                              down.tap * tap_row + across.tap * tap_size};
        const int64_t out_row = sizes.size[1] * channels;
        product.out_rows = {down.count, across.count,
                            {sizes.size[0] * out_row, window_.strides[0] * out_row, window_.strides[1] * channels},
                            down.first * out_row + across.first * channels};
        product.rows = sizes.n * down.count * across.count;
        product.columns = channels;
        product.depth = down.taps * across.taps * filters;
        SetFactors(g, w, pixels, places, Grid::Line(filters), weights, &product);
        RunProduct(context, product);
      }
    }
    return tensorflow::OkStatus();
  }
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingConv2d").Device(tensorflow::DEVICE_CPU), Conv2dOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingConv2dInput").Device(tensorflow::DEVICE_CPU), Conv2dInputOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingConv2dFilter").Device(tensorflow::DEVICE_CPU), Conv2dFilterOp);

}  // namespace
}  // namespace keras_private
