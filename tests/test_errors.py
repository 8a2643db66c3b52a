"""What an unknown word may have meant."""

from __future__ import annotations

import numpy as np
import pytest

from fastseq.cli.configuration import Config, Evaluation, Labels, Reader
from fastseq.errors import ConfigError, check_integer, did_you_mean, nearest
from fastseq.models import MODELS, GRU4Rec, SASRec

SAS, GRU = SASRec.hyperparameter_names(), GRU4Rec.hyperparameter_names()


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("lr", SAS, "learning_rate"),
        ("hidden", GRU, "hidden_size"),
        ("hidden", SAS, "embedding_size"),
        ("dropout", SAS, "dropout_prob"),
        ("num_layers", SAS, "n_layers"),
        ("n_layers", GRU, "num_layers"),
        ("MAX_ITEM_LIST_LENGTH", GRU, "max_seq_len"),
        ("embeding_size", SAS, "embedding_size"),
        ("seed", SAS, None),
        ("temperature", SAS, None),
        ("BERT4Rec", MODELS, None),
        ("Gru4Recc", MODELS, "GRU4Rec"),
        ("model", Config.model_fields, "models"),
        ("delimiter", Reader.model_fields, "sep"),
        ("user_id", Labels.model_fields, "user_id_label"),
        ("ks", Evaluation.model_fields, "top_k"),
        ("item_id", ["userId", "movieId", "rating"], "movieId"),
        ("user_id", ["a", "b", "c"], None),
        (1, ["a", "b"], None),
    ],
)
def test_near_words_and_synonyms(word: object, known: list[str], expected: str | None) -> None:
    assert nearest(word, known) == expected
    assert (f"{expected!r}?" if expected else f"expected one of {', '.join(known)}") in did_you_mean(word, known)


@pytest.mark.parametrize("value", [2.5, "3", None, True, 0, 2**63])
def test_what_is_no_integer_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match=r"k is .*, expected an integer"):
        check_integer("k", value, 1)
    check_integer("k", np.int64(3), 1)
