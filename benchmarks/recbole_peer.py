"""RecBole's own loader and model, as peers.py and peers_quality.py need them. Runs in RecBole's environment."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

# WarpRec's names of hyper-parameters, where RecBole has others.
NAMES: dict[str, dict[str, str]] = {
    "SASRec": {"embedding_size": "hidden_size", "dropout_prob": "hidden_dropout_prob"},
    "GRU4Rec": {},
    "Caser": {"n_h": "nh", "n_v": "nv"},
}
FIELDS = ["user_id", "item_id", "timestamp"]


def prepare(histories: list[Any], name: str, params: dict[str, Any], seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """RecBole's training loader and model: bpr with ``neg_samples`` negatives, one target a row.

    Args:
        histories: items of every user, in order; all of them are trained on.
        name: SASRec, GRU4Rec or Caser.
        params: hyper-parameters under WarpRec's names, ``batch_size`` and ``max_seq_len`` among them.
        seed: of everything.

    Returns:
        The loader, the model, and RecBole's numbers of users and items by ours (as text), 0 being its padding.
    """
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed

    config = {NAMES[name].get(key, key): value for key, value in params.items()} | {
        "load_col": {"inter": FIELDS},
        "MAX_ITEM_LIST_LENGTH": params["max_seq_len"],
        "loss_type": "BPR",
        "train_batch_size": params["batch_size"],
        "train_neg_sample_args": {
            "distribution": "uniform",
            "sample_num": params["neg_samples"],
            "dynamic": False,
            "candidate_num": 0,
        },
        "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
        "use_gpu": False,
        "seed": seed,
        "state": "ERROR",
        "show_progress": False,
    }
    arguments, sys.argv = sys.argv, sys.argv[:1]  # RecBole would read them
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        with (Path(folder) / "data" / "data.inter").open("w") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for user, history in enumerate(histories):
                file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(history))
        chosen = Config(model=name, dataset="data", config_dict=config | {"data_path": folder})
        sys.argv = arguments
        init_seed(seed, reproducibility=True)
        data = create_dataset(chosen)
        loader, _, _ = data_preparation(chosen, data)
    return loader, get_model(name)(chosen, loader._dataset), dict(data.field2token_id)
