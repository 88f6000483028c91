// One binary for every x86-64: the loops are compiled for several vector widths and the widest
// that the processor has is picked when the library is loaded.
#pragma once

#include <cstdint>  // defines __GLIBC__

#if defined(_MSC_VER)
#define ACN_INLINE __forceinline
#else
#define ACN_INLINE inline __attribute__((always_inline))
#endif

// Only what is inlined into a function marked ACN_CLONES is compiled for its targets. The choice
// at load time needs the ifuncs of glibc, and runs before a sanitizer is ready (ACN_NO_CLONES).
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12 && !defined(ACN_NO_CLONES)
#define ACN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#endif
#ifndef ACN_CLONES
#define ACN_CLONES
#endif
