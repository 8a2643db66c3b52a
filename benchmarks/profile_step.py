"""Where a training step's time goes, beside the least it could take: one Markdown table.

    python benchmarks/profile_step.py --model SASRec --data FILE --max-len 200
    python benchmarks/profile_step.py --model GRU4Rec --data FILE --max-len 50 --precision bf16

Steps are those of `fastseq train` in the seed's configuration on batches made beforehand: timed, and then again under
torch.profiler for the times of the ops. "The rest" is what the timed step took beyond the named ops: PyTorch's own
small ops, autograd, Python. The floors are measured in the same process: a matrix product of the model's size on data
in cache, and a copy of arrays larger than the caches.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastseq._process import own_process

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


def group_of(name: str) -> str | None:
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), None)


def median_seconds(function: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=("SASRec", "GRU4Rec", "Caser"))
    parser.add_argument("--data", type=Path, help="interactions in any format fastseq reads; default: the demo data")
    parser.add_argument("--max-len", type=int, help="default: 200, Caser 20")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--loss", choices=("bpr", "cross_entropy"))
    parser.add_argument("--steps", type=int, default=40)
    chosen = parser.parse_args()
    own_process()

    import torch

    from fastseq.models import MODELS
    from fastseq.ops import linear
    from fastseq.training import Trainer, TrainingOptions
    from fastseq.training.throughput import everything, read, reference_params

    data = read(chosen.data)
    params = reference_params(chosen.model, chosen.max_len, loss=chosen.loss)
    model = MODELS[chosen.model](params, {"n_users": data.n_users, "n_items": data.n_items}).train()
    options = TrainingOptions(precision=chosen.precision, validation_metric=None)
    trainer = Trainer(model, everything(data), options)
    trainer._objective = model.loss
    batches = list(itertools.islice(trainer.loader.batches(0, 0), chosen.steps))
    for batch in batches[:10]:
        trainer._step(batch)
    rounds = []
    for _ in range(5):
        before = time.perf_counter()
        for batch in batches:
            trainer._step(batch)
        rounds.append((time.perf_counter() - before) / len(batches))
    step = statistics.median(rounds)
    with torch.profiler.profile() as profiler:
        for batch in batches:
            trainer._step(batch)
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        group = group_of(event.key)
        if group is not None:
            seconds[group] = seconds.get(group, 0.0) + event.self_cpu_time_total / 1e6 / len(batches)
    seconds["the rest"] = step - sum(seconds.values())

    targets = statistics.mean(batch.n_targets for batch in batches)
    work = statistics.mean(flops(model, batch) for batch in batches)
    a, b = torch.randn(2048, 512), torch.randn(128, 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=chosen.precision == "bf16"):
        rate = 2 * 2048 * 512 * 128 / median_seconds(lambda: linear(a, b), 200)
    source, target = torch.ones(1 << 25), torch.empty(1 << 25)
    bandwidth = 2 * source.numel() * 4 / median_seconds(lambda: target.copy_(source), 10)
    moved = 4.0 * sum(p.numel() for p in model.parameters()) * 7  # Adam reads four arrays of the weights, writes three

    print(
        f"{chosen.model} {chosen.data.name if chosen.data else 'demo'} L={model.max_seq_len} {chosen.precision}: ",
        end="",
    )
    print(
        f"{1e3 * step:.1f} ms a step ({1e3 * min(rounds):.1f} – {1e3 * max(rounds):.1f}), {targets:.0f} targets, ",
        end="",
    )
    print(f"{targets / step:,.0f} targets/s\n")
    print("| part | ms | share |\n|---|---|---|")
    for group, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {group} | {1e3 * value:.2f} | {value / step:.0%} |")
    print(f"\nmatrix floor: {work / 1e9:.2f} GFLOP ÷ {rate / 1e9:.0f} GFLOP/s = {1e3 * work / rate:.1f} ms; ", end="")
    print(f"optimizer floor: {moved / 1e6:.0f} MB ÷ {bandwidth / 1e9:.1f} GB/s = {1e3 * moved / bandwidth:.1f} ms")


if __name__ == "__main__":
    main()
