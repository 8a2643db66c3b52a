"""CPU implementations: the calls of C++ (fastseq._C)."""
