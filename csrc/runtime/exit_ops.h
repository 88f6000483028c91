// What happens to the rows of a batch at an exit, on the device that holds them.
#pragma once

#include <memory>

#include "acn/criterion.h"
#include "lagged.h"
#include "model.h"

namespace acn {

// Where results go: logits [B, C], depth [B] int64, and how many samples stay at each stop,
// staying [stops] int32: at the last one those of NaN logits, which no exit takes. It comes with
// zeros; stops that nobody reaches are left alone.
struct Results {
  at::Tensor logits;
  at::Tensor depth;
  at::Tensor staying;
};

// A batch under way. sample [R] int32 is the place of each row's sample in the results, or -1: the
// row is nobody's, and whatever it holds changes nothing.
struct LiveRows {
  State state;
  at::Tensor sample;

  int64_t size() const { return sample.size(0); }
  LiveRows first(int64_t count) const;
  LiveRows empty_like(int64_t count) const;  // as many, of the same kind, and nothing in them yet
};

struct Exit {
  Criterion criterion = Criterion::entropy;
  double threshold = 0;
  size_t stop = 0;    // which one, in Results::staying
  int64_t depth = 0;  // that it is at
};

// Queues what it is asked for and returns; many threads may call it.
class ExitOps {
 public:
  virtual ~ExitOps() = default;

  // Writes logits and depth of all samples here, adds those that stay to their count, and makes the
  // rows of the others nobody's. Returns stays [R] bool.
  virtual at::Tensor decide(const Model& model, LiveRows& rows, const Exit& exit,
                            const Results& results) const = 0;

  // The rows that stay go to the front of `to`, in their order; the others there become nobody's.
  // `to` holds at least as many as stay, and shares no memory with `rows`.
  virtual void pack_into(const LiveRows& to, const LiveRows& rows,
                         const at::Tensor& stays) const = 0;

  // The copy of one int32 number to the host.
  virtual std::unique_ptr<Count> read(const at::Tensor& number) const = 0;
};

}  // namespace acn
