"""Convolutions and batched matrix products on a CPU, straight from oneDNN.

Jittor writes a convolution as a broadcast product and a sum, compiles it for each kernel size and stride, and then
finds out that oneDNN has it. Here oneDNN is called at once, which saves that compilation, and told how:

* 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), a quarter of the multiplications, where the processor has
  AVX-512; results differ from the direct sum by about 2e-6 of the largest value,
* 1x1 convolutions as matrix products on the plain layout, without the copies into oneDNN's blocked one,
* bias and ReLU of a network that only predicts within the same pass.

A GPU takes Jittor's own.

Shapes: x (N, C, H, W), weight (K, C, h, w), y (N, K, H', W'), all float32.
"""

from __future__ import annotations

from typing import Any

from pfseg.runtime import jt, onednn_flags

Var = Any  # jittor.Var, which ships no types

_HEADER = """
#include <dnnl.hpp>
#include <algorithm>
#include <cmath>
#include <map>
namespace {
using dnnl::memory;
const auto TRAINING = dnnl::prop_kind::forward_training;
const auto F32 = memory::data_type::f32;

dnnl::engine& cpu() {
    static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

struct Convolution {
    memory::dims x, w, y, stride, padding, dilation;
    dnnl::algorithm algorithm;

    template <class Shape, class Data>
    Convolution(const Shape& xs, const Shape& ws, const Shape& ys, Data& data)
        : x({xs[0], xs[1], xs[2], xs[3]}), w({ws[0], ws[1], ws[2], ws[3]}), y({ys[0], ys[1], ys[2], ys[3]}),
          stride({int(data["stride0"]), int(data["stride1"])}),
          padding({int(data["padding0"]), int(data["padding1"])}),
          dilation({int(data["dilation0"]) - 1, int(data["dilation1"]) - 1}),
          algorithm(data["winograd"] ? dnnl::algorithm::convolution_winograd : dnnl::algorithm::convolution_direct) {}

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
            dnnl::convolution_forward::primitive_desc found(wanted, attributes, cpu(), !last);
            if (found.get(true)) return found;
            algorithm = dnnl::algorithm::convolution_direct;
        }
    }
    // Kind: convolution_backward_data or convolution_backward_weights.
    template <class Kind> typename Kind::primitive_desc backward() {
        auto hint = forward(false, false);
        return {{algorithm, any(x), any(w), any(y), stride, dilation, padding, padding}, cpu(), hint};
    }
};

// Primitives stay, and with them the working memory that oneDNN shares among them: taking it anew from the system for
// each call costs up to half of a Winograd convolution's time.
template <class Kind, class Make> const Kind& keep(const Convolution& c, int64_t variant, Make make) {
    static std::map<std::vector<int64_t>, Kind> known;
    std::vector<int64_t> key{variant, (int64_t)c.algorithm};
    for (auto* part : {&c.x, &c.w, &c.y, &c.stride, &c.padding, &c.dilation})
        key.insert(key.end(), part->begin(), part->end());
    auto found = known.find(key);
    if (found != known.end()) return found->second;
    if (known.size() == 1000) known.clear();
    return known.emplace(key, Kind(make())).first->second;
}

// Copies in the layouts that oneDNN asks for, one after another in the memory of `scratch`.
struct Layouts {
    dnnl::stream stream{cpu()};
    size_t at, end;

    Layouts(float* scratch, size_t floats) : at((size_t)scratch), end((size_t)(scratch + floats)) {}

    static memory plain(const memory::dims& shape, const float* values) {
        return memory({shape, F32, shape.size() == 4 ? memory::format_tag::abcd : memory::format_tag::a}, cpu(),
                      (void*)values);
    }
    memory place(const memory::desc& wanted) {
        const size_t start = (at + 63) / 64 * 64;
        if (start + wanted.get_size() > end) return memory(wanted, cpu());
        at = start + wanted.get_size();
        return memory(wanted, cpu(), (void*)start);
    }
    memory input(memory from, const memory::desc& wanted) {
        if (from.get_desc() == wanted) return from;
        memory to = place(wanted);
        dnnl::reorder(from, to).execute(stream, from, to);
        return to;
    }
    memory output(memory to, const memory::desc& wanted) { return to.get_desc() == wanted ? to : place(wanted); }
    void finish(memory from, memory to) {
        if (from.get() != to.get()) dnnl::reorder(from, to).execute(stream, from, to);
        stream.wait();
    }
};

template <class Kind> memory::desc layout(const Kind& kind, int argument) {
    return memory::desc(*dnnl_primitive_desc_query_md(kind.get_primitive_desc(), dnnl_query_exec_arg_md, argument));
}
}
"""

# in0 = x, in1 = w, in2 = bias (empty without one); out0 = y, out1 = scratch.
_FORWARD = """
    Convolution c(in0->shape, in1->shape, out0->shape, data);
    const bool bias = in2_shape0 > 0, relu = data["relu"];
    auto& kind = keep<dnnl::convolution_forward>(c, 2 * bias + relu, [&] { return c.forward(bias, relu); });
    Layouts layouts(out1_p, out1_shape0);
    auto y = Layouts::plain(c.y, out0_p), result = layouts.output(y, layout(kind, DNNL_ARG_DST));
    std::unordered_map<int, memory> args{
        {DNNL_ARG_SRC, layouts.input(Layouts::plain(c.x, in0_p), layout(kind, DNNL_ARG_SRC))},
        {DNNL_ARG_WEIGHTS, layouts.input(Layouts::plain(c.w, in1_p), layout(kind, DNNL_ARG_WEIGHTS))},
        {DNNL_ARG_DST, result}};
    if (bias) args[DNNL_ARG_BIAS] = Layouts::plain({c.w[0]}, in2_p);
    kind.execute(layouts.stream, args);
    layouts.finish(result, y);
"""

# in0 = upstream, in1 = w; out0 = gradient of x, out1 = scratch.
_GRADIENT_X = """
    using Kind = dnnl::convolution_backward_data;
    Convolution c(out0->shape, in1->shape, in0->shape, data);
    auto& kind = keep<Kind>(c, 0, [&] { return c.backward<Kind>(); });
    Layouts layouts(out1_p, out1_shape0);
    auto x = Layouts::plain(c.x, out0_p), result = layouts.output(x, layout(kind, DNNL_ARG_DIFF_SRC));
    kind.execute(layouts.stream, {
        {DNNL_ARG_DIFF_DST, layouts.input(Layouts::plain(c.y, in0_p), layout(kind, DNNL_ARG_DIFF_DST))},
        {DNNL_ARG_WEIGHTS, layouts.input(Layouts::plain(c.w, in1_p), layout(kind, DNNL_ARG_WEIGHTS))},
        {DNNL_ARG_DIFF_SRC, result}});
    layouts.finish(result, x);
"""

# in0 = upstream, in1 = x; out0 = gradient of w, out1 = scratch.
_GRADIENT_W = """
    using Kind = dnnl::convolution_backward_weights;
    Convolution c(in1->shape, out0->shape, in0->shape, data);
    auto& kind = keep<Kind>(c, 0, [&] { return c.backward<Kind>(); });
    Layouts layouts(out1_p, out1_shape0);
    auto w = Layouts::plain(c.w, out0_p), result = layouts.output(w, layout(kind, DNNL_ARG_DIFF_WEIGHTS));
    kind.execute(layouts.stream, {
        {DNNL_ARG_DIFF_DST, layouts.input(Layouts::plain(c.y, in0_p), layout(kind, DNNL_ARG_DIFF_DST))},
        {DNNL_ARG_SRC, layouts.input(Layouts::plain(c.x, in1_p), layout(kind, DNNL_ARG_SRC))},
        {DNNL_ARG_DIFF_WEIGHTS, result}});
    layouts.finish(result, w);
"""

# in0 = x, in1 = w, in2 = bias; out0 = y. With bias or ReLU in slices of columns, which are still cached for them.
_FORWARD_1X1 = """
    const int64 N = in0_shape0, C = in0_shape1, L = in0_shape2 * in0_shape3, K = in1_shape0;
    const bool bias = in2_shape0 > 0, relu = data["relu"];
    const int64 slice = bias || relu ? std::min<int64>(L, 2048) : L;
    for (int64 n = 0; n < N; n++)
        for (int64 start = 0; start < L; start += slice) {
            const int64 size = std::min(slice, L - start);
            float* y = out0_p + n * K * L + start;
            dnnl_sgemm('N', 'N', K, size, C, 1.0f, in1_p, C, in0_p + n * C * L + start, L, 0.0f, y, L);
            if (!bias && !relu) continue;
            #pragma omp parallel for
            for (int64 k = 0; k < K; k++) {
                const float shift = bias ? in2_p[k] : 0.0f, floor = relu ? 0.0f : -INFINITY;
                #pragma omp simd
                for (int64 i = 0; i < size; i++) y[k * L + i] = std::max(y[k * L + i] + shift, floor);
            }
        }
"""

# in0 = upstream, in1 = w; out0 = gradient of x.
_GRADIENT_X_1X1 = """
    const int64 N = in0_shape0, K = in0_shape1, L = in0_shape2 * in0_shape3, C = in1_shape1;
    for (int64 n = 0; n < N; n++)
        dnnl_sgemm('T', 'N', C, L, K, 1.0f, in1_p, C, in0_p + n * K * L, L, 0.0f, out0_p + n * C * L, L);
"""

# in0 = a, in1 = b; out0 = their product, each of the two turned round before where `data` says so.
_MATMUL = """
    const bool ta = data["transpose_a"], tb = data["transpose_b"];
    const int64 P = out0_shape1, R = out0_shape2, Q = ta ? in0_shape1 : in0_shape2;
    for (int64 n = 0; n < out0_shape0; n++)
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', P, R, Q, 1.0f, in0_p + n * P * Q, ta ? P : Q, in1_p + n * Q * R,
                   tb ? Q : R, 0.0f, out0_p + n * P * R, R);
"""

# Smaller maps are as fast by the direct sum (measured with 64 to 512 channels on two cores).
_MIN_TILES, _MIN_CHANNELS = 32, 16


def _call(source: str, shape: Any, inputs: list[Var], scratch: int, **data: float) -> Var:
    """Run `source` over `inputs`; the first output has `shape`, the second is `scratch` floats of memory."""
    y, memory = jt.code(
        [tuple(shape), (scratch,)],
        ["float32"] * 2,
        inputs,
        cpu_header=_HEADER,
        cpu_src=source,
        data={k: float(v) for k, v in data.items()},
    )
    memory.compile_options = onednn_flags()
    return y


class _Convolution(jt.Function):
    """One call's geometry, and the gradients of x, weight and bias."""

    def __init__(self, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> None:
        pairs = (("stride", stride), ("padding", padding), ("dilation", dilation))
        self.geometry: dict[str, float] = {f"{name}{axis}": pair[axis] for name, pair in pairs for axis in (0, 1)}

    def execute(self, x: Var, weight: Var, bias: Var | None = None, relu: bool = False) -> Var:
        n, c, *sides = x.shape
        if c != weight.shape[1]:
            raise ValueError(f"got {c} channels, but the convolution's weights are for {weight.shape[1]}")
        g, (k, _, *kernel) = self.geometry, weight.shape
        y_sides = [
            (sides[i] + 2 * g[f"padding{i}"] - g[f"dilation{i}"] * (kernel[i] - 1) - 1) // g[f"stride{i}"] + 1
            for i in (0, 1)
        ]
        plain = all(g[f"{name}{i}"] == 1 for name in ("stride", "dilation") for i in (0, 1))
        tiles = n * -(-y_sides[0] // 4) * -(-y_sides[1] // 4)
        self.pointwise = plain and kernel == [1, 1] and g["padding0"] == g["padding1"] == 0
        g["winograd"] = plain and kernel == [3, 3] and min(c, k) >= _MIN_CHANNELS and tiles >= _MIN_TILES
        self.scratch = _scratch(x.shape, weight.shape, [n, k, *y_sides], bool(g["winograd"]))
        self.x, self.weight, self.bias = x, weight, bias
        inputs = [x, weight, jt.zeros((0,)) if bias is None else bias]
        return _call(
            _FORWARD_1X1 if self.pointwise else _FORWARD,
            (n, k, *y_sides),
            inputs,
            0 if self.pointwise else self.scratch,
            **g,
            relu=relu,
        )

    def grad(self, upstream: Var) -> tuple[Var | None, ...]:
        x, weight = self.x, self.weight
        if self.pointwise:
            x_grad = _call(_GRADIENT_X_1X1, x.shape, [upstream, weight], 0)
        else:
            x_grad = _call(_GRADIENT_X, x.shape, [upstream, weight], self.scratch, **self.geometry)
        weight_grad = _call(_GRADIENT_W, weight.shape, [upstream, x], self.scratch, **self.geometry)
        return x_grad, weight_grad, None if self.bias is None else upstream.sum([0, 2, 3]), None


def _scratch(x: Any, w: Any, y: Any, winograd: bool) -> int:
    """Floats that copies of all three take in oneDNN's layouts: channels in blocks of 16, Winograd's 6x6 weights."""

    def blocks(channels: int) -> int:
        return -(-channels // 16) * 16

    taps = 36 if winograd else w[2] * w[3]
    maps = sum(shape[0] * blocks(shape[1]) * shape[2] * shape[3] for shape in (x, y))
    return maps + blocks(w[0]) * blocks(w[1]) * taps + 64


class Conv2d(jt.nn.Conv):
    """`jittor.nn.Conv` without groups, computed by oneDNN on a CPU (same arguments, names and initial values).

    Attributes:
        relu: a ReLU follows within the same pass; only for prediction, it has no gradient.
    """

    relu = False

    def execute(self, x: Var) -> Var:
        """Convolve (N, C, H, W) float32."""
        if jt.flags.use_cuda:
            y = super().execute(x)
            return jt.nn.relu(y) if self.relu else y
        return _Convolution(self.stride, self.padding, self.dilation)(x, self.weight, self.bias, self.relu)


class _Matmul(jt.Function):
    def execute(self, a: Var, b: Var) -> Var:
        self.a, self.b = a, b
        return self._product(a, b)

    def grad(self, upstream: Var) -> tuple[Var, Var]:
        return self._product(upstream, self.b, transpose_b=True), self._product(self.a, upstream, transpose_a=True)

    @staticmethod
    def _product(a: Var, b: Var, transpose_a: bool = False, transpose_b: bool = False) -> Var:
        shape = (a.shape[0], a.shape[2 if transpose_a else 1], b.shape[1 if transpose_b else 2])
        return _call(_MATMUL, shape, [a, b], 0, transpose_a=transpose_a, transpose_b=transpose_b)


def batched_matmul(a: Var, b: Var) -> Var:
    """Product (N, P, R) of (N, P, Q) and (N, Q, R), float32."""
    return jt.nn.bmm(a, b) if jt.flags.use_cuda else _Matmul.apply(a, b)
