"""Every op beside what PyTorch offers, checked and timed: what `fastseq bench kernels` and benchmarks/ share.

One file per op, named as in fastseq/ops, builds its cases (``case.py``) for a device: inputs, the op, its rivals on
the same inputs, and the bytes and FLOPs that the result needs. ``check.py`` holds it against the reference
before ``timing.py`` times it; ``run.py`` does both; ``suite.py`` lists the cases; ``report.py`` shows the results.
"""
