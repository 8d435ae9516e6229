"""Every intervention on the networks of the supervised papers."""

from dataclasses import replace

import pytest
import torch
from learners import BATCH, batch_for, equal, named, run
from test_contract import TABLE, make

from core.engine import Engine
from core.spec import EnvSpec
from core.state import clone
from nets import CNN, VGG16, ResNet18, ViT
from testbeds import Classifier

IMAGES = EnvSpec("testbed/images", (8, 8), "uint8", num_actions=3, stack=3)
NETS = {
    "cnn": CNN(width=16, units=0.5),
    "vgg16": VGG16(width=64, units=1 / 4),
    "resnet18": ResNet18(width=64, depth=1, units=1 / 4),
    "vit": ViT(patch=4, dim=16, blocks=1, heads=2),
}


@pytest.mark.parametrize(
    "net", ["resnet18", "vit", *(pytest.param(net, marks=pytest.mark.slow) for net in ("cnn", "vgg16"))]
)
@pytest.mark.parametrize("name", TABLE)
def test_it_trains_acts_and_stays_finite(name, net):
    blueprint = NETS[net]
    if name == "plasticity_injection" and blueprint.norm == "batch":
        blueprint = replace(blueprint, norm="layer")  # frozen heads beside batch normalisation are refused
    if net == "vit" and name in ("layer_norm", "batch_norm", "normalize_and_project", "dropout"):
        with pytest.raises(ValueError, match="vit has layer normalisation of its own and no dropout"):
            Classifier(Classifier.Settings(batch_size=BATCH), IMAGES, blueprint, None, named([make(name)]))
        return
    learner = Classifier(Classifier.Settings(batch_size=BATCH), IMAGES, blueprint, None, named([make(name)]))
    engine = Engine(learner, (0, 1), BATCH, compile=False)
    born = clone(engine.states)
    run(engine, 4)
    params = engine.states["classifier"].params
    assert all(p.isfinite().all() for p in params.values()) and engine.diverged() == [False, False]
    assert not equal(params, born["classifier"].params)
    logits, _ = learner.classifier({k: v[0] for k, v in params.items()} | engine._members[0]["classifier"].buffers,
                                   batch_for(IMAGES, (0,))["obs"][0])  # fmt: skip
    assert logits.shape == (BATCH, 3)
    assert name == "dash" or not torch.equal(logits[0], logits[1])  # thirteen layers, each 0.3 of itself: nothing left
