// What the compiler's -fsanitize=alignment calls at an access that is not aligned to its type: a vector load, say.

#include "machine.h"

#if !defined(__SANITIZE_ADDRESS__)  // which has a library of its own for it
namespace {
// As the compiler lays it out.
struct Mismatch {
  const char* file;
  uint32_t line, column;
  const struct {
    uint16_t kind, info;
    char name[1];
  }* type;
  unsigned char alignment_bits, kind;
};
}  // namespace

extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* at, const void* address) {
  const auto place = reinterpret_cast<uintptr_t>(address);
  cuda_emulator::stop(std::string(at->file) + ":" + std::to_string(at->line) + ": " + at->type->name +
                      " at an address that is a multiple of " + std::to_string(place & -place) + ", not of " +
                      std::to_string(1 << at->alignment_bits));
}
#endif
