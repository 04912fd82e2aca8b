// What all convolutions by oneDNN 2 share.
#pragma once
#include <dnnl.hpp>

#include <map>
#include <vector>

namespace pfseg {
namespace cpu {

const auto TRAINING = dnnl::prop_kind::forward_training;
const auto F32 = dnnl::memory::data_type::f32;

inline dnnl::engine& cpu() {
    static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

// The primitive of a convolution, made once. Primitives are kept, and with them the working memory that oneDNN shares
// among them: taking it anew from the system for each call costs up to half of a Winograd convolution's time.
template <class Kind, class Convolution, class Make>
const Kind& keep(const Convolution& c, std::vector<int64_t> key, Make make) {
    static std::map<std::vector<int64_t>, Kind> known;
    key.push_back(int64_t(c.algorithm));
    for (auto* part : {&c.x, &c.w, &c.y, &c.stride, &c.padding, &c.dilation})
        key.insert(key.end(), part->begin(), part->end());
    auto entry = known.find(key);
    if (entry != known.end()) return entry->second;
    if (known.size() == 1000) known.clear();
    return known.emplace(key, Kind(make())).first->second;
}

}  // namespace cpu
}  // namespace pfseg
