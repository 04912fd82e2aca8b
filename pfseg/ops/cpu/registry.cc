// Functions of the library by name.
#include <cstring>

#include "functions.h"

extern "C" pfseg::Kernel pfseg_kernel(const char* name) {
#define PFSEG_CPU_FIND(function) \
    if (std::strcmp(name, #function) == 0) return pfseg::cpu::function;
    PFSEG_CPU_FUNCTIONS(PFSEG_CPU_FIND)
#undef PFSEG_CPU_FIND
    return nullptr;
}
