// Elementwise steps of the protocol, each in one pass: products, conjunctions, and the tree of carries.
//
// Deterministic functions of shares and masks; keras_private/encrypted/kernels/interface.py says what they compute.
#include "clones.h"
#include "ring_ops.h"
#include "sharding.h"
#include "tensorflow/core/framework/op.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("KerasPrivateRingProduct")
    .Input("x0: int64")
    .Input("x1: int64")
    .Input("y0: int64")
    .Input("y1: int64")
    .Input("mask: int64")
    .Output("out: int64")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 0); })
    .Doc("mask + x0 (y0 + y1) + x1 y0 modulo 2^64.");

REGISTER_OP("KerasPrivateRingAndWords")
    .Input("x0: T")
    .Input("x1: T")
    .Input("y0: T")
    .Input("y1: T")
    .Input("mask: T")
    .Output("out: T")
    .Attr("T: {int8, int16, int32, int64}")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 0); })
    .Doc("mask ^ (x0 & y0) ^ (x0 & y1) ^ (x1 & y0).");

REGISTER_OP("KerasPrivateRingCarryLeaf")
    .Input("a0: int64")
    .Input("a1: int64")
    .Input("b0: int64")
    .Input("b1: int64")
    .Input("mask: int64")
    .Output("generates: int64")
    .Output("propagates0: int64")
    .Output("propagates1: int64")
    .SetShapeFn([](InferenceContext* c) { return SameShapeFrom(c, 0); })
    .Doc("Generating and propagating bits of a + b, in the order of the carry tree.");

REGISTER_OP("KerasPrivateRingCarryLevel")
    .Input("x0: Tin")
    .Input("x1: Tin")
    .Input("mask: Tout")
    .Output("out: Tout")
    .Attr("Tin: {int8, int16, int32, int64}")
    .Attr("Tout: {int8, int16, int32, int64}")
    .Attr("width: int")
    .SetShapeFn([](InferenceContext* c) {
      int64_t width;
      TF_RETURN_IF_ERROR(c->GetAttr("width", &width));
      ShapeHandle in, out = c->input(2);
      TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &in));
      if (width == 64) {
        TF_RETURN_IF_ERROR(c->WithRankAtLeast(in, 1, &in));
        tensorflow::shape_inference::DimensionHandle rows;
        TF_RETURN_IF_ERROR(c->WithValue(c->Dim(in, 0), 2, &rows));
        TF_RETURN_IF_ERROR(c->Subshape(in, 1, &in));
      }
      TF_RETURN_IF_ERROR(c->Merge(in, out, &out));
      c->set_output(0, out);
      return tensorflow::OkStatus();
    })
    .Doc("One level of the carry tree over containers of width bits.");

KERAS_PRIVATE_CLONES
void Product(const uint64_t* x0, const uint64_t* x1, const uint64_t* y0, const uint64_t* y1, const uint64_t* mask,
             int64_t size, uint64_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = mask[i] + x0[i] * (y0[i] + y1[i]) + x1[i] * y0[i];
}

KERAS_PRIVATE_CLONES
void AndBytes(const uint8_t* x0, const uint8_t* x1, const uint8_t* y0, const uint8_t* y1, const uint8_t* mask,
              int64_t size, uint8_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = mask[i] ^ (x0[i] & (y0[i] ^ y1[i])) ^ (x1[i] & y0[i]);
}

// The bits of 2 w, with bit j at the place whose number is j with its six bits reversed.
__attribute__((always_inline)) inline uint64_t TreeOrder(uint64_t w) {
  w <<= 1;
  uint64_t moved = ((w >> 31) ^ w) & 0x00000000aaaaaaaa;
  w ^= moved ^ (moved << 31);
  moved = ((w >> 14) ^ w) & 0x0000cccc0000cccc;
  w ^= moved ^ (moved << 14);
  moved = ((w >> 4) ^ w) & 0x00f000f000f000f0;
  return w ^ moved ^ (moved << 4);
}

KERAS_PRIVATE_CLONES
void CarryLeaf(const uint64_t* a0, const uint64_t* a1, const uint64_t* b0, const uint64_t* b1, const uint64_t* mask,
               int64_t size, uint64_t* __restrict generates, uint64_t* __restrict propagates0,
               uint64_t* __restrict propagates1) {
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t both = (a0[i] & (b0[i] ^ b1[i])) ^ (a1[i] & b0[i]);
    generates[i] = mask[i] ^ TreeOrder(both);
    propagates0[i] = TreeOrder(a0[i] ^ b0[i]);
    propagates1[i] = TreeOrder(a1[i] ^ b1[i]);
  }
}

// One summand of (G_hi ^ P_hi & G_lo) and of (P_hi & P_lo) << half, for shares (g0, p0) and (g1, p1) of width bits.
template <int Half, typename Word>
__attribute__((always_inline)) inline Word Join(Word g0, Word p0, Word g1, Word p1) {
  constexpr Word kLower = static_cast<Word>((uint64_t{1} << Half) - 1);
  const Word high0 = p0 >> Half, high1 = p1 >> Half;
  const Word generates = ((g0 >> Half) & kLower) ^ (high0 & (g0 ^ g1) & kLower) ^ (high1 & g0 & kLower);
  if (Half == 1) return generates;
  const Word propagates = (high0 & (p0 ^ p1) & kLower) ^ (high1 & p0 & kLower);
  return generates | static_cast<Word>(propagates << (Half % (8 * sizeof(Word))));
}

KERAS_PRIVATE_CLONES
void Level64(const uint64_t* x0, const uint64_t* x1, const uint64_t* mask, int64_t size, int64_t propagates,
             uint64_t* out) {
  for (int64_t i = 0; i < size; ++i) {
    out[i] = mask[i] ^ Join<32, uint64_t>(x0[i], x0[i + propagates], x1[i], x1[i + propagates]);
  }
}

// From containers that hold G and P of Width bits in one word.
template <int Width, typename In, typename Out>
__attribute__((always_inline)) inline void Level(const In* x0, const In* x1, const Out* mask, int64_t size, Out* out) {
  constexpr int kUsed = Width > 2 ? Width : 1;
  constexpr Out kBits = static_cast<Out>((uint64_t{1} << kUsed) - 1);
  for (int64_t i = 0; i < size; ++i) {
    const In p0 = static_cast<In>(x0[i] >> Width), p1 = static_cast<In>(x1[i] >> Width);
    const In joined = Join<Width / 2, In>(x0[i], p0, x1[i], p1);
    out[i] = static_cast<Out>(mask[i] ^ joined) & kBits;
  }
}

KERAS_PRIVATE_CLONES
void Level32(const uint64_t* x0, const uint64_t* x1, const uint32_t* mask, int64_t size, uint32_t* out) {
  Level<32>(x0, x1, mask, size, out);
}

KERAS_PRIVATE_CLONES
void Level16(const uint32_t* x0, const uint32_t* x1, const uint16_t* mask, int64_t size, uint16_t* out) {
  Level<16>(x0, x1, mask, size, out);
}

KERAS_PRIVATE_CLONES
void Level8(const uint16_t* x0, const uint16_t* x1, const uint8_t* mask, int64_t size, uint8_t* out) {
  Level<8>(x0, x1, mask, size, out);
}

KERAS_PRIVATE_CLONES
void Level4(const uint8_t* x0, const uint8_t* x1, const uint8_t* mask, int64_t size, uint8_t* out) {
  Level<4>(x0, x1, mask, size, out);
}

KERAS_PRIVATE_CLONES
void Level2(const uint8_t* x0, const uint8_t* x1, const uint8_t* mask, int64_t size, uint8_t* out) {
  Level<2>(x0, x1, mask, size, out);
}

class ProductOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CheckOneShape(context, 0, 4));
    const uint64_t* in[5];
    for (int i = 0; i < 5; ++i) in[i] = RingWords(context->input(i));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({4}, 0, context->input(4).shape(), &output));
    uint64_t* out = RingWords(output);
    Sharded(context, output->NumElements(), 4, [=](int64_t start, int64_t limit) {
      Product(in[0] + start, in[1] + start, in[2] + start, in[3] + start, in[4] + start, limit - start, out + start);
    });
  }
};

class AndWordsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CheckOneShape(context, 0, 4));
    const uint8_t* in[5];
    for (int i = 0; i < 5; ++i) in[i] = reinterpret_cast<const uint8_t*>(context->input(i).tensor_data().data());
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({4}, 0, context->input(4).shape(), &output));
    uint8_t* out = reinterpret_cast<uint8_t*>(const_cast<char*>(output->tensor_data().data()));
    Sharded(context, output->tensor_data().size(), 1, [=](int64_t start, int64_t limit) {
      AndBytes(in[0] + start, in[1] + start, in[2] + start, in[3] + start, in[4] + start, limit - start, out + start);
    });
  }
};

class CarryLeafOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CheckOneShape(context, 0, 4));
    const uint64_t* in[5];
    for (int i = 0; i < 5; ++i) in[i] = RingWords(context->input(i));
    uint64_t* out[3];
    for (int i = 0; i < 3; ++i) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(4).shape(), &output));
      out[i] = RingWords(output);
    }
    Sharded(context, context->input(4).NumElements(), 10, [=](int64_t start, int64_t limit) {
      CarryLeaf(in[0] + start, in[1] + start, in[2] + start, in[3] + start, in[4] + start, limit - start,
                out[0] + start, out[1] + start, out[2] + start);
    });
  }
};

class CarryLevelOp : public OpKernel {
 public:
  explicit CarryLevelOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("width", &width_));
    using tensorflow::DT_INT16, tensorflow::DT_INT32, tensorflow::DT_INT64, tensorflow::DT_INT8;
    tensorflow::DataType in, out;
    OP_REQUIRES_OK(context, context->GetAttr("Tin", &in));
    OP_REQUIRES_OK(context, context->GetAttr("Tout", &out));
    const bool known = (width_ == 64 && in == DT_INT64 && out == DT_INT64) ||
                       (width_ == 32 && in == DT_INT64 && out == DT_INT32) ||
                       (width_ == 16 && in == DT_INT32 && out == DT_INT16) ||
                       (width_ == 8 && in == DT_INT16 && out == DT_INT8) ||
                       ((width_ == 4 || width_ == 2) && in == DT_INT8 && out == DT_INT8);
    OP_REQUIRES(context, known, InvalidArgument("no containers of width ", width_, " from and to these types"));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &first = context->input(0), &second = context->input(1), &mask = context->input(2);
    TensorShape shape = first.shape();
    if (width_ == 64) {
      OP_REQUIRES(context, shape.dims() >= 1 && shape.dim_size(0) == 2,
                  InvalidArgument("the container of width 64 must have two rows, got ", shape.DebugString()));
      shape.RemoveDim(0);
    }
    OP_REQUIRES(context, first.shape() == second.shape() && mask.shape() == shape,
                InvalidArgument("x0 and x1 must have one shape, the mask that of the result; got ",
                                first.shape().DebugString(), ", ", second.shape().DebugString(), " and ",
                                mask.shape().DebugString()));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({2}, 0, shape, &output));
    const int64_t size = output->NumElements();
    const void *x0 = first.tensor_data().data(), *x1 = second.tensor_data().data(), *by = mask.tensor_data().data();
    void* out = const_cast<char*>(output->tensor_data().data());
    switch (width_) {
      case 64: {
        const auto *words0 = static_cast<const uint64_t*>(x0), *words1 = static_cast<const uint64_t*>(x1);
        const auto* masks = static_cast<const uint64_t*>(by);
        auto* words = static_cast<uint64_t*>(out);
        Sharded(context, size, 6, [=](int64_t start, int64_t limit) {
          Level64(words0 + start, words1 + start, masks + start, limit - start, size, words + start);
        });
        return;
      }
      case 32: return Run<uint64_t, uint32_t>(context, Level32, x0, x1, by, size, out);
      case 16: return Run<uint32_t, uint16_t>(context, Level16, x0, x1, by, size, out);
      case 8: return Run<uint16_t, uint8_t>(context, Level8, x0, x1, by, size, out);
      case 4: return Run<uint8_t, uint8_t>(context, Level4, x0, x1, by, size, out);
      default: return Run<uint8_t, uint8_t>(context, Level2, x0, x1, by, size, out);
    }
  }

 private:
  template <typename In, typename Out>
  static void Run(OpKernelContext* context, void (*level)(const In*, const In*, const Out*, int64_t, Out*),
                  const void* x0, const void* x1, const void* mask, int64_t size, void* out) {
    Sharded(context, size, 2, [=](int64_t start, int64_t limit) {
      level(static_cast<const In*>(x0) + start, static_cast<const In*>(x1) + start,
            static_cast<const Out*>(mask) + start, limit - start, static_cast<Out*>(out) + start);
    });
  }

  int64_t width_;
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingProduct").Device(tensorflow::DEVICE_CPU), ProductOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingAndWords").Device(tensorflow::DEVICE_CPU), AndWordsOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingCarryLeaf").Device(tensorflow::DEVICE_CPU), CarryLeafOp);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingCarryLevel").Device(tensorflow::DEVICE_CPU), CarryLevelOp);

}  // namespace
}  // namespace keras_private
