"""Percentiles of a rating in a population."""

from __future__ import annotations

import json

import pytest
from contest_work import contest, tries
from scipy.stats import norm

from eval.codeforces.population import Population


def test_percentiles_count_equal_ratings_half():
    population = Population(id="four", date="2024-11-01", counts={-5: 1, 1134: 2, 2029: 1})
    shares = [population.share_below(rating) for rating in (-6, -5, 0, 1134, 1134.5, 2029, 3000)]
    assert shares == [0, 0.125, 0.25, 0.5, 0.75, 0.875, 1]


def test_a_percentile_is_that_of_its_population():
    """The same two ratings against two bell-shaped histograms: percentiles differ by points."""
    found = {}
    for name, mean in (("weaker", 1100), ("stronger", 1250)):
        ratings = range(-200, 3800)
        counts = dict(zip(ratings, (700_000 * norm.pdf(ratings, mean, 400)).round().astype(int).tolist(), strict=True))
        population = Population(id=name, date="2024-11-01", counts=counts)
        assert population.users == sum(counts.values())
        found[name] = [round(100 * population.share_below(rating), 1) for rating in (1134, 2029)]
        expected = [100 * norm.cdf(rating, mean, 400) for rating in (1134, 2029)]
        assert found[name] == pytest.approx(expected, abs=0.2)
    assert found["weaker"][0] - found["stronger"][0] > 10


@pytest.mark.parametrize("counts", [{}, {"1200": -1}, {"1200": 0}, {"high": 3}])
def test_populations_without_people_are_refused(work, capsys, counts):
    path = work.contests.parent / "users.json"
    path.write_text(json.dumps({"id": "none", "date": "2024-11-01", "counts": counts}))
    work.write([contest()], tries("C"))
    assert work.run("--population", str(path)) == 2
    assert "users.json" in capsys.readouterr().err
    assert not work.out.exists()
