// Updates of all weights by a few launches; every array is float32.
//
// A launch covers the tensors of a table, which fits the arguments of a kernel (4 KiB): each block finds its tensor by the
// number of its first block, and then covers `EACH` values of it.
#include <vector>

#include "device.h"

namespace pfseg {
namespace {

constexpr int THREADS = 256, EACH = 8192;

// `N` pointers for each tensor of a table.
template <int N>
struct Table {
    static constexpr int CAPACITY = 3800 / (N * 8 + 12);
    float* pointers[CAPACITY][N];
    int64_t sizes[CAPACITY];
    int first[CAPACITY];  // block of each tensor
    int count, blocks;
};

// The range of values that a block covers, of one tensor.
struct Range {
    int tensor;
    int64_t begin, end;
};

template <int N>
__device__ Range range_of(const Table<N>& table, int block) {
    int low = 0, high = table.count - 1;  // the last tensor that starts at or before the block
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (table.first[middle] <= block) low = middle;
        else high = middle - 1;
    }
    const int64_t begin = int64_t(block - table.first[low]) * EACH;
    return {low, begin, min(begin + EACH, table.sizes[low])};
}

// Call `work(table, blocks before it)` for tables of all tensors; `pointers(i, row)` fills the row of tensor i.
template <int N, class Pointers, class Work>
int64_t for_tables(const Array* tensors, int count, Pointers pointers, Work work) {
    int64_t before = 0;
    for (int start = 0; start < count; start += Table<N>::CAPACITY) {
        Table<N> table{};
        table.count = std::min(Table<N>::CAPACITY, count - start);
        for (int i = 0; i < table.count; i++) {
            pointers(start + i, table.pointers[i]);
            table.sizes[i] = tensors[start + i].size();
            table.first[i] = table.blocks;
            table.blocks += blocks(table.sizes[i], EACH);
        }
        work(table, before);
        before += table.blocks;
    }
    return before;
}

const float* values(const Array& array) {
    if (array.type != Type::float32) throw std::runtime_error("the optimizer takes float32 alone");
    return as<float>(array);
}

// Update the values of a block's range by `rule`, which turns the first IN pointers' values into those of the others.
template <int IN, int OUT, class Rule>
__global__ void update(Table<IN + OUT> table, Rule rule) {
    const Range range = range_of(table, blockIdx.x);
    float* const* pointers = table.pointers[range.tensor];
    uintptr_t bits = 0;
    for (int k = 0; k < IN + OUT; k++) bits |= reinterpret_cast<uintptr_t>(pointers[k]);
    rule.prepare();
    // EACH is a multiple of 4, so a range starts at a whole pack
    const int64_t whole = bits % 16 == 0 ? range.begin + (range.end - range.begin) / 4 * 4 : range.begin;
    for (int64_t at = range.begin + int64_t(threadIdx.x) * 4; at < whole; at += THREADS * 4) {
        Pack<float, 4> packs[IN + OUT];
        for (int k = 0; k < IN; k++) packs[k] = *reinterpret_cast<const Pack<float, 4>*>(pointers[k] + at);
        for (int i = 0; i < 4; i++) {
            float in[IN], out[OUT];
            for (int k = 0; k < IN; k++) in[k] = packs[k].values[i];
            rule(in, out);
            for (int k = 0; k < OUT; k++) packs[IN + k].values[i] = out[k];
        }
        for (int k = 0; k < OUT; k++) *reinterpret_cast<Pack<float, 4>*>(pointers[IN + k] + at) = packs[IN + k];
    }
    for (int64_t at = whole + threadIdx.x; at < range.end; at += THREADS) {
        float in[IN], out[OUT];
        for (int k = 0; k < IN; k++) in[k] = pointers[k][at];
        rule(in, out);
        for (int k = 0; k < OUT; k++) pointers[IN + k][at] = out[k];
    }
}

// Inputs and outputs lie slot by slot: all weights, all gradients, ...
template <int IN, int OUT, class Rule>
void update_all(const Array* in, const Array* out, int count, Rule rule) {
    const auto pointers = [&](int i, float** row) {
        for (int k = 0; k < IN; k++) row[k] = const_cast<float*>(values(in[k * count + i]));
        for (int k = 0; k < OUT; k++) row[IN + k] = const_cast<float*>(values(out[k * count + i]));
    };
    for_tables<IN + OUT>(in, count, pointers, [&](const auto& table, int64_t) {
        launch(update<IN, OUT, Rule>, table.blocks, THREADS, 0, table, rule);
    });
}

// What `optimizer_factor` gives for the gradients: their factor, and whether the update is left out.
struct Factor {
    const float* given;  // nullptr: 1, and no update is left out
    float value;
    bool skip;
    __device__ void prepare() {
        value = given ? given[0] : 1.0f;
        skip = given && given[1] != 0;
    }
};

struct Sgd : Factor {
    float lr, momentum, decay;
    bool nesterov;
    // weight, gradient, momentum -> weight, momentum
    __device__ void operator()(const float* in, float* out) const {
        const float change = in[0] * decay + in[1] * value;
        const float moving = momentum * in[2] + change;
        const float applied = nesterov ? change + momentum * moving : moving;
        out[0] = skip ? in[0] : in[0] - applied * lr;
        out[1] = skip ? in[2] : moving;
    }
};

struct Adam : Factor {
    float keep1, add1, keep2, add2, eps, decay;  // decay: added to the gradient
    float shrink, rate, root;  // factors of the weight, of the update, and of the root of the second average
    // weight, gradient, second average, first average -> weight, second average, first average
    __device__ void operator()(const float* in, float* out) const {
        const float g = in[0] * decay + in[1] * value;
        const float first = keep1 * in[3] + add1 * g, second = keep2 * in[2] + add2 * g * g;
        out[0] = skip ? in[0] : in[0] * shrink - rate * first / (sqrtf(second) * root + eps);
        out[1] = skip ? in[2] : second;
        out[2] = skip ? in[3] : first;
    }
};

struct Average {
    float keep, add;
    __device__ void prepare() {}
    __device__ void operator()(const float* in, float* out) const { out[0] = in[0] * keep + in[1] * add; }
};

struct Copy {
    __device__ void prepare() {}
    __device__ void operator()(const float* in, float* out) const { out[0] = in[0]; }
};

// Copy between tensors and their places in one array, each of which starts at a whole pack; `pointers(i, place)` gives
// where tensor i is copied from and to.
template <class Pointers>
void copy_all(const Array* tensors, int count, Pointers pointers) {
    std::vector<int64_t> places(1, 0);
    for (int i = 0; i < count; i++) places.push_back(places.back() + (tensors[i].size() + 3) / 4 * 4);
    const auto row = [&](int i, float** row) { pointers(i, places[i], row); };
    for_tables<2>(tensors, count, row, [&](const auto& table, int64_t) {
        launch(update<1, 1, Copy>, table.blocks, THREADS, 0, table, Copy{});
    });
}

__global__ void squares(Table<1> table, float* partial) {
    __shared__ float memory[THREADS];
    const Range range = range_of(table, blockIdx.x);
    const float* gradient = table.pointers[range.tensor][0];
    const int64_t whole = reinterpret_cast<uintptr_t>(gradient) % 16 == 0 ? range.begin + (range.end - range.begin) / 4 * 4
                                                                          : range.begin;
    float sum = 0;
    for (int64_t at = range.begin + int64_t(threadIdx.x) * 4; at < whole; at += THREADS * 4) {
        const auto pack = *reinterpret_cast<const Pack<float, 4>*>(gradient + at);
        for (int i = 0; i < 4; i++) sum += pack.values[i] * pack.values[i];
    }
    for (int64_t at = whole + threadIdx.x; at < range.end; at += THREADS) sum += gradient[at] * gradient[at];
    sum = block_sum(sum, memory);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

constexpr int PARTS = 64, GROWTH = 2000;  // most parts of a network; good steps after which the loss's scale doubles

struct Ends {
    int ends[PARTS];  // of each part's partial sums
    int count;
};

// The norms of all and of each part, the factor of the gradients, and the scale of the next loss.
__global__ void finish_factor(Ends parts, const float* partial, float max_norm, const float* scale, float* norms, float* factor,
                              float* next_scale) {
    __shared__ float memory[THREADS];
    const float unscaled = scale ? 1.0f / scale[0] : 1.0f;
    float total = 0;
    for (int part = 0; part < parts.count; part++) {
        float sum = 0;
        for (int i = (part ? parts.ends[part - 1] : 0) + threadIdx.x; i < parts.ends[part]; i += THREADS) sum += partial[i];
        sum = block_sum(sum, memory);
        __syncthreads();
        total += sum;
        if (threadIdx.x == 0) norms[1 + part] = sqrtf(sum) * unscaled;
    }
    if (threadIdx.x != 0) return;
    const float norm = sqrtf(total) * unscaled;
    norms[0] = norm;
    factor[0] = unscaled * (max_norm > 0 ? min(max_norm / (norm + 1e-6f), 1.0f) : 1.0f);
    const bool bad = scale && !(total <= 3.4028235e38f);  // infinite or not a number
    factor[1] = bad;
    if (!scale) return;
    const bool grows = scale[1] + 1 >= GROWTH;
    next_scale[0] = bad ? max(scale[0] * 0.5f, 1.0f) : grows ? min(scale[0] * 2.0f, 16777216.0f) : scale[0];
    next_scale[1] = bad || grows ? 0.0f : scale[1] + 1;
}

const float* factor_of(const Array* in, const Options& options, int slots) {
    return options.at("factor") ? as<float>(in[slots * int(options.at("count"))]) : nullptr;
}

}  // namespace

// `count` gradients, those of a part together, `end<i>` being the number of gradients up to the end of part i; [scale of
// the loss and good steps (2)] -> norms (1 + parts) of all and of each part, factor (2): what the gradients are to be
// multiplied by so that their norm is at most `max_norm` (0: any), and 1 if they aren't finite; [the next scale (2)];
// scratch: a float for each 8192 values of each gradient
void optimizer_factor(const Array* in, const Array* out, const Options& options) {
    const int count = static_cast<int>(options.at("count"));
    const bool scaled = options.at("scaled");
    float* partial = as<float>(out[scaled ? 3 : 2]);
    const auto pointers = [&](int i, float** row) { row[0] = const_cast<float*>(values(in[i])); };
    for_tables<1>(in, count, pointers, [&](const auto& table, int64_t before) {
        launch(squares, table.blocks, THREADS, 0, table, partial + before);
    });
    Ends parts{};
    parts.count = static_cast<int>(options.at("parts"));
    if (parts.count > PARTS) throw std::runtime_error("norms of at most 64 parts can be measured");
    int end = 0;
    for (int part = 0, i = 0; part < parts.count; part++) {
        for (; i < options.at("end" + std::to_string(part)); i++) end += blocks(in[i].size(), EACH);
        parts.ends[part] = end;
    }
    launch(finish_factor, 1, THREADS, 0, parts, partial, float(options.at("max_norm")), scaled ? as<float>(in[count]) : nullptr,
           as<float>(out[0]), as<float>(out[1]), scaled ? as<float>(out[2]) : nullptr);
}

// `count` weights, gradients, momenta, [factor] -> weights, momenta
void optimizer_sgd(const Array* in, const Array* out, const Options& options) {
    Sgd rule{};
    rule.given = factor_of(in, options, 3);
    rule.lr = options.at("lr"), rule.momentum = options.at("momentum"), rule.decay = options.at("decay");
    rule.nesterov = options.at("nesterov");
    update_all<3, 2>(in, out, static_cast<int>(options.at("count")), rule);
}

// `count` weights, gradients, second averages, first averages, [factor] -> weights, second averages, first averages;
// see `Adam` for the options
void optimizer_adam(const Array* in, const Array* out, const Options& options) {
    Adam rule{};
    rule.given = factor_of(in, options, 4);
    rule.keep1 = options.at("keep1"), rule.add1 = 1 - options.at("keep1");
    rule.keep2 = options.at("keep2"), rule.add2 = 1 - options.at("keep2");
    rule.eps = options.at("eps"), rule.decay = options.at("decay"), rule.shrink = options.at("shrink");
    rule.rate = options.at("rate"), rule.root = options.at("root");
    update_all<4, 3>(in, out, static_cast<int>(options.at("count")), rule);
}

// `count` averages, weights -> averages
void optimizer_average(const Array* in, const Array* out, const Options& options) {
    const Average rule{float(options.at("keep")), float(1 - options.at("keep"))};
    update_all<2, 1>(in, out, static_cast<int>(options.at("count")), rule);
}

// `count` tensors -> one after the other in one array, each filled up to a multiple of 4 values, which aren't set
void optimizer_join(const Array* in, const Array* out, const Options& options) {
    copy_all(in, static_cast<int>(options.at("count")), [&](int i, int64_t place, float** row) {
        row[0] = const_cast<float*>(values(in[i])), row[1] = as<float>(out[0]) + place;
    });
}

// The array of `optimizer_join` -> `count` tensors
void optimizer_split(const Array* in, const Array* out, const Options& options) {
    copy_all(out, static_cast<int>(options.at("count")), [&](int i, int64_t place, float** row) {
        row[0] = as<float>(in[0]) + place, row[1] = const_cast<float*>(values(out[i]));
    });
}

}  // namespace pfseg
