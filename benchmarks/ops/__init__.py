"""Every op beside what PyTorch offers, checked and timed: python -m benchmarks.ops, and benchmarks/bench_ops.py.

One file per op, named as in fastseq/ops, builds its cases (``case.py``) for a device: inputs, the op, its rivals on
the same inputs, and the bytes and FLOPs that the result needs. ``suite.py`` lists the cases; ``check.py`` holds each
against the reference before ``timing.py`` times it; ``run.py`` does both; ``report.py`` shows the results.
"""
