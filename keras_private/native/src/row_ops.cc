// Per-example gradients of products over time, squared norms of rows, and the clipped sum.
//
// Guarantees, each locked by a test in tests/dp/test_kernels.py:
//  * What `keep` drops is never read, so nothing it holds can reach the sum.
//  * The sum of a column takes the rows in order, whatever the number of threads.
#include <algorithm>
#include <numeric>
#include <vector>

#include "outer_kernel.h"
#include "sharding.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Columns that one thread takes at least: a kilobyte, so that each row is read in whole cache lines.
constexpr int64_t kColumnUnit = 256;

REGISTER_OP("KerasPrivateOuterExampleGradients")
    .Input("left: float")
    .Input("right: float")
    .Output("gradients: float")
    .Output("squared_norms: double")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle left, right;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &left));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 3, &right));
      c->set_output(0, c->MakeShape({c->Dim(left, 0), c->Dim(left, 2), c->Dim(right, 2)}));
      c->set_output(1, c->Vector(c->Dim(left, 0)));
      return tensorflow::OkStatus();
    })
    .Doc("gradients[i] = sum_t left[i, t] outer right[i, t], and their squared norms.");

REGISTER_OP("KerasPrivateRowSquaredNorms")
    .Input("rows: float")
    .Output("squared_norms: double")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
      c->set_output(0, c->Vector(c->Dim(rows, 0)));
      return tensorflow::OkStatus();
    })
    .Doc("Squared norm of each row, in float64.");

REGISTER_OP("KerasPrivateMaskedWeightedSum")
    .Input("gradients: float")
    .Input("weights: float")
    .Input("keep: bool")
    .Output("sum: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle gradients, unused;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &gradients));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &unused));
      c->set_output(0, c->Vector(c->Dim(gradients, 1)));
      return tensorflow::OkStatus();
    })
    .Doc("sum_i weights[i] * gradients[i] over the rows that keep marks; others are never read.");

class OuterExampleGradientsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &left = context->input(0), &right = context->input(1);
    OP_REQUIRES(context,
                left.dims() == 3 && right.dims() == 3 && left.dim_size(0) == right.dim_size(0) &&
                    left.dim_size(1) == right.dim_size(1),
                InvalidArgument("left must be [batch, positions, d] and right [batch, positions, p], got ",
                                left.shape().DebugString(), " and ", right.shape().DebugString()));
    const int64_t batch = left.dim_size(0), count = left.dim_size(1), rows = left.dim_size(2),
                  columns = right.dim_size(2);
    TensorShape shape;
    OP_REQUIRES_OK(context, TensorShape::BuildTensorShape({batch, rows, columns}, &shape));
    Tensor *gradients = nullptr, *norms = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &gradients));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({batch}), &norms));
    const float *from = left.flat<float>().data(), *other = right.flat<float>().data();
    float* out = gradients->flat<float>().data();
    double* squared = norms->flat<double>().data();
    std::vector<ptrdiff_t> positions(count), offsets(rows);
    for (int64_t t = 0; t < count; ++t) positions[t] = t * rows;
    std::iota(offsets.begin(), offsets.end(), 0);
    Sharded(context, batch, (count + 4) * rows * columns / 16, [&](int64_t start, int64_t limit) {
      const int64_t panel = PanelRows(rows, columns);
      OuterSum sum(panel, columns);
      for (int64_t i = start; i < limit; ++i) {
        squared[i] = 0;
        for (int64_t row = 0; row < rows; row += panel) {
          sum.Start(out + (i * rows + row) * columns, std::min(panel, rows - row));
          sum.Add(from + i * count * rows, offsets.data() + row, positions.data(), count,
                  other + i * count * columns);
          squared[i] += sum.Finish();
        }
      }
    });
  }
};

class RowSquaredNormsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    OP_REQUIRES(context, rows.dims() == 2,
                InvalidArgument("rows must be a matrix, got shape ", rows.shape().DebugString()));
    Tensor* norms = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({rows.dim_size(0)}), &norms));
    const int64_t size = rows.dim_size(1);
    const float* x = rows.flat<float>().data();
    double* squared = norms->flat<double>().data();
    Sharded(context, rows.dim_size(0), size / 2, [=](int64_t start, int64_t limit) {
      for (int64_t i = start; i < limit; ++i) squared[i] = SquaredNorm(x + i * size, size);
    });
  }
};

class MaskedWeightedSumOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &gradients = context->input(0), &weights = context->input(1), &keep = context->input(2);
    OP_REQUIRES(context,
                gradients.dims() == 2 && weights.dims() == 1 && keep.dims() == 1 &&
                    weights.dim_size(0) == gradients.dim_size(0) && keep.dim_size(0) == gradients.dim_size(0),
                InvalidArgument("gradients must be [batch, size], weights and keep [batch], got ",
                                gradients.shape().DebugString(), ", ", weights.shape().DebugString(), " and ",
                                keep.shape().DebugString()));
    const int64_t size = gradients.dim_size(1);
    Tensor* sum = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({size}), &sum));
    std::vector<const float*> rows;
    std::vector<float> kept;
    for (int64_t i = 0; i < gradients.dim_size(0); ++i) {
      if (!keep.flat<bool>()(i)) continue;
      rows.push_back(gradients.flat<float>().data() + i * size);
      kept.push_back(weights.flat<float>()(i));
    }
    float* out = sum->flat<float>().data();
    const int64_t units = (size + kColumnUnit - 1) / kColumnUnit;
    Sharded(context, units, (rows.size() + 1) * kColumnUnit / 4, [&](int64_t start, int64_t limit) {
      WeightedSum(rows.data(), kept.data(), rows.size(), start * kColumnUnit, std::min(size, limit * kColumnUnit),
                  out);
    });
  }
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateOuterExampleGradients").Device(tensorflow::DEVICE_CPU),
                        OuterExampleGradientsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRowSquaredNorms").Device(tensorflow::DEVICE_CPU), RowSquaredNormsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateMaskedWeightedSum").Device(tensorflow::DEVICE_CPU), MaskedWeightedSumOp);

}  // namespace
}  // namespace keras_private
