// Convolutions of maps (N, H, W, C) on a CPU by oneDNN 2.
//
// x (N, H, W, C) and y (N, H', W', K) are float32 or bfloat16, w (K, C, h, w) and its gradient float32. Products are of
// bfloat16, which oneDNN then reads and writes as they lie, or with the option `wide` of float32; sums are float32.

#include <map>
#include <unordered_map>
#include <vector>

#include "onednn.h"
#include "values.h"

namespace pfseg {
namespace cpu {

namespace {

using dnnl::memory;
using Tag = memory::format_tag;
const auto BF16 = memory::data_type::bf16;

memory::data_type type_of(const Array& array) { return array.type == Type::float32 ? F32 : BF16; }

memory::dims maps_shape(const Array& x) { return {x.shape[0], x.shape[3], x.shape[1], x.shape[2]}; }

struct Convolution {
    memory::dims x, w, y, stride, padding, dilation;
    memory::data_type type, y_type;  // of the factors, and of what comes out
    dnnl::algorithm algorithm;

    // `options`: stride0, stride1, padding0, ..., dilation1 (1 for adjacent taps), wide and winograd as 0 or 1.
    Convolution(const Array& x, const Array& w, const Array& y, const Options& options)
        : x(maps_shape(x)), w(w.shape, w.shape + 4), y(maps_shape(y)),
          stride({int(options.at("stride0")), int(options.at("stride1"))}),
          padding({int(options.at("padding0")), int(options.at("padding1"))}),
          dilation({int(options.at("dilation0")) - 1, int(options.at("dilation1")) - 1}),  // oneDNN counts the gaps
          type(options.at("wide") ? F32 : BF16), y_type(type == F32 ? F32 : type_of(y)),
          algorithm(options.at("winograd") ? dnnl::algorithm::convolution_winograd
                                           : dnnl::algorithm::convolution_direct) {}

    // Factors of float32 are in a layout of oneDNN's choice.
    memory::desc maps(const memory::dims& shape, memory::data_type kind) const {
        return {shape, kind, type == F32 ? Tag::any : Tag::nhwc};
    }
    memory::desc weights(memory::data_type kind) const { return {w, kind, Tag::any}; }

    // oneDNN has no Winograd on some processors: then the direct sum.
    dnnl::convolution_forward::primitive_desc forward(bool bias, bool relu) {
        dnnl::primitive_attr attributes;
        dnnl::post_ops after;
        if (relu) after.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
        attributes.set_post_ops(after);
        const memory::desc from = maps(x, type), to = maps(y, y_type), shift({w[0]}, F32, Tag::a);
        while (true) {
            using Desc = dnnl::convolution_forward::desc;
            const Desc wanted = bias ? Desc(TRAINING, algorithm, from, weights(type), shift, to, stride, dilation, padding,
                                            padding)
                                     : Desc(TRAINING, algorithm, from, weights(type), to, stride, dilation, padding, padding);
            const bool last = algorithm == dnnl::algorithm::convolution_direct;
            dnnl::convolution_forward::primitive_desc implementation(wanted, attributes, cpu(), !last);
            if (implementation.get(true)) return implementation;
            algorithm = dnnl::algorithm::convolution_direct;
        }
    }

    dnnl::convolution_backward_data::primitive_desc backward_x() {
        const auto hint = forward(false, false);
        return {{algorithm, maps(x, type), weights(type), maps(y, type), stride, dilation, padding, padding}, cpu(), hint};
    }

    dnnl::convolution_backward_weights::primitive_desc backward_w() {
        const auto hint = forward(false, false);
        return {{algorithm, maps(x, type), weights(F32), maps(y, type), stride, dilation, padding, padding}, cpu(), hint};
    }
};

// One execution of a primitive: arrays go in and come out as the caller has them, by way of the scratch memory where
// oneDNN wants another layout or type.
template <class Kind> struct Call {
    const Kind& kind;
    size_t at, end;  // addresses of the scratch memory
    dnnl::stream stream{cpu()};
    std::unordered_map<int, memory> arguments;

    Call(const Kind& kind, const Array& scratch)
        : kind(kind), at(size_t(scratch.data)), end(at + scratch.size() * sizeof(float)) {}

    memory scratch(const memory::desc& wanted) {
        const size_t start = (at + 63) / 64 * 64;
        if (start + wanted.get_size() > end) return memory(wanted, cpu());
        at = start + wanted.get_size();
        return memory(wanted, cpu(), (void*)start);
    }
    memory::desc layout(int argument) const {
        return memory::desc(
            *dnnl_primitive_desc_query_md(kind.get_primitive_desc(), dnnl_query_exec_arg_md, argument));
    }
    static memory plain(const memory::dims& shape, const Array& array, Tag tag) {
        return memory({shape, type_of(array), tag}, cpu(), array.data);
    }
    void input(int argument, const memory& from) {
        const memory::desc wanted = layout(argument);
        if (from.get_desc() == wanted) {
            arguments[argument] = from;
            return;
        }
        memory to = scratch(wanted);
        dnnl::reorder(from, to).execute(stream, const_cast<memory&>(from), to);
        arguments[argument] = to;
    }
    void run(int argument, memory to) {
        const memory::desc wanted = layout(argument);
        memory result = to.get_desc() == wanted ? to : scratch(wanted);
        arguments[argument] = result;
        kind.execute(stream, arguments);
        if (result.get() != to.get()) dnnl::reorder(result, to).execute(stream, result, to);
        stream.wait();
    }
};

}  // namespace

// x, w, [bias (K)] -> y = x * w + bias, and max(0, y) with `relu`, scratch. Options: those of `Convolution`, bias, relu.
void last_convolution_forward(const Array* in, const Array* out, const Options& options) {
    using Kind = dnnl::convolution_forward;
    Convolution c(in[0], in[1], out[0], options);
    const bool bias = options.at("bias"), relu = options.at("relu");
    Call<Kind> call(keep<Kind>(c, {2 * bias + relu, int64_t(c.type), int64_t(c.y_type)}, [&] { return c.forward(bias, relu); }), out[1]);
    call.input(DNNL_ARG_SRC, call.plain(c.x, in[0], Tag::nhwc));
    call.input(DNNL_ARG_WEIGHTS, call.plain(c.w, in[1], Tag::abcd));
    if (bias) call.input(DNNL_ARG_BIAS, call.plain({c.w[0]}, in[2], Tag::a));
    call.run(DNNL_ARG_DST, call.plain(c.y, out[0], Tag::nhwc));
}

// upstream, w -> gradient of x, scratch. Options: those of `Convolution`.
void last_convolution_gradient_x(const Array* in, const Array* out, const Options& options) {
    using Kind = dnnl::convolution_backward_data;
    Convolution c(out[0], in[1], in[0], options);
    Call<Kind> call(keep<Kind>(c, {0, int64_t(c.type), int64_t(c.y_type)}, [&] { return c.backward_x(); }), out[1]);
    call.input(DNNL_ARG_DIFF_DST, call.plain(c.y, in[0], Tag::nhwc));
    call.input(DNNL_ARG_WEIGHTS, call.plain(c.w, in[1], Tag::abcd));
    call.run(DNNL_ARG_DIFF_SRC, call.plain(c.x, out[0], Tag::nhwc));
}

// upstream, x -> gradient of w, scratch. Options: those of `Convolution`.
void last_convolution_gradient_w(const Array* in, const Array* out, const Options& options) {
    using Kind = dnnl::convolution_backward_weights;
    Convolution c(in[1], out[0], in[0], options);
    Call<Kind> call(keep<Kind>(c, {0, int64_t(c.type), int64_t(c.y_type)}, [&] { return c.backward_w(); }), out[1]);
    call.input(DNNL_ARG_DIFF_DST, call.plain(c.y, in[0], Tag::nhwc));
    call.input(DNNL_ARG_SRC, call.plain(c.x, in[1], Tag::nhwc));
    call.run(DNNL_ARG_DIFF_WEIGHTS, call.plain(c.w, out[0], Tag::abcd));
}

// upstream (N, H', W', K) -> its sums (K)
void last_convolution_gradient_bias(const Array* in, const Array* out, const Options&) {
    const Maps maps(in[0]);
    std::vector<double> sums(maps.channels);
    with_type(in[0].type, [&](auto zero) {
        using T = decltype(zero);
        for (int64_t p = 0; p < maps.positions; p++)
            for (int64_t c = 0; c < maps.channels; c++) sums[c] += to_float(as<T>(in[0])[p * maps.channels + c]);
    });
    for (int64_t c = 0; c < maps.channels; c++) floats(out[0])[c] = sums[c];
}

}  // namespace cpu
}  // namespace pfseg
