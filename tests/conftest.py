"""One thread per test process: several run side by side, and each is small."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
