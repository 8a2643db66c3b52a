"""WarpRec's keys that mean nothing to ``fastseq train``, and those of which it does one value only."""

from __future__ import annotations

from typing import Any

from ..data.strategies import STRATEGIES
from ..errors import ConfigError

# WarpRec's keys for its search, reports, machines and other models, of this version and earlier ones: nothing that is
# trained or measured here depends on them.
UNUSED: dict[str, set[str]] = {
    "": {"estimate", "run", "training"},
    "dashboard": {"codecarbon"},
    "dashboard.wandb": {"log_config"},  # the settings of a run are always written
    "reader": {"azure_blob_name", "clustering", "knowledge", "multimodal", "negative_sampling", "sequence_pooling"},
    "reader.labels": {"cluster_label"},
    "reader.dtypes": {"cluster_type", "context_separators", "context_types"},
    "reader.split": {"azure_blob_prefix"},
    "evaluation": {
        "beta", "complex_metrics", "full_evaluation_on_report", "max_metric_per_row", "neg_alpha", "pop_ratio",
        "propensity", "save_evaluation", "save_per_user", "stat_significance",
    },
    "rerank": {"params", "pool"},
    "writer": {
        "azure_blob_experiment_container", "recommendation", "results", "save_split", "setup_experiment", "split",
    },
    "general": {
        "azure", "backend", "batch_size", "callback", "cpu_data_prep", "custom_models", "custom_modules",
        "custom_resources_data_prep", "float_digits", "gpu_deterministic", "label_selector_data_prep", "max_eval",
        "ray_address", "ray_verbose", "recommendation", "time_report", "train_data_preparation", "verbose",
    },
    "meta": {"implementation", "keep_all_ray_checkpoints", "low_memory", "save_recs"},
    "optimization": {
        "block_size", "checkpoint_to_keep", "chunk_size", "cpu_per_trial", "custom_resources_per_trial",
        "gpu_per_trial", "label_selector", "max_concurrent_trials", "max_cpu_count", "multi_gpu", "num_gpus",
        "num_samples", "num_workers", "parallel_trials", "strategy",
    },
    "optimization.optimizer": set(),
    "optimization.optimizer.params": {"weight_decay"},  # each group of parameters has its own
    "optimization.properties": {
        "desired_training_it", "grace_period", "hard_stop", "max_t", "min_samples_required", "min_time_slice",
        "n_startup_trials", "reduction_factor", "time_attr",
    },
}  # fmt: skip
# Keys of which other values than these change the result in WarpRec, and what to do about it.
ONLY: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "reader": {
        "duplicates": (("max", "mean", "first", "last"), "every event counts once; filtering.Duplicates drops repeats"),
        "side": ((), "WarpRec drops items without attributes by it; drop them from the data and leave the key out"),
    },
    "reader.labels": {"context_labels": ((), "these models read no context; leave the key out")},
    "rerank": {"name": ((), "lists are ranked by score alone here; leave the section out")},
    "evaluation": {
        "candidates": (("all", "warm"), "every trained item is ranked, and no other can be"),
        "negative_sampling": (("uniform",), "sampled rankings draw uniformly here; leave the key out"),
    },
    "general": {
        "precision": (("float32",), "write it as models.MODEL.optimization.precision"),
        "seed": ((), "write it as models.MODEL.optimization.properties.seed; splits and evaluation have their own"),
        "validation_metric": ((), "write it as evaluation.validation_metric"),
    },
    "meta": {
        "load_from": ((), "fastseq train starts from new weights; leave it out, or load them in Python (fastseq.load)")
    },
    "optimization": {
        "scheduler": (("fifo",), "fastseq train trains each model once"),
        "validation_metric": ((), "write it as evaluation.validation_metric"),
    },
    "optimization.properties": {"mode": (("max",), "the best epoch has the highest validation_metric")},
}


def used(tree: dict[str, Any], section: str, unused: list[str], origin: str, model: str = "") -> dict[str, Any]:
    """A section without what has no meaning here, which is added to ``unused``; so for the sections inside it.

    Raises:
        ConfigError: naming the key whose value changes the result in WarpRec, and is not done here.
    """
    kept: dict[str, Any] = {}
    own = set(UNUSED.get(section, ()))
    if section in ("splitter.test_splitting", "splitter.validation_splitting"):
        needs = STRATEGIES.get(str(tree.get("strategy")))
        own = {"k", "ratio", "timestamp", "folds"} - {needs} if needs is not None else {"folds"}
    if section == "reader" and tree.get("loading_strategy") != "split":
        given = tree.get("split")
        own |= {"split"} if isinstance(given, dict) and given.get("local_path") is None else set()
    if section == "evaluation" and tree.get("strategy") != "sampled":
        own |= {"negative_sampling"}
    for key, value in tree.items():
        path = f"{section}.{key}" if section else str(key)
        only = None if key in own else ONLY.get(section, {}).get(key)
        if only is not None and value not in (None, [], {}) and str(value).lower() not in only[0]:
            expected = f", expected {' or '.join(only[0])}" if only[0] else ""
            raise ConfigError(f"{origin}: {model}{path} is {value!r}{expected}: {only[1]}")
        if only is not None or key in own:
            unused += [f"{model}{path}"] if value is not None else []
        elif isinstance(value, dict) and (path in UNUSED or path in ONLY or path.startswith("splitter")):
            kept[key] = used(value, path, unused, origin, model)
        else:
            kept[key] = value
    return kept
