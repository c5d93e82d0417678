// What the TensorFlow ops share: turning a Failure into a Status, and splitting work over TF's CPU pool.
#ifndef KERAS_PRIVATE_NATIVE_OP_HELPERS_H_
#define KERAS_PRIVATE_NATIVE_OP_HELPERS_H_

#include <cstdint>

#include "cipher.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/mutex.h"
#include "tensorflow/core/util/work_sharder.h"

namespace keras_private {

inline tensorflow::Status ToStatus(Failure failure) {
  if (failure == nullptr) return tensorflow::OkStatus();
  return tensorflow::errors::Internal("keras_private: ", failure,
                                      ". No weaker generator is used; nothing was drawn.");
}

// Runs work(start, limit) -> Failure over [0, total) on TF's CPU pool. The first failure fails the op.
template <typename Work>
tensorflow::Status ShardedRun(tensorflow::OpKernelContext* context, int64_t total, int64_t cycles_per_unit,
                              const Work& work) {
  if (total == 0) return tensorflow::OkStatus();
  tensorflow::mutex mutex;
  Failure first = nullptr;
  auto workers = context->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(workers->num_threads, workers->workers, total, cycles_per_unit,
                    [&](int64_t start, int64_t limit) {
                      const Failure failure = work(start, limit);
                      if (failure != nullptr) {
                        tensorflow::mutex_lock lock(mutex);
                        first = failure;
                      }
                    });
  return ToStatus(first);
}

// Reads a scalar input; an error instead of a CHECK when the shape is wrong at run time.
template <typename T>
tensorflow::Status ScalarInput(tensorflow::OpKernelContext* context, int index, const char* name, T* value) {
  const tensorflow::Tensor& tensor = context->input(index);
  if (!tensorflow::TensorShapeUtils::IsScalar(tensor.shape())) {
    return tensorflow::errors::InvalidArgument(name, " must be a scalar, got shape ",
                                               tensor.shape().DebugString());
  }
  *value = tensor.scalar<T>()();
  return tensorflow::OkStatus();
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_OP_HELPERS_H_
