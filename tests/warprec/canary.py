"""``make test-warprec WARPREC=newest``: what another WarpRec than the tested one changes for fastseq inside it.

    python tests/warprec/canary.py FOLDER

prints, file by file, how the installed WarpRec differs from the tested one (downloaded to FOLDER) in what fastseq
builds on, then calls ``install`` and runs tests/warprec. The exit code is that of the tests.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BUILT_ON = (  # of the package warprec
    "recommenders/base_recommender.py",
    "recommenders/callbacks.py",
    "recommenders/losses.py",
    "recommenders/sequential_recommender/*.py",
    "recommenders/trainer/*.py",
    "data/entities/*.py",
    "data/entities/train_structures/*.py",
    "data/eval_loaders.py",
    "pipelines/common.py",
    "pipelines/remotes/*.py",
    "serving/servable.py",
    "utils/config/model_configuration.py",
    "utils/config/recommender_model_config/sequential_model_config.py",
    "utils/helpers.py",
    "utils/registry.py",
)


def pinned(folder: Path, tested: str) -> Path:
    """The package as it was tested, from the index."""
    command = ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, f"warprec=={tested}"]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (wheel,) = folder.glob(f"warprec-{tested}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "warprec"


def files(package: Path) -> dict[str, list[str]]:
    """Lines by path of what fastseq builds on."""
    paths = [path for pattern in BUILT_ON for path in sorted(package.glob(pattern))]
    return {str(path.relative_to(package)): path.read_text().splitlines() for path in paths}


def main(folder: Path) -> int:
    """The exit code."""
    os.environ["FASTSEQ_WARPREC"] = "any"
    source = (CHECKOUT / "fastseq" / "warprec" / "__init__.py").read_text()  # importing it may be what fails
    tested, installed = re.findall(r'^TESTED = "(.+?)"', source, re.MULTILINE)[0], version("warprec")
    spec = find_spec("warprec")
    assert spec is not None and spec.origin is not None
    before, after = files(pinned(folder, tested)), files(Path(spec.origin).parent)
    for name in sorted(before.keys() | after.keys()):
        headers = f"WarpRec {tested}/{name}", f"WarpRec {installed}/{name}"
        for line in difflib.unified_diff(before.get(name, []), after.get(name, []), *headers, lineterm="", n=1):
            print(line)
    changed = sum(before.get(name) != after.get(name) for name in before.keys() | after.keys())
    print(f"WarpRec {installed}: {changed} of the {len(before)} files differ that fastseq builds on in {tested}")
    install = "import fastseq.warprec; fastseq.warprec.install(); print('install() works')"
    done = subprocess.run([sys.executable, "-c", install], cwd=CHECKOUT, check=False).returncode
    tests = [sys.executable, "-m", "pytest", "-q", "tests/warprec"]
    return subprocess.run(tests, cwd=CHECKOUT, check=False).returncode or done


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
