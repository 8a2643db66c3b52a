"""CPU implementations: the doors to C++ (fastseq._C)."""
