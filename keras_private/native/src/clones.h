#ifndef KERAS_PRIVATE_NATIVE_CLONES_H_
#define KERAS_PRIVATE_NATIVE_CLONES_H_

// One source, two machine codes, chosen at load by what the processor has.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define KERAS_PRIVATE_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define KERAS_PRIVATE_CLONES
#endif

#endif  // KERAS_PRIVATE_NATIVE_CLONES_H_
