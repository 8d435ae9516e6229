"""Augmentation of frames: by hand, against padding and slicing, and where it enters a loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, largest_difference, run
from torch.func import vmap

from core.spec import EnvSpec
from nets import CNN
from nets.augmentation import Augmentation, shifted
from testbeds import Classifier

IMAGES = EnvSpec("testbed/images", (8, 8), "uint8", num_actions=3, stack=3)
FULL = Augmentation(shift=4, intensity=0.05)


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_one_pixel_of_shift_by_hand():
    picture = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)
    place = {"first": 0.1, "middle": 0.5, "last": 0.9}  # a third each of three places

    def moved(rows: str, columns: str) -> list:
        return shifted(picture, torch.tensor([[place[rows], place[columns]]]), 1)[0, 0].tolist()

    assert moved("middle", "middle") == [[1, 2, 3], [4, 5, 6]]
    assert moved("first", "middle") == [[1, 2, 3], [1, 2, 3]]  # the crop begins above: the upper edge is repeated
    assert moved("last", "middle") == [[4, 5, 6], [4, 5, 6]]
    assert moved("middle", "first") == [[1, 1, 2], [4, 4, 5]]
    assert moved("last", "last") == [[5, 6, 6], [5, 6, 6]]


def test_every_place_is_a_crop_of_the_padded_frames():
    old = frames(81, 4, 20, 13)
    places = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    new = shifted(old, (places + 0.5) / 9, 4)
    padded = F.pad(old.float(), (4, 4, 4, 4), mode="replicate").to(torch.uint8)
    for i, (y, x) in enumerate(places.tolist()):
        assert torch.equal(new[i], padded[i, :, y : y + 20, x : x + 13])


def test_all_places_are_drawn_alike_the_ends_included():
    from core.randomness import draw, keys_tensor

    noise = FULL.noise(20_000)
    drawn = draw(noise, {name: keys_tensor([3], name) for name in noise}, torch.tensor(0))
    places = (drawn["shift/obs"][0] * 9).long()
    counts = torch.stack([places[:, axis].bincount(minlength=9) for axis in (0, 1)])
    assert counts.shape == (2, 9)
    assert ((counts - 20_000 / 9).abs() < 5 * (20_000 * 8 / 81) ** 0.5).all()


def test_brightness_is_one_factor_per_stack_and_never_beyond_two_deviations():
    old = frames(4, 3, 5, 6).clamp_min(1)
    noise = {f"intensity/{name}": torch.tensor([0.0, 1.0, -3.0, 9.0]) for name in ("obs", "next_obs")}
    new = Augmentation(intensity=0.05)({"obs": old, "next_obs": old}, noise)["obs"]
    ratio = (new / old).flatten(1)
    assert torch.allclose(ratio, torch.tensor([1.0, 1.05, 0.9, 1.1])[:, None].expand_as(ratio))


def test_both_observations_have_a_draw_of_their_own_and_nothing_else_changes():
    batch = {k: v[0] for k, v in batch_for(FRAMES, [0]).items()}
    batch["next_obs"] = batch["obs"]
    shift = {"shift/obs": torch.full((BATCH, 2), 0.01), "shift/next_obs": torch.full((BATCH, 2), 0.99)}
    new = Augmentation(shift=4)(batch, shift)
    assert not torch.equal(new["obs"], new["next_obs"])
    assert all(new[k] is batch[k] for k in batch if k not in ("obs", "next_obs"))


def test_without_augmentation_the_batch_is_the_same_object_and_nothing_is_drawn():
    batch = {k: v[0] for k, v in batch_for(FRAMES, [0]).items()}
    off = Augmentation()
    assert all(off(batch, {})[k] is batch[k] for k in batch)
    assert off.noise(32) == {}


def test_half_the_images_are_mirrored_and_a_classifier_sees_them():
    old = frames(4, 2, 3, 5)
    new = Augmentation(flip=True)({"obs": old}, {"flip/obs": torch.tensor([0.1, 0.5, 0.49, 0.9])}, ("obs",))["obs"]
    assert torch.equal(new[[0, 2]], old[[0, 2]]) and torch.equal(new[[1, 3]], old[[1, 3]].flip(-1))
    learner = Classifier(Classifier.Settings(batch_size=BATCH, augment=Augmentation(flip=True)), IMAGES, CNN(width=8))
    e = engine(learner)
    assert set(e.noise) == {"flip/obs"}
    batch = {k: v[0] for k, v in batch_for(IMAGES, [0]).items()}
    losses = [
        learner.classifier_loss(e._members[0]["classifier"].params, e._members[0], batch, {"flip/obs": draw}).loss
        for draw in (torch.zeros(BATCH), torch.ones(BATCH))
    ]
    assert losses[0] != losses[1]
    with pytest.raises(
        ValueError, match="agent.augment: net=mlp shows vectors, not frames; leave out agent.augment.flip"
    ):
        classifier(augment=Augmentation(flip=True))


def test_it_can_be_vmapped():
    old, fraction = frames(3, 5, 2, 9, 9), torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0))
    together = vmap(lambda x, f: shifted(x, f, 4))(old, fraction)
    assert all(torch.equal(together[i], shifted(old[i], fraction[i], 4)) for i in range(3))


def test_dqns_loss_sees_the_moved_frames():
    learner = dqn(augment=Augmentation(shift=4))
    states = {"q": learner.q.birth(0)}
    batch = {k: v[0] for k, v in batch_for(FRAMES, [0]).items()} | {"update": torch.tensor(1)}
    noise = {name: torch.rand(*n.shape) for name, n in learner.noise(BATCH).items()}
    moved = {name: shifted(batch[name], noise[f"shift/{name}"], 4) for name in ("obs", "next_obs")}
    augmented = learner.q_loss(states["q"].params, states, batch, noise).loss
    plain = dqn()
    assert torch.equal(augmented, plain.q_loss(states["q"].params, states, batch | moved, {}).loss)
    assert not torch.equal(augmented, plain.q_loss(states["q"].params, states, batch, {}).loss)


@pytest.mark.parametrize("seeds", [(0, 1)])
def test_each_seed_draws_what_it_would_draw_alone(seeds):
    together, alone = engine(dqn(augment=FULL), seeds), engine(dqn(augment=FULL), seeds[1:])
    run(together, 3)
    run(alone, 3)
    assert largest_difference([s.params for s in (together._members[1]["q"],)], [alone._members[0]["q"].params]) == 0


@pytest.mark.slow
def test_compiled_and_eager_agree():
    eager, fast = (engine(dqn(augment=FULL), (0,), compile=c) for c in (False, True))
    run(eager, 3)
    run(fast, 3)
    assert largest_difference(eager.states, fast.states) < 1e-5


def test_vectors_are_refused():
    with pytest.raises(
        ValueError,
        match=r"agent.augment: env=toy/vector shows vectors, not frames; leave out agent.augment.shift",
    ):
        dqn(spec=VECTOR, augment=FULL)
    assert CONTROL.is_image is False


@pytest.mark.parametrize("make", [dqn])
def test_agents_refuse_mirror_images(make):
    with pytest.raises(ValueError, match="agent.augment.flip: actions of a mirrored frame would be others"):
        make(augment=Augmentation(flip=True))
