// Rounded Gaussian draws, and the fused step: round to the cell grid, add noise, scale.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "gaussian.h"
#include "op_helpers.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("KerasPrivateGaussianCells")
    .SetIsStateful()
    .Input("shape: Tshape")
    .Output("cells: int64")
    .Attr("Tshape: {int32, int64} = DT_INT32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle out;
      TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(0, &out));
      c->set_output(0, out);
      return tensorflow::OkStatus();
    })
    .Doc("Independent draws of floor(2^20 Z), Z standard normal; total variation below 2^-60 a draw.");

REGISTER_OP("KerasPrivateAddGaussianNoise")
    .SetIsStateful()
    .Input("x: float")
    .Input("cell: double")
    .Input("scale: double")
    .Output("noisy: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle unused;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 0, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 0, &unused));
      return tensorflow::shape_inference::UnchangedShape(c);
    })
    .Doc("(nearest(x / cell) + floor(2^20 Z) + 1/2) * (cell * scale), Z standard normal.");

// Public constants, for tests and for the comparison with the portable table.
REGISTER_OP("KerasPrivateGaussianTable")
    .Output("threshold: uint64")
    .Output("alias: int32")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(kColumns));
      c->set_output(1, c->Vector(kColumns));
      return tensorflow::OkStatus();
    })
    .Doc("The alias table of the Gaussian bins: constants of the law, no secret.");

constexpr int64_t kCyclesPerCell = 16;

class GaussianCellsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    TensorShape shape;
    OP_REQUIRES_OK(context, tensorflow::tensor::MakeShape(context->input(0), &shape));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    int64_t* data = output->flat<int64_t>().data();
    const GaussianTable& table = GetGaussianTable();
    auto work = [data, &table](int64_t start, int64_t limit) -> Failure {
      Stream* stream;
      if (Failure failure = Stream::ForThisThread(&stream)) return failure;
      int32_t cells[kChunk];
      for (int64_t at = start; at < limit; at += kChunk) {
        const size_t count = std::min<int64_t>(kChunk, limit - at);
        if (Failure failure = DrawCells(stream, table, count, cells)) return failure;
        std::copy(cells, cells + count, data + at);
      }
      Cleanse(cells, sizeof(cells));
      return nullptr;
    };
    OP_REQUIRES_OK(context, ShardedRun(context, output->NumElements(), kCyclesPerCell, work));
  }
};

// Nearest integer, ties to even, for any finite |q| <= 2^52: in [2^52, 2^53] doubles are the integers.
// Written so that it compiles to a few vector instructions on every x86-64.
inline double NearestInteger(double q) {
  constexpr double kMagic = 4503599627370496.0;  // 2^52
  return std::copysign((std::fabs(q) + kMagic) - kMagic, q);
}

KERAS_PRIVATE_CLONES
void RoundAndAdd(const float* x, const int32_t* cells, double cell, double output_step, size_t count,
                 float* out) {
  constexpr double kLimit = 4503599627370496.0;  // 2^52
  for (size_t i = 0; i < count; ++i) {
    double q = static_cast<double>(x[i]) / cell;
    q = q == q ? q : 0.0;
    q = q < kLimit ? q : kLimit;
    q = q > -kLimit ? q : -kLimit;
    // Exact up to the 1/2: integers below 2^53. The 1/2 and what follows is post-processing.
    out[i] = static_cast<float>(((NearestInteger(q) + cells[i]) + 0.5) * output_step);
  }
}

class AddGaussianNoiseOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    double cell, scale;
    OP_REQUIRES_OK(context, ScalarInput<double>(context, 1, "cell", &cell));
    OP_REQUIRES_OK(context, ScalarInput<double>(context, 2, "scale", &scale));
    // Below the smallest normal float32 the rounding of x would depend on the thread's denormal mode.
    OP_REQUIRES(context, std::isfinite(cell) && cell >= FLT_MIN,
                tensorflow::errors::InvalidArgument("cell must be finite and at least 2^-126, got ", cell));
    OP_REQUIRES(context, std::isfinite(scale) && std::isfinite(cell * scale),
                tensorflow::errors::InvalidArgument("scale and cell * scale must be finite, got scale ", scale));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, context->input(0).shape(), &output));
    const float* x = context->input(0).flat<float>().data();
    float* out = output->flat<float>().data();
    const GaussianTable& table = GetGaussianTable();
    auto work = [=, &table](int64_t start, int64_t limit) -> Failure {
      Stream* stream;
      if (Failure failure = Stream::ForThisThread(&stream)) return failure;
      int32_t cells[kChunk];
      for (int64_t at = start; at < limit; at += kChunk) {
        const size_t count = std::min<int64_t>(kChunk, limit - at);
        if (Failure failure = DrawCells(stream, table, count, cells)) return failure;
        RoundAndAdd(x + at, cells, cell, cell * scale, count, out + at);
      }
      Cleanse(cells, sizeof(cells));
      return nullptr;
    };
    OP_REQUIRES_OK(context, ShardedRun(context, output->NumElements(), kCyclesPerCell, work));
  }
};

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

REGISTER_KERNEL_BUILDER(
    Name("KerasPrivateGaussianCells").Device(tensorflow::DEVICE_CPU).HostMemory("shape"), GaussianCellsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateAddGaussianNoise").Device(tensorflow::DEVICE_CPU),
                        AddGaussianNoiseOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateGaussianTable").Device(tensorflow::DEVICE_CPU), GaussianTableOp);

}  // namespace
}  // namespace keras_private
