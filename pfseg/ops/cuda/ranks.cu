// Averages over the GPUs of several processes, by NCCL, which pfseg/engine/nccl.py loads and starts.
#include "device.h"

namespace pfseg {

// x (T) float32 -> its mean over all ranks; `all_reduce` and `communicator` are addresses, which a double holds exactly
void ranks_average(const Array* in, const Array* out, const Options& options) {
    constexpr int FLOAT32 = 7, AVERAGE = 4;  // of nccl.h
    using AllReduce = int (*)(const void*, void*, size_t, int type, int operation, void* communicator, void* stream);
    const auto reduce = reinterpret_cast<AllReduce>(static_cast<uintptr_t>(options.at("all_reduce")));
    const auto communicator = reinterpret_cast<void*>(static_cast<uintptr_t>(options.at("communicator")));
    if (in[0].type != Type::float32) throw std::runtime_error("ranks average float32 alone");
    if (const int error = reduce(in[0].data, out[0].data, in[0].size(), FLOAT32, AVERAGE, communicator, nullptr))
        throw std::runtime_error("NCCL failed with error " + std::to_string(error) + "; NCCL_DEBUG=WARN says why");
}

}  // namespace pfseg
