// Per-example gradients of convolution filters and their squared norms.
//
// Guarantees, each locked by a test in tests/dp/test_kernels.py:
//  * An example's gradient and norm depend on that example's rows alone, bit for bit: no batch, neighbour or number of
//    threads changes them.
//  * Squared norms are float64 sums over the very float32 gradient that is returned; NaN and Inf reach them.
#include <algorithm>
#include <string>
#include <vector>

#include "example_convolution.h"
#include "sharding.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

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

Status ConvShape(InferenceContext* c) {
  ShapeHandle images, right, layout;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &images));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &right));
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(2, &layout));
  TF_RETURN_IF_ERROR(c->WithRank(layout, 3, &layout));
  std::vector<int> kernel;
  TF_RETURN_IF_ERROR(c->GetAttr("kernel_size", &kernel));
  if (kernel.size() != 2) return InvalidArgument("kernel_size must be 2 numbers, got ", kernel.size());
  DimensionHandle rows;
  TF_RETURN_IF_ERROR(c->Multiply(c->Dim(images, 3), int64_t{kernel[0]} * kernel[1], &rows));
  const DimensionHandle batch = c->Dim(layout, 1);
  int output = 0;
  if (c->num_outputs() == 2) c->set_output(output++, c->MakeShape({batch, rows, c->Dim(right, 3)}));
  c->set_output(output, c->Vector(batch));
  return tensorflow::OkStatus();
}

#define KERAS_PRIVATE_CONV_ATTRIBUTES                   \
  Attr("kernel_size: list(int)")                        \
      .Attr("strides: list(int)")                       \
      .Attr("dilations: list(int)")                     \
      .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}")   \
      .Attr("explicit_paddings: list(int) = []")        \
      .SetShapeFn(ConvShape)

REGISTER_OP("KerasPrivateConv2DExampleGradients")
    .Input("images: float")
    .Input("out_backprop: float")
    .Input("layout: int32")
    .Output("gradients: float")
    .Output("squared_norms: double")
    .KERAS_PRIVATE_CONV_ATTRIBUTES
    .Doc("Gradient of a Conv2D filter for each example: [batch, height * width * channels, filters]. Axis 0 of both "
         "inputs is [before, batch, after] = layout; an example owns before * after entries. explicit_paddings: top, "
         "bottom, left, right.");

// Where the gradients of all examples would not fit into memory: forms them panel by panel and keeps the norms.
REGISTER_OP("KerasPrivateConv2DExampleNorms")
    .Input("images: float")
    .Input("out_backprop: float")
    .Input("layout: int32")
    .Output("squared_norms: double")
    .KERAS_PRIVATE_CONV_ATTRIBUTES
    .Doc("Squared norms of KerasPrivateConv2DExampleGradients, without its gradients.");

class ConvOp : public OpKernel {
 public:
  explicit ConvOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("padding", &padding_));
    OP_REQUIRES_OK(context, Pairs(context, "kernel_size", &kernel_));
    OP_REQUIRES_OK(context, Pairs(context, "strides", &strides_));
    OP_REQUIRES_OK(context, Pairs(context, "dilations", &dilations_));
    OP_REQUIRES_OK(context, context->GetAttr("explicit_paddings", &pads_));
    OP_REQUIRES(context, pads_.size() == (padding_ == "EXPLICIT" ? 4 : 0),
                InvalidArgument("explicit_paddings must be 4 numbers for padding EXPLICIT and none otherwise, got ",
                                pads_.size(), " for ", padding_));
    for (const int64_t pad : pads_) {
      OP_REQUIRES(context, pad >= 0 && pad <= kLargest,
                  InvalidArgument("explicit_paddings must be in [0, ", kLargest, "], got ", pad));
    }
    forms_ = context->num_outputs() == 2;
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &images = context->input(0), &right = context->input(1);
    Conv conv;
    OP_REQUIRES_OK(context, Read(images, right, context->input(2), &conv));
    const int64_t rows = conv.Rows();
    Tensor *gradients = nullptr, *norms = nullptr;
    if (forms_) {
      TensorShape shape;
      OP_REQUIRES_OK(context, TensorShape::BuildTensorShape({conv.batch, rows, conv.filters}, &shape));
      OP_REQUIRES_OK(context, context->allocate_output(0, shape, &gradients));
    }
    OP_REQUIRES_OK(context, context->allocate_output(forms_ ? 1 : 0, TensorShape({conv.batch}), &norms));
    float* formed = forms_ ? gradients->flat<float>().data() : nullptr;
    double* squared = norms->flat<double>().data();
    const float *image = images.flat<float>().data(), *out_backprop = right.flat<float>().data();
    const int64_t positions = conv.y.output * conv.x.output * conv.before * conv.after;
    Sharded(context, conv.batch, (positions + 4) * rows * conv.filters / 16, [&](int64_t start, int64_t limit) {
      ConvExampleGradients(conv, image, out_backprop, formed, squared, start, limit);
    });
  }

 private:
  static constexpr int64_t kLargest = 1 << 16;

  static Status Pairs(OpKernelConstruction* context, const char* name, std::vector<int64_t>* pair) {
    TF_RETURN_IF_ERROR(context->GetAttr(name, pair));
    if (pair->size() != 2) return InvalidArgument(name, " must be 2 numbers, got ", pair->size());
    for (const int64_t value : *pair) {
      if (value < 1 || value > kLargest) {
        return InvalidArgument(name, " must be in [1, ", kLargest, "], got ", value);
      }
    }
    return tensorflow::OkStatus();
  }

  // Output size and leading padding, as Conv2D has them.
  Status MakeAxis(int which, int64_t input, int64_t output, Axis* axis) const {
    *axis = {input, output, kernel_[which], strides_[which], dilations_[which], 0};
    const int64_t reach = axis->Reach(1);
    int64_t padded = input, expected = (input + axis->stride - 1) / axis->stride;
    if (padding_ == "SAME") {
      axis->pad = std::max<int64_t>(axis->Reach(expected) - input, 0) / 2;
    } else {
      if (padding_ == "EXPLICIT") {
        axis->pad = pads_[2 * which];
        padded += axis->pad + pads_[2 * which + 1];
      }
      expected = padded < reach ? 0 : (padded - reach) / axis->stride + 1;
    }
    if (output != expected) {
      return InvalidArgument("out_backprop has ", output, which == 0 ? " rows" : " columns", ", but ", padding_,
                             " padding of an image of ", input, " gives ", expected, " (kernel ", axis->kernel,
                             ", stride ", axis->stride, ", dilation ", axis->dilation, ")");
    }
    return tensorflow::OkStatus();
  }

  Status Read(const Tensor& images, const Tensor& right, const Tensor& layout, Conv* conv) const {
    if (images.dims() != 4 || right.dims() != 4) {
      return InvalidArgument("images and out_backprop must have 4 dimensions, got shapes ",
                             images.shape().DebugString(), " and ", right.shape().DebugString());
    }
    if (layout.dims() != 1 || layout.NumElements() != 3) {
      return InvalidArgument("layout must be [before, batch, after], got shape ", layout.shape().DebugString());
    }
    const auto sizes = layout.vec<int32_t>();
    *conv = {{}, {}, images.dim_size(3), right.dim_size(3), sizes(1), sizes(0), sizes(2)};
    const int64_t entries = images.dim_size(0);
    const bool fits = sizes(0) >= 0 && sizes(1) >= 0 && sizes(2) >= 0 &&
                      static_cast<double>(sizes(0)) * sizes(1) * sizes(2) == static_cast<double>(entries);
    if (!fits || right.dim_size(0) != entries) {
      return InvalidArgument("images and out_backprop must have before * batch * after = ", sizes(0), " * ", sizes(1),
                             " * ", sizes(2), " entries each, got ", entries, " and ", right.dim_size(0));
    }
    TF_RETURN_IF_ERROR(MakeAxis(0, images.dim_size(1), right.dim_size(1), &conv->y));
    TF_RETURN_IF_ERROR(MakeAxis(1, images.dim_size(2), right.dim_size(2), &conv->x));
    const double band = static_cast<double>(conv->y.Reach(1)) * conv->x.Reach(conv->x.output) * conv->channels;
    if (band > static_cast<double>(int64_t{1} << 40)) return InvalidArgument("the kernel reaches too far");
    return tensorflow::OkStatus();
  }

  std::string padding_;
  std::vector<int64_t> kernel_, strides_, dilations_, pads_;
  bool forms_;
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateConv2DExampleGradients").Device(tensorflow::DEVICE_CPU), ConvOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateConv2DExampleNorms").Device(tensorflow::DEVICE_CPU), ConvOp);

}  // namespace
}  // namespace keras_private
