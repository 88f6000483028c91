// Live samples between two segments: who stays, packed into micro-batches again or left in theirs.
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

// The state of a micro-batch, and the rows of its live samples in it; others run along unread.
struct Gathered {
  State state;
  std::vector<int64_t> rows;
};

// A micro-batch that is yet to be gathered, from rows of states that it shares with others.
class Group {
 public:
  const std::vector<int64_t>& samples() const { return samples_; }

  // The state with its samples in their order; copies nothing where that is there already.
  Gathered gather() const;

 private:
  friend std::vector<Group> packed(std::vector<Survivors> survivors, int64_t size);
  friend std::vector<Group> unmoved(std::vector<Survivors> survivors);

  struct Piece {
    std::shared_ptr<const Survivors> from;
    int64_t begin;  // in from->rows
    int64_t end;
  };

  std::vector<Piece> pieces_;
  std::vector<int64_t> samples_;
  bool moves_ = true;
};

// All survivors in their order, in groups of `size` and a last smaller one.
std::vector<Group> packed(std::vector<Survivors> survivors, int64_t size);

// The groups that they are in, those that left included, but for groups that all have left.
std::vector<Group> unmoved(std::vector<Survivors> survivors);

// A copy of the first samples of a state.
State first_samples(const State& state, int64_t count);

}  // namespace acn
