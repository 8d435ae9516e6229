"""Equal trees have equal hashes, and no other trees do."""

from __future__ import annotations

import io

import pytest
import torch

from core.digest import digest

TREE = {"a": {"w": torch.arange(6.0).reshape(2, 3)}, "b": [1, 2.5, None, True, "x", b"y"], "c": ()}


def test_the_order_of_keys_and_a_trip_through_a_file_do_not_matter():
    file = io.BytesIO()
    torch.save(dict(reversed(TREE.items())), file)
    file.seek(0)
    assert digest(torch.load(file, weights_only=True)) == digest(TREE)


def test_strides_and_storage_do_not_matter():
    transposed = torch.arange(6.0).reshape(3, 2).T
    assert not transposed.is_contiguous()
    assert digest(transposed) == digest(transposed.contiguous()) == digest(torch.stack([transposed, transposed])[0])


def test_tuples_and_lists_are_alike_so_that_json_keeps_a_digest():
    assert digest((1, (2, 3))) == digest([1, [2, 3]])


DIFFERENT = [
    0,
    1,
    True,
    1.0,
    "1",
    b"1",
    None,
    "",
    [],
    {},
    [1],
    [[1]],
    [1, 1],
    ["11"],
    {"1": 1},
    {1: 1},
    {"a": {}},
    {"a": [], "b": 1},
    {"a": ["b", 1]},
    0.0,
    -0.0,
    float("nan"),
    float("inf"),
    torch.zeros(()),
    torch.zeros(1),
    torch.zeros(2, 3),
    torch.zeros(3, 2),
    torch.zeros(0),
    torch.zeros(0, 5),
    torch.zeros(2, 3, dtype=torch.int32),
    torch.zeros(2, 3, dtype=torch.float64),
    torch.zeros(2, 3, dtype=torch.bfloat16),
    torch.zeros(2, 3, dtype=torch.bool),
    torch.zeros(2, 3, dtype=torch.uint8),
    -torch.zeros(2, 3),
]


def test_whatever_differs_in_kind_shape_or_bits_has_another_digest():
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_one_flipped_bit_shows():
    flipped = torch.arange(1000.0)
    flipped[717].view(torch.int32).bitwise_xor_(1)
    assert digest(flipped) != digest(torch.arange(1000.0))


def test_what_is_not_plain_data_is_refused():
    with pytest.raises(TypeError, match="ndarray has no digest"):
        digest({"a": torch.zeros(1).numpy()})
