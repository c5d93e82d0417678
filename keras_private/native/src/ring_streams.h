// Keystreams as words of the ring, made a block at a time beside the arithmetic that takes them, never written out.
//
// F(key, nonce) is the ChaCha20 keystream of RFC 8439 from block 0 on, as little-endian words; n/s is nonce n with its
// last byte s.
#ifndef KERAS_PRIVATE_NATIVE_RING_STREAMS_H_
#define KERAS_PRIVATE_NATIVE_RING_STREAMS_H_

#include <memory>

#include "cipher.h"
#include "op_helpers.h"
#include "ring_ops.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace keras_private {

constexpr int64_t kChunkBlocks = 256;  // Streams of a chunk, 16 kB each, stay in the second-level cache.
constexpr int kMostStreams = 4;

struct RingStream {
  const uint8_t* key;
  uint8_t nonce[kChaChaNonceBytes];
};

inline tensorflow::Status CheckStreamBytes(tensorflow::OpKernelContext* context, int index, const char* name,
                                           int64_t size) {
  const tensorflow::Tensor& tensor = context->input(index);
  if (tensor.dims() == 1 && tensor.dim_size(0) == size) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument(name, " must be ", size, " bytes of shape [", size, "], got shape ",
                                             tensor.shape().DebugString());
}

// The stream of key input `key` and nonce input `nonce`; with a number, that becomes the nonce's last byte.
inline tensorflow::Status GetStream(tensorflow::OpKernelContext* context, int key, int nonce, int number,
                                    RingStream* stream) {
  TF_RETURN_IF_ERROR(CheckStreamBytes(context, key, "key", kKeyBytes));
  TF_RETURN_IF_ERROR(CheckStreamBytes(context, nonce, "nonce", kChaChaNonceBytes));
  stream->key = context->input(key).flat<uint8_t>().data();
  std::memcpy(stream->nonce, context->input(nonce).flat<uint8_t>().data(), kChaChaNonceBytes);
  if (number >= 0) stream->nonce[kChaChaNonceBytes - 1] = static_cast<uint8_t>(number);
  return tensorflow::OkStatus();
}

inline tensorflow::Status CheckBlocks(int64_t blocks) {
  if (blocks <= int64_t{1} << 32) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument("the keystream would pass block 2^32 and repeat: ", blocks, " blocks");
}

// The shape that input `index` tells, of words of this size. Refused before memory is asked for.
inline tensorflow::Status GetShape(tensorflow::OpKernelContext* context, int index, int64_t word_bytes,
                                   tensorflow::TensorShape* shape) {
  TF_RETURN_IF_ERROR(tensorflow::tensor::MakeShape(context->input(index), shape));
  const int64_t block_words = kChaChaBlockBytes / word_bytes;
  return CheckBlocks(shape->num_elements() / block_words + (shape->num_elements() % block_words != 0));
}

// body(first, count, words) gets words[s][0 .. count) = stream s from word `first` on, over all of [0, size).
template <typename Word, typename Body>
tensorflow::Status WithStreams(tensorflow::OpKernelContext* context, const RingStream* streams, int stream_count,
                               int64_t size, const Body& body) {
  constexpr int64_t kBlockWords = kChaChaBlockBytes / sizeof(Word);
  const int64_t blocks = (size + kBlockWords - 1) / kBlockWords;
  TF_RETURN_IF_ERROR(CheckBlocks(blocks));
  const auto work = [&](int64_t start, int64_t limit) -> Failure {
    const int64_t held = std::min(kChunkBlocks, limit - start) * kBlockWords;
    const std::unique_ptr<Word[]> scratch(new Word[stream_count * held]);
    const Word* words[kMostStreams] = {};
    Failure failure = nullptr;
    for (int64_t block = start; block < limit && failure == nullptr; block += kChunkBlocks) {
      const int64_t first = block * kBlockWords;
      const int64_t count = std::min({held, size - first, limit * kBlockWords - first});
      for (int s = 0; s < stream_count && failure == nullptr; ++s) {
        Word* to = scratch.get() + s * held;
        words[s] = to;
        failure = ChaCha20Keystream(streams[s].key, streams[s].nonce, static_cast<uint32_t>(block), to,
                                    count * sizeof(Word));
      }
      if (failure == nullptr) body(first, count, words);
    }
    Cleanse(scratch.get(), stream_count * held * sizeof(Word));
    return failure;
  };
  return ShardedRun(context, blocks, 100 * stream_count, work);
}

inline tensorflow::Status ShapeFromInput(tensorflow::shape_inference::InferenceContext* c, int index) {
  tensorflow::shape_inference::ShapeHandle out;
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(index, &out));
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, out);
  return tensorflow::OkStatus();
}

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_RING_STREAMS_H_
