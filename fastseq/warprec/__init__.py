"""fastseq's models as WarpRec's own: its base classes around the core models, and the registries that name them.

    import fastseq.warprec
    fastseq.warprec.install()

makes every WarpRec pipeline of this process, and of the Ray workers it starts, build fastseq's SASRec, GRU4Rec and
Caser. ``python -m fastseq.warprec`` prints the file to name under ``general.custom_modules`` instead.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version

TESTED = "2.2.8"  # the WarpRec that all of this was tested with
_OLDEST, _TOO_NEW = (2, 2, 8), (2, 3)
_REMEDY = f"pip install 'fastseq-rec[warprec]' installs {TESTED}, the version fastseq is tested with (Python >= 3.12)"


def check_version() -> None:
    """Checks that a WarpRec is installed whose insides are those that this package was written for, or any at all
    where the environment has FASTSEQ_WARPREC=any.

    Raises:
        ImportError: naming the installed version, the one that was tested, and the command that installs it.
    """
    problem = None
    try:
        installed = version("warprec")
    except PackageNotFoundError:
        problem = "fastseq.warprec needs WarpRec, which is not installed"
    else:
        release = re.match(r"[\d.]*", installed.split("+")[0])  # 2.2.8rc1 and 2.2.8+local are of 2.2.8
        numbers = tuple(int(part) for part in release[0].split(".") if part)[:3] if release else ()
        if not _OLDEST <= numbers < _TOO_NEW and os.environ.get("FASTSEQ_WARPREC") != "any":
            age = "old" if numbers < _OLDEST else "new"
            problem = f"WarpRec {installed} is installed, which is too {age} for this fastseq"
    if problem is not None:
        # With a name, python -m answers in one line.
        raise ImportError(f"{problem}: {_REMEDY}", name=__name__)


check_version()

from .. import _warprec_worker  # noqa: E402
from .adapters import Adapter, Caser, FastCaser, FastGRU4Rec, FastSASRec, GRU4Rec, SASRec  # noqa: E402
from .installation import custom_module, install, ray_runtime_env, uninstall  # noqa: E402

__all__ = [
    "Adapter",
    "Caser",
    "FastCaser",
    "FastGRU4Rec",
    "FastSASRec",
    "GRU4Rec",
    "SASRec",
    "check_version",
    "custom_module",
    "install",
    "ray_runtime_env",
    "uninstall",
]

while _warprec_worker.pending:  # in a worker of Ray
    install(as_new_names=_warprec_worker.pending.pop(0))
