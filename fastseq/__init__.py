"""fastseq: SASRec, GRU4Rec and Caser, fast."""
from ._version import __version__
