// The sequence-wise balance loss of a router (core_model/moe/balance.py) and its gradient, in one pass over the scores.
#pragma once

#include <cstdint>
#include <vector>

#include "router.h"

namespace {

// Mean over sequences of sum_i f_i P_i. scores, dscores (or null): [sequences * length, experts]; real: which tokens are
// not padding, or null.
inline double sequence_balance(const float* scores, const uint8_t* real, int64_t sequences, int64_t length, int experts, int chosen,
                               int threads, float* dscores) {
  const std::vector<float> unbiased(experts, 0.0f);
  const Router router{unbiased.data(), experts, chosen, 1, 1, 0, 1.0f};
  std::vector<double> losses(sequences, 0.0);
#pragma omp parallel num_threads(threads)
  {
    Choice choice;
    std::vector<int64_t> indices(chosen);
    std::vector<float> weights(chosen), totals(length);
    std::vector<double> shares(experts), loads(experts);
#pragma omp for schedule(dynamic)
    for (int64_t sequence = 0; sequence < sequences; sequence++) {
      const float* from = scores + sequence * length * experts;
      const uint8_t* counted = real ? real + sequence * length : nullptr;
      std::fill(shares.begin(), shares.end(), 0.0);
      std::fill(loads.begin(), loads.end(), 0.0);
      double tokens = 0;
      for (int64_t t = 0; t < length; t++) {
        if (counted && !counted[t]) continue;
        tokens++;
        const float* row = from + t * experts;
        totals[t] = 0;
        for (int e = 0; e < experts; e++) totals[t] += row[e];
        for (int e = 0; e < experts; e++) shares[e] += row[e] / totals[t];
        choice.choose(router, row, indices.data(), weights.data());
        for (const int64_t e : indices) loads[e]++;
      }
      if (!tokens) tokens = 1;
      for (int e = 0; e < experts; e++) {
        loads[e] *= experts / (chosen * tokens);  // f_i
        losses[sequence] += loads[e] * shares[e] / tokens;
      }
      if (!dscores) continue;
      for (int64_t t = 0; t < length; t++) {
        const float* row = from + t * experts;
        float* to = dscores + (sequence * length + t) * experts;
        std::fill(to, to + experts, 0.0f);
        if (counted && !counted[t]) continue;
        double along = 0;
        for (int e = 0; e < experts; e++) along += loads[e] * row[e] / totals[t];
        for (int e = 0; e < experts; e++) to[e] = static_cast<float>((loads[e] - along) / (totals[t] * tokens * sequences));
      }
    }
  }
  double total = 0;
  for (const double loss : losses) total += loss;
  return total / sequences;
}

}  // namespace
