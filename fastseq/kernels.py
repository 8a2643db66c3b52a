"""The Triton kernels of a source checkout, beside this package. A wheel has them in fastseq/kernels/, found first."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "kernels")]
_init = Path(__path__[0], "__init__.py")
if not _init.is_file():
    raise ImportError(f"{_init} does not exist: the checkout lacks the folder kernels/, which lies beside fastseq/")
exec(compile(_init.read_text(), _init, "exec"))
