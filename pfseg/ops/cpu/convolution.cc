// Convolutions and batched matrix products on a CPU by oneDNN 2.
//
// x (N, C, H, W), w (K, C, h, w), y (N, K, H', W'). oneDNN may ask for layouts of its own; such copies lie in the caller's
// scratch memory where it is large enough.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "functions.h"
#include "onednn.h"

namespace pfseg {
namespace cpu {

namespace {

using dnnl::memory;

struct Convolution {
    memory::dims x, w, y, stride, padding, dilation;
    dnnl::algorithm algorithm;

    // `options`: stride0, stride1, padding0, ..., dilation1 (1 for adjacent taps), and winograd as 0 or 1.
    Convolution(const Array& x, const Array& w, const Array& y, const Options& options)
        : x(x.shape, x.shape + 4), w(w.shape, w.shape + 4), y(y.shape, y.shape + 4),
          stride({int(options.at("stride0")), int(options.at("stride1"))}),
          padding({int(options.at("padding0")), int(options.at("padding1"))}),
          dilation({int(options.at("dilation0")) - 1, int(options.at("dilation1")) - 1}),  // oneDNN counts the gaps
          algorithm(options.at("winograd") ? dnnl::algorithm::convolution_winograd
                                           : dnnl::algorithm::convolution_direct) {}

    static memory::desc any(const memory::dims& shape) { return {shape, F32, memory::format_tag::any}; }

    // oneDNN has no Winograd on some processors: then the direct sum.
    dnnl::convolution_forward::primitive_desc forward(bool bias, bool relu) {
        dnnl::primitive_attr attributes;
        dnnl::post_ops after;
        if (relu) after.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
        attributes.set_post_ops(after);
        while (true) {
            dnnl::convolution_forward::desc wanted = bias
                ? dnnl::convolution_forward::desc(TRAINING, algorithm, any(x), any(w), any({w[0]}), any(y), stride,
                                                  dilation, padding, padding)
                : dnnl::convolution_forward::desc(TRAINING, algorithm, any(x), any(w), any(y), stride, dilation,
                                                  padding, padding);
            const bool last = algorithm == dnnl::algorithm::convolution_direct;
            dnnl::convolution_forward::primitive_desc implementation(wanted, attributes, cpu(), !last);
            if (implementation.get(true)) return implementation;
            algorithm = dnnl::algorithm::convolution_direct;
        }
    }

    // Kind: convolution_backward_data or convolution_backward_weights.
    template <class Kind> typename Kind::primitive_desc backward() {
        auto hint = forward(false, false);
        return {{algorithm, any(x), any(w), any(y), stride, dilation, padding, padding}, cpu(), hint};
    }
};

// Memory for copies in oneDNN's layouts, handed out piece by piece.
struct Scratch {
    size_t at, end;  // addresses

    explicit Scratch(const Array& array) : at((size_t)array.data), end(at + array.size() * sizeof(float)) {}

    memory take(const memory::desc& wanted) {
        const size_t start = (at + 63) / 64 * 64;
        if (start + wanted.get_size() > end) return memory(wanted, cpu());
        at = start + wanted.get_size();
        return memory(wanted, cpu(), (void*)start);
    }
};

// One execution of a primitive: arguments go in, and the result comes out, in row-major layout.
template <class Kind> struct Call {
    const Kind& kind;
    Scratch scratch;
    dnnl::stream stream{cpu()};
    std::unordered_map<int, memory> arguments;

    static memory plain(const memory::dims& shape, const float* values) {
        return memory({shape, F32, shape.size() == 4 ? memory::format_tag::abcd : memory::format_tag::a}, cpu(),
                      (void*)values);
    }
    memory::desc layout(int argument) const {
        return memory::desc(
            *dnnl_primitive_desc_query_md(kind.get_primitive_desc(), dnnl_query_exec_arg_md, argument));
    }
    void input(int argument, const memory::dims& shape, const float* values) {
        memory from = plain(shape, values);
        const memory::desc wanted = layout(argument);
        if (from.get_desc() == wanted) {
            arguments[argument] = from;
            return;
        }
        memory to = scratch.take(wanted);
        dnnl::reorder(from, to).execute(stream, from, to);
        arguments[argument] = to;
    }
    void run(int argument, const memory::dims& shape, float* values) {
        memory to = plain(shape, values);
        const memory::desc wanted = layout(argument);
        memory result = to.get_desc() == wanted ? to : scratch.take(wanted);
        arguments[argument] = result;
        kind.execute(stream, arguments);
        if (result.get() != to.get()) dnnl::reorder(result, to).execute(stream, result, to);
        stream.wait();
    }
};

// y = x * w + bias, and max(0, y) where `relu` is set; `bias` (K,) may be null.
void forward(Convolution c, const float* x, const float* w, const float* bias, bool relu, float* y, Scratch scratch) {
    using Kind = dnnl::convolution_forward;
    Call<Kind> call{keep<Kind>(c, {2 * bool(bias) + relu}, [&] { return c.forward(bias, relu); }), scratch};
    call.input(DNNL_ARG_SRC, c.x, x);
    call.input(DNNL_ARG_WEIGHTS, c.w, w);
    if (bias) call.input(DNNL_ARG_BIAS, {c.w[0]}, bias);
    call.run(DNNL_ARG_DST, c.y, y);
}

// The gradient of x.
void gradient_x(Convolution c, const float* upstream, const float* w, float* x_gradient, Scratch scratch) {
    using Kind = dnnl::convolution_backward_data;
    Call<Kind> call{keep<Kind>(c, {0}, [&] { return c.backward<Kind>(); }), scratch};
    call.input(DNNL_ARG_DIFF_DST, c.y, upstream);
    call.input(DNNL_ARG_WEIGHTS, c.w, w);
    call.run(DNNL_ARG_DIFF_SRC, c.x, x_gradient);
}

// The gradient of w.
void gradient_w(Convolution c, const float* upstream, const float* x, float* w_gradient, Scratch scratch) {
    using Kind = dnnl::convolution_backward_weights;
    Call<Kind> call{keep<Kind>(c, {0}, [&] { return c.backward<Kind>(); }), scratch};
    call.input(DNNL_ARG_DIFF_DST, c.y, upstream);
    call.input(DNNL_ARG_SRC, c.x, x);
    call.run(DNNL_ARG_DIFF_WEIGHTS, c.w, w_gradient);
}

// 1x1 convolutions of stride 1: x (N, C, L), w (K, C), y (N, K, L). Bias and ReLU follow in slices of columns, while
// those are still in the cache.
void pointwise(int64_t N, int64_t C, int64_t L, int64_t K, const float* x, const float* w, const float* bias, bool relu,
               float* y) {
    const int64_t slice = bias || relu ? std::min<int64_t>(L, 2048) : L;
    for (int64_t n = 0; n < N; n++)
        for (int64_t start = 0; start < L; start += slice) {
            const int64_t size = std::min(slice, L - start);
            float* to = y + n * K * L + start;
            dnnl_sgemm('N', 'N', K, size, C, 1.0f, w, C, x + n * C * L + start, L, 0.0f, to, L);
            if (!bias && !relu) continue;
            #pragma omp parallel for
            for (int64_t k = 0; k < K; k++) {
                const float shift = bias ? bias[k] : 0.0f, floor = relu ? 0.0f : -INFINITY;
                #pragma omp simd
                for (int64_t i = 0; i < size; i++) to[k * L + i] = std::max(to[k * L + i] + shift, floor);
            }
        }
}

void pointwise_gradient(int64_t N, int64_t C, int64_t L, int64_t K, const float* upstream, const float* w,
                        float* x_gradient) {
    for (int64_t n = 0; n < N; n++)
        dnnl_sgemm('T', 'N', C, L, K, 1.0f, w, C, upstream + n * K * L, L, 0.0f, x_gradient + n * C * L, L);
}

// out (N, P, R) = a (N, P, Q) times b (N, Q, R); a or b is stored transposed, as (N, Q, P) or (N, R, Q), where said.
void multiply(int64_t N, int64_t P, int64_t Q, int64_t R, const float* a, bool a_transposed, const float* b,
              bool b_transposed, float* out) {
    for (int64_t n = 0; n < N; n++)
        dnnl_sgemm(a_transposed ? 'T' : 'N', b_transposed ? 'T' : 'N', P, R, Q, 1.0f, a + n * P * Q,
                   a_transposed ? P : Q, b + n * Q * R, b_transposed ? Q : R, 0.0f, out + n * P * R, R);
}

}  // namespace

// In: x, w and, optionally, bias. Out: y, scratch. Options: those of `Convolution`, bias, relu.
void convolution_forward(const Array* in, const Array* out, const Options& options) {
    const Convolution c(in[0], in[1], out[0], options);
    const float* bias = options.at("bias") ? floats(in[2]) : nullptr;
    forward(c, floats(in[0]), floats(in[1]), bias, options.at("relu"), floats(out[0]), Scratch(out[1]));
}

// In: upstream, w. Out: the gradient of x, scratch. Options: those of `Convolution`.
void convolution_gradient_x(const Array* in, const Array* out, const Options& options) {
    const Convolution c(out[0], in[1], in[0], options);
    gradient_x(c, floats(in[0]), floats(in[1]), floats(out[0]), Scratch(out[1]));
}

// In: upstream, x. Out: the gradient of w, scratch. Options: those of `Convolution`.
void convolution_gradient_w(const Array* in, const Array* out, const Options& options) {
    const Convolution c(in[1], out[0], in[0], options);
    gradient_w(c, floats(in[0]), floats(in[1]), floats(out[0]), Scratch(out[1]));
}

// In: x, w (K, C, 1, 1) and, optionally, bias. Out: y. Options: bias, relu.
void convolution_pointwise_forward(const Array* in, const Array* out, const Options& options) {
    const int64_t* x = in[0].shape;
    const float* bias = options.at("bias") ? floats(in[2]) : nullptr;
    pointwise(x[0], x[1], x[2] * x[3], in[1].shape[0], floats(in[0]), floats(in[1]), bias, options.at("relu"),
              floats(out[0]));
}

// In: upstream, w (K, C, 1, 1). Out: the gradient of x.
void convolution_pointwise_gradient_x(const Array* in, const Array* out, const Options&) {
    const int64_t* y = in[0].shape;
    pointwise_gradient(y[0], in[1].shape[1], y[2] * y[3], y[1], floats(in[0]), floats(in[1]), floats(out[0]));
}

// In: a, b. Out: their product. Options: a_transposed, b_transposed.
void convolution_multiply(const Array* in, const Array* out, const Options& options) {
    const bool a_transposed = options.at("a_transposed"), b_transposed = options.at("b_transposed");
    const int64_t* shape = out[0].shape;
    multiply(shape[0], shape[1], in[0].shape[a_transposed ? 1 : 2], shape[2], floats(in[0]), a_transposed,
             floats(in[1]), b_transposed, floats(out[0]));
}

}  // namespace cpu
}  // namespace pfseg
