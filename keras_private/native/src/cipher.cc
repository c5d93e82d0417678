#include "cipher.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

namespace keras_private {
namespace {

// EVP lengths are int; stay far below.
constexpr size_t kMaxUpdate = size_t{1} << 30;

struct Ciphers {
  const EVP_CIPHER* aes = nullptr;
  const EVP_CIPHER* chacha = nullptr;
};

Ciphers& GetCiphers() {
  static Ciphers* ciphers = new Ciphers;
  return *ciphers;
}

bool EncryptInPlace(EVP_CIPHER_CTX* context, uint8_t* data, size_t size) {
  while (size > 0) {
    const int step = static_cast<int>(std::min(size, kMaxUpdate));
    int written = 0;
    if (EVP_EncryptUpdate(context, data, &written, data, step) != 1 || written != step) return false;
    data += step;
    size -= step;
  }
  return true;
}

// Writes keystream: CTR and ChaCha20 give it by encrypting zeros.
bool EncryptZeros(EVP_CIPHER_CTX* context, uint8_t* out, size_t size) {
  std::memset(out, 0, size);
  return EncryptInPlace(context, out, size);
}

Failure Prepare() {
  // No atexit cleanup: worker threads may still hold contexts while the process ends.
  // No configuration file: a machine-wide openssl.cnf must not change the cipher under us.
  if (OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT | OPENSSL_INIT_NO_LOAD_CONFIG, nullptr) != 1) {
    return "libcrypto did not initialize";
  }
  // TensorFlow exports BoringSSL's symbols under the same names; binding to those would mix two ABIs.
  if (std::strncmp(CryptoVersion(), "OpenSSL ", 8) != 0) {
    return "the cipher functions are bound to another library than OpenSSL";
  }
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
  GetCiphers().aes = EVP_CIPHER_fetch(nullptr, "AES-256-CTR", nullptr);
  GetCiphers().chacha = EVP_CIPHER_fetch(nullptr, "ChaCha20", nullptr);
#else
  GetCiphers().aes = EVP_aes_256_ctr();
  GetCiphers().chacha = EVP_chacha20();
#endif
  if (GetCiphers().aes == nullptr || GetCiphers().chacha == nullptr) {
    return "libcrypto has no AES-256-CTR or no ChaCha20";
  }
  return nullptr;
}

Failure ChaChaUnchecked(const uint8_t* key, const uint8_t* nonce, uint32_t counter, uint8_t* out,
                        size_t size) {
  // OpenSSL's 16-byte IV is the little-endian block counter followed by the nonce of RFC 8439.
  uint8_t iv[4 + kChaChaNonceBytes];
  for (int i = 0; i < 4; ++i) iv[i] = static_cast<uint8_t>(counter >> (8 * i));
  std::memcpy(iv + 4, nonce, kChaChaNonceBytes);
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  if (context == nullptr) return "libcrypto could not allocate a cipher context";
  const bool ok = EVP_EncryptInit_ex(context, GetCiphers().chacha, nullptr, key, iv) == 1 &&
                  EncryptZeros(context, out, size);
  EVP_CIPHER_CTX_free(context);
  return ok ? nullptr : "ChaCha20 failed in libcrypto";
}

bool AesKnownAnswer() {
  // NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt, block #1: output block of the initial counter.
  const uint8_t key[32] = {0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae,
                           0xf0, 0x85, 0x7d, 0x77, 0x81, 0x1f, 0x35, 0x2c, 0x07, 0x3b, 0x61,
                           0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4};
  const uint8_t expected[16] = {0x0b, 0xdf, 0x7d, 0xf1, 0x59, 0x17, 0x16, 0x33,
                                0x5e, 0x9a, 0x8b, 0x15, 0xc8, 0x60, 0xc5, 0x02};
  uint8_t iv[16], out[16];
  for (int i = 0; i < 16; ++i) iv[i] = static_cast<uint8_t>(0xf0 + i);
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  if (context == nullptr) return false;
  const bool ok = EVP_EncryptInit_ex(context, GetCiphers().aes, nullptr, key, iv) == 1 &&
                  EncryptZeros(context, out, sizeof(out));
  EVP_CIPHER_CTX_free(context);
  return ok && std::memcmp(out, expected, sizeof(out)) == 0;
}

bool ChaChaKnownAnswer() {
  // RFC 8439, 2.3.2.
  uint8_t key[32], out[16];
  for (int i = 0; i < 32; ++i) key[i] = static_cast<uint8_t>(i);
  const uint8_t nonce[12] = {0, 0, 0, 0x09, 0, 0, 0, 0x4a, 0, 0, 0, 0};
  const uint8_t expected[16] = {0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15,
                                0x50, 0x0f, 0xdd, 0x1f, 0xa3, 0x20, 0x71, 0xc4};
  return ChaChaUnchecked(key, nonce, 1, out, sizeof(out)) == nullptr &&
         std::memcmp(out, expected, sizeof(out)) == 0;
}

}  // namespace

const char* CryptoVersion() { return OpenSSL_version(OPENSSL_VERSION); }

void Cleanse(void* data, size_t size) { OPENSSL_cleanse(data, size); }

Failure SelfTest() {
  static const Failure result = []() -> Failure {
    if (Failure failure = Prepare()) return failure;
    if (!AesKnownAnswer()) return "AES-256-CTR gave a wrong answer to its self-test";
    if (!ChaChaKnownAnswer()) return "ChaCha20 gave a wrong answer to its self-test";
    return nullptr;
  }();
  return result;
}

AesCtr::~AesCtr() {
  if (context_ != nullptr) EVP_CIPHER_CTX_free(static_cast<EVP_CIPHER_CTX*>(context_));
}

Failure AesCtr::Start(const uint8_t key[kKeyBytes], const uint8_t iv[kAesIvBytes]) {
  if (Failure failure = SelfTest()) return failure;
  if (context_ == nullptr) context_ = EVP_CIPHER_CTX_new();
  if (context_ == nullptr) return "libcrypto could not allocate a cipher context";
  auto* context = static_cast<EVP_CIPHER_CTX*>(context_);
  if (EVP_EncryptInit_ex(context, GetCiphers().aes, nullptr, key, iv) != 1) {
    return "AES-256-CTR could not be keyed";
  }
  return nullptr;
}

Failure AesCtr::Keystream(void* out, size_t size) {
  std::memset(out, 0, size);
  return XorKeystream(out, size);
}

Failure AesCtr::XorKeystream(void* data, size_t size) {
  if (context_ == nullptr) return "AES-256-CTR has no key";
  auto* context = static_cast<EVP_CIPHER_CTX*>(context_);
  const bool ok = EncryptInPlace(context, static_cast<uint8_t*>(data), size);
  return ok ? nullptr : "AES-256-CTR failed in libcrypto";
}

Failure ChaCha20Keystream(const uint8_t key[kKeyBytes], const uint8_t nonce[kChaChaNonceBytes],
                          uint32_t counter, void* out, size_t size) {
  if (Failure failure = SelfTest()) return failure;
  // OpenSSL's counter is 32 bits wide; ending a call at its last value is safe, passing it is not ours to do.
  return ChaChaUnchecked(key, nonce, counter, static_cast<uint8_t*>(out), size);
}

}  // namespace keras_private
