// The steps of the truncation (keras_private/encrypted/protocol/truncation.py), which mask what they compute.
//
// Deterministic functions of shares, keys and nonces, which arrive as run-time tensors (see expand_ops.cc).
#include "ring_streams.h"
#include "tensorflow/core/framework/op.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;

REGISTER_OP("KerasPrivateRingTruncDealer")
    .Input("key0: uint8")
    .Input("key2: uint8")
    .Input("nonce: uint8")
    .Input("shape: Tshape")
    .Output("a1: int64")
    .Output("m1: int64")
    .Attr("Tshape: {int32, int64} = DT_INT32")
    .Attr("bits: int")
    .SetShapeFn([](InferenceContext* c) { return ShapeFromInput(c, 3); })
    .Doc("r = F(key0, n/1) + F(key2, n/1); (r >> bits) - F(key0, n/2); (msb(r) << 64 - bits) - F(key0, n/3).");

REGISTER_OP("KerasPrivateRingTruncMask")
    .Input("key2: uint8")
    .Input("nonce: uint8")
    .Input("z2: int64")
    .Output("out: int64")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 2); })
    .Doc("z2 + F(key2, n/0).");

REGISTER_OP("KerasPrivateRingTruncOpen0")
    .Input("key0: uint8")
    .Input("nonce: uint8")
    .Input("z2m: int64")
    .Input("z0: int64")
    .Output("c0: int64")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 2); })
    .Doc("z0 + z2m + F(key0, n/1) + 2^62.");

REGISTER_OP("KerasPrivateRingTruncOpen1")
    .Input("key2: uint8")
    .Input("nonce: uint8")
    .Input("z1: int64")
    .Output("c1: int64")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 2); })
    .Doc("z1 - F(key2, n/0) + F(key2, n/1).");

REGISTER_OP("KerasPrivateRingTruncClose0")
    .Input("key0: uint8")
    .Input("nonce: uint8")
    .Input("c0: int64")
    .Input("c1: int64")
    .Output("u0: int64")
    .Attr("bits: int")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 2); })
    .Doc("c = c0 + c1; (c >> bits) - 2^(62 - bits) - F(key0, n/2) + [c < 2^63] F(key0, n/3) - F(key0, n/4).");

REGISTER_OP("KerasPrivateRingTruncClose1")
    .Input("key2: uint8")
    .Input("nonce: uint8")
    .Input("c0: int64")
    .Input("c1: int64")
    .Input("a1: int64")
    .Input("m1: int64")
    .Output("u1: int64")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 2); })
    .Doc("-a1 + [c0 + c1 < 2^63] m1 - F(key2, n/4).");

Status GetBits(OpKernelConstruction* context, int64_t* bits) {
  TF_RETURN_IF_ERROR(context->GetAttr("bits", bits));
  if (*bits >= 1 && *bits <= 62) return tensorflow::OkStatus();
  return InvalidArgument("bits must be 1 to 62, got ", *bits);
}

class TruncDealerOp : public OpKernel {
 public:
  explicit TruncDealerOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, GetBits(context, &bits_));
  }

  void Compute(OpKernelContext* context) override {
    RingStream streams[4];
    OP_REQUIRES_OK(context, GetStream(context, 0, 2, 1, &streams[0]));
    OP_REQUIRES_OK(context, GetStream(context, 1, 2, 1, &streams[1]));
    OP_REQUIRES_OK(context, GetStream(context, 0, 2, 2, &streams[2]));
    OP_REQUIRES_OK(context, GetStream(context, 0, 2, 3, &streams[3]));
    TensorShape shape;
    OP_REQUIRES_OK(context, GetShape(context, 3, sizeof(uint64_t), &shape));
    Tensor *output = nullptr, *second = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &second));
    uint64_t *a1 = RingWords(output), *m1 = RingWords(second);
    const int64_t bits = bits_;
    OP_REQUIRES_OK(context, WithStreams<uint64_t>(context, streams, 4, output->NumElements(),
                                                  [=](int64_t first, int64_t count, const uint64_t* const* words) {
                                                    for (int64_t i = 0; i < count; ++i) {
                                                      const uint64_t r = words[0][i] + words[1][i];
                                                      a1[first + i] = (r >> bits) - words[2][i];
                                                      m1[first + i] = ((r >> 63) << (64 - bits)) - words[3][i];
                                                    }
                                                  }));
  }

 private:
  int64_t bits_;
};

constexpr uint64_t kHalf = uint64_t{1} << 62;

// `word` where `opened` is below 2^63, else 0.
inline uint64_t Below(uint64_t opened, uint64_t word) { return word & ((opened >> 63) - 1); }

// A step of the truncation: At(x, f, bits) from a word of each input and of each stream f[s] = F(key, n / kStreams[s]).
struct MaskStep {
  static constexpr int kInputs = 1, kStreams[] = {0};
  static constexpr bool kHasBits = false;
  static uint64_t At(const uint64_t* x, const uint64_t* f, int) { return x[0] + f[0]; }
};

struct Open0Step {
  static constexpr int kInputs = 2, kStreams[] = {1};
  static constexpr bool kHasBits = false;
  static uint64_t At(const uint64_t* x, const uint64_t* f, int) { return x[0] + x[1] + f[0] + kHalf; }
};

struct Open1Step {
  static constexpr int kInputs = 1, kStreams[] = {0, 1};
  static constexpr bool kHasBits = false;
  static uint64_t At(const uint64_t* x, const uint64_t* f, int) { return x[0] - f[0] + f[1]; }
};

struct Close0Step {
  static constexpr int kInputs = 2, kStreams[] = {2, 3, 4};
  static constexpr bool kHasBits = true;
  static uint64_t At(const uint64_t* x, const uint64_t* f, int bits) {
    const uint64_t opened = x[0] + x[1];
    return (opened >> bits) - (kHalf >> bits) - f[0] + Below(opened, f[1]) - f[2];
  }
};

struct Close1Step {
  static constexpr int kInputs = 4, kStreams[] = {4};
  static constexpr bool kHasBits = false;
  static uint64_t At(const uint64_t* x, const uint64_t* f, int) { return Below(x[0] + x[1], x[3]) - x[2] - f[0]; }
};

// Inputs: key, nonce, and words of one shape; the result takes the place of the last where no one else reads that.
template <typename Step>
class TruncStepOp : public OpKernel {
 public:
  explicit TruncStepOp(OpKernelConstruction* context) : OpKernel(context) {
    if (Step::kHasBits) OP_REQUIRES_OK(context, GetBits(context, &bits_));
  }

  void Compute(OpKernelContext* context) override {
    constexpr int kStreams = sizeof(Step::kStreams) / sizeof(int), kInputs = Step::kInputs;
    RingStream streams[kStreams];
    for (int s = 0; s < kStreams; ++s) {
      OP_REQUIRES_OK(context, GetStream(context, 0, 1, Step::kStreams[s], &streams[s]));
    }
    constexpr int kLast = kInputs + 1;
    OP_REQUIRES_OK(context, CheckOneShape(context, 2, kLast));
    const uint64_t* in[kInputs];
    for (int i = 0; i < kInputs; ++i) in[i] = RingWords(context->input(2 + i));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({kLast}, 0, context->input(kLast).shape(), &output));
    uint64_t* out = RingWords(output);
    const int bits = static_cast<int>(bits_);
    const auto body = [&in, out, bits](int64_t first, int64_t count, const uint64_t* const* words) {
      for (int64_t i = 0; i < count; ++i) {
        uint64_t x[kInputs], f[kStreams];
        for (int k = 0; k < kInputs; ++k) x[k] = in[k][first + i];
        for (int s = 0; s < kStreams; ++s) f[s] = words[s][i];
        out[first + i] = Step::At(x, f, bits);
      }
    };
    OP_REQUIRES_OK(context, WithStreams<uint64_t>(context, streams, kStreams, output->NumElements(), body));
  }

 private:
  int64_t bits_ = 0;
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingTruncDealer").Device(tensorflow::DEVICE_CPU), TruncDealerOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingTruncMask").Device(tensorflow::DEVICE_CPU), TruncStepOp<MaskStep>);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingTruncOpen0").Device(tensorflow::DEVICE_CPU), TruncStepOp<Open0Step>);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingTruncOpen1").Device(tensorflow::DEVICE_CPU), TruncStepOp<Open1Step>);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingTruncClose0").Device(tensorflow::DEVICE_CPU), TruncStepOp<Close0Step>);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingTruncClose1").Device(tensorflow::DEVICE_CPU), TruncStepOp<Close1Step>);

}  // namespace
}  // namespace keras_private
