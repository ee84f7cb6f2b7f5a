// ordered_spans on the CPU. See vpgfast/ops/ordered_spans.py for what it computes.

#include "common/ordered_spans.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/vector.h"

namespace vpgfast {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// A value and the position that has it.
struct Top {
  double value = kNever;
  int32_t at = kBefore;

  // Of equals the one that is met later.
  VPGFAST_ALWAYS_INLINE void take(double other, int32_t position) {
    const bool kept = value > other;
    value = kept ? value : other;
    at = kept ? at : position;
  }
  VPGFAST_ALWAYS_INLINE Top or_earlier(Top other) const {
    return {other.value > value ? other.value : value, other.value > value ? other.at : at};
  }
};

// One paragraph's dynamic programme. best[p]: the largest sum of the sentences so far, all of whose spans end (by
// starts: begin) at p or before.
//
// Largest values over sliding windows are found in blocks of a window's width (van Herk 1992; Gil and Werman 1993): a
// window is the end of one block and the beginning of the next, and both have running maxima.
class Paragraph {
 public:
  Paragraph(const OrderedSpans& a, bool by_starts, double penalty)
      : M_(a.M),
        T_(a.T),
        min_(a.min),
        width_(std::max<int64_t>(a.width, 0)),
        by_starts_(by_starts),
        penalty_(penalty),
        best_(T_ + 1),
        values_(T_ + 1),
        end_of_(by_starts ? T_ + 1 : 0),
        later_(width_ < T_ + 1 - min_ ? width_ + 1 : 0),
        choice_(new int32_t[M_ * (T_ + 1)]) {
  }

  template <typename scalar_t>
  double solve(const scalar_t* gains, const bool* present, int64_t* spans) {
    std::fill(best_.begin(), best_.end(), 0.0);
    for (int64_t m = 0; m < M_; ++m) {
      if (present[m]) {
        find_pieces(gains + m * T_);
        int32_t* choice = choice_.get() + m * (T_ + 1);
        by_starts_ ? choose_starts(gains + m * T_, choice) : choose_ends(gains + m * T_, choice);
      }
    }
    std::fill(spans, spans + 2 * M_, int64_t{-1});
    if (best_[T_] > kNever) {
      trace_back(present, spans);
    }
    return best_[T_];
  }

 private:
  // Where the positions begin that have no clip between them that no span holds, and T + 1.
  template <typename scalar_t>
  void find_pieces(const scalar_t* gains) {
    pieces_.assign(1, 0);
    for (int64_t t = 0; t < T_; ++t) {
      if (!std::isfinite(static_cast<double>(gains[t]))) [[unlikely]] {
        pieces_.push_back(t + 1);
      }
    }
    pieces_.push_back(T_ + 1);
  }

  // What the sentence does at p: it has the span that is found there, none, or what it does at the position before,
  // whose value is `before`. Without branches: which it is cannot be foreseen.
  VPGFAST_ALWAYS_INLINE double choose(double with_span, int32_t span, double without, double before, int32_t& choice) {
    const bool skip = without > with_span;
    const double value = skip ? without : with_span;
    const int32_t here = skip ? kSkipped : span;
    const bool stay = before >= value;
    choice = stay ? kBefore : here;
    return stay ? before : value;
  }

  // A span ends at p and begins where best[start] - (sum of the gains before start) is largest. One pass.
  template <typename scalar_t>
  void choose_ends(const scalar_t* gains, int32_t* choice) {
    double* const best = best_.data();
    double* const values = values_.data();
    const double penalty = penalty_;
    double sum = 0, before = kNever;
    const auto arrive = [&](int64_t p, Top top) {
      const double without = best[p];
      values[p] = without - sum;
      before = best[p] = choose(top.value + sum, top.at, without - penalty, before, choice[p]);
    };
    for (size_t piece = 0; piece + 1 < pieces_.size(); ++piece) {
      const int64_t first = pieces_[piece], last = pieces_[piece + 1] - 1, starts = last + 1 - min_;
      const auto leave = [&](int64_t p) { sum += p < last ? static_cast<double>(gains[p]) : 0.0; };
      for (int64_t p = first; p < std::min(first + min_, last + 1); ++p) {
        arrive(p, Top{});
        leave(p);
      }
      for (int64_t block = first; width_ > 0 && block < starts; block += width_) {
        const int64_t end = std::min(block + width_, starts);
        Top running;
        if (block == first) {
          for (int64_t start = block; start < end; ++start) {
            running.take(values[start], static_cast<int32_t>(start));
            arrive(start + min_, running);
            leave(start + min_);
          }
        } else {
          run_backwards<1>(values, block - width_);
          const Top* later = later_.data() + 1;
          for (int64_t start = block; start < end; ++start) {
            running.take(values[start], static_cast<int32_t>(start));
            arrive(start + min_, running.or_earlier(later[start - block]));
            leave(start + min_);
          }
        }
      }
    }
  }

  // A span begins at p and ends where the sum of the gains before the end is largest: the windows lie after p and are
  // walked from the last to the first.
  template <typename scalar_t>
  void choose_starts(const scalar_t* gains, int32_t* choice) {
    double* const best = best_.data();
    double* const sums = values_.data();
    int32_t* const end_of = end_of_.data();
    double sum = 0;
    for (int64_t t = 0; t < T_; ++t) {
      sums[t] = sum;
      const double gain = static_cast<double>(gains[t]);
      sum += std::isfinite(gain) ? gain : 0.0;
    }
    sums[T_] = sum;
    std::fill(end_of, end_of + T_ + 1, kBefore);
    for (size_t piece = 0; piece + 1 < pieces_.size(); ++piece) {
      const int64_t last = pieces_[piece + 1] - 1, ends = pieces_[piece] - 1 + min_;
      for (int64_t block = last; width_ > 0 && block > ends; block -= width_) {
        const int64_t end = std::max(block - width_, ends);
        if (block < last) {
          run_backwards<-1>(sums, block + width_);
        }
        const Top* later = later_.data() + 1;
        Top running;
        for (int64_t finish = block; finish > end; --finish) {
          running.take(sums[finish], static_cast<int32_t>(finish));
          end_of[finish - min_] = block < last ? running.or_earlier(later[block - finish]).at : running.at;
        }
      }
    }
    double before = kNever;
    for (int64_t p = 0; p <= T_; ++p) {
      const double gain = sums[std::max(end_of[p], 0)] - sums[p];
      const double with_span = end_of[p] == kBefore ? kNever : best[p] + gain;
      before = best[p] = choose(with_span, end_of[p], best[p] - penalty_, before, choice[p]);
    }
  }

  // later_[k]: the largest from the k-th value of a block on, of equals the last; the block is walked towards its
  // front.
  template <int step>
  void run_backwards(const double* values, int64_t block) {
    Top from_here;
    later_[width_] = from_here;
    for (int64_t k = width_ - 1; k > 0; --k) {
      const int64_t position = block + step * k;
      from_here = from_here.or_earlier({values[position], static_cast<int32_t>(position)});
      later_[k] = from_here;
    }
  }

  void trace_back(const bool* present, int64_t* spans) const {
    int64_t p = T_;
    for (int64_t m = M_; m-- > 0;) {
      if (!present[m]) {
        continue;
      }
      const int32_t* choice = choice_.get() + m * (T_ + 1);
      while (choice[p] == kBefore) {
        --p;
      }
      if (choice[p] != kSkipped) {
        spans[2 * m] = by_starts_ ? p : choice[p];
        spans[2 * m + 1] = by_starts_ ? choice[p] : p;
        p = spans[2 * m];
      }
    }
  }

  int64_t M_, T_, min_, width_;
  bool by_starts_;
  double penalty_;
  std::vector<double> best_, values_;
  std::vector<int32_t> end_of_;
  std::vector<Top> later_;
  std::vector<int64_t> pieces_;
  std::unique_ptr<int32_t[]> choice_;
};

std::tuple<Tensor, Tensor> ordered_spans(const Tensor& gains, const Tensor& present, int64_t min_length,
                                         int64_t max_length, bool by_starts, double penalty) {
  const OrderedSpans a(gains, present, min_length, max_length);
  Tensor spans = torch::stable::new_empty(a.gains, {a.B, a.M, 2}, ScalarType::Long);
  Tensor total = torch::stable::new_empty(a.gains, {a.B}, ScalarType::Double);
  dispatch_floating("ordered_spans", a.gains.scalar_type(), [&]<typename scalar_t>() {
    torch::stable::parallel_for(0, a.B, 1, [&](int64_t begin, int64_t end) {
      Paragraph paragraph(a, by_starts, penalty);
      for (int64_t b = begin; b < end; ++b) {
        write<double>(total)[b] = paragraph.solve(read<scalar_t>(a.gains) + b * a.M * a.T,
                                                  read<bool>(a.present) + b * a.M, write<int64_t>(spans) + b * a.M * 2);
      }
    });
  });
  return {total, spans};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("ordered_spans", TORCH_BOX(&ordered_spans));
}

}  // namespace vpgfast
