"""Small hyperparameters of every model, for tests that train it or load it."""

from __future__ import annotations

from typing import Any

OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"n_layers": 1, "n_heads": 2, "inner_size": 16},
    "GRU4Rec": {"hidden_size": 6, "num_layers": 1},
    "Caser": {"n_h": 2, "n_v": 2},
}


def required_params(name: str, **changes: Any) -> dict[str, Any]:
    """Those that have no default, without dropout."""
    dropout = {"dropout_prob": 0.0} | ({"attn_dropout_prob": 0.0} if name == "SASRec" else {})
    training = {"weight_decay": 0.0, "epochs": 1, "learning_rate": 0.001, "neg_samples": 1}
    return {"embedding_size": 8, **OWN[name], **dropout, **training, **changes}


def small_params(name: str, **changes: Any) -> dict[str, Any]:
    """With dropout, short histories and small batches."""
    dropout = dict.fromkeys([key for key in required_params(name) if "dropout" in key], 0.1)
    return required_params(name, **{**dropout, "max_seq_len": 8, "batch_size": 64, **changes})
