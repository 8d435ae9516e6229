"""A compile cache that a killed process left damaged heals by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.compiling import compiled, remove_damaged

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PROGRAM = """
import torch
from core.compiling import compiled
class Sums:
    def sines(self, x):
        return (x.sin() * x + 1).cumsum(0)
    def cosines(self, x):
        return (x.cos() * x - 1).exp().sum(0)
CPU, s, x = torch.device("cpu"), Sums(), torch.arange(64.0) / 64
assert torch.allclose(compiled(s.sines, CPU)(x), s.sines(x), atol=1e-4)
assert torch.allclose(compiled(s.cosines, CPU)(x), s.cosines(x), atol=1e-4)
"""


def start(cache: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0.9, 0, 1_000])
def test_half_written_libraries_are_made_again(tmp_path, left):
    assert start(tmp_path).returncode == 0
    libraries = sorted(tmp_path.rglob("*.so"))
    assert len(libraries) >= 2
    os.utime(libraries[0], (0, 0))
    assert remove_damaged(tmp_path) == []  # whole ones stay
    whole = {path: path.stat().st_size for path in libraries}
    for path in libraries:
        os.truncate(path, left if isinstance(left, int) else int(left * whole[path]))
        os.utime(path, (0, 0))
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr[-500:]
    assert {path: path.stat().st_size for path in libraries} == whole


def test_libraries_that_may_still_be_written_stay(tmp_path):
    library = tmp_path / "half.so"
    library.write_bytes(b"\x7fELF")
    assert remove_damaged(tmp_path) == []
    os.utime(library, (0, 0))
    assert remove_damaged(tmp_path) == [library]
    assert remove_damaged(Path(torch.__file__).parent / "lib") == []


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def times(self, x, *, add=0.0):
        if self.factor < 0:
            raise ValueError("its own")
        return torch.where(x > 0, self.factor * x, 1.0 * self.factor) + add


def test_an_error_of_the_method_itself_is_raised():
    with pytest.raises(Exception, match="its own"):
        compiled(Scaled(-1).times, CPU)(torch.ones(1))


def test_one_process_compiles_a_method_of_as_many_objects_as_it_likes():
    objects = [Scaled(float(k)) for k in range(12)]
    assert len(objects) > torch._dynamo.config.recompile_limit
    methods = [compiled(each.times, CPU) for each in objects]  # with numbers that differ: none becomes a variable
    for _ in range(2):
        assert [float(method(torch.ones(1), add=0.5)) for method in methods] == [k + 0.5 for k in range(12)]
