"""Host time of a training step on the Triton path, without a GPU: what a GPU waits for where it has little to do.

    python -m benchmarks.host_time
    PYTHONPATH=OTHER_CHECKOUT python benchmarks/host_time.py --model SASRec    # the same of another version

The tensors are small ones on the CPU, and the launch of a kernel is left out: what is timed is Python, autograd, the
checks and wrappers of the ops, and small ops of PyTorch. A launch itself adds about 10 to 20 microseconds, which is not
in the figures. The time is that of the thread, so other processes disturb it little; compare versions in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from typing import Any

LENGTHS = {"SASRec": 200, "GRU4Rec": 50, "Caser": 20}
SMALL = {
    "SASRec": {"embedding_size": 8, "inner_size": 16},
    "GRU4Rec": {"embedding_size": 8, "hidden_size": 16},
    "Caser": {"embedding_size": 8},
}


def step_times(model: str, max_len: int, batch_size: int, steps: int) -> tuple[list[float], int]:
    """Seconds of each step, and the kernels that one launches."""
    import torch
    import torch.nn.functional as F
    from triton.runtime.jit import JITFunction

    from fastseq import ops
    from fastseq.data.synthetic import make_demo
    from fastseq.models import MODELS
    from fastseq.training import Trainer, TrainingOptions
    from fastseq.training.throughput import everything, reference_params

    launches = itertools.count()

    def launch(*arguments: Any, grid: Any, warmup: Any, **constants: Any) -> None:
        next(launches)

    def layer(self: Any, layer: Any, x: Any, batch: Any, last: bool, rng: Any, site: int) -> Any:
        rows = batch.rows if last else None
        return self._whole_layer(layer, x, batch, rows, self._rate(self.attn_dropout_prob), rng, site)

    data = make_demo(n_users=60, n_items=200, mean_length=100.0)
    params = reference_params(model, max_len, batch_size=batch_size, **SMALL[model])
    torch.manual_seed(0)
    trainer = Trainer(
        MODELS[model](params, {"n_users": data.n_users, "n_items": data.n_items}).train(),
        everything(data),
        TrainingOptions(epochs=1, validation_metric=None),
    )
    batches = list(itertools.islice(trainer.loader.batches(0), 20))
    # What they are on a GPU.
    ops.linear, MODELS["SASRec"]._layer = F.linear, layer  # type: ignore[attr-defined]
    JITFunction.run = launch  # type: ignore[method-assign]
    times = []
    with ops.set_backend("triton"), ops.check_data(False):  # a GPU's data is not looked at
        for i in range(10 + steps):
            before = time.thread_time()
            trainer._step(batches[i % len(batches)])
            times.append(time.thread_time() - before)
    return times[10:], next(launches) // (10 + steps)


def main() -> None:
    os.environ["TRITON_INTERPRET"] = "0"  # before Triton: its interpreter has no launches
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=LENGTHS, action="append", help="default: each of them")
    parser.add_argument("--batch-size", type=int, default=64, help="targets of a step")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model in args.model or LENGTHS:
        times, launches = step_times(model, LENGTHS[model], args.batch_size, args.steps)
        low, median, high = (1e3 * x for x in statistics.quantiles(times, n=4))
        print(
            f"{model:8} length {LENGTHS[model]:3}, {args.batch_size} targets: {median:.2f} ms of host time a step, "
            f"quartiles {low:.2f} and {high:.2f}, {launches} launches"
        )


if __name__ == "__main__":
    main()
