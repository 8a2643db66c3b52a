"""What works on the whole catalogue beside the bare matrix products that it cannot do without.

    python -m benchmarks.catalogue evaluate --data FILE --json         # all users, top 10, seen left out
    python -m benchmarks.catalogue recommend --json                    # one history: top 10 of 54,542
    python -m benchmarks.catalogue cross-entropy [--data FILE] --json  # full softmax, with gradients

Each figure is the median of the rounds with its extremes; what is compared takes turns within a round. A bare product
is that of the same numbers by the library alone, into a buffer that is used again, in the fastest of several chunkings.
Models are untrained, in the reference configuration: speed does not depend on the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from fastseq._process import own_process

own_process()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.measure import MODEL_NAMES, ratios, seconds, spread, train_throughput  # noqa: E402
from fastseq import ops  # noqa: E402
from fastseq._process import peak_rss_mb, reset_peak_rss  # noqa: E402
from fastseq.data.split import leave_one_out  # noqa: E402
from fastseq.errors import ConfigError, DataError  # noqa: E402
from fastseq.models import MODELS  # noqa: E402
from fastseq.training.evaluation import evaluate  # noqa: E402
from fastseq.training.throughput import read, reference_params, versions  # noqa: E402

BEAUTY_ITEMS = 54_542
K = 10
CHUNK_USERS = (16, 64, 256, 512)
CHUNK_ITEMS = (1024, 4096, 16_384, None)  # None: the whole catalogue


def fastest(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """The quickest of equivalent calls, by the better of two runs after a warm-up."""
    return min(calls, key=lambda call: min([seconds(call) for _ in range(3)][1:]))


@contextmanager
def watched(owner: Any, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of each call of a function to ``spent[name]``."""
    original = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        results: list[Any] = []
        spent[name] += seconds(lambda: results.append(original(*arguments, **options)))
        return results[0]

    with mock.patch.object(owner, name, timed):
        yield


def build(model: str, max_len: int | None, n_users: int, n_items: int) -> Any:
    torch.manual_seed(0)
    return MODELS[model](reference_params(model, max_len), {"n_users": n_users, "n_items": n_items}).eval()


def bare_scores(h: Tensor, weight: Tensor, users: int) -> Callable[[], None]:
    """h weightᵀ, some users at a time into the same buffer."""
    buffer = torch.empty(min(users, len(h)), len(weight))

    def run() -> None:
        for part in h.split(users):
            torch.mm(part, weight.t(), out=buffer[: len(part)])

    return run


def evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """The whole of ``evaluate``, split into encoding, ranking (ops.topk) and the rest, beside the scores' product."""
    data = read(args.data)
    split = leave_one_out(data)
    model = build(args.model, args.max_len, data.n_users, data.n_items)
    weight = model.item_embedding.weight.detach()[:-1]
    users = len(split.part("test"))
    h = torch.randn(users, weight.shape[1])

    def once() -> tuple[dict[str, float], float]:
        spent = {"encode_last": 0.0, "topk": 0.0}
        reset_peak_rss()
        with watched(model, "encode_last", spent), watched(ops, "topk", spent):
            total = evaluate(model, split, ks=(K,), batch_size=args.batch_size).seconds
        encode, rank = spent.values()
        return {"total": total, "encode": encode, "rank": rank, "other": total - encode - rank}, peak_rss_mb()

    once()
    parts, bare, peak_mb = [], [], 0.0
    product: Callable[[], Any] | None = None
    for _ in range(args.rounds):
        measured, peak = once()
        parts.append(measured)
        if product is None:  # the first round's peak: later ones hold the product's buffers
            peak_mb, product = peak, fastest([bare_scores(h, weight, size) for size in CHUNK_USERS])
        bare.append(seconds(product))
    return {
        "model": args.model, "users": users, "items": data.n_items, "width": weight.shape[1], "k": K,
        "batch_size": args.batch_size, "data": Path(args.data).name,
        "seconds": {name: spread([part[name] for part in parts]) for name in parts[0]} | {"bare": spread(bare)},
        "rank_to_bare": ratios([part["rank"] for part in parts], bare),
        "total_to_bare": ratios([part["total"] for part in parts], bare),
        "peak_rss_mb": round(peak_mb, 1),
    }  # fmt: skip


def recommendation(args: argparse.Namespace) -> dict[str, Any]:
    """Latency of ``recommend`` for one history beside that of the product of one row with the item table, in turn."""
    model = build(args.model, args.max_len, 1, args.items)
    weight = model.item_embedding.weight.detach()[:-1]
    h, out = torch.randn(1, weight.shape[1]), torch.empty(1, args.items)
    random = np.random.default_rng(0)
    users = [0] if model.needs_user else None
    ours, bare = [], []
    with torch.inference_mode():
        for call in range(args.warmup + args.calls):
            history = random.integers(args.items, size=random.integers(5, model.max_seq_len + 1))
            times = (
                seconds(partial(model.recommend, [history], K, users=users)),
                seconds(partial(torch.mm, h, weight.t(), out=out)),
            )
            if call >= args.warmup:
                ours.append(1e3 * times[0])
                bare.append(1e3 * times[1])

    def percentiles(values: list[float]) -> dict[str, float]:
        return {f"p{p}_ms": round(float(np.percentile(values, p)), 3) for p in (50, 99)}

    mine, floor = percentiles(ours), percentiles(bare)
    return {
        "model": args.model, "items": args.items, "width": weight.shape[1], "k": K, "calls": args.calls,
        "recommend": mine, "bare": floor,
        "above_bare": {name: round(mine[name] - floor[name], 3) for name in mine},
    }  # fmt: skip


def bare_products(h: Tensor, weight: Tensor, width: int | None, linear: Any | None) -> Callable[[], None]:
    """The products of a softmax layer, ``width`` items at once: logits [N, V], and from as many numbers dh and dweight.

    ``linear(x, w)`` is x wᵀ by another library; None: torch.mm.
    """
    step = width or len(weight)
    buffer = torch.empty(len(h) * min(step, len(weight)), dtype=h.dtype)
    dh, dweight = torch.zeros_like(h), torch.empty_like(weight)

    def run() -> None:
        dh.zero_()
        for first in range(0, len(weight), step):
            table = weight[first : first + step]
            if linear is None:
                logits = torch.mm(h, table.t(), out=buffer[: len(h) * len(table)].view(len(h), len(table)))
                dh.addmm_(logits, table)
                torch.mm(logits.t(), h, out=dweight[first : first + step])
            else:
                logits = linear(h, table)
                dh.add_(linear(logits, table.t()))
                dweight[first : first + step] = linear(logits.t(), h.t())

    return run


def onednn_linear() -> Any | None:
    """x wᵀ by oneDNN, where this build of PyTorch has it; for float32 torch.mm takes MKL."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    return lambda x, w: torch.ops.mkldnn._linear_pointwise(x.contiguous(), w.contiguous(), None, "none", [], "")


def cross_entropy(args: argparse.Namespace) -> dict[str, Any]:
    """linear_cross_entropy, forward and backward, beside its three products and beside logits in memory."""
    result: dict[str, Any] = {"rows": args.rows, "classes": args.items + 1, "width": args.width}
    targets = torch.randint(0, args.items, (args.rows,))
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        h = torch.randn(args.rows, args.width).to(kind).requires_grad_()
        weight = (torch.randn(args.items + 1, args.width) / 10).to(kind).requires_grad_()
        leaves, plain = (h, weight), (h.detach(), weight.detach())

        def fastseq(leaves: tuple[Tensor, Tensor] = leaves) -> None:
            torch.autograd.grad(ops.linear_cross_entropy(*leaves, targets), leaves)

        def materialised(leaves: tuple[Tensor, Tensor] = leaves) -> None:
            torch.autograd.grad(F.cross_entropy(F.linear(*leaves), targets), leaves)

        calls: dict[str, Callable[[], None]] = {
            "fastseq": fastseq,
            "mm": fastest([bare_products(*plain, width, None) for width in CHUNK_ITEMS]),
        }
        other = onednn_linear()
        if other is not None:
            calls["onednn"] = fastest([bare_products(*plain, width, other) for width in CHUNK_ITEMS])
        calls["materialised"] = materialised
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {called: [] for called in calls}
        for _ in range(args.rounds):
            for called, call in calls.items():
                times[called].append(seconds(call))
        libraries = [called for called in ("mm", "onednn") if called in times]
        best = min(libraries, key=lambda called: statistics.median(times[called]))
        result[name] = {
            "seconds": {called: spread(values) for called, values in times.items()},
            "to_mm": ratios(times["fastseq"], times["mm"]),
            "to_fastest_products": ratios(times["fastseq"], times[best]) | {"library": best},
            "materialised_to_fastseq": ratios(times["materialised"], times["fastseq"]),
        }
        if args.data:  # of a fresh process
            options = ["--loss", "cross_entropy", "--seconds", 5, "--warmup", 0, "--batch-size", args.rows]
            figures = train_throughput("SASRec", args.data, 50, *options, "--precision", name)
            result[name]["training_peak_rss_mb"] = figures["peak_rss_mb"]
    return result


WORK = {"evaluate": evaluation, "recommend": recommendation, "cross-entropy": cross_entropy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--data", type=Path, help="evaluate: interactions; cross-entropy: memory of training on them")
    parser.add_argument("--model", default="SASRec", choices=MODEL_NAMES, help="evaluate, recommend")
    parser.add_argument("--max-len", type=int, default=50, help="evaluate, recommend")
    parser.add_argument("--batch-size", type=int, default=256, help="evaluate: users at a time")
    parser.add_argument("--items", type=int, default=BEAUTY_ITEMS, help="recommend, cross-entropy")
    parser.add_argument("--calls", type=int, default=1000, help="recommend")
    parser.add_argument("--warmup", type=int, default=50, help="recommend: calls that are not counted")
    parser.add_argument("--rows", type=int, default=2048, help="cross-entropy")
    parser.add_argument("--width", type=int, default=128, help="cross-entropy")
    parser.add_argument("--rounds", type=int, default=5, help="evaluate, cross-entropy")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    args = parser.parse_args()
    if args.work == "evaluate" and args.data is None:
        parser.error("evaluate needs --data: interactions in any format fastseq reads")
    try:
        figures = WORK[args.work](args)
    except (ConfigError, DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(figures | {"versions": versions()}, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
