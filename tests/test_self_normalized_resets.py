"""Self-normalized resets: gaps against a loop over samples, quantiles against NumPy's, who is silent too long."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.clock import Clock
from core.events import Context
from core.options import build
from core.part import Outcome, Step
from core.recycle import recyclable, recycle
from core.state import clone
from core.when import When
from interventions.crelu import CReLU
from interventions.self_normalized_resets import BINS, SelfNormalizedResets, firing, gaps_of, quantile
from nets import Nature, Vectors

SNR = "self_normalized_resets"
LAST = ("trunk.layers.1.*", "head.*")
TRAINED = [
    (dqn, "q", FRAMES, Nature(width=40, units=0.125)),
    (sac, "critic", CONTROL, Vectors(width=6)),
    (classifier, "classifier", VECTOR, Vectors(width=6)),
]


def context(part, s) -> Context:
    return Context(part, {part.name: s}, Clock(steps=10**9, updates=3), 0, SNR, "cpu", None)


def seen(part, s, feats):
    """The state after an update in which the network had these features."""
    return part.interventions[-1].after_step(part, s, Step({}, {}, Outcome(torch.zeros(()), feats, {}), {}))


def renew(part, s):
    return part.interventions[-1].event(part, s, context(part, s))


def small(units: int = 4, **options):
    """A part in which the last hidden layer alone is looked after, and its newborn state."""
    intervention = SelfNormalizedResets(**{"where": LAST, "gaps": 3, "percentile": 0.5} | options)
    part = classifier([intervention], net=Vectors(width=units)).classifier
    return part, part.birth(0)


def remembering(s, batch: float, silent, tally):
    """The state with this memory of the last hidden layer; tallies are padded with empty bins."""
    padded = torch.zeros(len(tally), BINS)
    for i, counts in enumerate(tally):
        padded[i, : len(counts)] = torch.tensor(counts)
    new = {"batch": torch.tensor(batch), "silent/trunk.layers.1": torch.tensor(silent), "tally/trunk.layers.1": padded}
    return s._replace(memory={SNR: s.memory[SNR] | new})


def gone(before, after) -> list[int]:
    """Units whose outgoing weights are zero now."""
    return (after.params["head.weight"] == 0).all(0).nonzero().flatten().tolist() if after is not before else []


# gaps


@pytest.mark.parametrize(("batch", "share"), [(1, 0.5), (7, 0.4), (20, 0.1), (5, 0.0), (5, 1.0)])
def test_gaps_are_those_of_a_loop_over_samples_with_the_silence_carried_over(batch, share):
    g = torch.Generator().manual_seed(0)
    silent, loop = torch.zeros(6), [0] * 6
    for _ in range(5):
        fired = torch.rand(6, batch, generator=g) < share
        gaps, silent = gaps_of(fired, silent)
        for i in range(6):
            for j in range(batch):
                loop[i] += 1
                if fired[i, j]:
                    assert gaps[i, j] == loop[i]
                    loop[i] = 0
        assert silent.tolist() == loop


def test_gaps_by_hand():
    fired = torch.tensor([[True, False, False, True], [False, False, True, True], [False] * 4])
    gaps, silent = gaps_of(fired, torch.tensor([0.0, 5.0, 7.0]))
    assert gaps[fired].tolist() == [1.0, 3.0, 8.0, 1.0] and silent.tolist() == [0.0, 0.0, 11.0]


@pytest.mark.parametrize(
    ("gap", "place"),
    [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (2**20, 20), (2**20 + 1, 21), (2**40, BINS - 1)]
    + [(2**k, k) for k in range(5, 24)],
)
def test_gaps_are_tallied_in_bins_that_double(gap, place):
    part, s = small()
    s = remembering(s, 0.0, [gap - 1.0] * 4, [[]] * 4)
    s = seen(part, s, {"trunk.h1": torch.tensor([[0.0, 0.1, 0.0, 0.2]])})
    tally = s.memory[SNR]["tally/trunk.layers.1"]
    for unit, fires in enumerate([False, True, False, True]):
        assert tally[unit].nonzero().flatten().tolist() == [place] * fires and tally[unit].sum() == fires


def test_the_tally_adds_up_over_updates_and_the_batch_is_the_latest_ones():
    part, s = small(units=1)
    for h in ([[1.0], [0.0], [1.0], [1.0]], [[0.0], [0.0], [3.0]]):  # gaps 1, 2, 1, then 3
        s = seen(part, s, {"trunk.h1": torch.tensor(h)})
    memory = s.memory[SNR]
    assert memory["tally/trunk.layers.1"][0, :4].tolist() == [2.0, 1.0, 1.0, 0.0]
    assert memory["batch"] == 3 and memory["silent/trunk.layers.1"].tolist() == [0.0]


def test_a_channel_fires_on_a_sample_if_it_does_at_any_pixel():
    part = dqn([SelfNormalizedResets(where=("encoder",))], net=Nature(width=40, units=0.125)).q
    s, h = part.birth(0), torch.zeros(3, 4, 2, 5)  # three samples, four channels
    h[0, 1, 1, 4] = h[2, 1, 0, 0] = h[1, 2, 0, 3] = h[1, 2, 1, 1] = 0.5
    s = seen(part, s, {"encoder.h0": h, "encoder.h1": torch.zeros(3, 8, 1, 1)})
    memory = s.memory[SNR]
    assert memory["silent/encoder.convs.0"].tolist() == [3.0, 0.0, 1.0, 3.0]
    assert memory["tally/encoder.convs.0"][:, :3].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert memory["silent/encoder.convs.1"].tolist() == [3.0] * 8


def test_with_crelu_a_unit_fires_on_either_side():
    intervention = SelfNormalizedResets(where=LAST)
    part = classifier([CReLU(match="input"), intervention], net=Vectors(width=3)).classifier
    s = seen(part, part.birth(0), {"trunk.h1": torch.tensor([[1.0, 0.0, 0.0, 0.0, 2.0, 0.0]])})
    assert s.memory[SNR]["silent/trunk.layers.1"].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("activation", ["gelu", "aid"])
def test_a_negative_number_is_no_firing(activation):
    intervention = SelfNormalizedResets(where=LAST)
    part = classifier([intervention], net=Vectors(width=3, activation=activation)).classifier
    s = part.birth(0)
    s.params["trunk.layers.1.bias"] += torch.tensor([-50.0, 50.0, 0.0])
    h = part(s.params, torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))[1]["trunk.h1"]
    assert (h[:, 0] <= 0).all() and (h[:, 1] > 0).all()
    s = seen(part, s, {"trunk.h1": h})
    assert s.memory[SNR]["silent/trunk.layers.1"].tolist()[:2] == [8.0, 0.0]
    s = seen(part, s, {"trunk.h1": torch.tensor([[-0.1, 0.0, 0.3], [-2.0, 1.0, -0.3]])})
    assert s.memory[SNR]["silent/trunk.layers.1"].tolist() == [10.0, 0.0, 1.0]


@pytest.mark.parametrize(("halves", "shape"), [(1, (4, 3)), (2, (4, 6)), (1, (4, 3, 2, 5)), (2, (4, 6, 2, 5))])
def test_firing_is_a_positive_number_at_any_pixel_in_either_half(halves, shape):
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0)) - 1.5
    fired = firing(h, halves)
    assert fired.shape == (3, 4) and 0 < fired.sum() < 12
    for unit, sample in np.ndindex(3, 4):
        assert fired[unit, sample] == any(bool((h[sample, half * 3 + unit] > 0).any()) for half in range(halves))


# quantiles


@pytest.mark.parametrize(
    ("tally", "share", "edge"),
    [
        ([4, 0, 0, 0], 0.98, 1),
        ([2, 2, 0, 0], 0.5, 1),  # reached exactly
        ([2, 2, 0, 0], 0.51, 2),
        ([1, 0, 0, 3], 0.25, 1),
        ([1, 0, 0, 3], 0.26, 8),
        ([1, 1, 1, 1], 1.0, 8),
        ([98, 0, 1, 1], 0.98, 1),
        ([97, 0, 2, 1], 0.98, 4),
        ([0, 0, 5, 0], 0.01, 4),
    ],
)
def test_a_quantile_is_the_upper_edge_of_its_bin(tally, share, edge):
    assert quantile(torch.tensor([tally, tally]).float(), share).tolist() == [edge] * 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98, 1.0])
def test_quantiles_are_numpys_rounded_up_to_a_power_of_two(share):
    gaps = np.random.default_rng(0).geometric([[0.9], [0.5], [0.1], [0.01]], (4, 501))
    tally = torch.zeros(4, BINS)
    for i, j in np.ndindex(*gaps.shape):
        tally[i, int(np.ceil(np.log2(gaps[i, j])))] += 1
    exact = np.quantile(gaps, share, axis=1, method="inverted_cdf")
    assert quantile(tally, share).tolist() == (2 ** np.ceil(np.log2(exact))).tolist()


# who goes


@pytest.mark.parametrize(
    ("batch", "silent", "tally", "goes"),
    [
        (1.0, 4.0, [0, 0, 3], True),
        (1.0, 3.0, [0, 0, 3], False),  # gaps of up to 4 are its habit
        (5.0, 4.0, [0, 0, 3], False),  # shorter than a batch
        (5.0, 5.0, [0, 0, 3], True),
        (1.0, 99.0, [0, 0, 2], False),  # too few firings to judge by
        (1.0, 1.0, [2, 0, 1], True),
        (1.0, 0.0, [2, 0, 1], False),
    ],
)
def test_a_unit_goes_when_it_is_silent_for_a_batch_and_for_longer_than_it_ever_is(batch, silent, tally, goes):
    part, s = small()
    s = remembering(s, batch, [silent, 0.0, silent, 0.0], [tally, tally, tally, [9]])
    after = renew(part, s)
    assert gone(s, after) == ([0, 2] if goes else []) and (after is s) != goes
    memory = after.memory[SNR]
    assert memory["silent/trunk.layers.1"].tolist() == ([0.0] * 4 if goes else [silent, 0.0, silent, 0.0])
    kept = [0 if goes else sum(tally), sum(tally)] * 2
    assert memory["tally/trunk.layers.1"].sum(1).tolist() == [*kept[:3], 9]
    assert memory["batch"] == batch


@pytest.mark.parametrize("percentile", [0.4, 0.8])
def test_several_updates_and_events_equal_a_loop_over_units_with_a_list_of_gaps(percentile):
    part = dqn([SelfNormalizedResets(gaps=4, percentile=percentile)], VECTOR, net=Vectors(width=6)).q
    s, g, layers = part.birth(0), torch.Generator().manual_seed(0), recyclable(part, ("all",))
    units = {(la.name, i): ([], 0) for la in layers for i in range(6)}  # gaps, silence
    rates, resets = torch.linspace(0.02, 0.6, 6), 0
    for update in range(1, 41):
        feats = {la.feats: (torch.rand(5, 6, generator=g) < rates).float() for la in layers}
        s = seen(part, s, feats)
        for (name, i), (gaps, silence) in units.items():
            for fires in feats[next(la.feats for la in layers if la.name == name)][:, i]:
                silence += 1
                if fires:
                    gaps.append(silence)
                    silence = 0
            units[name, i] = gaps, silence
        if update % 3 == 0:
            chosen = {la.name: torch.zeros(6, dtype=torch.bool) for la in layers}
            for (name, i), (gaps, silence) in units.items():
                if len(gaps) >= 4:
                    usual = 2 ** np.ceil(np.log2(np.quantile(gaps, percentile, method="inverted_cdf")))
                    if silence >= max(usual, 5):
                        chosen[name][i], units[name, i] = True, ([], 0)
            resets += sum(int(mask.sum()) for mask in chosen.values())
            wanted = recycle(s, context(part, s), chosen)
            s = renew(part, s)
            assert equal(s._replace(memory={}), wanted._replace(memory={}))
        for (name, i), (gaps, silence) in units.items():
            assert s.memory[SNR][f"silent/{name}"][i] == silence
            assert s.memory[SNR][f"tally/{name}"][i].sum() == len(gaps)
    assert resets >= 4


# in training


@pytest.mark.parametrize(("make", "part", "spec", "net"), TRAINED)
def test_a_unit_that_dies_in_training_is_born_again_and_one_that_speaks_is_not(make, part, spec, net):
    e = engine(make([SelfNormalizedResets(gaps=8, percentile=1.0, when=When(every=1))], net=net), (0, 1))
    layers, s = recyclable(e.learner.parts[part], ("all",)), e.states[part]
    for la in layers:  # the first unit speaks, the second, too
        s.params[f"{la.name}.bias"][:, :2] = 50.0
        s.params[f"{la.name}.weight"][:, :2].abs_()
    clock = run(e, 3)
    for la in layers:
        s.params[f"{la.name}.bias"][:, 0] = -1e4
        assert s.memory[SNR][f"tally/{la.name}"][:, :2, 0].tolist() == [[3 * BATCH] * 2] * 2
    e.update(batch_for(spec, e.seeds, 3), clock)
    clock.update()
    old = clone(e.states[part])
    rows = e.intervene(clock, ("updates",), None)
    assert [row["seed"] for row in rows if row["part"] == part] == [0, 1]
    for la in layers:
        assert torch.equal(s.params[f"{la.name}.bias"][:, 0], torch.zeros(2))  # a batch of silence
        assert torch.equal(s.params[f"{la.name}.bias"][:, 1], old.params[f"{la.name}.bias"][:, 1])
        assert (s.memory[SNR][f"tally/{la.name}"][:, 0] == 0).all()
        assert (s.memory[SNR][f"tally/{la.name}"][:, 1].sum(1) == 4 * BATCH).all()
    weight = s.params[f"{layers[0].name}.weight"]
    assert not torch.equal(weight[0, 0], weight[1, 0])
    assert equal((s.copies, s.birth), (old.copies, old.birth))


# settings


def test_defaults_are_as_described():
    d = SelfNormalizedResets()
    assert (d.percentile, d.gaps, d.toward, d.reader, d.optimizer, d.steps) == (
        (0.98, 100) + ("fresh", "zero", "touched", "keep")
    )


@pytest.mark.parametrize("wrong", [{"percentile": 0.0}, {"percentile": 1.1}, {"gaps": 0}, {"reader": "one"}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(SelfNormalizedResets, wrong)


def test_where_nothing_can_be_reset_is_refused_at_birth():
    with pytest.raises(ValueError, match=r"where=\[output\] holds no hidden layer"):
        dqn([SelfNormalizedResets(where=("output",))]).q.birth(0)


def test_a_newborns_memory_is_empty():
    _, s = small(units=3)
    shapes = {k: tuple(x.shape) for k, x in s.memory[SNR].items() if "/" in k or k == "batch"}
    assert shapes == {"batch": (), "silent/trunk.layers.1": (3,), "tally/trunk.layers.1": (3, 32)}
    assert all(torch.count_nonzero(x) == 0 for x in s.memory[SNR].values())
