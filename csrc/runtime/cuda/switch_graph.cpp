#include "switch_graph.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <exception>
#include <vector>

#include "acn/cuda/switch.h"

namespace acn::device {

#if CUDART_VERSION >= 12080

namespace {

constexpr unsigned kNoBody = ~0u;

// A chain of nodes that run one after the other, each at most one of its bodies.
class Chain {
 public:
  // Nodes of bodies[i] bodies. The first runs its first one, the others none unless they are set.
  explicit Chain(const std::vector<unsigned>& bodies) {
    for (const unsigned size : bodies) {
      cudaGraphConditionalHandle handle{};
      check(cudaGraphConditionalHandleCreate(&handle, graph_.get(), nodes_.empty() ? 0 : kNoBody,
                                             cudaGraphCondAssignDefault),
            "cudaGraphConditionalHandleCreate");
      cudaGraphNodeParams params{};
      params.type = cudaGraphNodeTypeConditional;
      params.conditional.handle = handle;
      params.conditional.type = cudaGraphCondTypeSwitch;
      params.conditional.size = size;
      add(params);
      const cudaGraph_t* const graphs = params.conditional.phGraph_out;
      bodies_.emplace_back(graphs, graphs + size);
      handles_.push_back(handle);
    }
  }

  const Graph& graph() const { return graph_; }
  cudaGraph_t body(size_t node, size_t which) const { return bodies_[node][which]; }
  cuda::ConditionalHandle handle(size_t node) const { return handles_[node]; }

 private:
  void add(cudaGraphNodeParams& params) {
    const cudaGraphNode_t* const before = nodes_.empty() ? nullptr : &nodes_.back();
    const size_t count = nodes_.empty() ? 0 : 1;
    cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
    check(cudaGraphAddNode(&node, graph_.get(), before, nullptr, count, &params),
          "cudaGraphAddNode");
#else
    check(cudaGraphAddNode(&node, graph_.get(), before, count, &params), "cudaGraphAddNode");
#endif
    nodes_.push_back(node);
  }

  Graph graph_;
  std::vector<cudaGraphNode_t> nodes_;
  std::vector<cuda::ConditionalHandle> handles_;
  std::vector<std::vector<cudaGraph_t>> bodies_;
};

unsigned bodies_for(int64_t rows) {
  unsigned bodies = 1;
  while ((int64_t{1} << bodies) <= rows) ++bodies;
  return bodies;
}

void set(const at::Tensor& count, cuda::ConditionalHandle handle, cudaStream_t stream) {
  check(cuda::set_switch(count.const_data_ptr<int32_t>(), handle, stream), "set_switch");
}

}  // namespace

std::unique_ptr<ReadyGraph> switch_graph(Steps& steps, cudaStream_t stream) {
  const size_t stops = steps.kind().stops.size();
  std::vector<unsigned> sizes(stops, bodies_for(steps.kind().rows));
  sizes[0] = 1;
  const Chain chain(sizes);
  for (size_t s = 0; s < stops; ++s) {
    for (unsigned which = 0; which < sizes[s]; ++which) {
      const int64_t rows = s == 0 ? steps.kind().rows : int64_t{1} << which;
      capture_into(chain.body(s, which), stream, [&] {
        steps.queue(s, rows);
        if (s + 1 < stops) set(steps.staying(s), chain.handle(s + 1), stream);
      });
    }
  }
  return std::make_unique<ReadyGraph>(chain.graph());
}

namespace {

// The first node sets the second by `count`; each of that one's three bodies leaves a mark, -1, at
// a place of its own.
std::unique_ptr<ReadyGraph> small_graph(const at::Tensor& count, const at::Tensor& mark,
                                        cudaStream_t stream) {
  const Chain chain({1, 3});
  capture_into(chain.body(0, 0), stream, [&] { set(count, chain.handle(1), stream); });
  for (size_t which = 0; which < 3; ++which) {
    int32_t* const place = mark.mutable_data_ptr<int32_t>() + which;
    capture_into(chain.body(1, which), stream, [&] {
      check(cudaMemsetAsync(place, 0xff, sizeof *place, stream), "cudaMemsetAsync");
    });
  }
  return std::make_unique<ReadyGraph>(chain.graph());
}

}  // namespace

std::string obstacle_to_switch_graph(const at::Tensor& like, c10::cuda::CUDAStream stream) {
  try {
    const c10::cuda::CUDAStreamGuard guard(stream);
    const at::TensorOptions options = like.options().dtype(at::kInt);
    const at::Tensor count = at::zeros({}, options), mark = at::zeros({3}, options);
    const std::unique_ptr<ReadyGraph> graph = small_graph(count, mark, stream.stream());
    const std::vector<std::pair<int64_t, int>> expected{{4, 2}, {0, -1}, {1, 0}, {2, 1}, {3, 2}};
    for (const auto& [value, body] : expected) {
      count.fill_(value);
      mark.zero_();
      graph->launch(stream.stream());
      const at::Tensor seen = mark.cpu();
      for (int which = 0; which < 3; ++which) {
        if (seen.const_data_ptr<int32_t>()[which] != (which == body ? -1 : 0)) {
          return text("a conditional node took another body than that of ", value);
        }
      }
    }
    return "";
  } catch (const std::exception& error) {
    return text("conditional nodes: ", error.what());
  }
}

#else

std::unique_ptr<ReadyGraph> switch_graph(Steps&, cudaStream_t) {
  throw std::runtime_error("conditional nodes need a build with CUDA 12.8 or later");
}

std::string obstacle_to_switch_graph(const at::Tensor&, c10::cuda::CUDAStream) {
  return "conditional nodes need a build with CUDA 12.8 or later";
}

#endif

}  // namespace acn::device
