"""bfloat16 in hidden layers: what is rounded, what is not, and that it trains all the same."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, VECTOR, batch_for, dqn, largest_difference, run, sac
from torch.utils._pytree import tree_leaves

from core import assemble
from core.clock import Clock
from core.engine import Engine
from core.state import weights
from interventions.layer_norm import LayerNorm
from nets import Impala, Vectors


def half(learner, seeds=(0,), compile=False) -> Engine:
    return Engine(learner, seeds, BATCH, compile=compile, precision="bfloat16")


def rounded(x):
    return x.bfloat16().float()


def test_hidden_products_are_of_rounded_numbers_and_the_output_layer_is_not():
    part = half(dqn(spec=VECTOR, net=Vectors(width=16, depth=1), dueling=False)).learner.q
    params = {k: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for k, shape in part.shapes.items()}
    x = batch_for(VECTOR, (0,))["obs"][0]
    out, feats = part(params, x)
    w, b = params["trunk.layers.0.weight"], params["trunk.layers.0.bias"]
    h = rounded(rounded(x) @ rounded(w).T + rounded(b)).relu()
    assert (feats["trunk.h0"] - h).abs().max() <= 2**-7 * h.abs().max()  # torch may round once more on the way
    assert torch.equal(feats["trunk.h0"], rounded(feats["trunk.h0"]))
    exact = F.linear(feats["trunk.h0"], params["advantage.weight"], params["advantage.bias"])
    assert out.dtype == torch.float32 and torch.allclose(out[..., 0], exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(out, rounded(out))


def test_values_that_bfloat16_cannot_tell_apart_are_told_apart():
    part = half(dqn(spec=VECTOR, net=Vectors(width=16), dueling=False)).learner.q
    params = {k: torch.zeros(shape) for k, shape in part.shapes.items()}
    params["advantage.bias"] = torch.tensor([100.0, 100.1, 100.2])
    out, _ = part(params, torch.ones(1, 5))
    assert out.flatten().tolist() == pytest.approx([100.0, 100.1, 100.2], abs=1e-4)
    assert len(set(rounded(out).flatten().tolist())) < 3


def test_normalisation_and_losses_are_float32():
    e = half(dqn([LayerNorm()], spec=VECTOR))
    part, state = e.learner.q, {name: s for name, s in e._members[0].items()}
    batch = {k: v[0] for k, v in batch_for(VECTOR, (0,)).items()}
    grads, outcome = part.gradient(state, batch, {}, observing=True)
    assert outcome.loss.dtype == torch.float32
    assert {g.dtype for g in grads.values()} == {torch.float32}
    pre = outcome.feats["trunk.h0.pre"]
    assert torch.allclose(pre.mean(-1), torch.zeros(BATCH), atol=1e-6)  # to float32's precision, not bfloat16's


@pytest.mark.parametrize("make", [dqn, sac, lambda: dqn(net=Impala(width=16, scale=1, blocks=1, units=0.25))])
def test_what_is_trained_stays_float32_and_goes_nearly_where_float32_goes(make):
    low, full = half(make(), (0, 1)), Engine(make(), (0, 1), BATCH, compile=False)
    run(low, 5)
    run(full, 5)
    assert {leaf.dtype for leaf in tree_leaves(low.states)} <= {torch.float32, torch.int64, torch.bool}
    assert 0 < largest_difference(low.states, full.states) < 0.05


@pytest.mark.parametrize("make", [sac, dqn])
def test_decisions_are_made_in_float32(make):
    low, full = half(make()), Engine(make(), (0,), BATCH, compile=False)
    obs = batch_for(low.learner.spec, (0,))["obs"].numpy()
    acted = [e.act(obs, e.learner.explore_eval, "act", 0) for e in (low, full)]
    assert (acted[0] == acted[1]).all()
    numbers, seen = low._members[0], torch.from_numpy(obs[0])
    with torch.no_grad():
        rough, _ = low.learner.acting_part(weights(numbers[low.learner.acting_part.name]), seen)
        exact, _ = full.learner.acting_part(weights(numbers[low.learner.acting_part.name]), seen)
    assert not torch.equal(*tree_leaves((rough, exact))[:2])


def test_a_compiled_run_is_the_eager_one_up_to_rounding():
    eager, compiled = (half(dqn(spec=VECTOR), (0, 1), compile=c) for c in (False, True))
    run(eager, 5)
    run(compiled, 5)
    assert largest_difference(eager.states, compiled.states) < 5e-3


def test_members_do_not_depend_on_their_neighbours():
    together, alone = half(sac(), (0, 1)), half(sac(), (1,))
    clocks = Clock(steps=10**9), Clock(steps=10**9)
    for e, clock in zip((together, alone), clocks, strict=True):
        run(e, 3, clock)
    for name, state in alone.states.items():
        for k, p in state.params.items():
            assert torch.equal(p[0], together.states[name].params[k][1])


def test_tf32_is_taken_only_where_it_was_asked_for():
    try:
        assemble.choose_arithmetic("tf32")
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        assemble.choose_arithmetic("bfloat16")
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    finally:
        assemble.choose_arithmetic("float32")
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_a_run_takes_denormal_numbers_for_zero_in_every_thread(tmp_path):
    """Threads inherit how they compute at their birth: it is chosen before the first of them is needed."""
    script = f"""
import torch
from core.agent_session import AgentSession
from core.config import load

AgentSession(load(["agent=dqn", "env=atari/pong", "compile=false", "run_dir={tmp_path}/run"]))
torch.set_num_threads(2)
halved = torch.full((2**20,), 2e-38) * 0.5
print(torch.get_num_threads(), [int(bits.count_nonzero()) for bits in halved.view(torch.int32).chunk(2)])
"""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.stdout == "2 [0, 0]\n", run.stdout + run.stderr
