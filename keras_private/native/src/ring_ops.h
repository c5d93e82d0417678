// What the ops over the ring share: words of tensors, checks, shapes.
#ifndef KERAS_PRIVATE_NATIVE_RING_OPS_H_
#define KERAS_PRIVATE_NATIVE_RING_OPS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_private {

inline const uint64_t* RingWords(const tensorflow::Tensor& tensor) {
  return reinterpret_cast<const uint64_t*>(tensor.flat<int64_t>().data());
}

inline uint64_t* RingWords(tensorflow::Tensor* tensor) {
  return reinterpret_cast<uint64_t*>(tensor->flat<int64_t>().data());
}

// An error unless all inputs have the shape of the last one.
inline tensorflow::Status CheckOneShape(tensorflow::OpKernelContext* context, int first, int last) {
  for (int i = first; i < last; ++i) {
    if (context->input(i).shape() != context->input(last).shape()) {
      return tensorflow::errors::InvalidArgument("inputs ", first, " to ", last, " must have one shape, got ",
                                                 context->input(i).shape().DebugString(), " and ",
                                                 context->input(last).shape().DebugString());
    }
  }
  return tensorflow::OkStatus();
}

// Output 0 of the shape of all inputs from `first` on, as far as any of them is known.
inline tensorflow::Status SameShapeFrom(tensorflow::shape_inference::InferenceContext* c, int first) {
  tensorflow::shape_inference::ShapeHandle shape = c->input(first);
  for (int i = first + 1; i < c->num_inputs(); ++i) TF_RETURN_IF_ERROR(c->Merge(shape, c->input(i), &shape));
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, shape);
  return tensorflow::OkStatus();
}

// Output 0, holding what input `index` holds: in its own memory where no one else reads it.
inline tensorflow::Status CopyOrForward(tensorflow::OpKernelContext* context, int index,
                                        tensorflow::Tensor** output) {
  const tensorflow::Tensor& input = context->input(index);
  TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({index}, 0, input.shape(), output));
  const auto from = input.tensor_data();
  const auto to = (*output)->tensor_data();
  if (from.data() != to.data() && !from.empty()) {
    std::memcpy(const_cast<char*>(to.data()), from.data(), from.size());
  }
  return tensorflow::OkStatus();
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_RING_OPS_H_
