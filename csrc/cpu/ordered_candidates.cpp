// ordered_candidates on the CPU. See vpgfast/ops/ordered_candidates.py for what it computes.

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "common/ordered_spans.h"
#include "cpu/intervals_cpu.h"

namespace vpgfast {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// From position x on, the largest sum of the sentences so far, all of whose spans end (by starts: begin) there or
// before; and which candidate of the last sentence, or kSkipped, brings it.
struct Step {
  double x, value;
  int64_t chosen;
};

// A candidate: where it lets the next sentence's begin, where it asks the one before to be over, and what, of equal
// sums at x, is to be the smaller.
struct Candidate {
  double x, from, length, score;
  int64_t at;
};

class Paragraph {
 public:
  Paragraph(const OrderedCandidates& a, bool by_starts, double penalty)
      : M_(a.M), P_(a.P), by_starts_(by_starts), penalty_(penalty), steps_(M_ + 1) {
  }

  double solve(const double* spans, const double* scores, const bool* present, int64_t* chosen) {
    steps_[0].assign(1, {kNever, 0.0, kSkipped});
    size_t last = 0;
    for (int64_t m = 0; m < M_; ++m) {
      if (present[m]) {
        sort_candidates(spans + m * P_ * 2, scores + m * P_);
        choose(steps_[last], steps_[last + 1]);
        ++last;
      }
    }
    std::fill(chosen, chosen + M_, int64_t{-1});
    if (steps_[last].empty()) {
      return kNever;
    }
    const double total = steps_[last].back().value;
    double x = std::numeric_limits<double>::infinity();
    for (int64_t m = M_; m-- > 0;) {
      if (present[m]) {
        const Step& step = steps_[last][count_to(steps_[last], x) - 1];
        --last;
        x = step.x;
        if (step.chosen != kSkipped) {
          chosen[m] = step.chosen;
          x = spans[(m * P_ + step.chosen) * 2];
        }
      }
    }
    return total;
  }

 private:
  // How many steps begin at x or before.
  static int64_t count_to(const std::vector<Step>& steps, double x) {
    return std::upper_bound(steps.begin(), steps.end(), x, [](double x, const Step& step) { return x < step.x; }) -
           steps.begin();
  }

  void sort_candidates(const double* spans, const double* scores) {
    candidates_.clear();
    for (int64_t i = 0; i < P_; ++i) {
      const double start = spans[2 * i], end = spans[2 * i + 1];
      if (std::isfinite(start) && std::isfinite(end) && std::isfinite(scores[i])) {
        candidates_.push_back({by_starts_ ? start : end, start, by_starts_ ? end : -start, scores[i], i});
      }
    }
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      return a.x != b.x ? a.x < b.x : a.length != b.length ? a.length < b.length : a.at < b.at;
    });
  }

  // The steps with one sentence more: those of its candidates and, less the penalty, those of `before`, in order of x.
  void choose(const std::vector<Step>& before, std::vector<Step>& after) const {
    after.clear();
    double highest = kNever;
    auto skipped = before.begin();
    auto candidate = candidates_.begin();
    while (skipped != before.end() || candidate != candidates_.end()) {
      const double infinity = std::numeric_limits<double>::infinity();
      const double x = std::min(skipped == before.end() ? infinity : skipped->x,
                                candidate == candidates_.end() ? infinity : candidate->x);
      Step best{x, kNever, kSkipped};
      for (; candidate != candidates_.end() && candidate->x == x; ++candidate) {
        const int64_t count = count_to(before, candidate->from);
        const double value = count == 0 ? kNever : before[count - 1].value + candidate->score;
        if (value > best.value) {
          best.value = value;
          best.chosen = candidate->at;
        }
      }
      if (skipped != before.end() && skipped->x == x) {
        const double value = skipped->value - penalty_;
        if (value > best.value) {
          best.value = value;
          best.chosen = kSkipped;
        }
        ++skipped;
      }
      if (best.value > highest) {
        highest = best.value;
        after.push_back(best);
      }
    }
  }

  int64_t M_, P_;
  bool by_starts_;
  double penalty_;
  std::vector<std::vector<Step>> steps_;
  std::vector<Candidate> candidates_;
};

std::tuple<Tensor, Tensor> ordered_candidates(const Tensor& spans, const Tensor& scores, const Tensor& present,
                                              bool by_starts, double penalty) {
  const OrderedCandidates a(spans, scores, present);
  check_intervals("ordered_candidates", "spans", read<double>(a.spans), a.B * a.M * a.P);
  Tensor chosen = torch::stable::new_empty(a.scores, {a.B, a.M}, ScalarType::Long);
  Tensor total = torch::stable::new_empty(a.scores, {a.B});
  torch::stable::parallel_for(0, a.B, 1, [&](int64_t begin, int64_t end) {
    Paragraph paragraph(a, by_starts, penalty);
    for (int64_t b = begin; b < end; ++b) {
      write<double>(total)[b] =
          paragraph.solve(read<double>(a.spans) + b * a.M * a.P * 2, read<double>(a.scores) + b * a.M * a.P,
                          read<bool>(a.present) + b * a.M, write<int64_t>(chosen) + b * a.M);
    }
  });
  return {total, chosen};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("ordered_candidates", TORCH_BOX(&ordered_candidates));
}

}  // namespace vpgfast
