// From Jittor's variables to the library's arrays; part of each operator that calls it.
#pragma once
#include "kernels.h"
#include "var.h"

namespace pfseg {

inline Array array(jittor::Var* var) {
    Array array;
    array.data = var->mem_ptr;
    const auto type = var->dtype();
    array.type = type == jittor::ns_bfloat16  ? Type::bfloat16
                 : type == jittor::ns_float16 ? Type::float16
                 : type == jittor::ns_int32   ? Type::int32
                 : type == jittor::ns_uint8   ? Type::uint8
                                              : Type::float32;
    array.dims = var->shape.size();
    for (int i = 0; i < array.dims; i++) array.shape[i] = var->shape[i];
    return array;
}

}  // namespace pfseg
