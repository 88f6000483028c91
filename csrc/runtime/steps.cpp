#include "steps.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "acn/runtime/decision.h"

namespace acn {

using at::Tensor;

Steps::Steps(const Model& model, const ExitOps& ops, const Kind& kind, const Tensor& input,
             const Tensor& logits)
    : model_(model), kind_(kind), ops_(ops) {
  const at::TensorOptions options = input.options();
  std::vector<int64_t> shape{kind.rows};
  shape.insert(shape.end(), kind.sample.begin(), kind.sample.end());
  input_ = at::zeros(shape, options);
  samples_ = at::full({kind.rows}, -1, options.dtype(at::kInt));
  for (LiveRows& live : live_) live.sample = samples_.clone();
  const auto stops = static_cast<int64_t>(kind.stops.size());
  results_ = {at::zeros({kind.rows, logits.size(1)}, logits.options()),
              at::zeros({kind.rows}, options.dtype(at::kLong)),
              at::zeros({stops}, options.dtype(at::kInt))};
  for_each([&](size_t s, int64_t rows) { queue(s, rows); });
}

// The largest first: that is when the tensors between two steps are made.
void Steps::for_each(const std::function<void(size_t s, int64_t rows)>& body) const {
  body(0, kind_.rows);
  for (size_t s = 1; s < kind_.stops.size(); ++s) {
    for (int64_t rows = kind_.rows; rows > 0; rows /= 2) body(s, rows);
  }
}

void Steps::queue(size_t s, int64_t rows) {
  const bool last = s + 1 == kind_.stops.size();
  LiveRows now = live_[s % 2].first(rows);
  if (s == 0) {
    now.state = model_.embed(input_);
    now.sample.copy_(samples_);
    results_.staying.zero_();  // of the stops that nobody will reach
  }
  const std::shared_ptr<const Segment> segment =
      model_.segment(s == 0 ? 0 : kind_.stops[s - 1], kind_.stops[s]);
  now.state = segment->run(std::move(now.state), last);
  const double threshold = last ? passed_by_all(kind_.criterion) : kind_.threshold;
  const Tensor stays =
      ops_.decide(model_, now, {kind_.criterion, threshold, s, kind_.stops[s]}, results_);
  if (last) return;
  LiveRows& next = live_[(s + 1) % 2];
  if (!next.state.x.defined()) next.state = now.empty_like(rows).state;
  ops_.pack_into(next.first(rows), now, stays);
}

void Steps::load(const Tensor& input) {
  const int64_t batch = input.size(0);
  Tensor place = input_.narrow(0, 0, batch);
  if (place.sizes() != input.sizes()) place = place.zero_().narrow(-1, 0, input.size(-1));
  place.copy_(input, /*non_blocking=*/true);
  if (batch == batch_) return;
  batch_ = -1;  // until both are queued
  samples_.fill_(-1);
  samples_.narrow(0, 0, batch).copy_(at::arange(batch, samples_.options()));
  batch_ = batch;
}

void Steps::unload(int64_t batch, const Results& results) const {
  results.logits.copy_(results_.logits.narrow(0, 0, batch), /*non_blocking=*/true);
  results.depth.copy_(results_.depth.narrow(0, 0, batch), /*non_blocking=*/true);
  if (results.staying.defined()) results.staying.copy_(results_.staying, /*non_blocking=*/true);
}

Tensor Steps::staying(size_t s) const {
  return results_.staying.select(0, static_cast<int64_t>(s));
}

// Every step has moved the rows that stay to the front.
int64_t StepPass::pack(size_t, int64_t rows, int64_t most) {
  return std::min(rows, bucket_of(most));
}

}  // namespace acn
