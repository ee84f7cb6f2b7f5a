// Compiles a CPU function for several instruction sets; the loader picks the best that the processor has. With
// VPGFAST_SINGLE_VERSION it is compiled once, as the compiler's flags say (scripts/sanitize.sh).
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(VPGFAST_SINGLE_VERSION)
#define VPGFAST_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define VPGFAST_X86_VERSIONS 1
#else
#define VPGFAST_MULTIVERSION
#define VPGFAST_X86_VERSIONS 0
#endif
