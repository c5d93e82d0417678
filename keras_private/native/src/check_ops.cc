// The deterministic parts of the noise, for tests that compare them with exact arithmetic. No secret, no state.
#include <algorithm>

#include "gaussian.h"
#include "grid.h"
#include "op_helpers.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::UnchangedShape;

REGISTER_OP("KerasPrivateGaussianTable")
    .Output("threshold: uint64")
    .Output("alias: int32")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(kColumns));
      c->set_output(1, c->Vector(kColumns));
      return tensorflow::OkStatus();
    })
    .Doc("The alias table of the Gaussian bins.");

REGISTER_OP("KerasPrivateRejectionThreshold")
    .Input("bins: int64")
    .Input("offsets: int64")
    .Output("threshold: uint64")
    .SetShapeFn(UnchangedShape)
    .Doc("2^64 times the probability to reject a cell of a bin.");

REGISTER_OP("KerasPrivateRoundAndAdd")
    .Input("x: float")
    .Input("cells: int32")
    .Input("cell: double")
    .Input("scale: double")
    .Output("out: float")
    .SetShapeFn(UnchangedShape)
    .Doc("AddGaussianNoise with the noise handed in.");

class GaussianTableOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor *threshold = nullptr, *alias = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({kColumns}), &threshold));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({kColumns}), &alias));
    const GaussianTable& table = GetGaussianTable();
    std::copy(table.threshold, table.threshold + kColumns, threshold->flat<uint64_t>().data());
    std::copy(table.alias, table.alias + kColumns, alias->flat<int32_t>().data());
  }
};

class RejectionThresholdOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &bins = context->input(0), &offsets = context->input(1);
    OP_REQUIRES(context, bins.shape() == offsets.shape(),
                tensorflow::errors::InvalidArgument("bins and offsets must have one shape"));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, bins.shape(), &output));
    for (int64_t i = 0; i < bins.NumElements(); ++i) {
      const int64_t bin = bins.flat<int64_t>()(i), offset = offsets.flat<int64_t>()(i);
      OP_REQUIRES(context, bin >= 0 && bin < kBins && offset >= 0 && offset < 4096,
                  tensorflow::errors::InvalidArgument("no such cell: ", bin, ", ", offset));
      output->flat<uint64_t>()(i) = RejectionThreshold(bin, offset);
    }
  }
};

class RoundAndAddOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &cells = context->input(1);
    OP_REQUIRES(context, x.shape() == cells.shape(),
                tensorflow::errors::InvalidArgument("x and cells must have one shape"));
    double cell, scale;
    OP_REQUIRES_OK(context, ScalarInput<double>(context, 2, "cell", &cell));
    OP_REQUIRES_OK(context, ScalarInput<double>(context, 3, "scale", &scale));
    OP_REQUIRES_OK(context, CheckGrid(cell, scale));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &output));
    RoundAndAdd(x.flat<float>().data(), cells.flat<int32_t>().data(), cell, cell * scale, x.NumElements(),
                output->flat<float>().data());
  }
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateGaussianTable").Device(tensorflow::DEVICE_CPU), GaussianTableOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRejectionThreshold").Device(tensorflow::DEVICE_CPU),
                        RejectionThresholdOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRoundAndAdd").Device(tensorflow::DEVICE_CPU), RoundAndAddOp);

}  // namespace
}  // namespace keras_private
