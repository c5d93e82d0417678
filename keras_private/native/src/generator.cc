#include "generator.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

#if defined(__linux__) || defined(__APPLE__)
#include <sys/random.h>
#endif

namespace keras_private {
namespace {

constexpr size_t kSeedBytes = kKeyBytes + kAesIvBytes;
constexpr uint64_t kReseedBytes = uint64_t{64} << 20;
// Bounds what one key encrypts before it is erased, for fills that bypass the buffer.
constexpr size_t kMaxGenerate = size_t{1} << 20;

std::atomic<uint64_t> fork_generation{0};

Failure WatchForks() {
  static const int result = pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1); });
  return result == 0 ? nullptr : "the fork handler could not be installed";
}

Failure OperatingSystemEntropy(uint8_t* out, size_t size) {
#if defined(__linux__)
  while (size > 0) {
    const ssize_t got = getrandom(out, size, 0);  // Blocks until the kernel's generator is seeded.
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return "getrandom(2) failed";
    out += got;
    size -= static_cast<size_t>(got);
  }
  return nullptr;
#else
  return getentropy(out, size) == 0 ? nullptr : "getentropy failed";
#endif
}

}  // namespace

Stream::~Stream() { Cleanse(buffer_, sizeof(buffer_)); }

Failure Stream::ForThisThread(Stream** stream) {
  // On the heap: 64 KiB of thread-local storage could exhaust the static TLS block at dlopen.
  static thread_local std::unique_ptr<Stream> mine;
  if (Failure failure = SelfTest()) return failure;
  if (Failure failure = WatchForks()) return failure;
  if (mine == nullptr) mine.reset(new Stream);
  if (!mine->seeded_ || mine->fork_generation_ != fork_generation.load() || mine->process_ != getpid()) {
    if (Failure failure = mine->Seed()) return failure;
  }
  *stream = mine.get();
  return nullptr;
}

Failure Stream::Seed() {
  seeded_ = false;
  position_ = kBufferWords;
  Cleanse(buffer_, sizeof(buffer_));
  uint8_t seed[kSeedBytes];
  Failure failure = OperatingSystemEntropy(seed, sizeof(seed));
  if (failure == nullptr) failure = cipher_.Start(seed, seed + kKeyBytes);
  Cleanse(seed, sizeof(seed));
  if (failure != nullptr) return failure;
  fork_generation_ = fork_generation.load();
  process_ = getpid();
  bytes_since_seed_ = 0;
  seeded_ = true;
  return nullptr;
}

Failure Stream::Generate(void* data, size_t size) {
  if (!seeded_) return "the generator has no seed";
  seeded_ = false;  // Stays so unless every step below succeeds.
  if (Failure failure = cipher_.XorKeystream(data, size)) return failure;
  uint8_t next[kSeedBytes];
  Failure failure = cipher_.Keystream(next, sizeof(next));
  bytes_since_seed_ += size;
  if (failure == nullptr && bytes_since_seed_ >= kReseedBytes) {
    uint8_t fresh[kSeedBytes];
    failure = OperatingSystemEntropy(fresh, sizeof(fresh));
    for (size_t i = 0; i < kSeedBytes; ++i) next[i] ^= fresh[i];
    Cleanse(fresh, sizeof(fresh));
    bytes_since_seed_ = 0;
  }
  if (failure == nullptr) failure = cipher_.Start(next, next + kKeyBytes);
  Cleanse(next, sizeof(next));
  seeded_ = failure == nullptr;
  return failure;
}

Failure Stream::Refill() {
  position_ = kBufferWords;
  // Zeros by now, as every borrower leaves them.
  if (Failure failure = Generate(buffer_, sizeof(buffer_))) return failure;
  position_ = 0;
  return nullptr;
}

Failure Stream::Lend(size_t wanted, uint64_t** words, size_t* lent) {
  if (position_ == kBufferWords) {
    if (Failure failure = Refill()) return failure;
  }
  *words = buffer_ + position_;
  *lent = std::min(wanted, kBufferWords - position_);
  position_ += *lent;
  return nullptr;
}

Failure Stream::Next(uint64_t* word) {
  uint64_t* words;
  size_t lent;
  if (Failure failure = Lend(1, &words, &lent)) return failure;
  *word = *words;
  *words = 0;
  return nullptr;
}

Failure Stream::Fill(void* out, size_t size) {
  auto* bytes = static_cast<uint8_t*>(out);
  while (size >= sizeof(buffer_)) {
    const size_t step = std::min(size, kMaxGenerate);
    std::memset(bytes, 0, step);
    if (Failure failure = Generate(bytes, step)) return failure;
    bytes += step;
    size -= step;
  }
  while (size > 0) {
    uint64_t* words;
    size_t lent;
    // A partly used last word is thrown away: no byte is handed out twice.
    if (Failure failure = Lend((size + 7) / 8, &words, &lent)) return failure;
    const size_t step = std::min(size, lent * 8);
    std::memcpy(bytes, words, step);
    Cleanse(words, lent * 8);
    bytes += step;
    size -= step;
  }
  return nullptr;
}

}  // namespace keras_private
