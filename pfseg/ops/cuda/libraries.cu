// Convolutions by cuDNN's graph interface, whose engines are the fastest on recent GPUs, and products by cuBLAS.
//
// What cuDNN's heuristics propose for a geometry is tried at its first use, on its own arrays; the plan chosen is kept for
// the process.
#include "libraries.h"

#include <cublas_v2.h>
#include <cudnn.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <vector>

namespace pfseg {
namespace {

constexpr int MAX_TRIED = 6;  // plans to time
constexpr auto MAX_TRYING = std::chrono::milliseconds(500);  // after which no other is tried: some engines are compiled first
constexpr int64_t MAX_WORKSPACE = int64_t(1) << 30;
constexpr size_t CUBLAS_WORKSPACE = size_t(64) << 20;

using pfseg::check;

struct CudnnError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::string last_error() {
    char text[512] = "";
    cudnnGetLastErrorString(text, sizeof(text));
    return text;
}

void check(cudnnStatus_t status, const char* what) {
    if (status != CUDNN_STATUS_SUCCESS)
        throw CudnnError(std::string("cuDNN, ") + what + ": " + cudnnGetErrorString(status) + " " + last_error());
}

void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(std::string("cuBLAS, ") + what + ": " + cublasGetStatusString(status));
}

// Both handles work on the default stream and live as long as the process.
cudnnHandle_t cudnn() {
    static const cudnnHandle_t handle = [] {
        cudnnHandle_t created;
        check(cudnnCreate(&created), "cudnnCreate");
        return created;
    }();
    return handle;
}

cublasHandle_t cublas() {
    static const cublasHandle_t handle = [] {
        cublasHandle_t created;
        check(cublasCreate(&created), "cublasCreate");
        void* workspace;  // an own one: results don't depend on what else runs
        check(cudaMalloc(&workspace, CUBLAS_WORKSPACE), "workspace of cuBLAS");
        check(cublasSetWorkspace(created, workspace, CUBLAS_WORKSPACE), "cublasSetWorkspace");
        const int mode = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        check(cublasSetMathMode(created, static_cast<cublasMath_t>(mode)), "cublasSetMathMode");
        return created;
    }();
    return handle;
}

// Memory for cuDNN, which grows and is never given back; nullptr if there isn't enough.
void* workspace(int64_t bytes) {
    static void* memory = nullptr;
    static int64_t size = 0;
    if (bytes > size) {
        check(cudaDeviceSynchronize(), "waiting for the GPU");
        if (memory) check(cudaFree(memory), "freeing the workspace of cuDNN");
        memory = nullptr, size = 0;
        if (cudaMalloc(&memory, bytes) != cudaSuccess) {
            cudaGetLastError();  // not the next call's
            memory = nullptr;
            return nullptr;
        }
        size = bytes;
    }
    return memory;
}

class Descriptor {
public:
    explicit Descriptor(cudnnBackendDescriptorType_t type) {
        check(cudnnBackendCreateDescriptor(type, &handle_), "cudnnBackendCreateDescriptor");
    }
    Descriptor(Descriptor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Descriptor() {
        if (handle_) cudnnBackendDestroyDescriptor(handle_);
    }
    cudnnBackendDescriptor_t handle() const { return handle_; }

    template <class T>
    void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T* values, int64_t count) {
        check(cudnnBackendSetAttribute(handle_, name, type, count, values), "cudnnBackendSetAttribute");
    }
    template <class T>
    void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
        set(name, type, &value, 1);
    }
    void set(cudnnBackendAttributeName_t name, const Descriptor& value) {
        set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &value.handle_, 1);
    }
    bool finalize() { return cudnnBackendFinalize(handle_) == CUDNN_STATUS_SUCCESS; }

private:
    cudnnBackendDescriptor_t handle_ = nullptr;
};

enum Id : int64_t { X = 'x', W = 'w', Y = 'y' };

cudnnDataType_t type_of(Type type) {
    return type == Type::float32 ? CUDNN_DATA_FLOAT : type == Type::bfloat16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
}

// cuDNN wants the order (N, C, H, W) whatever the layout, which the strides tell.
Descriptor tensor(const Array& array, int64_t id) {
    const auto* s = array.shape;
    const int64_t sizes[] = {s[0], s[3], s[1], s[2]};
    const int64_t strides[] = {s[1] * s[2] * s[3], 1, s[2] * s[3], s[3]};
    const int64_t alignment = 16;
    Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type_of(array.type));
    d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, sizes, 4);
    d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides, 4);
    d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, id);
    d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, alignment);
    return d;
}

// An operation's descriptor and its attributes, by pass.
struct Operation {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t x, w, y, convolution, alpha, beta;
};

const Operation OPERATIONS[] = {
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

// The graph of one convolution, and the descriptors that it refers to.
struct Graph {
    Descriptor x, w, y, convolution, operation, graph;
    bool valid;

    Graph(Pass pass, const Convolution& c)
        : x(tensor(c.x, X)), w(tensor(c.w, W)), y(tensor(c.y, Y)), convolution(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR),
          operation(OPERATIONS[int(pass)].type), graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
        const Operation& names = OPERATIONS[int(pass)];
        const int64_t sides = 2;
        convolution.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
        convolution.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, CUDNN_CROSS_CORRELATION);
        convolution.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, sides);
        convolution.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, c.padding, 2);
        convolution.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, c.padding, 2);
        convolution.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, c.stride, 2);
        convolution.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, c.dilation, 2);
        valid = x.finalize() && w.finalize() && y.finalize() && convolution.finalize();
        if (!valid) return;
        operation.set(names.x, x);
        operation.set(names.w, w);
        operation.set(names.y, y);
        operation.set(names.convolution, convolution);
        operation.set(names.alpha, CUDNN_TYPE_FLOAT, 1.0f);
        operation.set(names.beta, CUDNN_TYPE_FLOAT, 0.0f);
        valid = operation.finalize();
        if (!valid) return;
        graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, cudnn());
        graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
        valid = graph.finalize();
    }
};

// What cuDNN proposes for a graph, best first.
std::vector<Descriptor> proposals(const Graph& graph, cudnnBackendHeurMode_t mode) {
    Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.graph);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
    std::vector<Descriptor> configurations;
    int64_t count = 0;
    if (!heuristics.finalize() ||
        cudnnBackendGetAttribute(heuristics.handle(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count,
                                 nullptr) != CUDNN_STATUS_SUCCESS)
        return configurations;
    std::vector<cudnnBackendDescriptor_t> handles;
    for (int64_t i = 0; i < count; i++) {
        configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
        handles.push_back(configurations.back().handle());
    }
    int64_t given = 0;
    if (count > 0)
        check(cudnnBackendGetAttribute(heuristics.handle(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       count, &given, handles.data()),
              "reading what the heuristics propose");
    configurations.erase(configurations.begin() + std::min(given, count), configurations.end());
    return configurations;
}

// Whether an engine computes as precisely as asked for.
bool allowed(const Descriptor& configuration, const Convolution& c) {
    const Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendDescriptor_t handle = engine.handle();
    int64_t count = 0;
    if (cudnnBackendGetAttribute(configuration.handle(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count,
                                 &handle) != CUDNN_STATUS_SUCCESS)
        return false;
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    count = 0;
    if (cudnnBackendGetAttribute(handle, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                 CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes) != CUDNN_STATUS_SUCCESS)
        return false;
    const bool whole = c.x.type == Type::float32;
    for (int64_t i = 0; i < std::min<int64_t>(count, CUDNN_NUMERICAL_NOTE_TYPE_COUNT); i++) {
        switch (notes[i]) {
            case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
            case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION: return false;
            case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
                if (whole && !c.tf32) return false;
                break;
            case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
                if (c.deterministic) return false;
                break;
            case CUDNN_NUMERICAL_NOTE_FFT:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
            case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13:
                if (!whole) return false;  // would transform in 16 bits
                break;
            default: break;
        }
    }
    return true;
}

struct Plan {
    std::shared_ptr<Graph> graph;
    Descriptor configuration, plan;
    int64_t workspace = 0;

    Plan(std::shared_ptr<Graph> graph, Descriptor configuration)
        : graph(std::move(graph)), configuration(std::move(configuration)), plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {}

    bool finalize() {
        plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, cudnn());
        plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
        int64_t count = 0;
        return plan.finalize() &&
               cudnnBackendGetAttribute(plan.handle(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                                        &workspace) == CUDNN_STATUS_SUCCESS;
    }

    cudnnStatus_t run(const Convolution& c) const {
        void* memory = workspace ? pfseg::workspace(workspace) : nullptr;
        if (workspace && !memory) return CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
        const int64_t ids[] = {X, W, Y};
        void* const arrays[] = {c.x.data, c.w.data, c.y.data};
        Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
        pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids, 3);
        pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, arrays, 3);
        pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, memory);
        if (!pack.finalize()) return CUDNN_STATUS_BAD_PARAM;
        return cudnnBackendExecute(cudnn(), plan.handle(), pack.handle());
    }
};

// Milliseconds of a run, or a negative number if it fails.
float time_of(const Plan& plan, const Convolution& c) {
    static const auto events = [] {
        std::array<cudaEvent_t, 2> created;
        for (auto& event : created) pfseg::check(cudaEventCreate(&event), "cudaEventCreate");
        return created;
    }();
    if (plan.run(c) != CUDNN_STATUS_SUCCESS) return -1;  // warms up
    pfseg::check(cudaEventRecord(events[0]), "cudaEventRecord");
    for (int i = 0; i < 2; i++)
        if (plan.run(c) != CUDNN_STATUS_SUCCESS) return -1;
    pfseg::check(cudaEventRecord(events[1]), "cudaEventRecord");
    pfseg::check(cudaEventSynchronize(events[1]), "a convolution of cuDNN");
    float time = 0;
    pfseg::check(cudaEventElapsedTime(&time, events[0], events[1]), "cudaEventElapsedTime");
    return time;
}

// The fastest of the first proposals, or the very first one that works if results have to be the same in each process;
// none if cuDNN has nothing for the geometry.
std::unique_ptr<Plan> choose(Pass pass, const Convolution& c) {
    const auto graph = std::make_shared<Graph>(pass, c);
    if (!graph->valid) return nullptr;
    const auto start = std::chrono::steady_clock::now();
    for (const auto mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
        std::unique_ptr<Plan> best;
        float best_time = 0;
        int tried = 0;
        for (Descriptor& configuration : proposals(*graph, mode)) {
            if (!allowed(configuration, c)) continue;
            auto plan = std::make_unique<Plan>(graph, std::move(configuration));
            if (!plan->finalize() || plan->workspace > MAX_WORKSPACE) continue;
            if (c.deterministic) {
                if (plan->run(c) == CUDNN_STATUS_SUCCESS) return plan;
                continue;
            }
            const float time = time_of(*plan, c);
            if (time < 0) continue;
            if (!best || time < best_time) best = std::move(plan), best_time = time;
            if (++tried == MAX_TRIED || std::chrono::steady_clock::now() - start > MAX_TRYING) break;
        }
        if (best) return best;
    }
    return nullptr;
}

using Key = std::array<int64_t, 18>;

Key key_of(Pass pass, const Convolution& c) {
    Key key{int64_t(pass), int64_t(c.x.type), c.tf32, c.deterministic};
    for (int i = 0; i < 4; i++) key[4 + i] = c.x.shape[i], key[8 + i] = c.w.shape[i];
    for (int i = 0; i < 2; i++) key[12 + i] = c.stride[i], key[14 + i] = c.padding[i], key[16 + i] = c.dilation[i];
    return key;
}

std::string text(const Key& key) {
    static const char* const names[] = {"pass", "type", "TF32", "deterministic", "N", "H", "W", "C", "K", "h", "w", "c"};
    std::string text;
    for (int i = 0; i < 12; i++) text += std::string(names[i]) + " " + std::to_string(key[i]) + ", ";
    text += "stride, padding, dilation";
    for (int i = 12; i < 18; i++) text += " " + std::to_string(key[i]);
    return text;
}

cudaDataType_t cuda_type(Type type) {
    return type == Type::float32 ? CUDA_R_32F : type == Type::bfloat16 ? CUDA_R_16BF : CUDA_R_16F;
}

}  // namespace

void convolve(Pass pass, const Convolution& c) {
    static auto& plans = *new std::map<Key, std::unique_ptr<Plan>>;  // cuDNN may be gone before static objects are
    const Key key = key_of(pass, c);
    auto found = plans.find(key);
    if (found == plans.end()) {
        found = plans.emplace(key, nullptr).first;
        std::string reason;
        try {
            found->second = choose(pass, c);
            if (!found->second) reason = last_error();
        } catch (const CudnnError& error) {
            reason = error.what();
        }
        if (!found->second)
            std::fprintf(stderr, "cuDNN has no kernel for a convolution (%s), so a slow one runs: %s\n", text(key).c_str(),
                         reason.c_str());
    }
    if (!found->second) return convolve_directly(pass, c);
    const cudnnStatus_t status = found->second->run(c);
    if (status != CUDNN_STATUS_SUCCESS) check(status, ("a convolution (" + text(key) + ")").c_str());
}

void multiply(int64_t rows, int64_t columns, int64_t inner, const Matrix& a, const Matrix& b, const Matrix& c, bool tf32) {
    // cuBLAS takes matrices by columns; one stored by rows is its transpose for it: c^T = b^T a^T
    const float one = 1.0f, zero = 0.0f;
    const bool fast = tf32 && a.type == Type::float32;
    const auto operation = [](const Matrix& m) { return m.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    check(cublasGemmEx(cublas(), operation(b), operation(a), int(columns), int(rows), int(inner), &one, b.data,
                       cuda_type(b.type), int(b.stride), a.data, cuda_type(a.type), int(a.stride), &zero, c.data,
                       cuda_type(c.type), int(c.stride), fast ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
}

}  // namespace pfseg
