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
steps   one training step of every op in tiny sizes, in every type that benchmarks.ops measures but tf32: on a GPU
        float32 and bfloat16. What compute-sanitizer watches.
summary the facts of FILE as lines to read; exit status 1 if a stage or a fact failed, or if none passed.

A measurement that fails is a line with "failed" and the place, not the end; the exit status is 1 then. Nothing but
torch and a checkout is needed. Data: the file of --data (ml-1m.txt), else generated in its likeness.
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
from torch import Tensor  # noqa: E402
from torch.nn.functional import softplus  # noqa: E402

from benchmarks.measure import Watch, append  # noqa: E402
from benchmarks.ops import report  # noqa: E402
from benchmarks.ops.case import TF32  # noqa: E402
from benchmarks.ops.check import Prepared, products  # noqa: E402
from benchmarks.ops.suite import FILES, specs, tiny  # noqa: E402
from benchmarks.ops.timing import clock_of, cuda_graph, timed  # noqa: E402
from fastseq import load  # noqa: E402
from fastseq.data.interactions import Interactions, build_interactions  # noqa: E402
from fastseq.data.split import leave_one_out  # noqa: E402
from fastseq.data.synthetic import make_demo  # noqa: E402
from fastseq.models import MODELS  # noqa: E402
from fastseq.models.hyperparameters import LOSSES  # noqa: E402
from fastseq.training import Trainer, TrainingOptions, evaluate  # noqa: E402
from fastseq.training.options import PRECISIONS  # noqa: E402
from fastseq.training.throughput import everything, reference_params  # noqa: E402
from tests.models.restatement import PLAIN  # noqa: E402

MAX_LEN = {"SASRec": 200, "GRU4Rec": 50, "Caser": 20}
SMALL_LEN = 50  # of parity and fit, on the demo data
PARITY_BATCH = 1024
KINDS = [*PRECISIONS, "tf32"]  # "tf32": float32 with such products
LEAST_STEPS = 5  # of a measurement
RESIDENT = 8  # batches of the peer, made beforehand


def measure(run: Callable[..., dict[str, Any]], facts: Path | None, about: dict[str, Any], **inputs: Any) -> bool:
    """One fact: ``about``, and what ``run`` gives, or why it gives nothing; whether it is as it should be ("ok")."""
    started = time.perf_counter()
    try:
        with products(about.get("precision", "")):
            fact = run(**about, **inputs)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        fact = {"failed": f"{type(error).__name__}: {error}"[:300], "at": f"{line.filename}:{line.lineno}"}
    ok = "failed" not in fact and fact.get("ok", True)
    fact = {"stage": run.__name__} | about | fact | {"took_s": round(time.perf_counter() - started, 1)}
    print(json.dumps(fact), flush=True)
    if facts is not None:
        append(facts, fact)
    return ok


def ml_1m(path: Path | None) -> Interactions:
    """A file of `user item` lines or of one line of items a user; None: as many users, items and events as ml-1m."""
    if path is not None:
        rows = [np.array(line.split(), np.int64) for line in path.read_text().splitlines()]
        if all(len(row) == 2 for row in rows):
            return build_interactions(*np.stack(rows).T)
        lengths, items = np.array([len(row) for row in rows]), np.concatenate(rows)
    else:
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(4.6, 1.0, 6040).astype(int), 18, 2000)
        items = np.minimum(rng.zipf(1.2, lengths.sum()) - 1 + rng.integers(0, 60, lengths.sum()), 3415)
    return build_interactions(np.repeat(np.arange(len(lengths)), lengths), items)


def build(name: str, data: Interactions, device: str, max_len: int, **changes: Any) -> Any:
    """A model in its reference configuration."""
    params = reference_params(name, max_len, **changes)
    return MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items}).to(device)


def options_of(precision: str, epochs: int = 1_000_000) -> TrainingOptions:
    kind: Any = "bf16" if precision == "bf16" else "fp32"  # "tf32": ``measure`` allows such products
    return TrainingOptions(precision=kind, epochs=epochs, validation_metric=None)


def recommended(model: Any, data: Interactions, users: range) -> list[Any]:
    """The 10 best items for each user, as raw ids."""
    names = data.user_ids.decode(np.array(users))
    histories = [data.history(name) for name in names]
    return [r.items for r in model.recommend(histories, 10, users=names if model.needs_user else None)]


def overlap(ours: list[Any], theirs: list[Any]) -> float:
    """Share of recommendations that both lists of lists have."""
    return sum(len({*a} & {*b}) for a, b in zip(ours, theirs, strict=True)) / max(1, sum(map(len, ours)))


def parity(model: str, precision: str, loss: str, device: str) -> dict[str, Any]:
    """Sides differ by rounding alone: limits are 10 – 100 times what float32 and bfloat16 do in 20 steps."""
    data = make_demo(n_users=750)
    split = leave_one_out(data)
    sides = []
    for where in ("cpu", device):
        built = build(model, data, where, SMALL_LEN, batch_size=PARITY_BATCH, loss=loss)
        trainer = Trainer(built, split, options_of(precision, epochs=1))
        watch = Watch(trainer, keep_gradients=True)
        trainer.fit()
        metrics = evaluate(built, split, "test", ks=(10,), batch_size=512).metrics
        losses = [float(value) for value in watch.losses]
        sides.append((losses, watch.gradients, metrics["NDCG@10"], recommended(built, data, range(64))))
    (a, grads, ndcg, best), (b, other_grads, other_ndcg, other_best) = sides
    errors = {n: float((g - other_grads[n]).norm() / g.norm().clamp(min=1e-12)) for n, g in grads.items()}
    worst = max(errors, key=errors.__getitem__)
    difference, same = max(abs(x - y) for x, y in zip(a, b, strict=True)), overlap(best, other_best)
    loss_limit, gradient_limit, least = (5e-3, 0.1, 0.8) if precision == "bf16" else (2e-4, 1e-3, 0.97)
    return {
        "steps": len(a), "losses": [a[0], a[-1]], "max_loss_difference": difference,
        "worst_gradient": worst, "gradient_error": errors[worst], "NDCG@10": [ndcg, other_ndcg],
        "same_recommendations": same,
        "ok": difference < loss_limit * abs(a[0]) and errors[worst] < gradient_limit and same > least,
    }  # fmt: skip


def fit(model: str, device: str) -> dict[str, Any]:
    data = make_demo(n_users=1500)
    split = leave_one_out(data)

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
        lists = [recommended(source, data, range(16)) for source in (load(Path(folder, "whole")), whole.model)]
    loaded = overlap(*lists)
    return {
        "NDCG@10": result.history[-1]["validation"]["NDCG@10"],
        "stopped": [interrupted.stopped, interrupted.steps, result.steps],
        "resumed_bit_for_bit": same,
        "loaded_on_cpu_recommends_the_same": loaded,
        "ok": same and interrupted.steps == stop_at and loaded > 0.97,
    }


def speed(
    model: str, batch: int, precision: str, device: str, data: Interactions, limit: float, loss: str = "bpr"
) -> dict[str, Any]:
    built = build(model, data, device, MAX_LEN[model], batch_size=batch, loss=loss)
    watch, cuda = Watch(Trainer(built, everything(data), options_of(precision))), device.startswith("cuda")
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


def graph(model: str, batch: int, precision: str, device: str, data: Interactions, limit: float) -> dict[str, Any]:
    built = build(model, data, device, MAX_LEN[model], batch_size=batch).train()
    resident = next(Trainer(built, everything(data), options_of(precision)).loader.batches(0)).to(torch.device(device))
    rate = torch.tensor(built.learning_rate, device=device)
    optimizer = torch.optim.Adam(built.parameter_groups(), lr=rate, fused=True, capturable=True)

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = built.loss(resident)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return [loss.detach()]

    replay, _ = cuda_graph(step)
    seconds = statistics.median(time for time, _ in timed(replay, clock_of(torch.device(device)), limit))
    return {"ms_step": 1e3 * seconds, "targets_per_s": round(resident.n_targets / seconds)}


def peer(model: str, batch: int, precision: str, device: str, data: Interactions, limit: float) -> dict[str, Any]:
    """BPR at every position with one negative, on batches that lie on the device: no loader, no sampler."""
    longest, n_items = MAX_LEN[model], data.n_items
    params = reference_params(model, longest)
    plain: Any = PLAIN[model](params, {"n_users": data.n_users, "n_items": n_items}).to(device)
    optimizer = torch.optim.Adam(plain.parameters(), lr=params["learning_rate"], fused=True)
    rng = np.random.default_rng(0)
    shape = max(1, batch // longest), longest

    def outputs(x: Tensor) -> Tensor:
        """[B, L, d]. Attention is masked by causality alone, which a fused kernel knows: padding comes last."""
        if model != "SASRec":
            return plain.outputs(x)
        h = plain.emb_dropout(plain.layernorm(plain.item_embedding(x) + plain.position_embedding.weight))
        return plain.transformer_encoder(h, mask=plain.causal_mask, is_causal=True)

    def resident() -> list[Tensor]:
        x, y = np.full(shape, n_items), np.full(shape, n_items)
        for row, user in enumerate(rng.integers(0, data.n_users, len(x))):
            history = data.items[data.offsets[user] : data.offsets[user + 1]][: longest + 1]
            x[row, : len(history) - 1], y[row, : len(history) - 1] = history[:-1], history[1:]
        arrays = (x, y, rng.integers(0, n_items, shape), (y != n_items).astype(np.float32))
        return [torch.from_numpy(array).to(device) for array in arrays]

    def step(x: Tensor, positives: Tensor, negatives: Tensor, real: Tensor) -> None:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            margin = plain.item_embedding(positives) - plain.item_embedding(negatives)
            loss = (softplus(-(outputs(x) * margin).sum(-1)) * real).sum() / real.sum()
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


def steps(file: str, device: str) -> dict[str, Any]:
    where = torch.device(device)
    dtypes = {dtype: None for spec in specs(where.type, [file]) for dtype in spec.dtypes if dtype != TF32}
    cases = tiny(where, [file])
    for case, dtype in itertools.product(cases, dtypes):
        Prepared(case, "fastseq", dtype).once()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return {"dtypes": [*dtypes], "cases": [f"{case.op} {case.shape}" for case in cases]}


def worst_ratios(path: Path) -> str:
    """Of `benchmarks.ops --json`: by op the least ratio of the best other to fastseq, and how many rows."""
    ratios: dict[str, list[float]] = {}
    results, _ = report.read(path)
    for row in report.rows(results):
        ratios.setdefault(row.ours.op, []).extend([] if row.ratio is None else [row.ratio])
    return ", ".join(f"{op} {min(r, default=math.nan):.2f}× of {len(r)}" for op, r in ratios.items())


def shown(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(shown, value))
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


STAGES = {stage.__name__: stage for stage in (parity, fit, speed, graph, peer, steps)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "summary"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[2048, 16384], help="targets")
    parser.add_argument("--precisions", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--losses", nargs="+", default=["bpr"], choices=LOSSES)
    parser.add_argument("--only", nargs="+", default=FILES, choices=FILES, help="steps: ops, by their files")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--data", type=Path, help="ml-1m.txt")
    parser.add_argument("--facts", type=Path, help="JSON lines; these are added")
    args = parser.parse_args()
    if args.stage == "summary":
        return int(not summary(args.facts))
    inputs: dict[str, Any] = {"device": args.device}
    if args.stage == "parity":
        runs = [(name, precision, "bpr") for precision in PRECISIONS for name in args.models]
        runs.append(("SASRec", "fp32", "cross_entropy"))
        work = [dict(zip(("model", "precision", "loss"), run, strict=True)) for run in runs]
    elif args.stage == "fit":
        work = [{"model": name} for name in args.models]
    elif args.stage == "steps":
        work = [{"file": file} for file in args.only]
    else:
        inputs |= {"data": ml_1m(args.data), "limit": args.seconds}
        # Plain Caser has one output a row: no peer of this kind.
        names = [name for name in args.models if args.stage != "peer" or name != "Caser"]
        parts = {"model": names, "batch": args.batches, "precision": args.precisions}
        parts |= {"loss": args.losses} if args.stage == "speed" else {}
        work = [dict(zip(parts, values, strict=True)) for values in itertools.product(*parts.values())]
    return int(not all([measure(STAGES[args.stage], args.facts, about, **inputs) for about in work]))


if __name__ == "__main__":
    sys.exit(main())
