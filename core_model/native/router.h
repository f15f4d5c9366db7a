// The router of V3 for one token: experts by biased score, within the groups whose two best sum highest.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

extern "C" struct Router {
  const float* bias;
  int32_t experts, chosen, groups, kept_groups, normalised;
  float scaling;
};

namespace {

class Choice {
 public:
  // The experts of one token and their weights; ties to the lower index.
  void choose(const Router& router, const float* scores, int64_t* indices, float* weights) {
    biased_.assign(scores, scores + router.experts);
    for (int e = 0; e < router.experts; e++) biased_[e] += router.bias[e];
    if (router.groups > 1) keep_groups(router);
    taken_.assign(router.experts, 0);
    float total = 0;
    for (int k = 0; k < router.chosen; k++) {
      const int expert = largest(biased_);
      taken_[expert] = 1;
      indices[k] = expert;
      weights[k] = scores[expert];
      total += weights[k];
    }
    for (int k = 0; k < router.chosen; k++) {
      if (router.normalised) weights[k] /= total + 1e-20f;
      weights[k] *= router.scaling;
    }
  }

 private:
  void keep_groups(const Router& router) {
    const int size = router.experts / router.groups;
    group_.resize(router.groups);
    for (int g = 0; g < router.groups; g++) {
      float best = -INFINITY, second = -INFINITY;
      for (int e = g * size; e < (g + 1) * size; e++) {
        if (larger(biased_[e], best)) {
          second = best;
          best = biased_[e];
        } else if (larger(biased_[e], second)) {
          second = biased_[e];
        }
      }
      group_[g] = best + second;
    }
    taken_.assign(router.groups, 0);
    for (int k = 0; k < router.kept_groups; k++) taken_[largest(group_)] = 1;
    for (int e = 0; e < router.experts; e++)
      if (!taken_[e / size]) biased_[e] = -INFINITY;
  }

  // NaN is the largest of all, as PyTorch sorts it: a broken router must not look like a sound one.
  static bool larger(float a, float b) { return a > b || (a != a && b == b); }

  // The place of the largest number that is not taken, the lowest of equal ones.
  int largest(const std::vector<float>& numbers) const {
    int best = -1;
    for (size_t i = 0; i < numbers.size(); i++)
      if (!taken_[i] && (best < 0 || larger(numbers[i], numbers[best]))) best = static_cast<int>(i);
    return best;
  }

  std::vector<float> biased_, group_;
  std::vector<char> taken_;
};

}  // namespace
