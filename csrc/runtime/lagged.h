// Early exit on a device that works while the host is ahead of it.
//
// Decisions stay on the device. How many samples stay at an exit reaches the host some exits late,
// when the device already has the next layers to do: it never waits for the host. Until then the
// host knows an upper bound, and the rows beyond those that stay are nobody's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace acn {

// One number on its way from the device to the host.
class Count {
 public:
  virtual ~Count() = default;
  virtual int64_t wait() = 0;
};

// A batch on its way through the layers. Calls queue work and return.
class DevicePass {
 public:
  virtual ~DevicePass() = default;

  // The layers up to stop `s` and the decisions there, on the first `rows` rows.
  virtual void advance(size_t s, int64_t rows) = 0;

  // How many stay at stop `s`, where the batch has just come.
  virtual std::unique_ptr<Count> count(size_t s) = 0;

  // After stop `s`, of `rows` rows at most `most` are somebody's: moves those to the front, in
  // their order, if that pays. Returns how many rows there are to go on with.
  virtual int64_t pack(size_t s, int64_t rows, int64_t most) = 0;
};

// Takes a batch of `rows` through `stops` stops, or as far as the last sample goes; the host learns
// of an exit `lag` exits later: 0 waits for each, 1 lets the device always have work.
void run_lagged(DevicePass& pass, size_t stops, int64_t rows, int64_t lag);

// Whether it takes less time to move `most` of `rows` rows to the front than to run the others
// through `layers` layers.
bool packing_pays_lagged(int64_t rows, int64_t most, int64_t layers);

}  // namespace acn
