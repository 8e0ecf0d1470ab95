"""Benchmarks print ratios measured in one run; none is collected as a test.

The libraries compared are held to two threads, which is to be said before any of them is loaded.
"""
import os

THREADS = 2
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(THREADS)
