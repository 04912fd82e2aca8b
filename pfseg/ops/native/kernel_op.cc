#include "kernel_op.h"

#include "kernels.h"
#include "misc/cuda_flags.h"
#include "var.h"

namespace jittor {

void free_var_mem(Var* var);  // in Jittor's var.cc, but no header

KernelOp::KernelOp(int64 function, bool cuda, vector<NanoVector>&& shapes, vector<NanoString>&& dtypes, vector<Var*>&& inputs, DataMap&& options)
    : arrays(inputs), function(function), options(options) {
    flags.set(NodeFlags::_cpu, !cuda);
    flags.set(NodeFlags::_cuda, cuda);
    flags.set(NodeFlags::_manual_set_vnbb);
    for (size_t i = 0; i < shapes.size(); i++) results.push_back(create_output(shapes[i], dtypes[i]));
}

static pfseg::Array array(Var* var) {
    pfseg::Array array;
    array.data = var->mem_ptr;
    const auto type = var->dtype();
    array.type = type == ns_bfloat16  ? pfseg::Type::bfloat16
                 : type == ns_float16 ? pfseg::Type::float16
                 : type == ns_int32   ? pfseg::Type::int32
                 : type == ns_uint8   ? pfseg::Type::uint8
                                      : pfseg::Type::float32;
    array.dims = var->shape.size();
    for (int i = 0; i < array.dims; i++) array.shape[i] = var->shape[i];
    return array;
}

void KernelOp::run() {
    std::vector<pfseg::Array> in, out;
    for (Var* var : arrays) in.push_back(array(var));
    for (Var* var : results) out.push_back(array(var));
    reinterpret_cast<pfseg::Kernel>(function)(in.data(), out.data(), options);
    // Jittor would keep results that nobody uses, such as scratch memory, until the others are given up. On a GPU it still
    // copies those of an operator for the processor.
    if (use_cuda && !flags.get(NodeFlags::_cuda)) return;
    for (Var* var : results)
        if (var->need_free()) free_var_mem(var);
}

}  // namespace jittor
