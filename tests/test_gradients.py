"""The two ways to a gradient: one by hand, both the same bits."""

import torch

from core.gradients import gradient


def objective(params):
    hidden = torch.relu(torch.arange(12.0).reshape(3, 4) @ params["w"] - 2)
    return hidden.square().sum() + 3 * params["b"].sum(), {"hidden": hidden}


def params():
    return {"w": torch.linspace(-1, 1, 8).reshape(4, 2), "b": torch.ones(2), "unused": torch.ones(3)}


def test_by_hand():
    w = {"w": torch.tensor([2.0, -1.0])}
    grads, aux = gradient(lambda p: ((p["w"] ** 3).sum(), p["w"] * 2), w)
    assert grads["w"].tolist() == [12.0, 3.0] and aux.tolist() == [4.0, -2.0]


def test_equals_the_functional_way_to_the_bit_and_leaves_nothing_behind():
    given = params()
    grads, aux = gradient(objective, given)
    expected, expected_aux = torch.func.grad(objective, has_aux=True)(given)
    assert all(torch.equal(grads[k], expected[k]) for k in given) and list(grads) == list(given)
    assert torch.equal(aux["hidden"], expected_aux["hidden"]) and aux["hidden"].any()
    assert grads["b"].tolist() == [3.0, 3.0] and not grads["unused"].any()
    assert not any(t.requires_grad for t in (*given.values(), *grads.values(), aux["hidden"]))


def test_is_taken_where_gradients_are_switched_off():
    with torch.no_grad():
        grads, _ = gradient(objective, params())
    assert grads["b"].tolist() == [3.0, 3.0]
