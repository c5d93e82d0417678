// Keyed counter-mode expansion: deterministic keystreams, and the library's own status.
#include <algorithm>
#include <string>

#include "cipher.h"
#include "op_helpers.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;

Status BytesOutput(InferenceContext* c, int count_input) {
  DimensionHandle size;
  TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(count_input, &size));
  c->set_output(0, c->Vector(size));
  return tensorflow::OkStatus();
}

// Not stateful: the same key, nonce and counter give the same bytes, so merging two such ops is right.
// A key that is a constant of the graph may be folded with its stream; keys must arrive as run-time tensors.
REGISTER_OP("KerasPrivateExpand")
    .Input("key: uint8")
    .Input("nonce: uint8")
    .Input("counter: int64")
    .Input("num_bytes: int64")
    .Output("bytes: uint8")
    .SetShapeFn([](InferenceContext* c) { return BytesOutput(c, 3); })
    .Doc("ChaCha20 keystream of RFC 8439 2.4: 32-byte key, 12-byte nonce, first block `counter`.");

// The generator's cipher core, for known-answer tests; it shares no state with the generator.
REGISTER_OP("KerasPrivateAesCtr")
    .Input("key: uint8")
    .Input("iv: uint8")
    .Input("num_bytes: int64")
    .Output("bytes: uint8")
    .SetShapeFn([](InferenceContext* c) { return BytesOutput(c, 2); })
    .Doc("AES-256-CTR keystream of NIST SP 800-38A 6.5: 32-byte key, 16-byte initial counter block.");

REGISTER_OP("KerasPrivateStatus")
    .SetIsStateful()
    .Output("crypto_version: string")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Scalar());
      return tensorflow::OkStatus();
    })
    .Doc("Runs the cipher self-tests (error when one fails) and names the libcrypto in use.");

Status CheckBytes(const Tensor& tensor, const char* name, int64_t size) {
  if (tensor.dims() != 1 || tensor.NumElements() != size) {
    return tensorflow::errors::InvalidArgument(name, " must be ", size, " bytes of shape [", size,
                                               "], got shape ", tensor.shape().DebugString());
  }
  return tensorflow::OkStatus();
}

class ExpandOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CheckBytes(context->input(0), "key", kKeyBytes));
    OP_REQUIRES_OK(context, CheckBytes(context->input(1), "nonce", kChaChaNonceBytes));
    int64_t counter, size;
    OP_REQUIRES_OK(context, ScalarInput<int64_t>(context, 2, "counter", &counter));
    OP_REQUIRES_OK(context, ScalarInput<int64_t>(context, 3, "num_bytes", &size));
    constexpr int64_t kBlocks = int64_t{1} << 32;
    OP_REQUIRES(context, size >= 0 && counter >= 0 && counter < kBlocks,
                tensorflow::errors::InvalidArgument("num_bytes must be >= 0 and counter in [0, 2^32), got ",
                                                    size, " and ", counter));
    const int64_t blocks = size / int64_t{kChaChaBlockBytes} + (size % int64_t{kChaChaBlockBytes} != 0);
    OP_REQUIRES(context, blocks <= kBlocks - counter,
                tensorflow::errors::InvalidArgument(
                    "the keystream would pass block 2^32 and repeat: counter ", counter, ", ", blocks,
                    " blocks. Use another nonce."));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({size}), &output));
    const uint8_t* key = context->input(0).flat<uint8_t>().data();
    const uint8_t* nonce = context->input(1).flat<uint8_t>().data();
    uint8_t* out = output->flat<uint8_t>().data();
    auto work = [=](int64_t start, int64_t limit) -> Failure {
      const int64_t from = start * kChaChaBlockBytes;
      const int64_t to = std::min<int64_t>(size, limit * kChaChaBlockBytes);
      return ChaCha20Keystream(key, nonce, static_cast<uint32_t>(counter + start), out + from, to - from);
    };
    OP_REQUIRES_OK(context, ShardedRun(context, blocks, 100, work));
  }
};

class AesCtrOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CheckBytes(context->input(0), "key", kKeyBytes));
    OP_REQUIRES_OK(context, CheckBytes(context->input(1), "iv", kAesIvBytes));
    int64_t size;
    OP_REQUIRES_OK(context, ScalarInput<int64_t>(context, 2, "num_bytes", &size));
    OP_REQUIRES(context, size >= 0, tensorflow::errors::InvalidArgument("num_bytes must be >= 0, got ", size));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({size}), &output));
    AesCtr cipher;
    OP_REQUIRES_OK(context, ToStatus(cipher.Start(context->input(0).flat<uint8_t>().data(),
                                                  context->input(1).flat<uint8_t>().data())));
    OP_REQUIRES_OK(context, ToStatus(cipher.Keystream(output->flat<uint8_t>().data(), size)));
  }
};

class StatusOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, ToStatus(SelfTest()));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &output));
    output->scalar<tensorflow::tstring>()() = std::string(CryptoVersion());
  }
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateExpand").Device(tensorflow::DEVICE_CPU), ExpandOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateAesCtr").Device(tensorflow::DEVICE_CPU), AesCtrOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateStatus").Device(tensorflow::DEVICE_CPU), StatusOp);

}  // namespace
}  // namespace keras_private
