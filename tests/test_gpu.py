"""What must hold on a GPU (`python -m pytest -m gpu` on a machine that has one)."""

import pytest
import torch

from benchmarks.gpu_checks import CHECKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check(check):
    print(check("cuda"))
