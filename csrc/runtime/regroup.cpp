#include "regroup.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

namespace acn {
namespace {

// Copies rows of a sample-major tensor behind each other; runs of neighbours go in one piece.
class Packer {
 public:
  Packer(const at::Tensor& like, int64_t samples) {
    if (!like.defined()) return;
    std::vector<int64_t> shape = like.sizes().vec();
    shape[0] = samples;
    packed_ = at::empty(shape, like.options());
    at_ = static_cast<char*>(packed_.mutable_data_ptr());
  }

  void add(const at::Tensor& from, const int64_t* rows, int64_t count) {
    if (!packed_.defined() || from.size(0) == 0) return;
    const size_t bytes = from.nbytes() / static_cast<size_t>(from.size(0));
    const char* source = static_cast<const char*>(from.const_data_ptr());
    for (int64_t i = 0; i < count;) {
      int64_t run = 1;
      while (i + run < count && rows[i + run] == rows[i] + run) ++run;
      std::memcpy(at_, source + static_cast<size_t>(rows[i]) * bytes,
                  static_cast<size_t>(run) * bytes);
      at_ += static_cast<size_t>(run) * bytes;
      i += run;
    }
  }

  at::Tensor take() { return std::move(packed_); }

 private:
  at::Tensor packed_;
  char* at_ = nullptr;
};

}  // namespace

State Group::gather() const {
  const State& first = pieces_.front().from->state;
  const int64_t count = static_cast<int64_t>(samples_.size());
  if (pieces_.size() == 1 && first.x.size(0) == count) return first;
  Packer x(first.x, count);
  Packer y(first.y, count);
  Packer mask(first.mask, count);
  for (const Piece& piece : pieces_) {
    const int64_t* rows = piece.from->rows.data() + piece.begin;
    x.add(piece.from->state.x, rows, piece.end - piece.begin);
    y.add(piece.from->state.y, rows, piece.end - piece.begin);
    mask.add(piece.from->state.mask, rows, piece.end - piece.begin);
  }
  return {x.take(), y.take(), mask.take()};
}

std::vector<Group> regroup(std::vector<Survivors> survivors, int64_t size) {
  std::vector<Group> groups;
  int64_t room = 0;
  for (Survivors& each : survivors) {
    const auto from = std::make_shared<const Survivors>(std::move(each));
    const int64_t count = static_cast<int64_t>(from->rows.size());
    for (int64_t begin = 0; begin < count;) {
      if (room == 0) {
        groups.emplace_back();
        room = size;
      }
      const int64_t taken = std::min(room, count - begin);
      Group& group = groups.back();
      group.pieces_.push_back({from, begin, begin + taken});
      group.samples_.insert(group.samples_.end(), from->samples.begin() + begin,
                            from->samples.begin() + begin + taken);
      begin += taken;
      room -= taken;
    }
  }
  return groups;
}

}  // namespace acn
