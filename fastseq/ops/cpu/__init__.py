"""CPU implementations: C++ (fastseq._C) for what is not a matrix product, torch's BLAS for what is."""
