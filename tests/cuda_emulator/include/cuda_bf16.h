#ifndef CUDA_EMULATOR_BF16_H_
#define CUDA_EMULATOR_BF16_H_

#include <numbers_16_bit.h>

NUMBERS_16_BIT_(nv_bfloat16, bfloat16, BFloat16)

#endif
