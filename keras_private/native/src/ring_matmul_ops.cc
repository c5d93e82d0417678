// Matrix products over the ring. Convolutions: ring_conv_ops.cc.
#include "ring_product_ops.h"
#include "tensorflow/core/framework/op.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("KerasPrivateRingMatmul")
    .Input("x: shares * int64")
    .Input("y: shares * int64")
    .Input("mask: masks * int64")
    .Output("out: int64")
    .Attr("shares: int >= 1")
    .Attr("masks: int >= 0")
    .Attr("transpose_a: bool = false")
    .Attr("transpose_b: bool = false")
    .Attr("tile: int = 0")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x, y, out;
      TF_RETURN_IF_ERROR(FactorShapes(c, 2, &x, &y));
      bool transpose_a, transpose_b;
      TF_RETURN_IF_ERROR(c->GetAttr("transpose_a", &transpose_a));
      TF_RETURN_IF_ERROR(c->GetAttr("transpose_b", &transpose_b));
      DimensionHandle unused;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, transpose_a ? 0 : 1), c->Dim(y, transpose_b ? 1 : 0), &unused));
      return ProductShape(c, c->Matrix(c->Dim(x, transpose_a ? 1 : 0), c->Dim(y, transpose_b ? 0 : 1)));
    })
    .Doc("mask + A(x0) B(y0 + y1) + A(x1) B(y0) modulo 2^64, or A(x0) B(y0) of one share each. "
         "For tests: tile 1 and on are those of narrower vectors.");

class MatmulOp : public OpKernel {
 public:
  explicit MatmulOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("transpose_a", &transpose_a_));
    OP_REQUIRES_OK(context, context->GetAttr("transpose_b", &transpose_b_));
    int64_t index;
    int count;
    OP_REQUIRES_OK(context, context->GetAttr("tile", &index));
    const RingTile* const* tiles = RingTiles(&count);
    OP_REQUIRES(context, index >= 0 && index < count, InvalidArgument("this processor has ", count, " tiles"));
    tile_ = tiles[index];
  }

  void Compute(OpKernelContext* context) override {
    Shares x, y;
    OP_REQUIRES_OK(context, GetFactors(context, 2, &x, &y));
    const int64_t rows = x.shape.dim_size(transpose_a_ ? 1 : 0), depth = x.shape.dim_size(transpose_a_ ? 0 : 1);
    const int64_t columns = y.shape.dim_size(transpose_b_ ? 0 : 1);
    OP_REQUIRES(context, y.shape.dim_size(transpose_b_ ? 1 : 0) == depth,
                InvalidArgument("no product of matrices of shapes ", x.shape.DebugString(), " and ",
                                y.shape.DebugString(), transpose_a_ ? ", the first transposed" : "",
                                transpose_b_ ? ", the second transposed" : ""));
    uint64_t* out = nullptr;
    TensorShape shape;
    OP_REQUIRES_OK(context, TensorShape::BuildTensorShape({rows, columns}, &shape));
    OP_REQUIRES_OK(context, MaskedOutput(context, x.count + y.count, shape, &out));
    RingProduct product;
    product.rows = rows;
    product.columns = columns;
    product.depth = depth;
    product.out = out;
    product.out_rows = Grid::Line(columns);
    SetFactors(x, y, Grid::Line(transpose_a_ ? 1 : depth), Grid::Line(transpose_a_ ? rows : 1),
               Grid::Line(transpose_b_ ? depth : 1), Grid::Line(transpose_b_ ? 1 : columns), &product);
    RunProduct(context, product, *tile_);
  }

 private:
  bool transpose_a_, transpose_b_;
  const RingTile* tile_;
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingMatmul").Device(tensorflow::DEVICE_CPU), MatmulOp);

}  // namespace
}  // namespace keras_private
