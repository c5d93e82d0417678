#include "example_convolution.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "outer_kernel.h"

namespace keras_private {
namespace {

// Padded input rows that are copied at a time stay in the second-level cache.
constexpr int64_t kBandFloats = 1 << 15;

// Adds what one entry (image and output gradient) contributes to a panel of rows of its example's gradient.
class Walker {
 public:
  explicit Walker(const Conv& conv)
      : conv_(conv),
        padded_(conv.y.NeedsPadding() || conv.x.NeedsPadding()),
        width_(padded_ ? conv.x.Reach(conv.x.output) : conv.x.input) {
    if (conv.y.output == 0 || conv.x.output == 0) return;
    const int64_t line = width_ * conv.channels;
    band_ = conv.y.output;
    if (padded_) {
      const int64_t fitting = (kBandFloats / std::max<int64_t>(line, 1) - conv.y.Reach(1)) / conv.y.stride + 1;
      band_ = std::min(std::max<int64_t>(fitting, 1), conv.y.output);
      copy_.reset(new float[conv.y.Reach(band_) * line]);
    }
    for (int64_t y = 0; y < band_; ++y) {
      for (int64_t x = 0; x < conv.x.output; ++x) {
        positions_.push_back((y * conv.y.stride * width_ + x * conv.x.stride) * conv.channels);
      }
    }
    for (int64_t y = 0; y < conv.y.kernel; ++y) {
      for (int64_t x = 0; x < conv.x.kernel; ++x) {
        for (int64_t c = 0; c < conv.channels; ++c) {
          offsets_.push_back((y * conv.y.dilation * width_ + x * conv.x.dilation) * conv.channels + c);
        }
      }
    }
  }

  void Add(const float* image, const float* out_backprop, int64_t row, OuterSum* sum) {
    for (int64_t y = 0; band_ > 0 && y < conv_.y.output; y += band_) {
      const int64_t outputs = std::min(band_, conv_.y.output - y);
      if (padded_) CopyBand(image, y * conv_.y.stride - conv_.y.pad, conv_.y.Reach(outputs));
      sum->Add(padded_ ? copy_.get() : image, offsets_.data() + row, positions_.data(), outputs * conv_.x.output,
               out_backprop + y * conv_.x.output * conv_.filters);
    }
  }

 private:
  // Input rows [first, first + count), some of which may not exist, with their zeros around them.
  void CopyBand(const float* image, int64_t first, int64_t count) {
    const int64_t line = width_ * conv_.channels, source = conv_.x.input * conv_.channels;
    const int64_t lead = std::min(conv_.x.pad * conv_.channels, line), body = std::min(source, line - lead);
    float* to = copy_.get();
    for (int64_t y = first; y < first + count; ++y, to += line) {
      if (y < 0 || y >= conv_.y.input) {
        std::fill_n(to, line, 0.0f);
        continue;
      }
      std::fill_n(to, lead, 0.0f);
      std::copy_n(image + y * source, body, to + lead);
      std::fill_n(to + lead + body, line - lead - body, 0.0f);
    }
  }

  const Conv& conv_;
  const bool padded_;
  const int64_t width_;
  int64_t band_ = 0;
  std::unique_ptr<float[]> copy_;
  std::vector<ptrdiff_t> positions_, offsets_;
};

}  // namespace

void ConvExampleGradients(const Conv& conv, const float* images, const float* out_backprop, float* gradients,
                          double* squared_norms, int64_t start, int64_t limit) {
  const int64_t rows = conv.Rows(), panel = PanelRows(rows, conv.filters);
  const int64_t image_size = conv.y.input * conv.x.input * conv.channels;
  const int64_t output_size = conv.y.output * conv.x.output * conv.filters;
  Walker walker(conv);
  OuterSum sum(panel, conv.filters);
  std::unique_ptr<float[]> unkept(gradients == nullptr ? new float[panel * conv.filters] : nullptr);
  for (int64_t i = start; i < limit; ++i) {
    squared_norms[i] = 0;
    // A panel is completed before the next begins, so that its sums stay in the cache.
    for (int64_t row = 0; row < rows; row += panel) {
      sum.Start(gradients == nullptr ? unkept.get() : gradients + (i * rows + row) * conv.filters,
                std::min(panel, rows - row));
      for (int64_t before = 0; before < conv.before; ++before) {
        for (int64_t after = 0; after < conv.after; ++after) {
          const int64_t entry = (before * conv.batch + i) * conv.after + after;
          walker.Add(images + entry * image_size, out_backprop + entry * output_size, row, &sum);
        }
      }
      squared_norms[i] += sum.Finish();
    }
  }
}

}  // namespace keras_private
