"""Length rewards: published values by hand; bounds, monotonicity and symmetry for any group."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rl.length import AnyLengthReward, Cosine, Kimi, LengthReward, LinearTarget, NoLength, SoftOverlong

SHAPERS: list[LengthReward] = [
    NoLength(),
    Kimi(kind="kimi"),
    Cosine(kind="cosine", limit=100),
    SoftOverlong(kind="overlong", limit=100, margin=30),
    LinearTarget(kind="target", target=50, slope=0.01),
    LinearTarget(kind="target", target=50, slope=0.05, upper_only=True),
]
each_shaper = pytest.mark.parametrize("shaper", SHAPERS, ids=lambda shaper: type(shaper).__name__)


@st.composite
def groups(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """lengths, correct, counts [P, G]."""
    prompts, samples = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    size = prompts * samples
    lengths = draw(st.lists(st.integers(1, 400), min_size=size, max_size=size))
    correct = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    counts = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    shape = (prompts, samples)
    return (
        torch.tensor(lengths, dtype=torch.float32).view(shape),
        torch.tensor(correct).view(shape),
        torch.tensor(counts).view(shape),
    )


@each_shaper
@given(groups())
def test_bounded_and_zero_where_the_verdict_does_not_count(shaper, group):
    lengths, correct, counts = group
    reward = shaper.shape(lengths, correct, counts)
    low, high = shaper.bounds
    assert torch.isfinite(reward).all()
    assert ((reward >= low - 1e-6) & (reward <= high + 1e-6)).all()
    assert (reward[~counts] == 0).all()


@each_shaper
@given(groups(), st.randoms(use_true_random=False))
def test_the_order_in_a_group_does_not_matter(shaper, group, random):
    lengths, correct, counts = group
    order = list(range(lengths.shape[1]))
    random.shuffle(order)
    permuted = shaper.shape(lengths[:, order], correct[:, order], counts[:, order])
    assert torch.equal(permuted, shaper.shape(lengths, correct, counts)[:, order])


@each_shaper
@given(groups())
def test_groups_do_not_see_each_other_nor_samples_that_do_not_count(shaper, group):
    lengths, correct, counts = group
    whole = shaper.shape(lengths, correct, counts)
    for row in range(len(lengths)):
        kept = counts[row]
        if kept.any():
            alone = shaper.shape(lengths[row, kept][None], correct[row, kept][None], counts[row, kept][None])
            assert torch.equal(alone[0], whole[row, kept])


@given(st.lists(st.integers(1, 400), min_size=2, max_size=8, unique=True))
def test_longer_never_earns_a_right_answer_more(lengths):
    ordered = torch.tensor(sorted(lengths), dtype=torch.float32)[None]
    yes = torch.ones_like(ordered, dtype=torch.bool)
    for shaper in (SHAPERS[1], SHAPERS[2], SHAPERS[3], SHAPERS[5]):
        assert (shaper.shape(ordered, yes, yes).diff(dim=1) <= 1e-6).all(), shaper


@given(st.lists(st.integers(1, 400), min_size=2, max_size=8, unique=True))
def test_a_wrong_answer_is_never_paid_for_being_short(lengths):
    ordered = torch.tensor(sorted(lengths), dtype=torch.float32)[None]
    yes = torch.ones_like(ordered, dtype=torch.bool)
    for shaper in SHAPERS:
        assert (shaper.shape(ordered, ~yes, yes) <= 0).all(), shaper


@given(st.integers(1, 400), st.integers(1, 400))
def test_a_target_prefers_what_is_nearer_to_it(one, other):
    yes = torch.ones(1, 2, dtype=torch.bool)
    shaper = LinearTarget(kind="target", target=50, slope=0.0003)
    first, second = shaper.shape(torch.tensor([[float(one), float(other)]]), yes, yes)[0].tolist()
    if abs(one - 50) < abs(other - 50):
        assert first > second


def test_kimi_by_hand():
    lengths = torch.tensor([[10.0, 20.0, 30.0, 30.0], [7.0, 7.0, 7.0, 7.0]])
    correct = torch.tensor([[True, False, True, False]] * 2)
    everything = torch.ones_like(correct)
    # Shortest right: 1/2. Wrong in the middle: min(0, 0). Longest: -1/2. All equal: nothing.
    expected = torch.tensor([[0.5, 0.0, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(Kimi(kind="kimi").shape(lengths, correct, everything), expected)
    assert torch.equal(Kimi(kind="kimi", weight=0.2).shape(lengths, correct, everything), expected * 0.2)


def test_an_easy_group_is_not_shrunk_by_a_hard_one():
    """Taken over both groups at once, the easy group's rewards would differ by 0.02 only."""
    lengths = torch.tensor([[200.0, 300.0], [4000.0, 6000.0]])
    yes = torch.ones_like(lengths, dtype=torch.bool)
    assert torch.equal(Kimi(kind="kimi").shape(lengths, yes, yes), torch.tensor([[0.5, -0.5]] * 2))


def test_a_masked_sample_does_not_set_the_longest():
    lengths = torch.tensor([[10.0, 20.0, 4000.0]])
    yes = torch.ones_like(lengths, dtype=torch.bool)
    counts = torch.tensor([[True, True, False]])
    assert Kimi(kind="kimi").shape(lengths, yes, counts).tolist() == [[0.5, -0.5, 0.0]]


def test_cosine_by_hand_and_beyond_its_limit():
    shaper = Cosine(kind="cosine", limit=100, correct=(1.0, 0.5), wrong=(-1.0, -0.5))
    lengths = torch.tensor([[0.0, 50.0, 100.0, 200.0]])
    yes = torch.ones_like(lengths, dtype=torch.bool)
    assert shaper.shape(lengths, yes, yes)[0].tolist() == pytest.approx([1.0, 0.75, 0.5, 0.5], abs=1e-6)
    assert shaper.shape(lengths, ~yes, yes)[0].tolist() == pytest.approx([-1.0, -0.75, -0.5, -0.5], abs=1e-6)


def test_overlong_and_target_by_hand():
    lengths = torch.tensor([[70.0, 85.0, 100.0, 500.0]])
    yes = torch.ones_like(lengths, dtype=torch.bool)
    overlong = SoftOverlong(kind="overlong", limit=100, margin=30).shape(lengths, yes, yes)
    assert overlong[0].tolist() == pytest.approx([0.0, -0.5, -1.0, -1.0])
    exact = LinearTarget(kind="target", target=80, slope=0.01).shape(lengths, yes, yes)
    assert exact[0].tolist() == pytest.approx([-0.1, -0.05, -0.2, -1.0])
    at_most = LinearTarget(kind="target", target=80, slope=0.01, upper_only=True).shape(lengths, yes, yes)
    assert at_most[0].tolist() == pytest.approx([0.0, -0.05, -0.2, -1.0])


def test_pay_begins_at_its_step():
    shaper = Kimi(kind="kimi", start_step=5)
    lengths, yes = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert shaper.shape(lengths, yes, yes, step=4).tolist() == [[0.0, 0.0]]
    assert shaper.shape(lengths, yes, yes, step=5).tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "kimi", "limit": 3},
        {"kind": "overlong", "limit": 10, "margin": 11},
        {"kind": "cosine", "limit": 10, "correct": [0.1, 0.5]},
        {"kind": "cosine", "limit": 10, "wrong": [-0.5, 0.2]},
        {"kind": "target", "target": 10, "slope": math.inf},
        {"kind": "shortest"},
    ],
)
def test_rewards_that_make_no_sense_are_refused(values):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyLengthReward).validate_python(values)
