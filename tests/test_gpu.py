"""What must hold on a GPU (`python -m pytest -m gpu` on a machine that has one)."""

import pytest
import torch

from benchmarks.gpu_checks import CHECKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check(check):
    """A check raises AssertionError itself, so that the benchmark can run it too."""
    print(check("cuda"))
