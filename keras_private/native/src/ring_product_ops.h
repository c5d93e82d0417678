// What the bilinear ops share: mask + B(x0, y0 + y1) + B(x1, y0) of two shares each, or B(x0, y0) of one.
#ifndef KERAS_PRIVATE_NATIVE_RING_PRODUCT_OPS_H_
#define KERAS_PRIVATE_NATIVE_RING_PRODUCT_OPS_H_

#include "ring_gemm.h"
#include "ring_ops.h"
#include "sharding.h"

namespace keras_private {

// A factor as one party holds it: one public tensor, or two shares of one shape.
struct Shares {
  int count;
  tensorflow::TensorShape shape;
  const uint64_t* words[2];
};

// Shapes of both factors, of which each share tells a part.
inline tensorflow::Status FactorShapes(tensorflow::shape_inference::InferenceContext* c, int rank,
                                       tensorflow::shape_inference::ShapeHandle* x,
                                       tensorflow::shape_inference::ShapeHandle* y) {
  int shares;
  TF_RETURN_IF_ERROR(c->GetAttr("shares", &shares));
  *x = c->input(0);
  *y = c->input(shares);
  for (int i = 0; i < shares; ++i) {
    TF_RETURN_IF_ERROR(c->Merge(*x, c->input(i), x));
    TF_RETURN_IF_ERROR(c->Merge(*y, c->input(shares + i), y));
  }
  TF_RETURN_IF_ERROR(c->WithRank(*x, rank, x));
  return c->WithRank(*y, rank, y);
}

// Output 0, whose shape a mask has as well.
inline tensorflow::Status ProductShape(tensorflow::shape_inference::InferenceContext* c,
                                       tensorflow::shape_inference::ShapeHandle out) {
  int shares;
  TF_RETURN_IF_ERROR(c->GetAttr("shares", &shares));
  for (int i = 2 * shares; i < c->num_inputs(); ++i) TF_RETURN_IF_ERROR(c->Merge(out, c->input(i), &out));
  c->set_output(0, out);
  return tensorflow::OkStatus();
}

inline tensorflow::Status GetFactors(tensorflow::OpKernelContext* context, int rank, Shares* x, Shares* y) {
  tensorflow::OpInputList lists[2], masks;
  TF_RETURN_IF_ERROR(context->input_list("x", &lists[0]));
  TF_RETURN_IF_ERROR(context->input_list("y", &lists[1]));
  TF_RETURN_IF_ERROR(context->input_list("mask", &masks));
  if (lists[0].size() > 2 || masks.size() > 1) {
    return tensorflow::errors::InvalidArgument("one or two shares and at most one mask, got ", lists[0].size(), " and ",
                                               masks.size());
  }
  Shares* factors[2] = {x, y};
  for (int f = 0; f < 2; ++f) {
    factors[f]->count = lists[f].size();
    factors[f]->shape = lists[f][0].shape();
    if (factors[f]->shape.dims() != rank) {
      return tensorflow::errors::InvalidArgument("factors must have rank ", rank, ", got shape ",
                                                 factors[f]->shape.DebugString());
    }
    for (int i = 0; i < lists[f].size(); ++i) {
      if (lists[f][i].shape() != factors[f]->shape) {
        return tensorflow::errors::InvalidArgument("shares of one factor have shapes ",
                                                   factors[f]->shape.DebugString(), " and ",
                                                   lists[f][i].shape().DebugString());
      }
      factors[f]->words[i] = RingWords(lists[f][i]);
    }
  }
  return tensorflow::OkStatus();
}

// Output 0, holding the mask, which must have this shape; zeros where there is none.
inline tensorflow::Status MaskedOutput(tensorflow::OpKernelContext* context, int mask_index,
                                       const tensorflow::TensorShape& shape, uint64_t** out) {
  tensorflow::Tensor* output = nullptr;
  if (mask_index < context->num_inputs()) {
    if (context->input(mask_index).shape() != shape) {
      return tensorflow::errors::InvalidArgument("the mask must have the shape of the result, ", shape.DebugString(),
                                                 ", got ", context->input(mask_index).shape().DebugString());
    }
    TF_RETURN_IF_ERROR(CopyOrForward(context, mask_index, &output));
    *out = RingWords(output);
  } else {
    TF_RETURN_IF_ERROR(context->allocate_output(0, shape, &output));
    *out = RingWords(output);
    std::fill_n(*out, output->NumElements(), 0);
  }
  return tensorflow::OkStatus();
}

// left and right of the product, from factors of `left` and `right`: the summed shares go to the right.
inline void SetFactors(const Shares& left, const Shares& right, const Grid& left_lines, const Grid& left_depth,
                       const Grid& right_lines, const Grid& right_depth, RingProduct* product) {
  product->summands = left.count;
  product->left[0] = {left.words[0], nullptr, left_lines, left_depth};
  product->right[0] = {right.words[0], left.count == 2 ? right.words[1] : nullptr, right_lines, right_depth};
  if (left.count == 2) {
    product->left[1] = {left.words[1], nullptr, left_lines, left_depth};
    product->right[1] = {right.words[0], nullptr, right_lines, right_depth};
  }
}

inline void RunProduct(tensorflow::OpKernelContext* context, const RingProduct& product,
                       const RingTile& tile = WidestRingTile()) {
  const int threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
  AddRingProduct(product, threads,
                 [context](int64_t total, int64_t cycles, const std::function<void(int64_t, int64_t)>& work) {
                   Sharded(context, total, cycles, work);
                 },
                 tile);
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_RING_PRODUCT_OPS_H_
