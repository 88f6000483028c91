#include "acn/runtime/decision.h"

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"

using acn::Criterion;

namespace {

double of(Criterion criterion, const std::vector<float>& logits) {
  return acn::certainty(criterion, logits.data(), static_cast<int64_t>(logits.size()));
}

bool near(double a, double b) { return std::abs(a - b) < 1e-6; }

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST(closed_forms) {
  const std::vector<float> logits{std::log(0.2f), std::log(0.7f), std::log(0.1f)};
  const double entropy = -(0.2 * std::log(0.2) + 0.7 * std::log(0.7) + 0.1 * std::log(0.1));
  EXPECT(near(of(Criterion::entropy, logits), entropy));
  EXPECT(near(of(Criterion::probability, logits), 0.7));
  EXPECT(near(of(Criterion::margin, logits), 0.5));
  EXPECT(near(of(Criterion::entropy, {0, 0, 0, 0}), std::log(4.0)));
  EXPECT(near(of(Criterion::margin, {3, 3}), 0));
}

TEST(ends) {
  EXPECT(of(Criterion::entropy, {0, -kInf}) == 0 && of(Criterion::probability, {0, -kInf}) == 1);
  EXPECT(of(Criterion::margin, {0, -kInf}) == 1);
  EXPECT(of(Criterion::entropy, {5}) == 0 && of(Criterion::probability, {5}) == 1);
  EXPECT(of(Criterion::margin, {5}) == 1);
  EXPECT(near(of(Criterion::probability, {1000, -1000}), 1));
}

TEST(nan_never_leaves) {
  const float nan = std::nanf("");
  for (const Criterion criterion :
       {Criterion::entropy, Criterion::probability, Criterion::margin}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{nan, 1}, {1, nan}, {9, nan, 1}, {nan}, {kInf, 0}, {kInf, kInf}}) {
      const double sure = of(criterion, logits);
      EXPECT(std::isnan(sure));
      EXPECT(!acn::leaves(criterion, sure, criterion == Criterion::entropy ? kInf : 0));
    }
  }
}

TEST(thresholds) {
  EXPECT(acn::leaves(Criterion::entropy, 0.5, 0.6) && !acn::leaves(Criterion::entropy, 0.5, 0.5));
  EXPECT(acn::leaves(Criterion::margin, 0.5, 0.4) && !acn::leaves(Criterion::margin, 0.5, 0.5));
  acn::check_threshold(Criterion::entropy, kInf);
  EXPECT_THROWS(std::invalid_argument, "threshold is -1",
               acn::check_threshold(Criterion::entropy, -1));
  EXPECT_THROWS(std::invalid_argument, "from 0 to 1", acn::check_threshold(Criterion::margin, 1.5));
  EXPECT_THROWS(std::invalid_argument, "nan",
               acn::check_threshold(Criterion::probability, std::nan("")));
  EXPECT_THROWS(std::invalid_argument, "criterion is 'patience'", acn::criterion_of("patience"));
}

TEST_MAIN()
