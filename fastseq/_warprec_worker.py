"""What Ray's workers call first after ``fastseq.warprec.install``: nothing happens until they import WarpRec.

Apart from ``fastseq/warprec/``, because that package imports PyTorch and WarpRec: a dozen processes of a pipeline never
need them.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

pending: list[bool] = []  # as_new_names of each install that fastseq.warprec does at the end of its import


class _AfterWarpRec(MetaPathFinder):
    """Finds ``warprec`` as it would be found without this, and installs as soon as it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "warprec":
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_run, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _run(exec_module: Any, module: ModuleType) -> None:
    exec_module(module)
    importlib.import_module("fastseq.warprec")  # may be what imports warprec: then it goes on after this


def _when_imported(*as_new_names: bool) -> None:
    pending.extend(as_new_names)
    if "warprec" in sys.modules:
        importlib.import_module("fastseq.warprec")
    else:
        sys.meta_path.insert(0, _AfterWarpRec())


# Ray takes the name of a function and calls it without arguments.
replacing, beside, both = (partial(_when_imported, *names) for names in ((False,), (True,), (False, True)))
