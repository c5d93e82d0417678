// The secure generator: one AES-256-CTR stream per thread, each with its own seed from the OS.
//
// Guarantees, each locked by a test in tests/native or tests/contracts:
//  * Seeded by getrandom(2) (getentropy elsewhere) only; there is no way to hand in a seed.
//  * A stream is never shared: threads have their own, and a forked child reseeds before its first word
//    (a pthread_atfork generation counter, and the process id for clones that skip the handlers).
//  * Backtracking resistance by fast key erasure (Bernstein 2017, blog.cr.yp.to/20170723-random.html): after
//    every refill the key is replaced by the stream's own output, and words handed out are overwritten.
//  * Fresh OS entropy is mixed into the key every 64 MiB.
//  * Every failure is returned; no word is handed out after one.
#ifndef KERAS_PRIVATE_NATIVE_GENERATOR_H_
#define KERAS_PRIVATE_NATIVE_GENERATOR_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "cipher.h"

namespace keras_private {

class Stream {
 public:
  static constexpr size_t kBufferWords = 8192;  // 64 KiB: the cost of a rekey is then below 2 %.

  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The calling thread's stream, seeded, and reseeded when this process is a fork of the seeded one.
  // Call it at the start of every draw; never keep the pointer across draws.
  static Failure ForThisThread(Stream** stream);

  // Lends up to `wanted` fresh words of the buffer. They stay valid until the next call on this stream.
  // The borrower overwrites them with zeros when done: they must not stay in memory.
  Failure Lend(size_t wanted, uint64_t** words, size_t* lent);

  Failure Next(uint64_t* word);

  // Fills any memory with uniform bytes.
  Failure Fill(void* out, size_t size);

 private:
  Stream() = default;
  Failure Seed();
  Failure Generate(void* data, size_t size);
  Failure Refill();

  AesCtr cipher_;
  bool seeded_ = false;
  uint64_t fork_generation_ = 0;
  pid_t process_ = 0;
  uint64_t bytes_since_seed_ = 0;
  size_t position_ = kBufferWords;
  alignas(64) uint64_t buffer_[kBufferWords];
};

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_GENERATOR_H_
