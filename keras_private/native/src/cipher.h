// Stateless cipher core: thin wrappers over OpenSSL's libcrypto, never a cipher of our own.
#ifndef KERAS_PRIVATE_NATIVE_CIPHER_H_
#define KERAS_PRIVATE_NATIVE_CIPHER_H_

#include <cstddef>
#include <cstdint>

namespace keras_private {

// nullptr when all went well, else a constant text that says what failed.
// Every caller must turn a non-null value into an error: there is no weaker way on.
using Failure = const char*;

constexpr size_t kKeyBytes = 32;
constexpr size_t kAesIvBytes = 16;
constexpr size_t kChaChaNonceBytes = 12;
constexpr size_t kChaChaBlockBytes = 64;

// Fetches the ciphers once and runs known-answer tests (NIST SP 800-38A F.5.5, RFC 8439 2.3.2).
// The first answer is kept for the life of the process; a failed test fails every later draw.
Failure SelfTest();

// Version text of the libcrypto that is really bound, such as "OpenSSL 3.0.15 ...".
const char* CryptoVersion();

// Overwrites memory in a way the compiler may not remove.
void Cleanse(void* data, size_t size);

// An AES-256-CTR keystream that can be continued. Not thread-safe.
class AesCtr {
 public:
  AesCtr() = default;
  ~AesCtr();
  AesCtr(const AesCtr&) = delete;
  AesCtr& operator=(const AesCtr&) = delete;

  Failure Start(const uint8_t key[kKeyBytes], const uint8_t iv[kAesIvBytes]);
  Failure Keystream(void* out, size_t size);

  // Adds (xor) the keystream to what is there. Over content that does not depend on the keystream the result is as
  // uniform as the keystream; over zeros it is the keystream, without the cost of writing them.
  Failure XorKeystream(void* data, size_t size);

 private:
  void* context_ = nullptr;  // EVP_CIPHER_CTX, kept opaque so that OpenSSL stays in cipher.cc.
};

// ChaCha20 keystream of RFC 8439 2.4 from the start of block `counter`.
// The caller checks that counter + blocks does not pass 2^32.
Failure ChaCha20Keystream(const uint8_t key[kKeyBytes], const uint8_t nonce[kChaChaNonceBytes],
                          uint32_t counter, void* out, size_t size);

}  // namespace keras_private

#endif  // KERAS_PRIVATE_NATIVE_CIPHER_H_
