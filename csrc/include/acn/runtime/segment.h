// A segment: the layers between two exits, as one thing that is run.
#pragma once

#include <ATen/core/Tensor.h>

namespace acn {

// What runs between the layers: x [B, T, D], the latest output, and y, the fp32 sum of all terms
// before it, [B, T, D], or [B, 1, D] where nothing but the first token of it is read (by the head,
// and at alpha 1 no layer reads it); undefined: no term yet. Both without gaps; a segment may write
// y where it lies.
struct State {
  at::Tensor x;
  at::Tensor y;
  at::Tensor mask;  // [B, 1, 1, T] bool, which tokens of a text are read; undefined: images
};

// Many threads may run one segment at once.
class Segment {
 public:
  virtual ~Segment() = default;

  // With `closing` no layer follows: x may come back with the rows alone that the head reads.
  virtual State run(State state, bool closing) const = 0;
};

}  // namespace acn
