// Functions of the library by name.
#include <cstring>

#include "kernels.h"

extern "C" pfseg::Kernel pfseg_kernel(const char* name) {
#define PFSEG_FIND(function) \
    if (std::strcmp(name, #function) == 0) return pfseg::function;
    PFSEG_KERNELS(PFSEG_FIND)
#undef PFSEG_FIND
    return nullptr;
}
