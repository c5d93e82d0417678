// Depthwise convolutions over the ring and their gradients: from filters [kh, kw, c, m], channel c * m_count + m.
//
// Too few products meet in one number for a product of matrices: rows of pixels are multiplied directly.
#include <vector>

#include "ring_product_ops.h"
#include "ring_window.h"
#include "tensorflow/core/framework/op.h"

namespace keras_private {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

#define KERAS_PRIVATE_DEPTHWISE_OP(name) \
  REGISTER_OP(name)                      \
      .Input("x: shares * int64")        \
      .Input("y: shares * int64")        \
      .Input("mask: masks * int64")      \
      .Output("out: int64")              \
      .Attr("shares: int >= 1")          \
      .Attr("masks: int >= 0")           \
      .Attr("strides: list(int)")        \
      .Attr("padding: list(int)")        \
      .Attr("dilations: list(int)")

KERAS_PRIVATE_DEPTHWISE_OP("KerasPrivateRingDepthwise")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x, w;
      Window window;
      TF_RETURN_IF_ERROR(FactorShapes(c, 4, &x, &w));
      TF_RETURN_IF_ERROR(GetWindow(c, &window));
      DimensionHandle channels;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 3), c->Dim(w, 2), &channels));
      TF_RETURN_IF_ERROR(c->Multiply(channels, c->Dim(w, 3), &channels));
      return ProductShape(c, c->MakeShape({c->Dim(x, 0), PlacesDim(c, window, 0, c->Dim(x, 1), c->Dim(w, 0)),
                                           PlacesDim(c, window, 1, c->Dim(x, 2), c->Dim(w, 1)), channels}));
    })
    .Doc("Depthwise convolution of images x [n, h, w, c] with filters y.");

KERAS_PRIVATE_DEPTHWISE_OP("KerasPrivateRingDepthwiseInput")
    .Attr("sizes: list(int)")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle w, g;
      std::vector<int64_t> sizes;
      TF_RETURN_IF_ERROR(FactorShapes(c, 4, &w, &g));
      TF_RETURN_IF_ERROR(GetSizes(c, "sizes", &sizes));
      DimensionHandle channels;
      TF_RETURN_IF_ERROR(c->Multiply(c->Dim(w, 2), c->Dim(w, 3), &channels));
      TF_RETURN_IF_ERROR(c->Merge(channels, c->Dim(g, 3), &channels));
      return ProductShape(
          c, c->MakeShape({c->Dim(g, 0), c->MakeDim(sizes[0]), c->MakeDim(sizes[1]), c->Dim(w, 2)}));
    })
    .Doc("Its gradient with respect to images of `sizes`, from filters x and the gradient y of its result.");

KERAS_PRIVATE_DEPTHWISE_OP("KerasPrivateRingDepthwiseFilter")
    .Attr("sizes: list(int)")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x, g;
      std::vector<int64_t> sizes;
      TF_RETURN_IF_ERROR(FactorShapes(c, 4, &x, &g));
      TF_RETURN_IF_ERROR(GetSizes(c, "sizes", &sizes));
      DimensionHandle unused, multiplier = c->UnknownDim();
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 0), c->Dim(g, 0), &unused));
      const DimensionHandle channels = c->Dim(x, 3), both = c->Dim(g, 3);
      if (c->ValueKnown(channels) && c->ValueKnown(both) && c->Value(channels) > 0) {
        TF_RETURN_IF_ERROR(c->Divide(both, channels, /*evenly_divisible=*/true, &multiplier));
      }
      return ProductShape(c, c->MakeShape({c->MakeDim(sizes[0]), c->MakeDim(sizes[1]), channels, multiplier}));
    })
    .Doc("Its gradient with respect to filters of `sizes`, from images x and the gradient y of its result.");

// `count` pixels of an image: channels x [c], filters or gradients of one place; words[1] is null for public factors.
struct Row {
  int64_t count, channels, multiplier;
  const uint64_t *x[2], *y[2];
  int64_t x_step, y_step;
  uint64_t* out;
  int64_t out_step;
};

#define KERAS_PRIVATE_INLINE __attribute__((always_inline)) inline

template <bool kShared>
KERAS_PRIVATE_INLINE uint64_t Term(uint64_t x0, uint64_t x1, uint64_t y0, uint64_t y1) {
  return kShared ? x0 * (y0 + y1) + x1 * y0 : x0 * y0;
}

// Which index of (pixel, channel, multiplier) each side has: images (p, c), filters (c, m), results (p, c, m).
enum class Sum { kResult, kImage, kFilter };

// Images and filters, or images and gradients, or filters and gradients; x and y of the row in the op's order.
template <Sum kSum, bool kShared>
KERAS_PRIVATE_INLINE void RunRow(const Row& row) {
  const int64_t channels = row.channels, multiplier = row.multiplier;
  const uint64_t *x0 = row.x[0], *x1 = row.x[kShared], *y0 = row.y[0], *y1 = row.y[kShared];
  uint64_t* out = row.out;
  for (int64_t i = 0; i < row.count; ++i) {
    if (multiplier == 1) {
      for (int64_t c = 0; c < channels; ++c) out[c] += Term<kShared>(x0[c], x1[c], y0[c], y1[c]);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t m = 0; m < multiplier; ++m) {
          const int64_t both = c * multiplier + m;
          const int64_t x = kSum == Sum::kImage ? both : c;
          out[kSum == Sum::kImage ? c : both] += Term<kShared>(x0[x], x1[x], y0[both], y1[both]);
        }
      }
    }
    x0 += row.x_step;
    x1 += row.x_step;
    y0 += row.y_step;
    y1 += row.y_step;
    out += row.out_step;
  }
}

using RunRows = void (*)(const Row& row);

template <Sum kSum, bool kShared>
void RunPortable(const Row& row) {
  RunRow<kSum, kShared>(row);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <Sum kSum, bool kShared>
__attribute__((target("avx2"))) void RunAvx2(const Row& row) {
  RunRow<kSum, kShared>(row);
}

template <Sum kSum, bool kShared>
__attribute__((target("avx512f,avx512dq,avx512vl"))) void RunAvx512(const Row& row) {
  RunRow<kSum, kShared>(row);
}
#endif

template <Sum kSum, bool kShared>
RunRows Widest() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) return RunAvx512<kSum, kShared>;
  if (__builtin_cpu_supports("avx2")) return RunAvx2<kSum, kShared>;
#endif
  return RunPortable<kSum, kShared>;
}

template <Sum kSum>
class DepthwiseOp : public OpKernel {
 public:
  explicit DepthwiseOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, GetWindow(context, &window_));
    if (kSum != Sum::kResult) OP_REQUIRES_OK(context, GetSizes(context, "sizes", &sizes_));
  }

  void Compute(OpKernelContext* context) override {
    Shares x, y;
    OP_REQUIRES_OK(context, GetFactors(context, 4, &x, &y));
    OP_REQUIRES_OK(context, CheckAxes(x.shape));
    OP_REQUIRES_OK(context, CheckAxes(y.shape));
    Sizes sizes;
    const TensorShape &images = x.shape, &filters = kSum == Sum::kImage ? x.shape : y.shape, &results = y.shape;
    sizes.n = (kSum == Sum::kImage ? results : images).dim_size(0);
    sizes.channels = kSum == Sum::kImage ? filters.dim_size(2) : images.dim_size(3);
    if (kSum == Sum::kFilter) {
      OP_REQUIRES(context, sizes.channels > 0 && results.dim_size(3) % sizes.channels == 0,
                  InvalidArgument(results.dim_size(3), " channels are no multiple of ", sizes.channels));
      sizes.multiplier = results.dim_size(3) / sizes.channels;
    } else {
      sizes.multiplier = filters.dim_size(3);
    }
    for (int axis = 0; axis < 2; ++axis) {
      sizes.size[axis] = kSum == Sum::kImage ? sizes_[axis] : images.dim_size(1 + axis);
      sizes.taps[axis] = kSum == Sum::kFilter ? sizes_[axis] : filters.dim_size(axis);
      sizes.places[axis] = window_.Places(axis, sizes.size[axis], sizes.taps[axis]);
    }
    if (kSum == Sum::kResult) {
      OP_REQUIRES(context, filters.dim_size(2) == sizes.channels,
                  InvalidArgument("images of shape ", images.DebugString(), " do not fit filters of shape ",
                                  filters.DebugString()));
    } else {
      OP_REQUIRES(context,
                  results.dim_size(0) == sizes.n && results.dim_size(1) == sizes.places[0] &&
                      results.dim_size(2) == sizes.places[1] &&
                      results.dim_size(3) == sizes.channels * sizes.multiplier,
                  InvalidArgument("a gradient of shape ", results.DebugString(), " where the result is [", sizes.n, ",",
                                  sizes.places[0], ",", sizes.places[1], ",", sizes.channels * sizes.multiplier, "]"));
    }
    TensorShape shape;
    OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(OutputSizes(sizes), &shape));
    uint64_t* out = nullptr;
    OP_REQUIRES_OK(context, MaskedOutput(context, x.count + y.count, shape, &out));
    if (shape.num_elements() == 0 || sizes.places[0] == 0 || sizes.places[1] == 0) return;
    Run(context, sizes, x, y, out);
  }

 private:
  struct Sizes {
    int64_t n, size[2], channels, multiplier, taps[2], places[2];
  };

  static std::vector<int64_t> OutputSizes(const Sizes& s) {
    if (kSum == Sum::kResult) return {s.n, s.places[0], s.places[1], s.channels * s.multiplier};
    if (kSum == Sum::kImage) return {s.n, s.size[0], s.size[1], s.channels};
    return {s.taps[0], s.taps[1], s.channels, s.multiplier};
  }

  // Places [from, to) whose window has tap `tap` inside the image.
  void Inside(const Sizes& sizes, int axis, int64_t tap, int64_t* from, int64_t* to) const {
    const int64_t stride = window_.strides[axis], shift = window_.before[axis] - tap * window_.dilations[axis];
    *from = shift > 0 ? (shift + stride - 1) / stride : 0;
    const int64_t last = sizes.size[axis] - 1 + shift;
    *to = last < 0 ? 0 : std::min(sizes.places[axis], last / stride + 1);
  }

  int64_t Position(int axis, int64_t place, int64_t tap) const {
    return place * window_.strides[axis] - window_.before[axis] + tap * window_.dilations[axis];
  }

  // One line of results meets one line of the image by one row of the filter, on channels [first, first + channels).
  void Lines(const Sizes& s, const Shares& x, const Shares& y, uint64_t* out, int64_t image, int64_t place,
             int64_t down, int64_t from_tap, int64_t to_tap, int64_t first, int64_t channels, RunRows run) const {
    const int64_t line = (image * s.size[0] + Position(0, place, down)) * s.size[1];
    const int64_t result_line = (image * s.places[0] + place) * s.places[1], both = s.channels * s.multiplier;
    for (int64_t across = from_tap; across < to_tap; ++across) {
      int64_t from, to;
      Inside(s, 1, across, &from, &to);
      if (from >= to) continue;
      const int64_t in_image = (line + Position(1, from, across)) * s.channels + first;
      const int64_t in_filter = ((down * s.taps[1] + across) * s.channels + first) * s.multiplier;
      const int64_t in_result = (result_line + from) * both + first * s.multiplier;
      const int64_t image_step = window_.strides[1] * s.channels;
      Row row;
      row.count = to - from;
      row.channels = channels;
      row.multiplier = s.multiplier;
      for (int i = 0; i < x.count; ++i) {
        row.x[i] = x.words[i] + (kSum == Sum::kImage ? in_filter : in_image);
        row.y[i] = y.words[i] + (kSum == Sum::kResult ? in_filter : in_result);
      }
      row.x_step = kSum == Sum::kImage ? 0 : image_step;
      row.y_step = kSum == Sum::kResult ? 0 : both;
      row.out = out + (kSum == Sum::kResult ? in_result : kSum == Sum::kImage ? in_image : in_filter);
      row.out_step = kSum == Sum::kResult ? both : kSum == Sum::kImage ? image_step : 0;
      run(row);
    }
  }

  void Run(OpKernelContext* context, const Sizes& s, const Shares& x, const Shares& y, uint64_t* out) const {
    const RunRows run = x.count == 2 ? Widest<kSum, true>() : Widest<kSum, false>();
    const int64_t both = s.channels * s.multiplier;
    if (kSum == Sum::kFilter) {
      // Each task has places and channels of the filter of its own.
      constexpr int64_t kChannels = 32;
      const int64_t blocks = (s.channels + kChannels - 1) / kChannels;
      const int64_t cycles = s.n * s.places[0] * s.places[1] * std::min(kChannels * s.multiplier, both);
      Sharded(context, s.taps[0] * s.taps[1] * blocks, cycles, [&](int64_t start, int64_t limit) {
        for (int64_t task = start; task < limit; ++task) {
          const int64_t tap = task / blocks, first = task % blocks * kChannels;
          const int64_t down = tap / s.taps[1], across = tap % s.taps[1];
          int64_t from, to;
          Inside(s, 0, down, &from, &to);
          for (int64_t image = 0; image < s.n; ++image) {
            for (int64_t place = from; place < to; ++place) {
              Lines(s, x, y, out, image, place, down, across, across + 1, first,
                    std::min(kChannels, s.channels - first), run);
            }
          }
        }
      });
      return;
    }
    // Each task has lines of the result, or of the image, of its own.
    const int64_t lines = kSum == Sum::kResult ? s.places[0] : s.size[0];
    const int64_t cycles = s.places[1] * s.taps[0] * s.taps[1] * both;
    Sharded(context, s.n * lines, cycles, [&](int64_t start, int64_t limit) {
      for (int64_t task = start; task < limit; ++task) {
        for (int64_t down = 0; down < s.taps[0]; ++down) {
          int64_t place = task % lines, from, to;
          if (kSum == Sum::kImage) {
            const int64_t upper = place + window_.before[0] - down * window_.dilations[0];
            if (upper < 0 || upper % window_.strides[0] != 0) continue;
            place = upper / window_.strides[0];
          }
          Inside(s, 0, down, &from, &to);
          if (place < from || place >= to) continue;
          Lines(s, x, y, out, task / lines, place, down, 0, s.taps[1], 0, s.channels, run);
        }
      }
    });
  }

  Window window_;
  std::vector<int64_t> sizes_;
};

REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingDepthwise").Device(tensorflow::DEVICE_CPU), DepthwiseOp<Sum::kResult>);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingDepthwiseInput").Device(tensorflow::DEVICE_CPU),
                        DepthwiseOp<Sum::kImage>);
REGISTER_KERNEL_BUILDER(Name("KerasPrivateRingDepthwiseFilter").Device(tensorflow::DEVICE_CPU),
                        DepthwiseOp<Sum::kFilter>);

}  // namespace
}  // namespace keras_private
