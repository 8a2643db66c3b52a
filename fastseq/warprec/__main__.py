"""``python -m fastseq.warprec [--new-names]``: the file to name under ``general.custom_modules``."""

import sys

from .installation import custom_module

if sys.argv[1:] not in ([], ["--new-names"]):  # a typo must not print the other file
    sys.exit(f"usage: python -m fastseq.warprec [--new-names]; got {' '.join(sys.argv[1:])}")
print(custom_module(as_new_names="--new-names" in sys.argv))
