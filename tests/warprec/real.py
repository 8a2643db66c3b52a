"""What the tests against the real WarpRec share: small hyper-parameters, data, configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ABSENT = "WarpRec is not installed here: make test-warprec tests against it"
pytest.importorskip("warprec", reason=ABSENT)

import narwhals as nw  # noqa: E402
import polars as pl  # noqa: E402
from scipy.sparse import csr_matrix  # noqa: E402
from warprec.data.entities import Sessions  # noqa: E402
from warprec.recommenders import sequential_recommender as originals  # noqa: E402

from fastseq import warprec as adapters  # noqa: E402

COMMON = {"embedding_size": 16, "dropout_prob": 0.0, "reg_weight": 0.001, "weight_decay": 0.01, "batch_size": 64}
COMMON |= {"epochs": 2, "learning_rate": 0.003, "neg_samples": 2, "max_seq_len": 7}
PARAMS: dict[str, dict[str, Any]] = {
    "SASRec": {**COMMON, "n_layers": 2, "n_heads": 4, "inner_size": 24, "attn_dropout_prob": 0.0},
    "GRU4Rec": {**COMMON, "hidden_size": 12, "num_layers": 2},
    "Caser": {**COMMON, "n_h": 3, "n_v": 2},
}
N_USERS, N_ITEMS = 30, 40
INFO = {"n_users": N_USERS, "n_items": N_ITEMS}


def pair(name: str, seed: int = 5, **changes: Any) -> tuple[Any, Any]:
    """WarpRec's model and fastseq's, neither with a trainer to log to."""
    params = {**PARAMS[name], **changes}
    models = getattr(originals, name)(params, INFO, seed=seed), getattr(adapters, name)(params, INFO, seed=seed)
    for model in models:
        model.log = lambda *args, **kwargs: None
    return models


def sessions(longest: int = 20, seed: int = 0) -> Sessions:
    """WarpRec's sessions of random histories, the shortest of one event."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, N_USERS)
    users = np.repeat(np.arange(N_USERS), lengths)
    items = generator.integers(0, N_ITEMS, len(users))
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(users))})
    seen = csr_matrix((np.ones(len(users)), (users, items)), shape=(N_USERS, N_ITEMS))
    seen.sum_duplicates()
    seen.sort_indices()
    names = {f: {i: i for i in range(n)} for f, n in (("user", N_USERS), ("item", N_ITEMS))}
    return Sessions(nw.from_native(frame), names["user"], names["item"], seen)


def subset(shared_data: Path, folder: Path, users: int) -> Path:
    """ml-100k without the users above a number."""
    header, *rows = (shared_data / "ml-100k.inter").read_text().splitlines()
    path = folder / "small.inter"
    path.write_text("\n".join([header, *(row for row in rows if int(row.split("\t")[0]) <= users)]) + "\n")
    return path


def configuration(data: Path, models: dict[str, Any], custom_modules: list[str]) -> dict[str, Any]:
    """A configuration for every pipeline; results go below ``runs`` in the folder it is started in."""
    one_out = {"strategy": "temporal_leave_k_out", "k": 1}
    return {
        "reader": {
            "loading_strategy": "dataset",
            "data_type": "transaction",
            "reading_method": "local",
            "rating_type": "explicit",
            "local_path": str(data),
            "labels": {
                "user_id_label": "user_id:token",
                "item_id_label": "item_id:token",
                "rating_label": "rating:float",
                "timestamp_label": "timestamp:float",
            },
            "dtypes": {"timestamp_type": "float64"},
        },
        "writer": {"dataset_name": "data", "writing_method": "local", "local_experiment_path": "runs"},
        "splitter": {"test_splitting": one_out, "validation_splitting": one_out},
        "models": models,
        "evaluation": {"top_k": [10], "metrics": ["nDCG", "HitRate"], "validation_metric": "nDCG@10"},
        "general": {"ray_address": "local", "custom_modules": custom_modules},
    }
