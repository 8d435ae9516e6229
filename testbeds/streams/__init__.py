"""Streams of supervised stages: what changes when the world changes. A stage is a pure function of (seed, index).

A stream is a dataclass of settings (`env.SETTING`) with one method, `at`. One file per stream, whose name is the
stream's, as in env=testbed/permuted_pixels.
"""
