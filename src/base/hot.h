/* HOT marks a loop-heavy function that is compiled for AVX-512, AVX2 and plain x86-64 and chosen at run time, so that one binary
 * runs at full width on every node. On other architectures it is nothing. */
#ifndef CLOQWORK_BASE_HOT_H
#define CLOQWORK_BASE_HOT_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(CLOQWORK_NO_CLONES)
#define HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HOT
#endif

#endif
