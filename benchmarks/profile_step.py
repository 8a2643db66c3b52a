"""Where a training step's time goes, beside the least it could take: one Markdown table.

    python -m benchmarks.profile_step --model SASRec --data FILE --max-len 200
    python -m benchmarks.profile_step --model GRU4Rec --data FILE --max-len 50 --precision bf16

Steps are those of `fastseq train` in the reference configuration on batches made beforehand: timed, and then again
under torch.profiler for the times of the ops. "The rest" is what the timed step took beyond the named ops: PyTorch's
own small ops, autograd, Python. The floors are measured in the same process: a matrix product of the model's size on
data in cache, and a copy of arrays larger than the caches.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import Recorded, Watch, seconds, table
from fastseq._process import own_process

ROUNDS = 5

# What a profiled op belongs to, by the first name that its own contains.
GROUPS = {
    "attention": ("last_query_attention", "causal_attention"),
    "gru, dense and loss": ("gru_sampled_loss",),
    "gru": ("fastseq_gru", "fastseq::gru"),
    "caser_windows": ("caser_windows",),
    "cross-entropy": ("linear_cross_entropy",),
    "matrix products": ("linear", "aten::mm", "aten::addmm"),
    "bias_gelu_dropout": ("bias_gelu_dropout",),
    "dropout_add_norm": ("dropout_add_norm",),
    "embed_sequence": ("embed_sequence",),
    "dropout": ("dropout",),
    "sampled_loss": ("sampled_loss",),
    "optimizer": ("Optimizer.", "_fused_adam_"),
}


def flops(model: Any, batch: Any) -> float:
    """Multiplications and additions of the matrix work of a step: forward, and twice that backward."""
    events, targets = float(batch.items.shape[0]), float(batch.n_targets)
    d = float(model.embedding_size)
    lengths = batch.offsets.diff().double()
    if hasattr(model, "n_layers"):
        inner = float(model.inner_size)
        last = targets if batch.rows is not None else events
        rows = 3 * d * d * events * model.n_layers + (d * d + 2 * d * inner) * (events * (model.n_layers - 1) + last)
        pairs = float((lengths * (lengths + 1) / 2).sum()) * d * model.n_layers
        return 2 * 3 * rows + 2 * (2 + 5) * pairs
    if hasattr(model, "hidden_size"):
        h = float(model.hidden_size)
        return 2 * 3 * (events * 3 * h * (d + h) + targets * h * d)
    taps = model.max_seq_len * (model.max_seq_len + 1) / 2 * model.n_h * d
    dense = (model.n_v * d + model.n_h * model.max_seq_len) * d + 2 * d * d
    return 2 * 3 * (events * taps + targets * (dense + model.n_v * model.max_seq_len * d))


def main() -> None:
    own_process()  # before torch
    import torch

    from fastseq.models import MODELS
    from fastseq.models.hyperparameters import LOSSES
    from fastseq.ops import linear
    from fastseq.training import Trainer, TrainingOptions
    from fastseq.training.options import PRECISIONS
    from fastseq.training.throughput import everything, read, reference_params

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--data", type=Path, help="interactions in any format fastseq reads; default: the demo data")
    parser.add_argument("--max-len", type=int, help="default: 200, Caser 20")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--loss", choices=LOSSES)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()

    data = read(args.data)
    params = reference_params(args.model, args.max_len, loss=args.loss)
    model = MODELS[args.model](params, {"n_users": data.n_users, "n_items": data.n_items})
    options = TrainingOptions(epochs=1 + ROUNDS, precision=args.precision, validation_metric=None)
    trainer = Trainer(model, everything(data), options)
    batches = list(itertools.islice(trainer.loader.batches(0), args.steps))
    trainer.loader = Recorded(batches)
    watch = Watch(trainer)
    trainer.fit()  # the first epoch warms up
    ends = watch.ends[len(batches) - 1 :: len(batches)]
    rounds = [(after - before) / len(batches) for before, after in pairwise(ends)]
    step = statistics.median(rounds)
    trainer.epochs += 1
    with torch.profiler.profile() as profiler:
        trainer.fit()
    parts: dict[str, float] = {}
    for event in profiler.key_averages():
        group = next((group for group, names in GROUPS.items() if any(name in event.key for name in names)), None)
        if group is not None:
            parts[group] = parts.get(group, 0.0) + event.self_cpu_time_total / 1e6 / len(batches)
    parts["the rest"] = step - sum(parts.values())

    targets = statistics.mean(batch.n_targets for batch in batches)
    work = statistics.mean(flops(model, batch) for batch in batches)
    a, b = torch.randn(2048, 512), torch.randn(128, 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        rate = 2 * 2048 * 512 * 128 / statistics.median(seconds(lambda: linear(a, b)) for _ in range(200))
    source, target = torch.ones(1 << 25), torch.empty(1 << 25)
    bandwidth = 2 * source.numel() * 4 / statistics.median(seconds(lambda: target.copy_(source)) for _ in range(10))
    moved = 4.0 * sum(p.numel() for p in model.parameters()) * 7  # Adam reads four arrays of the weights, writes three

    name = args.data.name if args.data else "demo"
    print(f"{args.model} {name} L={model.max_seq_len} {args.precision}: {1e3 * step:.1f} ms a step", end="")
    print(f" ({1e3 * min(rounds):.1f} – {1e3 * max(rounds):.1f}), {targets:.0f} targets,", end="")
    print(f" {targets / step:,.0f} targets/s\n")
    largest = sorted(parts.items(), key=lambda part: -part[1])
    rows = [[group, f"{1e3 * value:.2f}", f"{value / step:.0%}"] for group, value in largest]
    print(table(["part", "ms", "share"], rows))
    print(f"\nmatrix floor: {work / 1e9:.2f} GFLOP ÷ {rate / 1e9:.0f} GFLOP/s = {1e3 * work / rate:.1f} ms; ", end="")
    print(f"optimizer floor: {moved / 1e6:.0f} MB ÷ {bandwidth / 1e9:.1f} GB/s = {1e3 * moved / bandwidth:.1f} ms")


if __name__ == "__main__":
    main()
