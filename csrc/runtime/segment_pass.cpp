#include "segment_pass.h"

#include <ATen/ops/arange.h>

namespace acn {

SegmentPass::SegmentPass(const Model& model, const ExitOps& ops, const at::Tensor& input,
                         const std::vector<int64_t>& stops, const RunOptions& options,
                         const Results& results)
    : model_(model),
      ops_(ops),
      stops_(stops),
      options_(options),
      results_(results),
      rows_{model.embed(input), at::arange(input.size(0), input.options().dtype(at::kInt))} {}

void SegmentPass::advance(size_t s, int64_t) {
  const bool last = s + 1 == stops_.size();
  const std::shared_ptr<const Segment> segment =
      model_.segment(s == 0 ? 0 : stops_[s - 1], stops_[s]);
  rows_.state = segment->run(std::move(rows_.state), last);
  const double threshold = last ? passed_by_all(options_.criterion) : options_.threshold;
  stays_ = ops_.decide(model_, rows_, {options_.criterion, threshold, s, stops_[s]}, results_);
}

std::unique_ptr<Count> SegmentPass::count(size_t s) {
  return ops_.read(results_.staying.select(0, static_cast<int64_t>(s)));
}

int64_t SegmentPass::pack(size_t s, int64_t rows, int64_t most) {
  if (!packing_pays_lagged(rows, most, stops_[s + 1] - stops_[s])) return rows;
  LiveRows packed = rows_.empty_like(most);
  ops_.pack_into(packed, rows_, stays_);
  rows_ = std::move(packed);
  return most;
}

}  // namespace acn
