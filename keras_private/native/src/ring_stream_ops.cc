// Keystreams, and masks that sum to zero over the three parties (ring_streams.h).
//
// Deterministic functions of keys and nonces, which arrive as run-time tensors (see expand_ops.cc).
#include "ring_streams.h"
#include "tensorflow/core/framework/op.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("KerasPrivateRingKeystream")
    .Input("key: uint8")
    .Input("nonce: uint8")
    .Input("shape: Tshape")
    .Output("out: dtype")
    .Attr("dtype: {int8, int16, int32, int64}")
    .Attr("Tshape: {int32, int64} = DT_INT32")
    .SetShapeFn([](InferenceContext* c) { return ShapeFromInput(c, 2); })
    .Doc("F(key, nonce).");

REGISTER_OP("KerasPrivateRingZeroMask")
    .Input("key_a: uint8")
    .Input("key_b: uint8")
    .Input("nonce: uint8")
    .Input("shape: Tshape")
    .Output("out: dtype")
    .Attr("dtype: {int8, int16, int32, int64}")
    .Attr("Tshape: {int32, int64} = DT_INT32")
    .Attr("bits: bool")
    .SetShapeFn([](InferenceContext* c) { return ShapeFromInput(c, 3); })
    .Doc("F(key_a, nonce) - F(key_b, nonce), or their exclusive or where `bits`.");

class KeystreamOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    RingStream stream;
    OP_REQUIRES_OK(context, GetStream(context, 0, 1, -1, &stream));
    TensorShape shape;
    OP_REQUIRES_OK(context, GetShape(context, 2, tensorflow::DataTypeSize(output_type(0)), &shape));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    constexpr int64_t kBlock = kChaChaBlockBytes;
    const int64_t size = output->tensor_data().size(), blocks = (size + kBlock - 1) / kBlock;
    auto* out = reinterpret_cast<uint8_t*>(const_cast<char*>(output->tensor_data().data()));
    OP_REQUIRES_OK(context, ShardedRun(context, blocks, 100, [&](int64_t start, int64_t limit) -> Failure {
                     // In chunks: the cipher finds in the cache what it has just cleared.
                     for (int64_t block = start; block < limit; block += kChunkBlocks) {
                       const int64_t from = block * kBlock;
                       const int64_t to = std::min(size, std::min(limit, block + kChunkBlocks) * kBlock);
                       const Failure failure = ChaCha20Keystream(stream.key, stream.nonce, static_cast<uint32_t>(block),
                                                                 out + from, to - from);
                       if (failure != nullptr) return failure;
                     }
                     return nullptr;
                   }));
  }
};

template <typename Word, typename T>
class ZeroMaskOp : public OpKernel {
 public:
  explicit ZeroMaskOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("bits", &bits_));
  }

  void Compute(OpKernelContext* context) override {
    RingStream streams[2];
    OP_REQUIRES_OK(context, GetStream(context, 0, 2, -1, &streams[0]));
    OP_REQUIRES_OK(context, GetStream(context, 1, 2, -1, &streams[1]));
    TensorShape shape;
    OP_REQUIRES_OK(context, GetShape(context, 3, sizeof(Word), &shape));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    Word* out = reinterpret_cast<Word*>(output->flat<T>().data());
    const bool bits = bits_;
    OP_REQUIRES_OK(context, WithStreams<Word>(context, streams, 2, output->NumElements(),
                                              [=](int64_t first, int64_t count, const Word* const* words) {
                                                const Word *a = words[0], *b = words[1];
                                                Word* to = out + first;
                                                if (bits) {
                                                  for (int64_t i = 0; i < count; ++i) to[i] = a[i] ^ b[i];
                                                } else {
                                                  for (int64_t i = 0; i < count; ++i) to[i] = a[i] - b[i];
                                                }
                                              }));
  }

 private:
  bool bits_;
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingKeystream").Device(tensorflow::DEVICE_CPU), KeystreamOp);
#define KERAS_PRIVATE_ZERO_MASK(T, Word)                                                                \
  REGISTER_KERNEL_BUILDER(                                                                              \
      Name("KerasPrivateRingZeroMask").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("dtype"), \
      ZeroMaskOp<Word, T>)
KERAS_PRIVATE_ZERO_MASK(int8_t, uint8_t);
KERAS_PRIVATE_ZERO_MASK(int16_t, uint16_t);
KERAS_PRIVATE_ZERO_MASK(int32_t, uint32_t);
KERAS_PRIVATE_ZERO_MASK(int64_t, uint64_t);
#undef KERAS_PRIVATE_ZERO_MASK

}  // namespace
}  // namespace keras_private
