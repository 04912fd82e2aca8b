#pragma once
#include "op.h"
#include "ops/code_op.h"

namespace jittor {

// Calls a function of a library that is compiled already, so that nothing is left to compile for shapes and types.
struct KernelOp : Op {
    std::vector<Var*> arrays, results;
    int64 function;
    DataMap options;
    /**
    * function: address of a `pfseg::Kernel`.
    * cuda: whether it takes memory of the GPU.
     */
    // @attrs(multiple_outputs)
    KernelOp(int64 function, bool cuda, vector<NanoVector>&& shapes, vector<NanoString>&& dtypes, vector<Var*>&& inputs, DataMap&& options={});

    const char* name() const override { return "kernel"; }
    void run() override;
};

}  // namespace jittor
