// Rounded Gaussian draws, and the fused step: round to the cell grid, add noise, scale.
#include <algorithm>
#include <vector>

#include "gaussian.h"
#include "grid.h"
#include "op_helpers.h"
#include "sharding.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
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

REGISTER_OP("KerasPrivateNoiseCells")
    .SetIsStateful()
    .Output("cells: int32")
    .Attr("count: int >= 0")
    .SetShapeFn([](InferenceContext* c) {
      int64_t count;
      TF_RETURN_IF_ERROR(c->GetAttr("count", &count));
      c->set_output(0, c->Vector(count));
      return tensorflow::OkStatus();
    })
    .Doc("As KerasPrivateGaussianCells. It waits for no input, so it runs beside what makes the sums.");

REGISTER_OP("KerasPrivateReleaseSums")
    .Input("sums: count * float")
    .Input("cells: int32")
    .Input("cell: double")
    .Input("scale: double")
    .Output("noisy: count * float")
    .Attr("count: int >= 1")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle unused;
      const int count = c->num_outputs();
      TF_RETURN_IF_ERROR(c->WithRank(c->input(count), 1, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(count + 1), 0, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(count + 2), 0, &unused));
      for (int i = 0; i < count; ++i) c->set_output(i, c->input(i));
      return tensorflow::OkStatus();
    })
    .Doc("(nearest(x / cell) + n + 1/2) * (cell * scale) for every entry x of all sums and its own n of `cells`.");

REGISTER_OP("KerasPrivateAccepted")
    .Input("bins: int64")
    .Input("offsets: int64")
    .Input("uniforms: uint64")
    .Output("accepted: bool")
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape)
    .Doc("For tests: the decision about a draw that is left open.");

constexpr int64_t kCyclesPerCell = 6;
constexpr int64_t kCyclesPerSum = 4;

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

class AcceptedOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &bins = context->input(0), &offsets = context->input(1), &uniforms = context->input(2);
    OP_REQUIRES(context, bins.shape() == offsets.shape() && bins.shape() == uniforms.shape(),
                tensorflow::errors::InvalidArgument("bins, offsets and uniforms must have one shape"));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, bins.shape(), &output));
    for (int64_t i = 0; i < bins.NumElements(); ++i) {
      output->flat<bool>()(i) =
          Accepted(bins.flat<int64_t>()(i), offsets.flat<int64_t>()(i), uniforms.flat<uint64_t>()(i));
    }
  }
};

class NoiseCellsOp : public OpKernel {
 public:
  explicit NoiseCellsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("count", &count_));
  }

  void Compute(OpKernelContext* context) override {
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({count_}), &output));
    int32_t* data = output->flat<int32_t>().data();
    const GaussianTable& table = GetGaussianTable();
    auto work = [data, &table](int64_t start, int64_t limit) -> Failure {
      Stream* stream;
      if (Failure failure = Stream::ForThisThread(&stream)) return failure;
      return DrawCells(stream, table, limit - start, data + start);
    };
    OP_REQUIRES_OK(context, ShardedRun(context, count_, kCyclesPerCell, work));
  }

 private:
  int64_t count_;
};

class ReleaseSumsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const int count = context->num_outputs();
    const Tensor& cells = context->input(count);
    double cell, scale;
    OP_REQUIRES_OK(context, ScalarInput<double>(context, count + 1, "cell", &cell));
    OP_REQUIRES_OK(context, ScalarInput<double>(context, count + 2, "scale", &scale));
    OP_REQUIRES_OK(context, CheckGrid(cell, scale));
    std::vector<Part> parts;
    int64_t total = 0;
    for (int i = 0; i < count; ++i) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context,
                     context->forward_input_or_allocate_output({i}, i, context->input(i).shape(), &output));
      parts.push_back({total, output->NumElements(), context->input(i).flat<float>().data(),
                       output->flat<float>().data()});
      total += output->NumElements();
    }
    OP_REQUIRES(context, cells.NumElements() == total,
                tensorflow::errors::InvalidArgument("the sums have ", total, " entries, the noise has ",
                                                    cells.NumElements()));
    const int32_t* noise = cells.flat<int32_t>().data();
    Sharded(context, total, kCyclesPerSum, [&](int64_t start, int64_t limit) {
      for (const Part& part : parts) {
        const int64_t from = std::max(start, part.first), to = std::min(limit, part.first + part.size);
        if (from >= to) continue;
        const int64_t within = from - part.first;
        RoundAndAdd(part.sum + within, noise + from, cell, cell * scale, to - from, part.noisy + within);
      }
    });
  }

 private:
  struct Part {
    int64_t first, size;
    const float* sum;
    float* noisy;
  };
};

REGISTER_KERNEL_BUILDER(
    Name("KerasPrivateGaussianCells").Device(tensorflow::DEVICE_CPU).HostMemory("shape"), GaussianCellsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateAddGaussianNoise").Device(tensorflow::DEVICE_CPU),
                        AddGaussianNoiseOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateAccepted").Device(tensorflow::DEVICE_CPU), AcceptedOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateNoiseCells").Device(tensorflow::DEVICE_CPU), NoiseCellsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateReleaseSums").Device(tensorflow::DEVICE_CPU), ReleaseSumsOp);

}  // namespace
}  // namespace keras_private
