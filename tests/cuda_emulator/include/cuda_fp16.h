#ifndef CUDA_EMULATOR_FP16_H_
#define CUDA_EMULATOR_FP16_H_

#include <numbers_16_bit.h>

NUMBERS_16_BIT_(half, half, Half)

#endif
