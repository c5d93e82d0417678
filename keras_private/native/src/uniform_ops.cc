// Uniform integers over a type's full range, or over [minval, maxval).
#include <limits>
#include <type_traits>

#include "generator.h"
#include "op_helpers.h"
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

Status ShapeFromFirstInput(InferenceContext* c) {
  ShapeHandle out;
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(0, &out));
  c->set_output(0, out);
  return tensorflow::OkStatus();
}

// SetIsStateful: grappler may neither fold, merge nor hoist a draw.
REGISTER_OP("KerasPrivateUniformFull")
    .SetIsStateful()
    .Input("shape: Tshape")
    .Output("output: dtype")
    .Attr("dtype: {int8, int16, int32, int64, uint8, uint16, uint32, uint64}")
    .Attr("Tshape: {int32, int64} = DT_INT32")
    .SetShapeFn(ShapeFromFirstInput)
    .Doc("Independent uniform integers over the whole range of dtype, from the secure generator.");

REGISTER_OP("KerasPrivateUniformInt")
    .SetIsStateful()
    .Input("shape: Tshape")
    .Input("minval: dtype")
    .Input("maxval: dtype")
    .Output("output: dtype")
    .Attr("dtype: {int8, int16, int32, int64, uint8, uint16, uint32, uint64}")
    .Attr("Tshape: {int32, int64} = DT_INT32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle unused;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 0, &unused));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 0, &unused));
      return ShapeFromFirstInput(c);
    })
    .Doc("Independent uniform integers in [minval, maxval), without modulo bias.");

Status AllocateFromShape(OpKernelContext* context, Tensor** output) {
  TensorShape shape;
  TF_RETURN_IF_ERROR(tensorflow::tensor::MakeShape(context->input(0), &shape));
  return context->allocate_output(0, shape, output);
}

template <typename T>
class UniformFullOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, AllocateFromShape(context, &output));
    T* data = output->flat<T>().data();
    OP_REQUIRES_OK(context, ShardedRun(context, output->NumElements(), sizeof(T),
                                       [data](int64_t start, int64_t limit) -> Failure {
                                         Stream* stream;
                                         if (Failure failure = Stream::ForThisThread(&stream)) return failure;
                                         return stream->Fill(data + start, (limit - start) * sizeof(T));
                                       }));
  }
};

template <typename Word, typename Wide, typename T>
Failure FillBounded(Stream* stream, uint64_t low, Word range, T* data, int64_t count) {
  constexpr int kBits = 8 * sizeof(Word);
  constexpr int64_t kBlock = 512;
  Word words[kBlock];
  int64_t done = 0;
  while (done < count) {
    const int64_t block = std::min(kBlock, count - done);
    if (Failure failure = stream->Fill(words, block * sizeof(Word))) return failure;
    for (int64_t i = 0; i < block; ++i) {
      // Lemire 2019, "Fast random integer generation in an interval", algorithm 5: exact, rejects only when
      // the low half falls below 2^bits mod range. The division runs only when rejection is possible.
      Wide product = static_cast<Wide>(words[i]) * range;
      Word remainder = static_cast<Word>(product);
      if (remainder < range) {
        const Word reject_below = static_cast<Word>(Word{0} - range) % range;
        while (remainder < reject_below) {
          uint64_t fresh;
          if (Failure failure = stream->Next(&fresh)) return failure;
          product = static_cast<Wide>(static_cast<Word>(fresh)) * range;
          remainder = static_cast<Word>(product);
        }
      }
      data[done + i] = static_cast<T>(low + static_cast<uint64_t>(product >> kBits));
    }
    done += block;
  }
  Cleanse(words, sizeof(words));
  return nullptr;
}

template <typename T>
class UniformIntOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    T minval, maxval;
    OP_REQUIRES_OK(context, ScalarInput<T>(context, 1, "minval", &minval));
    OP_REQUIRES_OK(context, ScalarInput<T>(context, 2, "maxval", &maxval));
    OP_REQUIRES(context, minval < maxval,
                tensorflow::errors::InvalidArgument("minval must be below maxval, got [", minval, ", ",
                                                    maxval, ")"));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, AllocateFromShape(context, &output));
    T* data = output->flat<T>().data();
    // Unsigned wrap-around: right for negative bounds and for ranges past the signed maximum.
    const uint64_t low = static_cast<uint64_t>(minval);
    const uint64_t range = static_cast<uint64_t>(maxval) - low;
    OP_REQUIRES_OK(
        context, ShardedRun(context, output->NumElements(), 12, [=](int64_t start, int64_t limit) -> Failure {
          Stream* stream;
          if (Failure failure = Stream::ForThisThread(&stream)) return failure;
          if (range <= std::numeric_limits<uint32_t>::max()) {
            const uint32_t narrow = static_cast<uint32_t>(range);
            return FillBounded<uint32_t, uint64_t>(stream, low, narrow, data + start, limit - start);
          }
          return FillBounded<uint64_t, unsigned __int128>(stream, low, range, data + start, limit - start);
        }));
  }
};

#define REGISTER_UNIFORM(T)                                                                                 \
  REGISTER_KERNEL_BUILDER(Name("KerasPrivateUniformFull")                                                   \
                              .Device(tensorflow::DEVICE_CPU)                                               \
                              .HostMemory("shape")                                                          \
                              .TypeConstraint<T>("dtype"),                                                  \
                          UniformFullOp<T>);                                                                \
  REGISTER_KERNEL_BUILDER(Name("KerasPrivateUniformInt")                                                    \
                              .Device(tensorflow::DEVICE_CPU)                                               \
                              .HostMemory("shape")                                                          \
                              .TypeConstraint<T>("dtype"),                                                  \
                          UniformIntOp<T>);

REGISTER_UNIFORM(int8_t)
REGISTER_UNIFORM(int16_t)
REGISTER_UNIFORM(int32_t)
REGISTER_UNIFORM(int64_t)
REGISTER_UNIFORM(uint8_t)
REGISTER_UNIFORM(uint16_t)
REGISTER_UNIFORM(uint32_t)
REGISTER_UNIFORM(uint64_t)

}  // namespace
}  // namespace keras_private
