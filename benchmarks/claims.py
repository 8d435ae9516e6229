"""The field's claims about plasticity in supervised streams, each as numbers that are above 0 where it holds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = {  # of the kept tables -> what the run calls it
    "online": "stage/online",
    "train": "stage/train",
    "test": "stage/test",
    "updates": "stage/updates",
    "dead": "dead",
    "norm": "parameter_norm",
    "rank": "effective_rank",
    "log_sigma": "log10_sigma_1",
    "trainability": "trainability",
    "entk_rank": "entk_rank",
    "curvature": "hessian_probe_top",
}
EARLY, LATE = 0.2, 0.2  # shares of the stages


class Kept:
    """The numbers of one ablation: for each arm and column [seeds, stages]."""

    def __init__(self, path: Path) -> None:
        rows = list(csv.DictReader(path.open()))
        self.arms = list(dict.fromkeys(row["arm"] for row in rows))
        self.seeds = sorted({int(row["seed"]) for row in rows})
        self._rows = rows

    def __call__(self, arm: str, column: str) -> np.ndarray:
        """[seeds, stages]; stages in which it was not measured are left out."""
        mine = [row for row in self._rows if row["arm"] == arm and row.get(column)]
        if not mine:
            raise ValueError(f"{arm} has no {column}")
        found = {(int(row["seed"]), int(row["step"])): float(row[column]) for row in mine}
        steps = sorted({step for _, step in found})
        return np.array([[found[seed, step] for step in steps] for seed in self.seeds])

    def last(self, arm: str, column: str) -> np.ndarray:
        """At the end of the run. [seeds]"""
        return self(arm, column)[:, -1]

    def mean(self, arm: str, column: str) -> np.ndarray:
        """Over all stages. [seeds]"""
        return self(arm, column).mean(1)

    def change(self, arm: str, column: str) -> np.ndarray:
        """Late stages less early ones, the first that was measured apart: of stage 1 nothing can be lost. [seeds]"""
        values = self(arm, column)[:, 1:]
        return self.late(arm, column) - values[:, : max(1, round(EARLY * values.shape[1]))].mean(1)

    def late(self, arm: str, column: str) -> np.ndarray:
        """Over the late stages. [seeds]"""
        values = self(arm, column)[:, 1:]
        return values[:, -max(1, round(LATE * values.shape[1])) :].mean(1)


@dataclass(frozen=True)
class Claim:
    """What somebody has said, and how to see it in the kept numbers of an ablation."""

    ablation: str  # configs/testbeds/NAME.yaml
    text: str
    source: str
    effect: Callable[[Kept], np.ndarray]  # one number per seed, above 0 where the claim holds
    unit: str


def against_plain(ablation: str, arm: str, name: str, source: str) -> list[Claim]:
    """An intervention is judged twice: by what is lost on the way, and by how well late stages are learned."""
    return [
        Claim(ablation, f"{name}: less is lost on the way than with plain Adam", source,
              lambda d: d.change(arm, "online") - d.change("base", "online"), "online accuracy, late - early"),
        Claim(ablation, f"{name}: late stages are learned better than with plain Adam", source,
              lambda d: d.late(arm, "online") - d.late("base", "online"), "online accuracy, late"),
    ]  # fmt: skip


ASH, LEE, DOHARE = "Ash & Adams 2020", "Lee et al. 2024 (H&T)", "Dohare et al. 2024"
KUMAR, LYLE, SHIN = "Kumar et al. 2023", "Lyle et al. 2024", "Shin et al. 2024 (DASH)"
PLASTIC, OH = "Lee et al. 2023 (PLASTIC)", "Oh et al. 2025 (SWR)"
PROBE, MEAN = "trainability of the probe", "test accuracy, mean over stages"
ALL_CLASSES = "test accuracy, all classes"
TEST, ONLINE, TRAIN = "test accuracy", "online accuracy, late - early", "accuracy on training data"

CLAIMS = [
    Claim("warm_start", "A warm start generalises worse than a cold one (Adam)", ASH,
          lambda d: d.last("cold", "test") - d.last("warm", "test"), TEST),
    Claim("warm_start", "A warm start generalises worse than a cold one (SGD)", ASH,
          lambda d: d.last("sgd_cold", "test") - d.last("sgd_warm", "test"), TEST),
    Claim("warm_start", "Shrink & Perturb at the change is better than a warm start (Adam)", ASH,
          lambda d: d.last("shrink_and_perturb", "test") - d.last("warm", "test"), TEST),
    Claim("warm_start", "Shrink & Perturb at the change is better than a warm start (SGD)", ASH,
          lambda d: d.last("sgd_shrink_and_perturb", "test") - d.last("sgd_warm", "test"), TEST),
    Claim("warm_start", "Shrink & Perturb is better than a warm start, with batch normalisation (Adam)", ASH,
          lambda d: d.last("norm_shrink_and_perturb", "test") - d.last("norm_warm", "test"), TEST),
    Claim("warm_start", "A warm start is worse than a cold one, with batch normalisation (Adam)", ASH,
          lambda d: d.last("norm_cold", "test") - d.last("norm_warm", "test"), TEST),
    Claim("warm_start", "DASH at the change is better than a warm start", SHIN,
          lambda d: d.last("dash", "test") - d.last("warm", "test"), TEST),
    Claim("warm_start", "Soft weight rescaling is better than plain warm start", OH,
          lambda d: d.last("soft_weight_rescaling", "test") - d.last("warm", "test"), TEST),
    Claim("pretraining_length", "A first stage to the end costs more than one of 25 updates", SHIN,
          lambda d: d.last("first_0.0125", "test") - d.last("first_1", "test"), TEST),
    Claim("pretraining_length", "A warm start after 25 updates is still worse than a cold one", SHIN,
          lambda d: d.last("cold", "test") - d.last("first_0.0125", "test"), TEST),
    Claim("noisy_warm_start", "A small noisy beginning costs generalisation for good", LEE,
          lambda d: d.last("cold", "test") - d.last("warm", "test"), TEST),
    Claim("noisy_warm_start", "A small noisy beginning costs it without batch normalisation too", LEE,
          lambda d: d.last("plain_cold", "test") - d.last("plain_warm", "test"), TEST),
    Claim("noisy_warm_start", "Hare & Tortoise is better than a warm start", LEE,
          lambda d: d.last("hare_and_tortoise", "test") - d.last("warm", "test"), TEST),
    Claim("noisy_warm_start", "Hare & Tortoise is better than averaging alone (EMA)", LEE,
          lambda d: d.last("hare_and_tortoise", "test") - d.last("ema", "test"), TEST),
    Claim("noisy_warm_start", "Hare & Tortoise is better than self-distillation", LEE,
          lambda d: d.last("hare_and_tortoise", "test") - d.last("self_distillation", "test"), TEST),
    Claim("noisy_warm_start", "Shrink & Perturb is better than a warm start", LEE,
          lambda d: d.last("shrink_and_perturb", "test") - d.last("warm", "test"), TEST),
    Claim("noisy_warm_start", "A head reset is better than a warm start", LEE,
          lambda d: d.last("head_reset", "test") - d.last("warm", "test"), TEST),
    Claim("noisy_warm_start", "CReLU leaves a gap to the cold start", LEE,
          lambda d: d.last("cold", "test") - d.last("crelu", "test"), TEST),
    Claim("noisy_warm_start", "L2 Init leaves a gap to the cold start", LEE,
          lambda d: d.last("cold", "test") - d.last("l2_init", "test"), TEST),
    Claim("permuted_pixels", "With plain Adam later permutations are learned worse", DOHARE,
          lambda d: -d.change("base", "online"), "online accuracy, early - late"),
    Claim("permuted_pixels", "With L2 Init later permutations are learned better than early ones", KUMAR,
          lambda d: d.change("l2_init", "online"), ONLINE),
    *against_plain("permuted_pixels", "l2_init", "L2 Init on permuted pixels", KUMAR),
    *against_plain("permuted_pixels", "l2", "L2 on permuted pixels", KUMAR),
    *against_plain("permuted_pixels", "shrink_and_perturb", "Shrink & Perturb on permuted pixels", DOHARE),
    *against_plain("permuted_pixels", "layer_norm", "Layer normalisation on permuted pixels", LYLE),
    *against_plain("permuted_pixels", "crelu", "CReLU on permuted pixels", "Abbas et al. 2023"),
    *against_plain("permuted_pixels", "redo", "ReDo on permuted pixels", "Sokar et al. 2023"),
    *against_plain("permuted_pixels", "soft_weight_rescaling", "Soft weight rescaling on permuted pixels", OH),
    Claim("permuted_pixels", "With dropout later permutations are learned still worse", DOHARE,
          lambda d: d.change("base", "test") - d.change("dropout", "test"), "test accuracy, early - late"),
    Claim("permuted_pixels", "Adam loses more on the way than gradient descent", DOHARE,
          lambda d: d.change("sgd", "online") - d.change("base", "online"), ONLINE),
    Claim("permuted_pixels", "Dead units become more with plain Adam", DOHARE,
          lambda d: d.change("base", "dead"), "share of units, late - early"),
    Claim("permuted_pixels", "Weights grow with plain Adam", DOHARE,
          lambda d: d.change("base", "norm"), "parameter norm, late - early"),
    Claim("permuted_pixels", "The effective rank of features falls with plain Adam", DOHARE,
          lambda d: -d.change("base", "rank"), "effective rank, early - late"),
    Claim("random_labels", "Plain Adam memorises later random labels worse", LYLE,
          lambda d: -d.change("base", "train"), "accuracy on training data, early - late"),
    Claim("random_labels", "Layer normalisation with L2 memorises better than plain, late", LYLE,
          lambda d: d.last("layer_norm_l2", "train") - d.last("base", "train"), TRAIN),
    Claim("random_labels", "L2 Init memorises better than plain, late", KUMAR,
          lambda d: d.last("l2_init", "train") - d.last("base", "train"), TRAIN),
    Claim("random_labels", "The tangent kernel loses rank with plain Adam", LYLE,
          lambda d: -d.change("base", "entk_rank"), "rank of the eNTK, early - late"),
    Claim("random_labels", "Layer normalisation with L2 keeps more of the tangent kernel's rank", LYLE,
          lambda d: d.change("layer_norm_l2", "entk_rank") - d.change("base", "entk_rank"),
          "rank of the eNTK, late - early"),
    Claim("random_labels", "The curvature grows with plain Adam", "ours",
          lambda d: d.change("base", "curvature"), "top eigenvalue of the probe Hessian, late - early"),
    Claim("random_labels", "The curvature grows less with layer normalisation and L2", "ours",
          lambda d: d.change("base", "curvature") - d.change("layer_norm_l2", "curvature"),
          "top eigenvalue, less growth"),
    Claim("chunks", "Warm starts on arriving data generalise worse than cold ones", SHIN,
          lambda d: d.mean("cold", "test") - d.mean("warm", "test"), MEAN),
    Claim("chunks", "DASH takes fewer updates than cold starts", SHIN,
          lambda d: d.mean("cold", "updates") - d.mean("dash", "updates"), "updates per stage"),
    Claim("chunks", "DASH generalises better than warm starts", SHIN,
          lambda d: d.mean("dash", "test") - d.mean("warm", "test"), MEAN),
    Claim("chunks", "DASH generalises better than cold starts", SHIN,
          lambda d: d.mean("dash", "test") - d.mean("cold", "test"), MEAN),
    Claim("chunks", "DASH generalises better than Shrink & Perturb", SHIN,
          lambda d: d.mean("dash", "test") - d.mean("shrink_and_perturb", "test"), MEAN),
    Claim("chunks", "DASH takes fewer updates than cold starts, without normalisation too", "ours",
          lambda d: d.mean("plain_cold", "updates") - d.mean("plain_dash", "updates"), "updates per stage"),
    Claim("large_means", "Squared error: the largest singular value of features grows with the mean", LYLE,
          lambda d: d("mse_100", "log_sigma")[:, 0] - d("mse_0", "log_sigma")[:, 0], "log10 sigma 1"),
    Claim("large_means", "The largest singular value of features grows less with HL-Gauss", LYLE,
          lambda d: (d("mse_100", "log_sigma") - d("mse_0", "log_sigma")
                     - d("hl_gauss_100", "log_sigma") + d("hl_gauss_0", "log_sigma"))[:, 0], "log10 sigma 1"),
    Claim("large_means", "Squared error: the next function is learned worse after a large mean", LYLE,
          lambda d: d.last("mse_0", "train") - d.last("mse_100", "train"), "share of variance explained"),
    Claim("large_means", "HL-Gauss: less is lost by a large mean than with squared error", LYLE,
          lambda d: (d.last("mse_0", "train") - d.last("mse_100", "train"))
          - (d.last("hl_gauss_0", "train") - d.last("hl_gauss_100", "train")), "share of variance explained"),
    Claim("large_means", "With two-hot targets more is explained than with squared error", LYLE,
          lambda d: d.last("two_hot_100", "train") - d.last("mse_100", "train"), "share of variance explained"),
    Claim("shifted_labels", "With plain Adam later namings of the classes are learned worse", PLASTIC,
          lambda d: -d.change("base", "online"), "online accuracy, early - late"),
    *against_plain("shifted_labels", "crelu", "CReLU with new labels", PLASTIC),
    *against_plain("shifted_labels", "layer_norm", "Layer normalisation with new labels", PLASTIC),
    *against_plain("shifted_labels", "head_reset", "Resets of the head with new labels", PLASTIC),
    *against_plain("shifted_labels", "l2_init", "L2 Init with new labels", KUMAR),
    Claim("shifted_labels", "CReLU loses less with new labels than layer normalisation", PLASTIC,
          lambda d: d.change("crelu", "online") - d.change("layer_norm", "online"), ONLINE),
    Claim("shifted_labels", "CReLU learns late labels better than layer normalisation", PLASTIC,
          lambda d: d.late("crelu", "online") - d.late("layer_norm", "online"), "online accuracy, late"),
    Claim("slow_regression", "The error of gradient descent rises over the stages", DOHARE,
          lambda d: -d.change("base", "online"), "squared error, late - early"),
    Claim("slow_regression", "The error of Adam rises over the stages", DOHARE,
          lambda d: -d.change("adam", "online"), "squared error, late - early"),
    Claim("slow_regression", "Late, gradient descent is worse than a linear learner", DOHARE,
          lambda d: d.late("linear", "online") - d.late("base", "online"), "squared error, late"),
    Claim("slow_regression", "Continual backpropagation keeps the error down", DOHARE,
          lambda d: d.change("continual_backprop", "online") - d.change("base", "online"), "error saved, late - early"),
    Claim("mdp", "DQN with squared error loses trainability as the discount grows", LYLE,
          lambda d: d.last("mse_0", "trainability") - d.last("mse_99", "trainability"), PROBE),
    Claim("mdp", "DQN with layer normalisation and two-hot targets loses less", LYLE,
          lambda d: (d.last("mse_0", "trainability") - d.last("mse_99", "trainability"))
          - (d.last("two_hot_ln_0", "trainability") - d.last("two_hot_ln_99", "trainability")), PROBE),
    Claim("mdp", "At discount 0.99, two-hot targets with layer normalisation stay more trainable", LYLE,
          lambda d: d.last("two_hot_ln_99", "trainability") - d.last("mse_99", "trainability"), PROBE),
    Claim("mdp", "DQN with layer normalisation and C51 loses less", LYLE,
          lambda d: (d.last("mse_0", "trainability") - d.last("mse_99", "trainability"))
          - (d.last("c51_ln_0", "trainability") - d.last("c51_ln_99", "trainability")), PROBE),
    Claim("mdp", "At discount 0.99, C51 with layer normalisation stays more trainable", LYLE,
          lambda d: d.last("c51_ln_99", "trainability") - d.last("mse_99", "trainability"), PROBE),
    Claim("mdp", "At discount 0.99, layer normalisation alone keeps squared error trainable", LYLE,
          lambda d: d.last("mse_ln_99", "trainability") - d.last("mse_99", "trainability"), PROBE),
    Claim("mdp", "At discount 0.99, two-hot targets add to layer normalisation", LYLE,
          lambda d: d.last("two_hot_ln_99", "trainability") - d.last("mse_ln_99", "trainability"), PROBE),
    Claim("class_incremental", "Early, classes learned in turn are told apart better than from scratch", DOHARE,
          lambda d: d("base", "test")[:, 1:5].mean(1) - d("scratch", "test")[:, 1:5].mean(1),
          "test accuracy, two to five classes"),
    Claim("class_incremental", "In the end, classes learned in turn are told apart worse than from scratch", DOHARE,
          lambda d: d.last("scratch", "test") - d.last("base", "test"), ALL_CLASSES),
    Claim("class_incremental", "Classes in turn: Shrink & Perturb helps", DOHARE,
          lambda d: d.last("shrink_and_perturb", "test") - d.last("base", "test"), ALL_CLASSES),
    Claim("class_incremental", "Classes in turn: continual backpropagation helps", DOHARE,
          lambda d: d.last("continual_backprop", "test") - d.last("base", "test"), ALL_CLASSES),
    Claim("class_incremental", "Classes in turn: L2 Init helps", KUMAR,
          lambda d: d.last("l2_init", "test") - d.last("base", "test"), ALL_CLASSES),
    Claim("class_incremental", "Classes in turn: resets of the head help", LEE,
          lambda d: d.last("head_reset", "test") - d.last("base", "test"), ALL_CLASSES),
    Claim("soft_weight_rescaling", "Chunks that add up: soft weight rescaling is better than plain Adam", OH,
          lambda d: d.mean("full_rescaled", "test") - d.mean("full", "test"), MEAN),
    Claim("soft_weight_rescaling", "The newest chunk alone: soft weight rescaling is better than plain Adam", OH,
          lambda d: d.mean("limited_rescaled", "test") - d.mean("limited", "test"), MEAN),
    Claim("soft_weight_rescaling", "One task: soft weight rescaling generalises better than plain Adam", OH,
          lambda d: d.last("single_rescaled", "test") - d.last("single", "test"), TEST),
    Claim("soft_weight_rescaling", "Soft weight rescaling keeps weights from growing", OH,
          lambda d: d.change("limited", "norm") - d.change("limited_rescaled", "norm"),
          "parameter norm, less growth"),
    Claim("noisy_chunks", "Ten parts ever cleaner: a warm start ends below a cold one", LEE,
          lambda d: d.last("cold", "test") - d.last("warm", "test"), TEST),
    Claim("noisy_chunks", "Ten parts ever cleaner: Hare & Tortoise ends above a warm start", LEE,
          lambda d: d.last("hare_and_tortoise", "test") - d.last("warm", "test"), TEST),
    Claim("noisy_chunks", "Ten parts ever cleaner: Hare & Tortoise ends above averaging alone (EMA)", LEE,
          lambda d: d.last("hare_and_tortoise", "test") - d.last("ema", "test"), TEST),
    Claim("noisy_chunks", "Ten parts ever cleaner: Shrink & Perturb ends above a warm start", LEE,
          lambda d: d.last("shrink_and_perturb", "test") - d.last("warm", "test"), TEST),
]  # fmt: skip
