"""What works on the whole catalogue beside the bare matrix products that it cannot do without.

    python -m benchmarks.catalogue evaluate --data FILE    # all users, top 10, seen left out
    python -m benchmarks.catalogue recommend               # one history: top 10 of 54,542
    python -m benchmarks.catalogue rank --items 1000000    # top 10 for 1, 8, 64 and 256 users: any catalogue, codes too
    python -m benchmarks.catalogue cross-entropy           # full softmax, 2,048 rows and 54,543 classes, gradients

Each figure is the median of the rounds with its extremes; what is compared takes turns within a round. A bare product
is that of the same numbers by the library alone, into a buffer that is used again, in the fastest of several chunkings.
Models are untrained, in the reference configuration: speed does not depend on the weights. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
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

from benchmarks.measure import ratios, seconds, spread  # noqa: E402
from fastseq import ops  # noqa: E402
from fastseq._process import peak_rss_mb, reset_peak_rss  # noqa: E402
from fastseq.data.split import leave_one_out  # noqa: E402
from fastseq.models import MODELS  # noqa: E402
from fastseq.ops.topk import FEW_USERS  # noqa: E402
from fastseq.training.evaluation import evaluate  # noqa: E402
from fastseq.training.throughput import read, reference_params, versions  # noqa: E402

BEAUTY_ITEMS = 54_542
K, ROUNDS = 10, 5
WARMUP, CALLS = 50, 1000  # of recommend
RANKED, SEEN, RANK_ROUNDS, BLOCKS = (1, 8, 64, 256), 50, 9, (1 << 18, 1 << 20, 1 << 22)  # of rank; scores of a block
ROWS, WIDTH = 2048, 128  # of cross-entropy
CHUNK_USERS = (16, 64, 256, 512)
CHUNK_ITEMS = (1024, 4096, 16_384, BEAUTY_ITEMS + 1)


def fastest(calls: Iterable[Callable[[], Any]]) -> Callable[[], Any]:
    """The quickest of equivalent calls, by the better of two runs after a warm-up."""
    return min(calls, key=lambda call: min([seconds(call) for _ in range(3)][1:]))


def build(args: argparse.Namespace, n_users: int, n_items: int) -> tuple[Any, Tensor]:
    """A model and its item table, [n_items, d]."""
    torch.manual_seed(0)
    params = reference_params(args.model, args.max_len)
    model: Any = MODELS[args.model](params, {"n_users": n_users, "n_items": n_items}).eval()
    return model, model.item_embedding.weight.detach()[:-1]


def bare_scores(h: Tensor, weight: Tensor, users: int) -> Callable[[], None]:
    """h weightᵀ, some users at a time into the same buffer."""
    buffer = torch.empty(min(users, len(h)), len(weight))

    def run() -> None:
        for part in h.split(users):
            torch.mm(part, weight.t(), out=buffer[: len(part)])

    return run


def evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """The whole of ``evaluate``, and the ranking in it (ops.topk), beside the scores' product."""
    data = read(args.data)
    split = leave_one_out(data)
    model, weight = build(args, data.n_users, data.n_items)
    h = torch.randn(len(split.part("test")), weight.shape[1])
    times: dict[str, list[float]] = {name: [] for name in ("total", "topk", "bare")}
    rank = ops.topk

    def ranked(*arguments: Any, **options: Any) -> Any:
        before = time.perf_counter()
        results = rank(*arguments, **options)
        times["topk"][-1] += time.perf_counter() - before
        return results

    reset_peak_rss()
    evaluate(model, split, ks=(K,), batch_size=256)  # warms up
    peak = peak_rss_mb()
    product = fastest([bare_scores(h, weight, users) for users in CHUNK_USERS])
    for _ in range(ROUNDS):
        times["topk"].append(0.0)
        with mock.patch.object(ops, "topk", ranked):
            times["total"].append(evaluate(model, split, ks=(K,), batch_size=256).seconds)
        times["bare"].append(seconds(product))
    return {
        "data": args.data.name, "users": len(h), "items": data.n_items, "width": weight.shape[1],
        "seconds": {name: spread(values) for name, values in times.items()},
        "topk_to_bare": ratios(times["topk"], times["bare"]),
        "total_to_bare": ratios(times["total"], times["bare"]), "peak_rss_mb": round(peak, 1),
    }  # fmt: skip


def ranking(args: argparse.Namespace) -> dict[str, Any]:
    """ops.topk beside the product of the same numbers, in the faster of two orders, and one read of the items."""
    torch.manual_seed(0)
    weight = torch.randn(args.items, args.width)
    begin = time.perf_counter()
    codes = ops.item_codes(weight)
    result: dict[str, Any] = {
        "items": args.items, "width": args.width, "threads": torch.get_num_threads(),
        "seconds_of_codes": round(time.perf_counter() - begin, 3),
        "bytes_of_codes": round(sum(x.numel() * x.element_size() for x in codes) / (4 * weight.numel()), 3),
    }  # fmt: skip
    for users in RANKED:
        h, offsets = torch.randn(users, args.width), torch.arange(users + 1) * SEEN
        seen = torch.randint(args.items, (users * SEEN,))
        rank = partial(ops.topk, h, weight, K, seen_offsets=offsets, seen_items=seen)
        bare = [bare_blocks(h, weight, block, flipped) for block in BLOCKS for flipped in (False, True)]
        calls = {"topk": rank, "bare": fastest(bare), "read": weight.sum}
        if users <= FEW_USERS:
            calls["codes"] = partial(rank, codes=codes)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(1 + RANK_ROUNDS):
            for name, call in calls.items():
                times[name].append(seconds(call))
        times = {name: values[1:] for name, values in times.items()}
        result[f"{users} users"] = {
            "seconds": {name: spread(values, 5) for name, values in times.items()},
            **{f"topk_to_{name}": ratios(times["topk"], times[name]) for name in calls if name != "topk"},
        }
    return result


def bare_blocks(h: Tensor, weight: Tensor, block: int, flipped: bool) -> Callable[[], None]:
    """h weightᵀ in blocks of that many scores, into the same buffer; flipped: the items' product with the users."""
    items = max(1, block // len(h))
    buffer = torch.empty(items * len(h))

    def run() -> None:
        for part in weight.split(items):
            left, right = (part, h) if flipped else (h, part)
            torch.mm(left, right.t(), out=buffer[: len(part) * len(h)].view(len(left), -1))

    return run


def recommendation(args: argparse.Namespace) -> dict[str, Any]:
    """Latency of ``recommend`` for one history beside that of the product of one row with the item table, in turn."""
    model, weight = build(args, 1, BEAUTY_ITEMS)
    h, out = torch.randn(1, weight.shape[1]), torch.empty(1, BEAUTY_ITEMS)
    random = np.random.default_rng(0)
    users = [0] if model.needs_user else None
    times = []
    with torch.inference_mode():
        for _ in range(WARMUP + CALLS):
            history = random.integers(BEAUTY_ITEMS, size=random.integers(5, model.max_seq_len + 1))
            ours = seconds(partial(model.recommend, [history], K, users=users))
            times.append((ours, seconds(partial(torch.mm, h, weight.t(), out=out))))
    p50, p99 = np.percentile(times[WARMUP:], (50, 99), axis=0) * 1e3
    figures = {f"{p}_ms": dict(zip(("recommend", "bare"), row, strict=True)) for p, row in (("p50", p50), ("p99", p99))}
    return {"items": BEAUTY_ITEMS, "width": weight.shape[1], **figures}


def bare_products(h: Tensor, weight: Tensor, linear: Any, width: int) -> Callable[[], None]:
    """The products of a softmax layer by ``linear(x, w, out)``, x wᵀ, ``width`` items at once: logits [N, V], and from
    as many numbers dh and dweight.
    """
    buffer, dh, dweight = torch.empty(len(h) * width, dtype=h.dtype), torch.zeros_like(h), torch.empty_like(weight)

    def run() -> None:
        dh.zero_()
        for first in range(0, len(weight), width):
            table = weight[first : first + width]
            logits = linear(h, table, buffer[: len(h) * len(table)].view(len(h), -1))
            dh.add_(linear(logits, table.t()))
            dweight[first : first + width] = linear(logits.t(), h.t())

    return run


def mm(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mm(x, w.t(), out=out)


def onednn(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    """x wᵀ by oneDNN, where this build of PyTorch has it; for float32 torch.mm takes MKL."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), w.contiguous(), None, "none", [], "")


def cross_entropy(args: argparse.Namespace) -> dict[str, Any]:
    """linear_cross_entropy, forward and backward, beside its three products and beside logits in memory."""
    result: dict[str, Any] = {"rows": ROWS, "classes": BEAUTY_ITEMS + 1, "width": WIDTH}
    libraries = [mm, onednn] if hasattr(torch.ops.mkldnn, "_linear_pointwise") else [mm]
    targets = torch.randint(0, BEAUTY_ITEMS, (ROWS,))
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        h = torch.randn(ROWS, WIDTH).to(kind).requires_grad_()
        weight = (torch.randn(BEAUTY_ITEMS + 1, WIDTH) / 10).to(kind).requires_grad_()
        losses: dict[str, Callable[..., Tensor]] = {
            "fastseq": ops.linear_cross_entropy,
            "materialised": lambda h, weight, targets: F.cross_entropy(F.linear(h, weight), targets),
        }
        calls = {
            called: partial(lambda loss, *leaves: torch.autograd.grad(loss(*leaves, targets), leaves), loss, h, weight)
            for called, loss in losses.items()
        }
        plain = h.detach(), weight.detach()
        for linear in libraries:
            calls[linear.__name__] = fastest([bare_products(*plain, linear, width) for width in CHUNK_ITEMS])
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {called: [] for called in calls}
        for _ in range(ROUNDS):
            for called, call in calls.items():
                times[called].append(seconds(call))
        best = min(times.keys() & {"mm", "onednn"}, key=lambda called: statistics.median(times[called]))
        result[name] = {
            "seconds": {called: spread(values) for called, values in times.items()},
            "to_fastest_products": ratios(times["fastseq"], times[best]) | {"library": best},
            "materialised_to_fastseq": ratios(times["materialised"], times["fastseq"]),
        }
    return result


WORK = {"evaluate": evaluation, "rank": ranking, "recommend": recommendation, "cross-entropy": cross_entropy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORK)
    parser.add_argument("--data", type=Path, help="evaluate: interactions in any format fastseq reads")
    parser.add_argument("--model", default="SASRec", choices=MODELS, help="evaluate, recommend")
    parser.add_argument("--max-len", type=int, default=50, help="evaluate, recommend")
    parser.add_argument("--items", type=int, default=1_000_000, help="rank")
    parser.add_argument("--width", type=int, default=WIDTH, help="rank")
    args = parser.parse_args()
    if args.work == "evaluate" and args.data is None:
        parser.error("evaluate needs --data: interactions in any format fastseq reads")
    print(json.dumps({"work": args.work, "model": args.model} | WORK[args.work](args) | {"versions": versions()}))


if __name__ == "__main__":
    main()
