// temporal_contrast_spans on the CPU. See vpgfast/ops/temporal_contrast_spans.py for what it computes.
//
// Branch and bound over pairs of a block of starts and a block of ends, depth first and the most promising pair first:
// a pair is split into four until it is small enough to look at every window, or left out because nothing in it can
// come before the best window so far (csrc/common/contrast.h). Nothing is kept but the pairs on the way down.

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "common/contrast.h"

namespace vpgfast {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr int64_t kLeaf = 16;  // positions of the smallest blocks

// Out of line, so that no compiler joins the product and a sum into one instruction that rounds once: the reference and
// every instruction set are to agree to the bit.
__attribute__((noinline)) void multiply(const double* a, double factor, double* out, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    out[k] = a[k] * factor;
  }
}
__attribute__((noinline)) void multiply(const double* a, const double* b, double* out, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    out[k] = a[k] * b[k];
  }
}

// Whether any window from one of these starts to `end` may score `least` or more. Without a division.
bool any_reaches(const double* D, const double* E, const Range& starts, int64_t end, double n, double least) {
  const double D_end = D[end], E_end = E[end];
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t start = starts.first; start <= starts.last; ++start) {
    const double A = D_end - D[start], spread = A * (n - A);
    count += (E_end - E[start] >= least * spread) | !(spread > 0);
  }
  return count > 0;
}

class Search {
 public:
  Search(int64_t T, int64_t min_length, int64_t max_length)
      : T_(T), D_(T + 1), E_(T + 1), shift_(T + 1), piece_(T + 1) {
    curve_.T = T;
    curve_.min_length = min_length;
    curve_.max_length = max_length;
    for (int64_t size = kLeaf; levels_.empty() || levels_.back().size < T + 1; size *= 2) {
      const int64_t count = (T + size) / size;
      levels_.push_back({size, std::vector<double>(count), std::vector<double>(count)});
    }
  }

  // Reads a curve; `usable` and `weights` may be null.
  template <typename scalar_t>
  void read(const scalar_t* x, const bool* usable, const double* weights) {
    D_[0] = E_[0] = 0;
    piece_[0] = 0;
    std::optional<double> level;  // a value of the curve: sums of differences from it are smaller, and 0 if constant
    for (int64_t t = 0; t < T_; ++t) {
      const double value = static_cast<double>(x[t]), weight = weights == nullptr ? 1.0 : weights[t];
      const bool use = std::isfinite(value) && std::isfinite(weight) && weight > 0 && (usable == nullptr || usable[t]);
      if (use && !level) {
        level = value;
        usable_.first = t;
      }
      usable_.last = use ? t + 1 : usable_.last;
      D_[t + 1] = use ? weight : 0.0;
      E_[t + 1] = use ? value - *level : 0.0;
      piece_[t + 1] = use ? piece_[t] : static_cast<int32_t>(t + 1);
    }
    any_ = level.has_value();
    if (weights != nullptr) {
      multiply(E_.data(), D_.data(), E_.data(), T_ + 1);
    }
    for (int64_t t = 0; t < T_; ++t) {
      D_[t + 1] += D_[t];
      E_[t + 1] += E_[t];
    }
    multiply(D_.data(), E_[T_], shift_.data(), T_ + 1);
    multiply(E_.data(), D_[T_], E_.data(), T_ + 1);
    for (int64_t p = 0; p <= T_; ++p) {
      E_[p] -= shift_[p];
    }
    curve_.D = D_.data();
    curve_.E = E_.data();
    curve_.piece = piece_.data();
    curve_.n = D_[T_];
    read_levels();
    read_weights();
  }

  // The next window, and how many pairs of blocks it took to find it.
  Window next(const std::vector<Window>& kept, double threshold, int64_t& pairs) {
    best_ = {kNever, T_ + 1, T_ + 1};
    kept_ = &kept;
    threshold_ = threshold;
    if (!any_) {
      return best_;
    }
    take(usable_.first, usable_.last);
    stack_.clear();
    push(levels_.size() - 1, 0, 0);
    while (!stack_.empty()) {
      const Pair pair = stack_.back();
      stack_.pop_back();
      ++pairs;
      if (!promises(pair)) {
        continue;
      }
      if (pair.level == 0) {
        look_at(pair);
        continue;
      }
      const size_t from = stack_.size();
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        push(pair.level - 1, 2 * pair.starts + quarter / 2, 2 * pair.ends + quarter % 2);
      }
      // The best comes last, so that it is taken first; of equals the earlier starts, then the earlier ends.
      std::sort(stack_.begin() + from, stack_.end(), [](const Pair& a, const Pair& b) {
        return a.bound != b.bound ? a.bound < b.bound : a.starts != b.starts ? a.starts > b.starts : a.ends > b.ends;
      });
    }
    return best_;
  }

 private:
  struct Level {
    int64_t size;
    std::vector<double> low, high;  // smallest and largest E of each block
  };
  struct Pair {
    size_t level;
    int64_t starts, ends;  // blocks
    double bound;
  };

  void read_levels() {
    for (size_t level = 0; level < levels_.size(); ++level) {
      Level& here = levels_[level];
      for (size_t block = 0; block < here.low.size(); ++block) {
        double low = -kNever, high = kNever;
        if (level == 0) {
          const int64_t first = block * kLeaf, last = std::min<int64_t>(first + kLeaf, T_ + 1);
          for (int64_t p = first; p < last; ++p) {
            low = std::min(low, E_[p]);
            high = std::max(high, E_[p]);
          }
        } else {
          const Level& below = levels_[level - 1];
          for (size_t half = 2 * block; half < std::min(2 * block + 2, below.low.size()); ++half) {
            low = std::min(low, below.low[half]);
            high = std::max(high, below.high[half]);
          }
        }
        here.low[block] = low;
        here.high[block] = high;
      }
    }
  }

  // The least and the largest weight of a window: every longer or shorter one weighs no less or no more.
  void read_weights() {
    const int64_t shortest = curve_.min_length, longest = curve_.max_length;
    curve_.least = -kNever;
    for (int64_t p = 0; p + shortest <= T_; ++p) {
      const double weight = D_[p + shortest] - D_[p];
      curve_.least = piece_[p + shortest] <= p ? std::min(curve_.least, weight) : curve_.least;
    }
    curve_.most = 0;
    for (int64_t p = 0; any_ && p <= T_; ++p) {
      const double weight = D_[std::min(p + longest, T_)] - D_[p];
      curve_.most = std::max(curve_.most, weight);
    }
    if (any_) {
      const double but_one = std::max(D_[T_] - D_[usable_.first + 1], D_[usable_.last - 1]);
      curve_.most = std::min(curve_.most, but_one);
    }
  }

  Range positions(size_t level, int64_t block) const {
    const int64_t first = block * levels_[level].size;
    return {first, std::min(first + levels_[level].size - 1, T_)};
  }

  void push(size_t level, int64_t starts, int64_t ends) {
    const auto& [size, low, high] = levels_[level];
    const int64_t count = static_cast<int64_t>(low.size());
    if (starts >= count || ends >= count) {
      return;
    }
    Range from = positions(level, starts), to = positions(level, ends);
    if (!curve_.narrow(from, to)) {
      return;
    }
    const Pair pair{level, starts, ends, curve_.bound(from, to, high[ends] - low[starts])};
    if (promises(pair)) {
      for (const Window& other : *kept_) {
        if (curve_.all_overlap(from, to, other.start, other.end, threshold_)) {
          return;
        }
      }
      stack_.push_back(pair);
    }
  }

  // Whether a window of the pair may come before the best one.
  bool promises(const Pair& pair) const {
    const int64_t size = levels_[pair.level].size;
    return comes_before({pair.bound, pair.starts * size, pair.ends * size}, best_);
  }

  void look_at(const Pair& pair) {
    Range from = positions(0, pair.starts), to = positions(0, pair.ends);
    if (!curve_.narrow(from, to)) {
      return;
    }
    for (int64_t end = to.first; end <= to.last; ++end) {
      const Range starts{std::max({from.first, end - curve_.max_length, int64_t{piece_[end]}}),
                         std::min(from.last, end - curve_.min_length)};
      // As far below the best as rounding may bring the products off.
      const double least = best_.score - 1e-14 * std::abs(best_.score);
      if (!(best_.score > kNever) || any_reaches(D_.data(), E_.data(), starts, end, curve_.n, least)) {
        for (int64_t start = starts.first; start <= starts.last; ++start) {
          take(start, end);
        }
      }
    }
  }

  // The window becomes the best one if it is a window, comes before, and is not too near to one that is kept.
  void take(int64_t start, int64_t end) {
    if (!curve_.is_window(start, end)) {
      return;
    }
    const Window window{curve_.contrast(start, end), start, end};
    if (!comes_before(window, best_)) {
      return;
    }
    for (const Window& other : *kept_) {
      if (!curve_.apart(start, end, other.start, other.end, threshold_)) {
        return;
      }
    }
    best_ = window;
  }

  int64_t T_;
  std::vector<double> D_, E_, shift_;
  std::vector<int32_t> piece_;
  Curve curve_;
  std::vector<Level> levels_;
  Range usable_{0, 0};  // the first usable clip and the one after the last
  bool any_ = false;
  const std::vector<Window>* kept_ = nullptr;
  double threshold_ = 0;
  Window best_{};
  std::vector<Pair> stack_;
};

std::tuple<Tensor, Tensor, Tensor> temporal_contrast_spans(const Tensor& curves, const std::optional<Tensor>& mask,
                                                           const std::optional<Tensor>& weights, int64_t min_length,
                                                           int64_t max_length, int64_t top_k, double threshold) {
  const ContrastSpans a(curves, mask, weights, min_length, max_length, top_k);
  dispatch_floating("temporal_contrast_spans", a.curves.scalar_type(), [&]<typename scalar_t>() {
    torch::stable::parallel_for(0, a.B * a.M, 1, [&](int64_t begin, int64_t end) {
      Search search(a.T, a.shortest, a.longest);
      std::vector<Window> kept;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t clips = row / a.M * a.T;
        search.read(read<scalar_t>(a.curves) + row * a.T, a.mask ? a.usable() + clips : nullptr,
                    a.weights ? a.weight() + clips : nullptr);
        int64_t pairs = 0;
        kept.clear();
        for (int64_t k = 0; k < top_k; ++k) {
          Window window = search.next(kept, threshold, pairs);
          if (window.score > kNever) {
            kept.push_back(window);
          } else {
            window = {kNever, -1, -1};
          }
          write<double>(a.scores)[row * top_k + k] = window.score;
          write<int64_t>(a.spans)[(row * top_k + k) * 2] = window.start;
          write<int64_t>(a.spans)[(row * top_k + k) * 2 + 1] = window.end;
        }
        write<int64_t>(a.pairs)[row] = pairs;
      }
    });
  });
  return {a.scores, a.spans, a.pairs};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("temporal_contrast_spans", TORCH_BOX(&temporal_contrast_spans));
}

}  // namespace vpgfast
