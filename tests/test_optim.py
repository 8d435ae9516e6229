"""Adam as a function of values, against torch.optim over many steps, and its in-place form against itself."""

from __future__ import annotations

import pytest
import torch

from core.optim import SGD, Adam

SHAPES = {"weight": (5, 3), "kernel": (4, 2, 3, 3), "bias": (5,), "gain": (4,), "log_alpha": ()}
SETTINGS = {
    "defaults": Adam(),
    "atari": Adam(lr=1e-4, eps=1.5e-4),
    "equal betas": Adam(lr=1e-2, b1=0.9, b2=0.9),
    "decay": Adam(lr=1e-2, decay=0.1),
}
GO, SKIP = torch.tensor(True), torch.tensor(False)
WRONG = [torch.nan, torch.inf, -torch.inf, torch.nan, torch.inf]
every_setting = pytest.mark.parametrize("name", SETTINGS)


def numbers(seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(shape, generator=g) for k, shape in SHAPES.items()}


def gradients(step):
    """Gradients whose scale jumps by a thousand half way."""
    return numbers(100 + step, scale=1.0 if step < 25 else 1000.0)


def copy(tree):
    return {k: copy(v) if isinstance(v, dict) else v.clone() for k, v in tree.items()}


def torch_optimizer(settings, params):
    """torch.optim with decay on matrices and kernels alone."""
    groups = [
        {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": settings.decay},
        {"params": [p for p in params.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if settings.decay else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=(settings.b1, settings.b2), eps=settings.eps, foreach=False)


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], **({"rtol": 1e-5, "atol": 1e-6} | tolerance), msg=lambda m, k=k: k + m)


@every_setting
def test_fifty_steps_equal_torch_optim(name):
    adam, params = SETTINGS[name], numbers()
    reference = {k: p.clone().requires_grad_() for k, p in params.items()}
    optimizer, slots = torch_optimizer(adam, reference), adam.start(params)
    for step in range(50):
        for k, g in gradients(step).items():
            reference[k].grad = g
        optimizer.step()
        params, slots = adam.step(params, gradients(step), slots)
        assert_close(params, {k: p.detach() for k, p in reference.items()})
    for k, p in reference.items():
        state = optimizer.state[p]
        torch.testing.assert_close(slots["m"][k], state["exp_avg"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(slots["v"][k], state["exp_avg_sq"], rtol=1e-4, atol=1e-4)
        assert slots["t"][k] == state["step"] == 50


@every_setting
@pytest.mark.parametrize("alive", [GO, None])
def test_fifty_steps_in_place_equal_the_steps_as_values(name, alive):
    adam, params = SETTINGS[name], numbers()
    slots, mine = adam.start(params), copy(params)
    mine_slots = copy(slots)
    for step in range(50):
        params, slots = adam.step(params, gradients(step), slots)
        adam.step_(mine, gradients(step), mine_slots, alive)
        assert_close(mine, params)
    for slot in ("m", "v"):
        assert_close(mine_slots[slot], slots[slot], rtol=1e-4, atol=1e-4)
    assert_close(mine_slots["t"], slots["t"], rtol=0, atol=0)


def test_the_first_step_is_the_learning_rate_whatever_the_gradient():
    adam = Adam(lr=0.01, eps=0.0)
    for scale in (1e-3, 1.0, 1e3):
        params, grads = numbers(), numbers(1, scale)
        new, _ = adam.step(params, grads, adam.start(params))
        assert_close({k: new[k] - params[k] for k in new}, {k: -0.01 * g.sign() for k, g in grads.items()})


def test_decay_shrinks_matrices_and_kernels_and_nothing_else():
    adam, params = Adam(lr=0.1, decay=0.5), numbers()
    zero = {k: torch.zeros_like(p) for k, p in params.items()}
    new, _ = adam.step(params, zero, adam.start(params))
    assert_close(new, {k: p * (0.95 if p.ndim > 1 else 1.0) for k, p in params.items()})


def test_a_step_as_values_changes_none_of_its_arguments():
    adam, params, grads = Adam(decay=0.1), numbers(), numbers(1)
    slots = adam.start(params)
    before = copy({"params": params, "grads": grads} | slots)
    adam.step(params, grads, slots)
    after = {"params": params, "grads": grads} | slots
    assert all(torch.equal(after[a][k], before[a][k]) for a in before for k in before[a])


@pytest.mark.parametrize("grads", [numbers(1), {k: torch.full(shape, torch.nan) for k, shape in SHAPES.items()}])
def test_a_skipped_step_moves_nothing(grads):
    adam, params = Adam(lr=0.1, decay=0.5), numbers()
    slots = adam.start(params)
    adam.step_(params, numbers(2), slots, GO)
    before = copy({"params": params} | slots)
    adam.step_(params, grads, slots, SKIP)
    after = {"params": params} | slots
    assert all(torch.equal(after[a][k], before[a][k]) for a in before for k in before[a])


@pytest.mark.parametrize("optim", [Adam(lr=0.1, decay=0.5), Adam(lr=0.1, elementwise=True), SGD(lr=0.1, decay=0.5)])
def test_as_values_too_a_skipped_step_moves_nothing_and_one_that_is_not_is_the_plain_one(optim):
    params = numbers()
    for newborn in (True, False):
        slots = optim.start(params)
        if not newborn:
            params, slots = optim.step(params, numbers(2), slots)
        wrong = {k: torch.full(shape, value) for (k, shape), value in zip(SHAPES.items(), WRONG, strict=True)}
        for grads in (numbers(1), wrong):
            still, same = optim.step(params, grads, slots, SKIP)
            assert all(torch.equal(still[k], params[k]) for k in params)
            assert all(torch.equal(same[a][k], slots[a][k]) for a in slots for k in slots[a])
        plain, judged = optim.step(params, numbers(1), slots), optim.step(params, numbers(1), slots, GO)
        torch.testing.assert_close(judged, plain)  # rates rounded to float32


def test_a_skipped_step_leaves_no_trace_in_the_steps_that_follow():
    adam, params = Adam(lr=0.1, decay=0.5), numbers()
    slots, mine = adam.start(params), copy(params)
    mine_slots = copy(slots)
    for step in range(3):
        adam.step_(params, numbers(step), slots, GO)
        adam.step_(mine, numbers(step), mine_slots, GO)
        adam.step_(mine, numbers(50), mine_slots, SKIP)
    assert all(torch.equal(mine[k], params[k]) for k in params)


def test_a_step_in_place_never_moves_storage():
    adam, params = Adam(lr=0.1, decay=0.5), numbers()
    slots = adam.start(params)
    where = {(a, k): x.data_ptr() for a, xs in ({"params": params} | slots).items() for k, x in xs.items()}
    for _ in range(3):
        adam.step_(params, numbers(1), slots, GO)
    assert where == {(a, k): x.data_ptr() for a, xs in ({"params": params} | slots).items() for k, x in xs.items()}


def test_a_step_in_place_writes_through_views_of_a_stack():
    adam, params, grads = Adam(lr=0.1), numbers(), numbers(1)
    stacked = {k: torch.stack([p, p]) for k, p in params.items()}
    slots = {slot: {k: torch.stack([x, x]) for k, x in xs.items()} for slot, xs in adam.start(params).items()}
    second = {k: p[1] for k, p in stacked.items()}
    adam.step_(second, grads, {slot: {k: x[1] for k, x in xs.items()} for slot, xs in slots.items()}, GO)
    expected, _ = adam.step(params, grads, adam.start(params))
    assert_close({k: p[1] for k, p in stacked.items()}, expected)
    assert all(torch.equal(p[0], params[k]) for k, p in stacked.items())
    assert [float(t[0]) for t in slots["t"].values()] == [0.0] * len(SHAPES)


def aged(adam, params, young):
    """Slots in which the units `young` of `weight` have just begun anew, by element-wise step counts."""
    slots = adam.start(params)
    for step in range(5):
        params, slots = adam.step(params, numbers(step), slots)
    t = slots["t"]["weight"].expand(SHAPES["weight"]).clone()
    t[young] = 0
    slots["t"]["weight"] = t
    for slot in ("m", "v"):
        slots[slot]["weight"][young] = 0
    return params, slots


def test_an_element_wise_step_count_lets_single_units_begin_anew():
    adam, young = Adam(lr=0.01, eps=0.0), [1, 3]
    params, slots = aged(adam, numbers(), young)
    old_params, old_slots = aged(adam, numbers(), [])
    grads = numbers(9)
    new, after = adam.step(params, grads, slots)
    old, _ = adam.step(old_params, grads, old_slots)
    rest = [0, 2, 4]
    torch.testing.assert_close(new["weight"][rest], old["weight"][rest])
    first = params["weight"][young] - 0.01 * grads["weight"][young].sign()  # as every first step
    torch.testing.assert_close(new["weight"][young], first)
    assert after["t"]["weight"].tolist() == [[6.0] * 3 if i in rest else [1.0] * 3 for i in range(5)]


@pytest.mark.parametrize("alive", [GO, SKIP])
def test_a_step_in_place_takes_element_wise_step_counts_too(alive):
    adam = Adam(lr=0.01)
    params, slots = aged(adam, numbers(), [1, 3])
    grads = numbers(9)
    expected, expected_slots = adam.step(params, grads, slots) if alive else (params, slots)
    mine, mine_slots = copy(params), copy(slots)
    adam.step_(mine, grads, mine_slots, alive)
    assert_close(mine, expected)
    assert torch.equal(mine_slots["t"]["weight"], expected_slots["t"]["weight"])


def test_a_gradient_in_another_memory_order_is_stepped_along_all_the_same():
    """Convolutions hand back channels-last gradients; the fused kernel reads memory in order."""
    g = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(4, 3, 2, 2, generator=g)}
    grads = {"w": torch.randn(4, 3, 2, 2, generator=g).contiguous(memory_format=torch.channels_last)}
    optim = Adam(lr=0.1)
    wanted, _ = optim.step(params, grads, optim.start(params))
    moved, slots = {k: p.clone() for k, p in params.items()}, optim.start(params)
    optim.step_(moved, grads, slots, GO)
    assert torch.allclose(moved["w"], wanted["w"], atol=1e-6)
    assert torch.allclose(slots["m"]["w"], 0.1 * grads["w"], atol=1e-7)
