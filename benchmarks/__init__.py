"""What measures fastseq: single ops (ops/, bench_ops.py), and the scripts of whole runs."""
