// Arithmetic of per-example gradients: sums of outer products, squared norms, weighted sums of rows.
//
// Each function exists once per instruction set and is chosen when first used. Every element is summed in one fixed
// order, whatever the vector width or the number of threads: results differ between machines only where one has no
// fused multiply-add.
#ifndef KERAS_PRIVATE_NATIVE_OUTER_KERNEL_H_
#define KERAS_PRIVATE_NATIVE_OUTER_KERNEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace keras_private {

// Rows of a [rows, columns] sum to complete at a time: whole tiles that stay in the second-level cache.
int64_t PanelRows(int64_t rows, int64_t columns);

// Accumulates W[r, p] = sum_t left[positions[t] + offsets[r]] * right[t, p] over several calls of Add, in float32.
// Convolution patches and plain matrices are both of this form, so patches are never written out.
class OuterSum {
 public:
  OuterSum(int64_t max_rows, int64_t columns);

  // The sum will be written to out: [rows, columns], rows at most max_rows.
  void Start(float* out, int64_t rows);

  // right is [count, columns].
  void Add(const float* left, const ptrdiff_t* offsets, const ptrdiff_t* positions, int64_t count,
           const float* right);

  // Completes `out` and returns its squared norm, as SquaredNorm gives it.
  double Finish();

 private:
  int64_t columns_, padded_, rows_ = 0;
  const struct OuterFunctions* functions_;
  float *out_ = nullptr, *sums_ = nullptr;
  bool empty_ = true;
  // Where columns is no multiple of the vector width, both sides live in padded copies: no masks are needed.
  std::unique_ptr<float[]> padded_sums_, padded_right_;
};

// sum_i x[i]^2 in float64. Squares of floats are exact there and cannot overflow, so the relative error is below
// (size / 16 + 16) 2^-53. NaN and Inf of any element reach the result.
double SquaredNorm(const float* x, int64_t size);

// out[q] = float(sum_k weights[k] * rows[k][q]) for q in [from, limit), summed in float64: the products are exact, and
// the one rounding that counts is the last.
void WeightedSum(const float* const* rows, const float* weights, int64_t count, int64_t from, int64_t limit,
                 float* out);

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_OUTER_KERNEL_H_
