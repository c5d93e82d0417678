#ifndef KERAS_PRIVATE_NATIVE_GAUSSIAN_CLONES_H_
#define KERAS_PRIVATE_NATIVE_GAUSSIAN_CLONES_H_

// As clones.h, with a third machine code for AVX-512.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define KERAS_PRIVATE_GAUSSIAN_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define KERAS_PRIVATE_GAUSSIAN_CLONES
#endif

#endif  // KERAS_PRIVATE_NATIVE_GAUSSIAN_CLONES_H_
