"""Training gives the same weights, to the bit, on 1, 2 and 8 threads."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from fastseq.models import MODELS
from fastseq.training import Trainer, TrainingOptions
from fastseq.training.throughput import REFERENCE_CONFIGURATIONS
from tests.ops.backends import check_same_on_threads
from tests.training.tiny import make_split

CASES: dict[str, dict[str, Any]] = {
    "SASRec": {"n_heads": 2, "inner_size": 24, "dropout_prob": 0.2, "attn_dropout_prob": 0.2},
    "SASRec, full softmax": {"n_heads": 2, "inner_size": 24, "loss": "cross_entropy", "neg_samples": 0},
    "GRU4Rec": {"hidden_size": 24, "dropout_prob": 0.2},
    "Caser": {"n_h": 3, "n_v": 2, "dropout_prob": 0.2, "max_seq_len": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_weight(case: str, precision: str) -> None:
    split = make_split(n_users=60)
    name = case.split(",")[0]
    small = {"embedding_size": 16, "max_seq_len": 20, "batch_size": 256, "reg_weight": 0.0}
    params = {**REFERENCE_CONFIGURATIONS[name], **small, **CASES[case]}
    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    options = TrainingOptions(epochs=2, precision=precision, validation_metric=None)  # type: ignore[arg-type]

    def weights() -> dict[str, Tensor]:
        model = MODELS[name](params, info, seed=3)
        Trainer(model, split, options).fit()
        return model.state_dict()

    check_same_on_threads(weights)
