"""One thread per test process: several run side by side, and each is small."""

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def denormal_numbers():
    """A run takes them for zero from then on; the next test, and hypothesis, begin with them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
