"""Documents inside rows: found right, gathered and put back without loss."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference_documents

from core_model.documents import LENGTH_GROUPS, document_ids, find_documents


@st.composite
def batches(draw):
    """Position ids that restart, and a mask with zeros anywhere."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    positions = []
    for _ in range(batch):
        row = [0]
        for _ in range(length - 1):
            row.append(0 if draw(st.booleans()) and draw(st.booleans()) else row[-1] + 1)
        positions.append(row)
    mask = draw(st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=batch, max_size=batch))
    return positions, mask


@given(batches())
@settings(max_examples=120, deadline=None)
def test_documents_are_the_references_and_split_then_join_is_the_identity(case):
    positions, mask = case
    shape = (len(positions), len(positions[0]))
    documents = find_documents(torch.tensor(positions), torch.tensor(mask), shape)
    expected = reference_documents(positions, mask)
    if documents is None:
        assert expected == [[(row, column) for column in range(shape[1])] for row in range(shape[0])]
        return
    x = torch.arange(shape[0] * shape[1] * 2, dtype=torch.float32).view(*shape, 2)
    split = documents.split(x)
    ids = torch.full(shape, -1)
    for number, tokens in enumerate(expected):
        ids[tuple(zip(*tokens, strict=True))] = number
    assert torch.equal(documents.id_BT, ids)
    # Shortest first, each a row of its group, its tokens in order from the left.
    rows = [row for group in split for row in group]
    assert len(split) <= LENGTH_GROUPS and len(rows) == max(len(expected), 1)
    for tokens, row in zip(sorted(expected, key=len), rows, strict=False):
        assert torch.equal(row[: len(tokens)], torch.stack([x[place] for place in tokens]))
    joined = documents.join(split)
    real = ids >= 0
    # End to end, from bound to bound.
    lengths = [len(tokens) for tokens in expected] or [0]
    assert documents.bound_M.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert documents.longest == max(lengths) and documents.bound_M.dtype == torch.int32
    packed = documents.pack(x)
    assert torch.equal(packed, x[real])
    unpacked = documents.unpack(packed)
    assert torch.equal(unpacked[real], x[real]) and not unpacked[~real].any()
    assert joined.shape == x.shape and torch.equal(joined[real], x[real]) and joined.isfinite().all()


def test_gradients_go_back_to_the_tokens_they_came_from():
    documents = find_documents(torch.tensor([[0, 1, 0, 1, 2]]), torch.tensor([[1, 1, 1, 1, 0]]), (1, 5))
    x = torch.randn(1, 5, 3, requires_grad=True)
    weight = torch.randn(1, 5, 3)
    weight[0, 4] = 0
    (documents.join(documents.split(x)) * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)


def test_whole_rows_need_no_documents():
    assert find_documents(None, None, (2, 4)) is None
    assert find_documents(torch.arange(4).unsqueeze(0), torch.ones(2, 4), (2, 4)) is None
    assert find_documents(torch.zeros(2, 1, dtype=torch.long), None, (2, 1)) is None


def test_one_row_of_positions_serves_the_whole_batch():
    ids = document_ids(torch.tensor([[0, 1, 0, 1]]), None, (2, 4))
    assert ids.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_a_row_may_begin_in_the_middle_of_a_document():
    ids = document_ids(torch.tensor([[5, 6, 0, 1], [3, 0, 1, 2]]), None, (2, 4))
    assert ids.tolist() == [[0, 0, 1, 1], [2, 3, 3, 3]]


def test_padded_rows_are_documents_on_either_side():
    ids = document_ids(None, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]), (3, 4))
    assert ids.tolist() == [[-1, -1, 0, 0], [1, 1, 1, -1], [-1, -1, -1, -1]]


def test_left_padding_with_positions_from_the_mask_is_one_document():
    """transformers' generate numbers padding 0 or 1 and starts real tokens at 0."""
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    for positions in ([[1, 1, 0, 1, 2]], [[0, 0, 0, 1, 2]]):
        assert document_ids(torch.tensor(positions), mask, (1, 5)).tolist() == [[-1, -1, 0, 0, 0]]
