"""Triton kernels, one file per hot path, named as the file of fastseq.ops that they serve.

Only fastseq.ops imports this package, and only where Triton is installed.
"""
