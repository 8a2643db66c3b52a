"""What gpu_check.sh asks of whole models, one stage a process; every fact is one JSON line, written at once.

    python -m benchmarks.gpu_check STAGE [--device cuda] [--models SASRec ...] [--seconds 3] [--facts FILE]

parity  20 training steps on the device and in C++ on the CPU from one seed. Masks, negatives and batches are the same
        stream, so losses, first gradients, metrics and recommendations must agree.
fit     Trainer.fit as users call it: 2 epochs, validation, checkpoints; a run cut off by Ctrl-C and resumed has the
        same weights bit for bit; the run folder loads on the CPU and recommends the same.
speed   targets/s of the trainer's loop, host time of a step; on a GPU also how long it is busy, device events and
        synchronisations a step, peak memory, the ten costliest kernels.
graph   one step captured as a CUDA graph on one resident batch: what remains without the host.
peer    plain PyTorch for the same model, padded: what it has to beat.
summary the facts of FILE as lines to read; exit status 1 if a stage or a fact failed, or if none passed.

A measurement that fails is a line with "failed" and the place, not the end; the exit status is 1 then. Nothing but
torch and the project is needed. Data: the file or folder of --data (ml-1m.txt), else generated in its likeness.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("FASTSEQ_STRICT", "1")

from fastseq._process import own_process

own_process()  # before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.measure import MODEL_NAMES, Watch  # noqa: E402
from benchmarks.ops import report  # noqa: E402
from fastseq import load  # noqa: E402
from fastseq.data.interactions import Interactions, build_interactions  # noqa: E402
from fastseq.data.split import leave_one_out  # noqa: E402
from fastseq.data.synthetic import make_demo  # noqa: E402
from fastseq.models import MODELS  # noqa: E402
from fastseq.training import Trainer, TrainingOptions, evaluate  # noqa: E402
from fastseq.training.throughput import everything, reference_params  # noqa: E402

MAX_LEN = {"SASRec": 200, "GRU4Rec": 50, "Caser": 20}
SMALL_LEN = 50  # of parity and fit, on the demo data
PARITY_BATCH = 1024
LEAST_STEPS = 5  # of a measurement
RESIDENT = 8  # batches of the peer, made beforehand


class Facts:
    """Writes facts, and keeps whether all was well."""

    def __init__(self, stage: str, path: Path | None) -> None:
        self.stage, self.path, self.failed = stage, path, False

    def measure(self, run: Callable[..., dict[str, Any]], about: dict[str, Any], **inputs: Any) -> None:
        """One fact: ``about``, and what ``run`` gives, or why it gives nothing. "ok": whether it is as it should be."""
        started = time.perf_counter()
        try:
            fact = run(**about, **inputs)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            fact = {"failed": f"{type(error).__name__}: {error}"[:300], "at": f"{line.filename}:{line.lineno}"}
        self.failed |= "failed" in fact or not fact.get("ok", True)
        fact = {"stage": self.stage} | about | fact | {"took_s": round(time.perf_counter() - started, 1)}
        text = json.dumps(fact, default=float)
        print(text, flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(text + "\n")


def sequences(path: Path) -> list[list[int]]:
    """Item numbers of each user, from `user item` lines or from one line of items a user."""
    rows = [np.array(line.split(), np.int64) for line in path.read_text().splitlines() if line.strip()]
    if not all(len(row) == 2 for row in rows):
        return [row.tolist() for row in rows]
    users: dict[int, list[int]] = {}
    for user, item in np.stack(rows).tolist():
        users.setdefault(user, []).append(item)
    return list(users.values())


def ml_1m(path: Path | None) -> Interactions:
    """ml-1m.txt where it is given, else as many users, with as many items, in the like lengths."""
    if path is not None:
        histories = sequences(path / "ml-1m.txt" if path.is_dir() else path)
        lengths, items = np.array([len(h) for h in histories]), np.concatenate(histories)
    else:
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(4.6, 1.0, 6040).astype(int), 18, 2000)
        items = np.minimum(rng.zipf(1.2, lengths.sum()) - 1 + rng.integers(0, 60, lengths.sum()), 3415)
    return build_interactions(np.repeat(np.arange(len(lengths)), lengths), items)


def build(name: str, data: Interactions, device: str, max_len: int, **changes: Any) -> Any:
    """A model in its reference configuration."""
    params = reference_params(name, max_len, **changes)
    return MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items}).to(device)


def set_products(precision: str) -> None:
    """float32 products exact, or by TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def options_of(precision: str, **more: Any) -> TrainingOptions:
    kept: Any = {"precision": "bf16" if precision == "bf16" else "fp32", "validation_metric": None} | more
    return TrainingOptions(**kept)


def overlap(ours: list[Any], theirs: list[Any]) -> float:
    """Share of recommendations that both lists of lists have."""
    return sum(len({*a} & {*b}) for a, b in zip(ours, theirs, strict=True)) / max(1, sum(map(len, ours)))


def recommended(model: Any, data: Interactions, users: range) -> list[Any]:
    """The 10 best items for each user, as raw ids."""
    names = data.user_ids.decode(np.array(users))
    histories = [data.history(name) for name in names]
    return [r.items for r in model.recommend(histories, 10, users=names if model.needs_user else None)]


def parity(model: str, precision: str, loss: str, device: str) -> dict[str, Any]:
    """Sides differ by rounding alone: limits are 10 – 100 times what float32 and bfloat16 do in 20 steps."""
    data = make_demo(n_users=750)
    split = leave_one_out(data)
    set_products("fp32")
    sides = []
    for where in ("cpu", device):
        built = build(model, data, where, SMALL_LEN, batch_size=PARITY_BATCH, loss=loss)
        trainer = Trainer(built, split, options_of(precision, epochs=1))
        watch = Watch(trainer, keep_gradients=True)
        trainer.fit()
        losses = [float(value) for value in watch.losses]
        metrics = evaluate(built, split, "test", ks=(10,), batch_size=512).metrics
        sides.append((losses, watch.gradients, metrics["NDCG@10"], recommended(built, data, range(64))))
    (a, grads, ndcg, best), (b, other_grads, other_ndcg, other_best) = sides
    errors = {n: float((g - other_grads[n]).norm() / g.norm().clamp(min=1e-12)) for n, g in grads.items()}
    worst = max(errors, key=errors.__getitem__)
    difference, same = max(abs(x - y) for x, y in zip(a, b, strict=True)), overlap(best, other_best)
    loss_limit, gradient_limit, least = (5e-3, 0.1, 0.8) if precision == "bf16" else (2e-4, 1e-3, 0.97)
    return {
        "steps": len(a),
        "losses": [a[0], a[-1]],
        "max_loss_difference": difference,
        "worst_gradient": worst,
        "gradient_error": errors[worst],
        "NDCG@10": [ndcg, other_ndcg],
        "same_recommendations": same,
        "ok": difference < loss_limit * abs(a[0]) and errors[worst] < gradient_limit and same > least,
    }


def fit(model: str, device: str) -> dict[str, Any]:
    data = make_demo(n_users=1500)
    split = leave_one_out(data)
    users = range(16)

    def trainer(folder: Path, **more: Any) -> Trainer:
        built = build(model, data, device, SMALL_LEN)
        return Trainer(built, split, TrainingOptions(epochs=2, evaluation_batch_size=512), folder, **more)

    with tempfile.TemporaryDirectory() as folder:
        whole, cut = trainer(Path(folder, "whole")), trainer(Path(folder, "cut"))
        result = whole.fit()
        stop_at = result.steps // 3
        Watch(cut).after_step = lambda steps: signal.raise_signal(signal.SIGINT) if steps == stop_at else None
        interrupted = cut.fit()
        again = trainer(Path(folder, "cut"), resume=True)
        again.fit()
        pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        same = all(torch.equal(x, y) for x, y in pairs)
        lists = [recommended(source, data, users) for source in (load(Path(folder, "whole")), whole.model)]
    loaded = overlap(*lists)
    return {
        "NDCG@10": result.history[-1]["validation"]["NDCG@10"],
        "stopped": [interrupted.stopped, interrupted.steps, result.steps],
        "resumed_bit_for_bit": same,
        "loaded_on_cpu_recommends_the_same": loaded,
        "ok": same and interrupted.steps == stop_at and loaded > 0.97,
    }


def speed(
    model: str, batch: int, precision: str, loss: str, device: str, data: Interactions, limit: float
) -> dict[str, Any]:
    set_products(precision)
    built = build(model, data, device, MAX_LEN[model], batch_size=batch, loss=loss)
    trainer = Trainer(built, everything(data), options_of(precision, epochs=1_000_000))
    watch, cuda = Watch(trainer), device.startswith("cuda")
    started = time.perf_counter()
    watch.run(1e-9)
    first_step = time.perf_counter() - started
    warm = watch.run(limit / 5)
    pace = (watch.ends[-1] - watch.begins[warm[0]]) / len(warm)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = watch.run(max(limit, LEAST_STEPS * pace))
    # fit has read the losses, so the device is done. The first step's end starts the clock: the loader runs by then.
    seconds = time.perf_counter() - watch.ends[steps[0]]
    counted = steps[1:] or steps
    figures = {
        "targets_per_s": round(sum(watch.targets[i] for i in counted) / seconds),
        "ms_step": 1e3 * seconds / len(counted),
        "ms_host": 1e3 * statistics.median(watch.ends[i] - watch.begins[i] for i in counted),
        "steps": len(counted),
        "first_step_s": first_step,
        "last_loss": float(watch.losses[-1]),
    }
    return figures | on_device(watch, limit / 5) if cuda else figures


def on_device(watch: Watch, limit: float) -> dict[str, Any]:
    """Peak memory until now, and of more steps: synchronisations, busy time, events, the costliest kernels."""
    from torch.profiler import ProfilerActivity, profile

    peak = torch.cuda.max_memory_allocated() / 1e6
    before = len(watch.ends)
    modes = {before + 1: "warn", before + 2: "default"}  # from the end of one step to that of the next
    watch.after_step = lambda steps: torch.cuda.set_sync_debug_mode(modes[steps]) if steps in modes else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.run(limit)
    torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        steps = len(watch.run(limit))
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return {
        "peak_mb": peak,
        "syncs_a_step": sum("called a synchroniz" in str(warning.message) for warning in caught),
        "ms_busy": sum(event.self_device_time_total for event in events) / 1e3 / steps,
        "events_a_step": sum(event.count for event in events) / steps,
        "top": [[e.key[:48], e.self_device_time_total / 1e3 / steps, e.count / steps] for e in events[:10]],
    }


def graph(model: str, batch: int, precision: str, device: str, data: Interactions) -> dict[str, Any]:
    set_products(precision)
    built = build(model, data, device, MAX_LEN[model], batch_size=batch).train()
    resident = next(Trainer(built, everything(data), options_of(precision)).loader.batches(0)).to(torch.device(device))
    rate = torch.tensor(built.learning_rate, device=device)
    optimizer = torch.optim.Adam(built.parameter_groups(), lr=rate, fused=True, capturable=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = built.loss(resident)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for replay in range(105):
        if replay == 5:
            start.record()
        captured.replay()
    stop.record()
    torch.cuda.synchronize()
    ms = start.elapsed_time(stop) / 100
    return {"ms_step": ms, "targets_per_s": round(1e3 * resident.n_targets / ms)}


class PlainSASRec(nn.Module):
    """As anybody writes it: padded, nn.TransformerEncoder; gives [B, L, d]."""

    def __init__(self, n_items: int, max_len: int, params: dict[str, Any]) -> None:
        super().__init__()
        d, p = params["embedding_size"], params["dropout_prob"]
        self.item = nn.Embedding(n_items + 1, d, padding_idx=n_items)
        self.position, self.norm, self.dropout = nn.Embedding(max_len, d), nn.LayerNorm(d), nn.Dropout(p)
        layer = nn.TransformerEncoderLayer(d, params["n_heads"], params["inner_size"], p, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, params["n_layers"], enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.norm(self.item(x) + self.position.weight))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=h.dtype)
        return self.encoder(h, mask=mask, is_causal=True)


class PlainGRU4Rec(nn.Module):
    """nn.GRU over padded rows; gives [B, L, d]."""

    def __init__(self, n_items: int, max_len: int, params: dict[str, Any]) -> None:
        super().__init__()
        d, hidden = params["embedding_size"], params["hidden_size"]
        self.item, self.dropout = nn.Embedding(n_items + 1, d, padding_idx=n_items), nn.Dropout(params["dropout_prob"])
        self.gru, self.dense = nn.GRU(d, hidden, bias=False, batch_first=True), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.gru(self.dropout(self.item(x)))[0])


PLAIN = {"SASRec": PlainSASRec, "GRU4Rec": PlainGRU4Rec}


def peer(model: str, batch: int, precision: str, device: str, data: Interactions, limit: float) -> dict[str, Any]:
    """BPR at every position with one negative, on batches that lie on the device: no loader, no sampler."""
    set_products(precision)
    longest, n_items = MAX_LEN[model], data.n_items
    plain: Any = PLAIN[model](n_items, longest, reference_params(model, longest)).to(device)
    optimizer = torch.optim.Adam(plain.parameters(), fused=True)
    rng = np.random.default_rng(0)

    def resident() -> list[Tensor]:
        shape = (max(1, batch // longest), longest)
        x, y = np.full(shape, n_items), np.full(shape, n_items)
        for row, user in enumerate(rng.integers(0, data.n_users, len(x))):
            history = data.items[data.offsets[user] : data.offsets[user + 1]][: longest + 1]
            x[row, : len(history) - 1], y[row, : len(history) - 1] = history[:-1], history[1:]
        arrays = (x, y, rng.integers(0, n_items, shape), (y != n_items).astype(np.float32))
        return [torch.from_numpy(array).to(device) for array in arrays]

    def step(x: Tensor, positives: Tensor, negatives: Tensor, real: Tensor) -> None:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            margin = (plain(x) * (plain.item(positives) - plain.item(negatives))).sum(-1)
            loss = (nn.functional.softplus(-margin) * real).sum() / real.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = [resident() for _ in range(RESIDENT)]
    counts = [int(real.sum()) for *_, real in batches]
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for arrays in batches[:3]:
        step(*arrays)
    wait()
    n, started = 0, time.perf_counter()
    while n < LEAST_STEPS or time.perf_counter() - started < limit:
        step(*batches[n % RESIDENT])
        n += 1
    wait()
    seconds = time.perf_counter() - started
    targets = sum(counts[i % RESIDENT] for i in range(n))
    return {"targets_per_s": round(targets / seconds), "ms_step": 1e3 * seconds / n}


def worst_ratios(path: Path) -> str:
    """Of `benchmarks.ops --json`: by op the least ratio of the best other to fastseq, and how many rows."""
    ratios: dict[str, list[float]] = {}
    results, _ = report.read(path)
    for row in report.rows(results):
        ratios.setdefault(row.ours.op, []).extend([] if row.ratio is None else [row.ratio])
    return ", ".join(f"{op} {min(r, default=math.nan):.2f}× of {len(r)}" for op, r in ratios.items())


def shown(value: Any) -> str:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return " / ".join(map(shown, parts))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def summary(facts_path: Path) -> bool:
    """Prints what there is to read, worst news marked; whether all was well."""
    facts = [json.loads(line) for line in facts_path.read_text().splitlines()]
    ok = any(fact.get("verdict") == "passed" for fact in facts)
    for fact in facts:
        names = ("stage", "model", "batch", "precision", "loss")
        name = " ".join(str(fact.pop(key)) for key in names if isinstance(fact.get(key), str | int))
        bad = "failed" in fact or not fact.get("ok", True) or fact.get("verdict") in ("failed", "missing", "timeout")
        ok &= not bad
        fact.pop("top", None)
        print(f"{'FAILED ' if bad else ''}{name}: " + ", ".join(f"{key} {shown(fact[key])}" for key in fact))
    for path in sorted(facts_path.parent.glob("ops*.json")):
        try:
            print(f"{path.name}, worst ratios: {worst_ratios(path)}")
        except ValueError:
            print(f"{path.name}: cut off")
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("parity", "fit", "speed", "graph", "peer", "summary"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=MODEL_NAMES, choices=MODEL_NAMES)
    parser.add_argument("--batches", nargs="+", type=int, default=[2048, 16384], help="targets")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "bf16"], choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--losses", nargs="+", default=["bpr"])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--data", type=Path, help="ml-1m.txt or its folder")
    parser.add_argument("--facts", type=Path, help="JSON lines; these are added")
    args = parser.parse_args()
    if args.stage == "summary":
        return int(not summary(args.facts))
    facts, device = Facts(args.stage, args.facts), args.device
    if args.stage == "parity":
        runs = [(name, precision, "bpr") for precision in ("fp32", "bf16") for name in args.models]
        for name, precision, loss in [*runs, ("SASRec", "fp32", "cross_entropy")]:
            facts.measure(parity, {"model": name, "precision": precision, "loss": loss}, device=device)
    elif args.stage == "fit":
        for name in args.models:
            facts.measure(fit, {"model": name}, device=device)
    else:
        inputs: dict[str, Any] = {"device": device, "data": ml_1m(args.data)}
        if args.stage != "graph":
            inputs["limit"] = args.seconds
        run = {"speed": speed, "graph": graph, "peer": peer}[args.stage]
        names = [name for name in args.models if args.stage != "peer" or name in PLAIN]
        for name, batch, precision in itertools.product(names, args.batches, args.precisions):
            about = {"model": name, "batch": batch, "precision": precision}
            for extra in [{"loss": loss} for loss in args.losses] if args.stage == "speed" else [{}]:
                facts.measure(run, about | extra, **inputs)
    return int(facts.failed)


if __name__ == "__main__":
    sys.exit(main())
