// All steps of a batch in one CUDA graph, in which the device itself takes the way.
#pragma once

#include <memory>
#include <string>

#include "../steps.h"
#include "graph.h"

namespace acn::device {

// A chain of SWITCH nodes, one for every stop. Each step sets the next node to the body for as many
// rows as stay, or to none where nobody does: what has left costs nothing, and no host looks on.
// Throws std::runtime_error where CUDA refuses.
std::unique_ptr<ReadyGraph> switch_graph(Steps& steps, cudaStream_t stream);

// Why such a graph cannot be used here; empty: a small one did what it should. `like` says on which
// device; waits for it.
std::string obstacle_to_switch_graph(const at::Tensor& like, c10::cuda::CUDAStream stream);

}  // namespace acn::device
