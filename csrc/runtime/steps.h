// A small batch on tensors that stay where they are, from stop to stop, so that every step can be
// captured once and run again.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "bucket.h"
#include "exit_ops.h"
#include "lagged.h"

namespace acn {

// What a captured batch is good for: batches of up to `rows` samples that stop and decide so.
struct Kind {
  std::vector<int64_t> stops;
  Criterion criterion = Criterion::entropy;
  double threshold = 0;
  int64_t rows = 0;  // a power of two
  std::vector<int64_t> sample;  // shape of one in the input

  bool operator==(const Kind& other) const = default;
};

class Steps {
 public:
  // `input` and `logits` of a batch say which dtype a sample has in them, and where. Runs every
  // step once on nothing, so that what runs for the first time has done so.
  Steps(const Model& model, const ExitOps& ops, const Kind& kind, const at::Tensor& input,
        const at::Tensor& logits);

  const Kind& kind() const { return kind_; }

  // body(s, rows) for every step and number of rows that there is.
  void for_each(const std::function<void(size_t s, int64_t rows)>& body) const;

  // Queues the layers up to stop `s` and the decisions there, on the first `rows` rows: a power of
  // two that holds those alive. They move to the front. The first step takes all rows of the kind.
  void queue(size_t s, int64_t rows);

  // A batch comes in, with zeros behind what is shorter than the kind, and its results go out.
  void load(const at::Tensor& input);
  void unload(int64_t batch, const Results& results) const;

  // How many samples stay at stop `s`; one number on the device.
  at::Tensor staying(size_t s) const;

 private:
  const Model& model_;
  Kind kind_;
  const ExitOps& ops_;
  at::Tensor input_;
  at::Tensor samples_;  // [rows] int32: 0 to below the batch's size, then -1
  int64_t batch_ = 0;
  std::array<LiveRows, 2> live_;  // what one step leaves to the next
  Results results_;
};

// Steps whose sizes the host picks as it learns of them.
class StepPass final : public DevicePass {
 public:
  // `launch` queues a step of `steps`, or a graph of it.
  using Launch = std::function<void(size_t s, int64_t rows)>;
  StepPass(const Steps& steps, const ExitOps& ops, Launch launch)
      : steps_(steps), ops_(ops), launch_(std::move(launch)) {}

  void advance(size_t s, int64_t rows) override { launch_(s, rows); }
  std::unique_ptr<Count> count(size_t s) override { return ops_.read(steps_.staying(s)); }
  int64_t pack(size_t s, int64_t rows, int64_t most) override;

 private:
  const Steps& steps_;
  const ExitOps& ops_;
  Launch launch_;
};

}  // namespace acn
