"""Build of the C++ extension fastseq._C: every kernel once per instruction set, with ninja.

`csrc/*.cpp` holds kernels. Each is compiled once per instruction set (baseline, AVX2, AVX-512) into its own
namespace, and `csrc/bindings/*.cpp` (compiled once) picks one at run time, so one wheel serves any x86-64.
Objects stay in build/cpp/<platform>. Those of the kernels, which know nothing of Python, serve every Python version, in
editable installs and in wheels. FASTSEQ_SANITIZE=address,undefined (or thread) makes a sanitizer build, whose objects
lie apart; `make sanitize` tests both.
"""

import fcntl
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
VERSION = (ROOT / "fastseq" / "_version.py").read_text().split('"')[1]

INSTRUCTION_SETS = {"baseline": ""}
# The platform built for, which _PYTHON_HOST_PLATFORM names where that is another machine. The flags are those that
# detect() in bindings/module.cpp looks for, no more.
if sysconfig.get_platform().endswith(("x86_64", "amd64")):
    INSTRUCTION_SETS["avx2"] = "-mavx2 -mfma -mbmi2"
    INSTRUCTION_SETS["avx512"] = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi2 -mprefer-vector-width=512"


def escape(path: object) -> str:
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quoted(path: object) -> str:
    """A path as the shell that ninja starts reads it."""
    return shlex.quote(str(path)).replace("$", "$$")


def sources(folder: str) -> list[Path]:
    """The translation units of a folder, relative to ROOT."""
    return [path.relative_to(ROOT) for path in sorted((ROOT / folder).glob("*.cpp"))]


class NinjaBuild(build_ext):
    """Compiles all translation units in parallel and links them into one module."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CXX", "g++")
        sanitize = os.environ.get("FASTSEQ_SANITIZE", "")
        # Paths are relative to ROOT, where ninja runs: a moved tree, or a copy of it beside its objects, stays built.
        work = Path("build", "cpp", "-".join([sysconfig.get_platform(), *filter(None, sanitize.split(","))]))
        (ROOT / work).mkdir(parents=True, exist_ok=True)
        # Races do not depend on the instruction set: one of them halves a slow build.
        sets = {"baseline": ""} if sanitize == "thread" else INSTRUCTION_SETS
        flags = [
            "-O3",
            "-std=c++17",
            "-fPIC",
            "-fvisibility=hidden",
            "-fopenmp",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
            "-Icsrc",
        ]
        link = ["-shared", "-fopenmp"]
        if sanitize:
            flags += [f"-fsanitize={sanitize}", "-g", "-O1", "-fno-omit-frame-pointer"]
            link += [f"-fsanitize={sanitize}"]
        if sanitize == "thread":
            link.remove("-fopenmp")
        # By one name, wherever an isolated build has put it: the command, and so the object, stays the same.
        pybind = work / f"pybind11-{pybind11.__version__}"
        headers = [f"-isystem {quoted(pybind)}", f"-isystem {quoted(sysconfig.get_paths()['include'])}"]
        names = " ".join(f"-DFASTSEQ_HAS_{name.upper()}" for name in sets)
        lines = [
            f"builddir = {escape(work)}",
            f"cxx = {compiler}",
            f"flags = {' '.join(flags)} {names}",
            f"headers = {' '.join(headers)}",
            f"link = {' '.join(link)}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
            "  depfile = $out.d",
            "rule link",
            "  command = $cxx $in -o $out $link",
        ]
        objects = []
        # Baseline first: where inline functions of several objects are merged, a linker keeps the first, and that
        # must be the one that runs everywhere.
        for name, isa in sets.items():
            for source in sources("csrc"):
                out = work / f"{source.stem}.{name}.o"
                lines += [f"build {escape(out)}: compile {escape(source)}", f"  extra = -DFASTSEQ_ISA={name} {isa}"]
                objects.append(out)
        for source in sources("csrc/bindings"):
            out = work / str(sys.implementation.cache_tag) / f"{source.stem}.o"
            lines += [f"build {escape(out)}: compile {escape(source)}", "  extra = $headers"]
            objects.insert(0, out)
        if sanitize == "thread":  # which cannot see into libgomp
            out = work / "openmp.o"
            lines.append(f"build {escape(out)}: compile tests/sanitize/openmp.cpp")
            objects.append(out)
        lines.append(f"build {escape(output)}: link {' '.join(map(escape, objects))}")
        lines.append(f"default {escape(output)}")
        try:
            with (ROOT / work / "lock").open("w") as lock:  # two builds at once, of two Python versions say, take turns
                fcntl.flock(lock, fcntl.LOCK_EX)
                (ROOT / pybind).unlink(missing_ok=True)
                (ROOT / pybind).symlink_to(pybind11.get_include())
                (ROOT / work / "build.ninja").write_text("\n".join(lines) + "\n")
                subprocess.check_call([sys.executable, "-m", "ninja", "-C", str(ROOT), "-f", str(work / "build.ninja")])
        except (OSError, subprocess.CalledProcessError) as error:
            # optional=True below: the installation goes on without C++, and fastseq says so when it is used.
            raise CompileError(f"the C++ extension could not be built with {compiler!r}: {error}") from error


setup(
    version=VERSION,
    packages=[
        "fastseq",
        "fastseq.cli",
        "fastseq.ops",
        "fastseq.ops.reference",
        "fastseq.ops.cpu",
        "fastseq.models",
        "fastseq.data",
        "fastseq.training",
        "fastseq.warprec",
        "fastseq.kernels",
    ],
    package_dir={"fastseq": "fastseq", "fastseq.kernels": "kernels"},
    package_data={
        "fastseq": ["py.typed"],
        "fastseq.cli": ["published.yaml", "published/*.yaml"],
        "fastseq.warprec": ["custom_modules/*.py"],
    },
    ext_modules=[Extension("fastseq._C", sources=[], optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
