"""Name this file under ``general.custom_modules`` and WarpRec also knows FastSASRec, FastGRU4Rec and FastCaser.

WarpRec imports it by itself, in the driver and in every Ray worker, before it looks at the rest of a configuration.
"""

try:
    from fastseq.warprec import install
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "fastseq":
        raise
    import platform
    import sys

    raise ImportError(
        f"fastseq is not installed for {sys.executable} on {platform.node()}: pip install 'fastseq-rec[warprec]' in "
        "the environment of every machine whose Ray workers train"
    ) from error

install(as_new_names=True)
