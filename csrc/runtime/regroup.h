// Live samples between two segments: who stays, packed into micro-batches again.
#pragma once

#include <memory>
#include <vector>

#include "acn/runtime/segment.h"

namespace acn {

// What a micro-batch leaves behind at an exit.
struct Survivors {
  State state;                   // of all its samples
  std::vector<int64_t> rows;     // in it, of those that stay, rising
  std::vector<int64_t> samples;  // their places in the caller's batch
};

// A micro-batch that is yet to be gathered, from rows of states that it shares with others.
class Group {
 public:
  const std::vector<int64_t>& samples() const { return samples_; }

  // The state of its samples in their order; copies nothing where they are all there is in one.
  State gather() const;

 private:
  friend std::vector<Group> regroup(std::vector<Survivors> survivors, int64_t size);

  struct Piece {
    std::shared_ptr<const Survivors> from;
    int64_t begin;  // in from->rows
    int64_t end;
  };

  std::vector<Piece> pieces_;
  std::vector<int64_t> samples_;
};

// All survivors in their order, in groups of `size` and a last smaller one.
std::vector<Group> regroup(std::vector<Survivors> survivors, int64_t size);

}  // namespace acn
