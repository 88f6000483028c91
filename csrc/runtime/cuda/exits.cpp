#include "exits.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include "../head.h"
#include "acn/cuda/compact.h"
#include "acn/cuda/exit_head.h"
#include "stream.h"

namespace acn::device {
namespace {

using at::Tensor;

// Elements of a head's weight beyond which two launches more, for a product by a library, take less
// time than it takes a block to read them for one row.
constexpr int64_t kLargestFusedHead = 1 << 14;

cuda::Tokens tokens_of(const Tensor& x) {
  if (!x.defined()) return {};
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}

class CudaCount final : public Count {
 public:
  explicit CudaCount(const Tensor& number)
      : here_(at::empty({}, at::TensorOptions(number.scalar_type()).pinned_memory(true))) {
    here_.copy_(number, /*non_blocking=*/true);  // keeps the memory until the copy is done
    arrived_.record(stream_of(number));
  }

  int64_t wait() override {
    arrived_.wait();
    return *here_.const_data_ptr<int32_t>();
  }

 private:
  Tensor here_;
  Event arrived_;
};

void move(const Tensor& to, const Tensor& from, const Tensor& places) {
  if (!from.defined() || from.numel() == 0) return;
  cuda::Compaction args;
  args.samples = from.size(0);
  args.kept = to.size(0);
  args.places = places.const_data_ptr<int32_t>();
  args.from = from.const_data_ptr();
  args.bytes = static_cast<int64_t>(from.nbytes()) / from.size(0);
  args.stride = args.bytes;
  args.to = to.mutable_data_ptr();
  check(cuda::compact(args, stream_of(from)), "compact");
}

}  // namespace

void check_head(const Model& model) {
  const Head* head = model.head();
  if (!head) throw std::invalid_argument("on cuda the engine runs ViT, Mixer and BERT alone");
  const int64_t width = head->linear.weight.size(1);
  if (width > cuda::kMaxExitWidth) {
    throw std::invalid_argument(text("the model's width is ", width, "; on cuda the engine takes ",
                                     "up to ", cuda::kMaxExitWidth));
  }
}

Tensor CudaExits::decide(const Model& model, LiveRows& rows, const Exit& exit,
                         const Results& results) const {
  const Head& head = *model.head();
  const State read = model.read_by_head(rows.state);
  const Tensor& x = read.x;
  const Tensor certainty = at::empty({rows.size()}, x.options().dtype(at::kFloat));
  Tensor stays = at::empty({rows.size()}, x.options().dtype(at::kBool));
  const Tensor weight = head.linear.weight.contiguous(), bias = head.linear.bias.contiguous();
  cuda::ExitHead args;
  args.samples = rows.size();
  args.tokens = head.first_row ? 1 : x.size(1);
  args.width = x.size(2);
  args.classes = weight.size(0);
  args.dtype = dtype_of(x);
  args.x = tokens_of(x);
  args.y = tokens_of(read.y);
  Tensor norm_weight, norm_bias;
  if (head.norm) {
    norm_weight = head.norm->weight.contiguous();
    norm_bias = head.norm->bias.contiguous();
    args.norm_weight = vector_of(norm_weight);
    args.norm_bias = vector_of(norm_bias);
    args.eps = LayerNorm::kEps;
    args.norm = Norm::layer;
  }
  args.weight = weight.const_data_ptr();
  args.bias = bias.const_data_ptr();
  args.criterion = exit.criterion;
  args.threshold = static_cast<float>(exit.threshold);
  args.logits = results.logits.mutable_data_ptr();
  args.certainty = certainty.mutable_data_ptr<float>();
  args.stays = stays.mutable_data_ptr<bool>();
  args.live = results.staying.mutable_data_ptr<int32_t>() + exit.stop;
  args.sample = rows.sample.mutable_data_ptr<int32_t>();
  args.depth = results.depth.mutable_data_ptr<int64_t>();
  args.stop = exit.depth;
  const cudaStream_t stream = stream_of(x);
  if (weight.numel() <= kLargestFusedHead) {
    check(cuda::exit_head(args, stream), "exit_head");
    return stays;
  }
  const Tensor pooled = at::empty({rows.size(), args.width}, x.options());
  check(cuda::exit_pool(args, pooled.mutable_data_ptr(), stream), "exit_pool");
  const Tensor logits = at::linear(pooled, weight, bias);
  check(cuda::exit_decision(args, logits.const_data_ptr(), stream), "exit_decision");
  return stays;
}

void CudaExits::pack_into(const LiveRows& to, const LiveRows& rows, const Tensor& stays) const {
  const Tensor places = at::empty({rows.size()}, rows.sample.options());
  cuda::Places args;
  args.samples = rows.size();
  args.stays = stays.const_data_ptr<bool>();
  args.places = places.mutable_data_ptr<int32_t>();
  args.from = rows.sample.const_data_ptr<int32_t>();
  args.to = to.sample.mutable_data_ptr<int32_t>();
  args.kept = to.size();
  check(cuda::compaction_places(args, stream_of(stays)), "compaction_places");
  move(to.state.x, rows.state.x, places);
  move(to.state.y, rows.state.y, places);
  move(to.state.mask, rows.state.mask, places);
}

std::unique_ptr<Count> CudaExits::read(const Tensor& number) const {
  return std::make_unique<CudaCount>(number);
}

}  // namespace acn::device
