"""pass@k, intervals and tests: against published values, exact enumeration and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import (
    bootstrap_means,
    cons_at_k,
    length_summary,
    macro_mean,
    paired_difference,
    pass_at_k,
    sign_flip_p,
    unpaired_difference,
)


@pytest.mark.parametrize(
    ("samples", "correct", "k", "expected"),
    [
        (5, 2, 2, 0.7),
        (10, 2, 2, 0.37778),
        (10, 2, 5, 0.77778),
        (10, 5, 5, 0.99603),
        (16, 8, 2, 0.76667),
        (64, 1, 10, 0.15625),
        (200, 1, 100, 0.5),
        (3, 0, 2, 0.0),
        (3, 2, 2, 1.0),
    ],
)
def test_pass_at_k_has_the_published_values(samples, correct, k, expected):
    assert pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case):
    samples, correct, k = case
    drawn = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_is_refused_where_it_cannot_be_estimated(samples, correct, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(samples, correct, k)


def test_lengths():
    assert length_summary([]) == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert length_summary([7]) == {"mean": 7.0, "p50": 7.0, "p90": 7.0, "p99": 7.0}
    found = length_summary(list(range(101)))
    assert (found["mean"], found["p50"], found["p90"], found["p99"]) == (50.0, 50.0, 90.0, 99.0)


def test_families_weigh_the_same_however_many_problems_they_have():
    groups = [np.ones((1000, 1)), np.zeros((10, 1))]
    assert macro_mean(groups) == pytest.approx([0.5])
    (interval,) = bootstrap_means(groups, 500, seed=0)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)  # nothing varies within the families


def test_a_bootstrap_needs_problems():
    for groups in ([], [np.zeros((0, 1))], [np.ones((3, 1)), np.zeros((0, 1))]):
        with pytest.raises(ValueError, match="at least one problem"):
            bootstrap_means(groups, 100, seed=0)


def test_equal_seeds_give_equal_intervals():
    groups = [np.random.default_rng(0).random((50, 2))]
    assert bootstrap_means(groups, 300, seed=5) == bootstrap_means(groups, 300, seed=5)
    assert bootstrap_means(groups, 300, seed=5) != bootstrap_means(groups, 300, seed=6)


def test_the_bootstrap_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(1).random((400, 1))
    (interval,) = bootstrap_means([values], 4000, seed=0)
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)


def simulate(rng, sizes=(70, 50), gain=0.08):
    """Right or wrong answers of two models whose chances hang together problem by problem, and their lengths."""
    groups = []
    for size in sizes:
        easy = rng.random(size)
        a, b = (rng.random(size) < np.clip(easy + shift, 0, 1) for shift in (gain, 0.0))
        groups.append(np.stack([a, b, rng.gamma(4, 25, size), rng.gamma(4, 20, size)], axis=1).astype(float))
    return groups


def test_paired_intervals_cover_the_truth_as_often_as_they_say():
    easy = np.linspace(0, 1, 200_001)
    true_gain = float((np.clip(easy + 0.08, 0, 1) - easy).mean())
    rng = np.random.default_rng(7)
    trials, covered, ratios = 400, 0, 0
    for trial in range(trials):
        found = paired_difference(simulate(rng), resamples=500, flips=100, seed=trial)
        covered += found.difference.low <= true_gain <= found.difference.high
        assert found.ratio is not None
        ratios += found.ratio.low <= 1.25 <= found.ratio.high
    # 2,500 trials gave 94.2 % for both (94.5 and 94.8 % with 200 problems a family); 400 have a standard error of 1.1.
    assert 0.92 <= covered / trials <= 0.97
    assert 0.92 <= ratios / trials <= 0.97


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(2)
    easy = (rng.random(300) < 0.5).astype(float)
    better = np.maximum(easy, rng.random(300) < 0.06)
    lengths = np.ones((300, 2))
    paired = np.column_stack([better, easy, lengths])
    unpaired = np.column_stack([rng.permutation(better), easy, lengths])
    narrow, wide = (
        paired_difference([group], resamples=2000, flips=100, seed=0).difference for group in (paired, unpaired)
    )
    assert narrow.value == pytest.approx(wide.value)
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)
    assert narrow.low > 0 > wide.low  # only the paired comparison sees three points


def test_no_length_to_compare_with():
    group = np.column_stack([np.ones(5), np.zeros(5), np.ones(5), np.zeros(5)])
    assert paired_difference([group], resamples=100, flips=100, seed=0).ratio is None


def exact_p(differences):
    observed = abs(np.mean([d.mean() for d in differences]))
    signs = itertools.product((1.0, -1.0), repeat=sum(map(len, differences)))
    extreme = total = 0
    for sign in signs:
        parts = np.split(np.array(sign), np.cumsum([len(d) for d in differences])[:-1])
        value = abs(np.mean([(s * d).mean() for s, d in zip(parts, differences, strict=True)]))
        extreme += value >= observed - 1e-12
        total += 1
    return extreme / total


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=2, max_size=9), st.integers(1, 8))
def test_sign_flips_agree_with_every_arrangement(values, cut):
    cut = min(cut, len(values) - 1)
    differences = [np.array(values[:cut]), np.array(values[cut:])]
    assert sign_flip_p(differences, 4000, seed=3) == pytest.approx(exact_p(differences), abs=0.035)


def test_sign_flips_at_the_extremes():
    assert sign_flip_p([np.zeros(20)], 500, seed=0) == 1.0
    assert sign_flip_p([np.ones(40)], 500, seed=0) == pytest.approx(1 / 501)  # never 0


def test_p_is_small_as_often_as_chance_makes_it():
    rng = np.random.default_rng(11)
    small = sum(
        sign_flip_p([rng.choice([-1.0, 0.0, 1.0], 60), rng.choice([-0.5, 0.5], 40)], 400, seed) <= 0.05
        for seed in range(400)
    )
    assert 0.02 <= small / 400 <= 0.08


@pytest.mark.parametrize(
    ("votes", "right", "value"),
    [
        (["1", "1", "2"], [True, True, False], 1.0),
        (["1", "2", "2"], [True, False, False], 0.0),
        (["1", "2"], [True, False], 0.5),  # a tie: each is taken half of the time
        (["1", None, None], [True, False, False], 1.0),  # no answer has no vote
        ([None, None], [False, False], 0.0),
        (["3"], [True], 1.0),
    ],
)
def test_cons_at_k_of_all_samples(votes, right, value):
    assert cons_at_k(votes, right, len(votes)) == value


def test_cons_at_1_is_the_mean_and_more_votes_help():
    votes, right = ["1"] * 6 + ["2", "3", "4", "5"], [True] * 6 + [False] * 4
    assert abs(cons_at_k(votes, right, 1, seed=3) - 0.6) < 0.1
    # Of 120 draws of three 80 hold two or three "1"; 36 hold one, in a tie of three answers.
    assert abs(cons_at_k(votes, right, 3, seed=3) - (80 + 36 / 3) / 120) < 0.08
    assert cons_at_k(votes, right, 9) == 1.0 == cons_at_k(votes, right, 10)
    with pytest.raises(ValueError, match="cons@11"):
        cons_at_k(votes, right, 11)


def simulated(rng, problems, samples, gain=0.0):
    """Mean accuracy by problem of two models, the second `gain` better; problems differ much in difficulty."""
    chance = rng.beta(0.5, 0.5, problems)
    return tuple(rng.binomial(samples, np.clip(chance + more, 0, 1)) / samples for more in (0.0, gain)), chance


def test_intervals_cover_what_they_say():
    """Of 400 simulated evaluations 93 to 97 % have the true accuracy (0.5) in their 95 % interval."""
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(400):
        (scores, _), _ = simulated(rng, 150, 4)
        (interval,) = bootstrap_means([scores[:, None]], 400, trial)
        inside += interval.low <= 0.5 <= interval.high
    assert 0.93 <= inside / 400 <= 0.97


def test_a_paired_interval_sees_what_an_unpaired_one_does_not():
    """Two to three points between two models on 167 problems of 16 samples (a four-month window of LiveCodeBench)."""
    rng = np.random.default_rng(0)
    seen, narrower = np.zeros(2), []
    for trial in range(20):
        (base, better), _ = simulated(rng, 167, 16, 0.045)
        group = np.stack([better, base, better, base], axis=1)
        paired = paired_difference([group], resamples=500, flips=500, seed=trial)
        unpaired = unpaired_difference(better, base, resamples=500, seed=trial)
        assert paired.difference.value == pytest.approx(unpaired.value)
        seen += [paired.difference.low > 0, unpaired.low > 0]
        narrower.append((unpaired.high - unpaired.low) / (paired.difference.high - paired.difference.low))
    assert seen[0] >= 15 and seen[1] <= 2
    assert min(narrower) > 3 and max(narrower) < 7
