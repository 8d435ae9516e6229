"""Trees of tensors: stacked, looked into, copied, and written in place."""

from __future__ import annotations

import pytest
import torch
from learners import equal

from core.state import State, clone, member, stack, weights, where, write


def state(x: float) -> State:
    def tensors(*names):
        return {name: torch.full((2,), x + i) for i, name in enumerate(names)}

    return State(
        params=tensors("w", "b"),
        birth=tensors("w", "b"),
        copies={"target": tensors("w", "mean", "b")},
        optim={"m": tensors("w", "b")},
        buffers={"mean": torch.tensor([x])},
        memory={"ema": {}},
    )


def test_members_of_a_stack_are_views_and_equal_what_was_stacked():
    together = stack([{"q": state(1.0)}, {"q": state(5.0)}])
    assert equal(member(together, 1), {"q": state(5.0)})
    member(together, 1)["q"].params["w"].zero_()
    assert together["q"].params["w"].tolist() == [[1, 1], [0, 0]]


def test_writing_goes_by_name_and_into_the_storage_that_is_there():
    old, new = state(1.0), state(7.0)
    shuffled = new._replace(params=dict(reversed(new.params.items())), copies={"target": weights(new)})
    storage = [t.data_ptr() for t in (*old.params.values(), *old.copies["target"].values())]
    write(old, shuffled)
    assert {k: v.tolist() for k, v in old.params.items()} == {"w": [7, 7], "b": [8, 8]}
    assert {k: v[0].item() for k, v in old.copies["target"].items()} == {"w": 7, "mean": 7, "b": 8}
    assert [t.data_ptr() for t in (*old.params.values(), *old.copies["target"].values())] == storage


@pytest.mark.parametrize("alive", [True, False])
def test_where_a_member_is_not_alive_the_old_values_stay_and_what_is_the_same_tensor_is_left_alone(alive):
    old = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    new = {"a": torch.tensor([torch.inf, 20.0]), "b": old["b"]}
    chosen = where(torch.tensor(alive), new, old)
    assert chosen["b"] is old["b"] and torch.equal(chosen["a"], (new if alive else old)["a"])


def test_names_that_only_one_of_two_states_has_are_refused():
    old, new = state(1.0), state(2.0)
    del new.copies["target"]["mean"]
    before = clone(old)
    with pytest.raises(ValueError, match="mean"):
        write(old.copies, new.copies)
    assert equal(old, before)
