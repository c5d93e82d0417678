// Splitting arithmetic that cannot fail over TensorFlow's CPU pool.
#ifndef KERAS_PRIVATE_NATIVE_SHARDING_H_
#define KERAS_PRIVATE_NATIVE_SHARDING_H_

#include <algorithm>
#include <cstdint>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/util/work_sharder.h"

namespace keras_private {

// Runs work(start, limit) over [0, total).
template <typename Work>
void Sharded(tensorflow::OpKernelContext* context, int64_t total, int64_t cycles_per_unit, const Work& work) {
  if (total == 0) return;
  auto workers = context->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(workers->num_threads, workers->workers, total, std::max<int64_t>(cycles_per_unit, 1), work);
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_SHARDING_H_
