"""What gpu_check.sh asks of whole models, one stage a process; every fact is one JSON line, written at once.

    python -m benchmarks.gpu_check STAGE [--device cuda] [--models SASRec ...] [--seconds 3] [--facts FILE]

machine which GPU, versions and date: what every other fact was found with.
parity  20 training steps on the device, eager or as a CUDA graph, and in C++ on the CPU from one seed. Masks, negatives
        and batches are the same stream, so losses, first gradients, metrics and recommendations must agree.
fit     Trainer.fit as users call it: 2 epochs, validation, checkpoints; a run cut off by Ctrl-C and resumed has the
        same weights bit for bit; the run folder loads on the CPU and recommends the same.
speed   targets/s of the trainer's loop, eager or as a CUDA graph, host time of a step; on a GPU also how long it is
        busy, device events and synchronisations a step, peak memory, the ten costliest kernels.
peer    plain PyTorch for the same model, padded, eager or compiled: what it has to beat.
steps   one training step of every op in tiny sizes, in every type that benchmarks.ops measures but tf32: on a GPU
        float32 and bfloat16. What compute-sanitizer watches.
summary the facts of FILE as lines to read; exit status 1 if a stage or a fact failed, or if none passed.
publish the facts of FILE as a file of benchmarks/results and a table in docs/results.md.

A measurement that fails is a line with "failed" and the place, not the end; the exit status is 1 then. Nothing but
torch and a checkout is needed. Data: the file of --data (ml-1m.txt), else generated in its likeness.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import re
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

from benchmarks.measure import Watch, append, table  # noqa: E402
from benchmarks.ops import report  # noqa: E402
from benchmarks.ops.case import TF32  # noqa: E402
from benchmarks.ops.check import Prepared, products  # noqa: E402
from benchmarks.ops.suite import FILES, specs, tiny  # noqa: E402
from fastseq import __version__, load  # noqa: E402
from fastseq.data.interactions import Interactions, build_interactions  # noqa: E402
from fastseq.data.split import leave_one_out  # noqa: E402
from fastseq.data.synthetic import make_demo  # noqa: E402
from fastseq.devices import device_name  # noqa: E402
from fastseq.models import MODELS  # noqa: E402
from fastseq.models.hyperparameters import LOSSES  # noqa: E402
from fastseq.training import Trainer, TrainingOptions, evaluate  # noqa: E402
from fastseq.training.options import PRECISIONS  # noqa: E402
from fastseq.training.throughput import everything, reference_params  # noqa: E402
from tests.models.restatement import PLAIN  # noqa: E402

MAX_LEN = {"SASRec": 200, "GRU4Rec": 50, "Caser": 20}
SMALL_LEN = 50  # of parity and fit, on the demo data
PARITY_BATCH = 1024
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


def options_of(precision: str, execution: str, epochs: int = 1_000_000) -> TrainingOptions:
    how: Any = {"precision": precision, "execution": execution}
    return TrainingOptions(**how, epochs=epochs, validation_metric=None)


def machine(device: str) -> dict[str, Any]:
    import triton

    return {
        "device": device_name(torch.device(device)),
        "capability": list(torch.cuda.get_device_capability()) if device.startswith("cuda") else None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "fastseq": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def recommended(model: Any, data: Interactions, users: range) -> list[Any]:
    """The 10 best items for each user, as raw ids."""
    names = data.user_ids.decode(np.array(users))
    histories = [data.history(name) for name in names]
    return [r.items for r in model.recommend(histories, 10, users=names if model.needs_user else None)]


def overlap(ours: list[Any], theirs: list[Any]) -> float:
    """Share of recommendations that both lists of lists have."""
    return sum(len({*a} & {*b}) for a, b in zip(ours, theirs, strict=True)) / max(1, sum(map(len, ours)))


def parity(model: str, precision: str, loss: str, execution: str, device: str) -> dict[str, Any]:
    """Sides differ by rounding alone: limits are 10 – 100 times what float32 and bfloat16 do in 20 steps."""
    data = make_demo(n_users=750)
    split = leave_one_out(data)
    sides = []
    for where, how in (("cpu", "eager"), (device, execution)):
        built = build(model, data, where, SMALL_LEN, batch_size=PARITY_BATCH, loss=loss)
        trainer = Trainer(built, split, options_of(precision, how, epochs=1))
        watch = Watch(trainer, keep_gradients=True)
        trainer.fit()
        metrics = evaluate(built, split, "test", ks=(10,), batch_size=512).metrics
        sides.append((watch.losses, watch.gradients, metrics["NDCG@10"], recommended(built, data, range(64))))
    (a, grads, ndcg, best), (b, other_grads, other_ndcg, other_best) = sides
    errors = {n: float((g - other_grads[n]).norm() / g.norm().clamp(min=1e-12)) for n, g in grads.items()}
    worst = max(errors, key=errors.__getitem__)
    difference, same = max(abs(x - y) for x, y in zip(a, b, strict=True)), overlap(best, other_best)
    exact = precision == "fp32"
    loss_limit, gradient_limit, least = (2e-4, 1e-3, 0.97) if exact else (5e-3, 0.1, 0.8)
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
    model: str, batch: int, precision: str, execution: str, device: str, data: Interactions, limit: float,
    loss: str = "bpr",
) -> dict[str, Any]:  # fmt: skip
    built = build(model, data, device, MAX_LEN[model], batch_size=batch, loss=loss)
    watch, cuda = Watch(Trainer(built, everything(data), options_of(precision, execution))), device.startswith("cuda")
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
        "last_loss": watch.losses[-1],
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


def peer(
    model: str, batch: int, precision: str, execution: str, device: str, data: Interactions, limit: float
) -> dict[str, Any]:
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

    run = torch.compile(outputs) if execution == "compiled" else outputs

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
            loss = (softplus(-(run(x) * margin).sum(-1)) * real).sum() / real.sum()
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
        names = ("stage", "model", "batch", "precision", "execution", "loss")
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


RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"
SECTION = "## On a GPU"


def publish(facts_path: Path) -> None:
    """Keeps the facts as they are, and writes the section of docs/results.md anew that has those of the last run."""
    facts = [json.loads(line) for line in facts_path.read_text().splitlines()]
    about = next((fact for fact in facts if fact.get("stage") == "machine" and "date" in fact), None)
    if about is None:
        sys.exit(f"{facts_path} does not say which machine it is of: run the stage machine")
    name = "_".join(re.findall(r"[a-z0-9]+", about["device"].lower()))
    target = RESULTS / f"gpu_{name}_{about['date']}.jsonl"
    target.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    rows = [
        [
            *(str(fact.get(key, "")) for key in ("stage", "model", "batch", "precision", "execution", "loss")),
            fact["failed"][:60] if "failed" in fact else f"{fact['targets_per_s']:,}",
            *(shown(fact[key]) if key in fact else "" for key in ("ms_step", "ms_host", "ms_busy", "events_a_step")),
        ]
        for fact in facts
        if fact.get("stage") in ("speed", "peer") and ("targets_per_s" in fact or "failed" in fact)
    ]
    header = ["", "model", "batch", "precision", "execution", "loss", "targets/s", "ms", "host", "busy", "events"]
    checks = [
        f"- {fact['stage']}: {fact['verdict']}, {fact['seconds']} s. {fact['note']}".rstrip()
        for fact in facts
        if "verdict" in fact
    ]
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", "torch", "triton", "fastseq"))
    section = (
        f"{SECTION}\n\n{about['date']}, {about['device']}, {about['cores']} cores; {versions}; "
        f"`benchmarks/gpu_check.sh`; every fact is in benchmarks/results/{target.name}. Milliseconds are of a step.\n\n"
        + table(header, rows)
        + "\n\n"
        + "\n".join(checks)
        + "\n\n"
    )
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(f"{SECTION}\n")
    following = re.search(r"^## ", rest, re.MULTILINE)
    DOCUMENT.write_text(before + section + (rest[following.start() :] if following else ""))
    print(f"{target}\n{DOCUMENT}, section {SECTION!r}")


STAGES = {stage.__name__: stage for stage in (machine, parity, fit, speed, peer, steps)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "summary", "publish"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[2048, 16384], help="targets")
    parser.add_argument("--precisions", nargs="+", default=[*PRECISIONS], choices=PRECISIONS)
    parser.add_argument("--executions", nargs="+", default=["eager"], choices=("eager", "graph", "compiled"))
    parser.add_argument("--losses", nargs="+", default=["bpr"], choices=LOSSES)
    parser.add_argument("--only", nargs="+", default=FILES, choices=FILES, help="steps: ops, by their files")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--data", type=Path, help="ml-1m.txt")
    parser.add_argument("--facts", type=Path, help="JSON lines; these are added")
    args = parser.parse_args()
    if args.stage == "summary":
        return int(not summary(args.facts))
    if args.stage == "publish":
        publish(args.facts)
        return 0
    inputs: dict[str, Any] = {"device": args.device}
    if args.stage == "machine":
        work: list[dict[str, Any]] = [{}]
    elif args.stage == "parity":
        runs = [(*run, "bpr", how) for *run, how in itertools.product(args.models, args.precisions, args.executions)]
        runs += [("SASRec", "fp32", "cross_entropy", how) for how in args.executions]
        work = [dict(zip(("model", "precision", "loss", "execution"), run, strict=True)) for run in runs]
    elif args.stage == "fit":
        work = [{"model": name} for name in args.models]
    elif args.stage == "steps":
        work = [{"file": file} for file in args.only]
    else:
        inputs |= {"data": ml_1m(args.data), "limit": args.seconds}
        # Plain Caser has one output a row: no peer of this kind.
        names = [name for name in args.models if args.stage != "peer" or name != "Caser"]
        parts = {"model": names, "batch": args.batches, "precision": args.precisions, "execution": args.executions}
        parts |= {"loss": args.losses} if args.stage == "speed" else {}
        work = [dict(zip(parts, values, strict=True)) for values in itertools.product(*parts.values())]
    return int(not all([measure(STAGES[args.stage], args.facts, about, **inputs) for about in work]))


if __name__ == "__main__":
    sys.exit(main())
