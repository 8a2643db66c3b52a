"""The Triton kernels of a source checkout, beside this package. A wheel has them in fastseq/kernels/, found first."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "kernels")]
_init = Path(__path__[0], "__init__.py")
exec(compile(_init.read_text(), _init, "exec"))
