// Rounded Gaussian draws, and the fused step: round to the cell grid, add noise, scale.
#include <algorithm>

#include "gaussian.h"
#include "grid.h"
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

class AddGaussianNoiseOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    double cell, scale;
    OP_REQUIRES_OK(context, ScalarInput<double>(context, 1, "cell", &cell));
    OP_REQUIRES_OK(context, ScalarInput<double>(context, 2, "scale", &scale));
    OP_REQUIRES_OK(context, CheckGrid(cell, scale));
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

REGISTER_KERNEL_BUILDER(
    Name("KerasPrivateGaussianCells").Device(tensorflow::DEVICE_CPU).HostMemory("shape"), GaussianCellsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateAddGaussianNoise").Device(tensorflow::DEVICE_CPU),
                        AddGaussianNoiseOp);

}  // namespace
}  // namespace keras_private
