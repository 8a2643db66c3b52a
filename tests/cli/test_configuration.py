"""Reference configurations as they stand, defaults, and errors that name the key and the nearest one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.cli.configuration import Config, load_config, parse_config
from fastseq.errors import ConfigError
from tests.conftest import Outside

# The three YAML blocks of the text that fastseq was asked for with, verbatim.
REFERENCE_BLOCKS = (
    """\
models:
    Caser:
        embedding_size: 64
        n_h: 8
        n_v: 4
        dropout_prob: 0.5
        weight_decay: 0.0
        epochs: 3
        learning_rate: 0.001
        neg_samples: 1
...
""",
    """\
models:
    GRU4Rec:
        embedding_size: 128
        hidden_size: 128
        num_layers: 1
        dropout_prob: 0.2
        weight_decay: 0.0001
        epochs: 20
        learning_rate: 0.001
        neg_samples: 2
...
""",
    """\
models:
    SASRec:
        embedding_size: 128
        n_layers: 2
        n_heads: 4
        inner_size: 512
        dropout_prob: 0.3
        attn_dropout_prob: 0.3
        learning_rate: 0.001
        weight_decay: 0.0
        epochs: 1
        neg_samples: 1
...
""",
)
DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
SASREC = {"embedding_size": 8, "n_layers": 1}
VALID = {"models": {"SASRec": SASREC}}


def test_reference_configurations_are_those_of_the_original_text(outside: Outside) -> None:
    text = outside("FASTSEQ_REFERENCE", "seed.md", "the text that the reference configurations come from").read_text()
    assert tuple(re.findall(r"```yaml\n(.*?)```", text, flags=re.S)) == REFERENCE_BLOCKS


def test_the_demo_is_the_reference_configurations_and_what_they_leave_out() -> None:
    demo = {entry.name: entry.params for entry in load_config(DEMO).models}
    for block in REFERENCE_BLOCKS:
        ((name, params),) = yaml.safe_load(block)["models"].items()
        kept = {key: value for key, value in params.items() if key != "epochs"}
        assert kept.items() <= demo[name].items(), name
        assert demo[name].keys() - params.keys() == {"reg_weight", "batch_size", "max_seq_len"}
        assert demo[name]["epochs"] >= params["epochs"], name


def test_reference_configurations_load_verbatim() -> None:
    names = [load_config(block).models[0].name for block in REFERENCE_BLOCKS]
    assert names == ["Caser", "GRU4Rec", "SASRec"]


def test_defaults_are_written_out_and_read_back() -> None:
    config = parse_config({"models": {"sasrec": dict(SASREC)}})
    text = config.resolved(config.models[0], config.models[0].params)
    again = load_config(text)
    assert again.models[0].name == "SASRec"
    assert again.evaluation == config.evaluation and again.splitter == config.splitter
    assert again.resolved(again.models[0], again.models[0].params) == text


def test_a_date_survives_the_round_trip() -> None:
    text = """
splitter: {test_splitting: {strategy: timestamp_slicing, timestamp: 2005-01-01}}
models: {SASRec: {}}
"""
    config = load_config(text)
    again = load_config(config.resolved(config.models[0], SASREC))
    assert again.splitter == config.splitter and config.splitter.test_splitting.timestamp == "2005-01-01"


def test_no_validation_survives_the_round_trip() -> None:
    config = parse_config({"splitter": {"validation_splitting": None}, "models": {"SASRec": SASREC}})
    again = load_config(config.resolved(config.models[0], SASREC))
    assert again.splitter.validation_splitting is None


def test_scientific_notation_without_a_dot_is_a_number() -> None:
    config = load_config("models:\n  SASRec:\n    learning_rate: 1e-3\n")
    assert config.models[0].params["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {}}, "unknown section 'model'.*'models'"),
        ({}, "'models' must name at least one"),
        ({"models": {"SASRec": SASREC, "sasrec": SASREC}}, "names SASRec 2 times"),
        ({"models": {"SASRek": {}}}, "unknown model 'SASRek'.*'SASRec'"),
        ({"models": {"SASRec": [1]}}, "models.SASRec is"),
        ({"models": {"SASRec": {"learning_rate": [0.1, 0.2]}}}, "learning_rate is a list"),
        ({"models": {"SASRec": {"early_stopping": {"patience": 0}}}}, "early_stopping.patience.*it is 0"),
        ({"models": {"SASRec": {"optimization": {"precison": "fp32"}}}}, "optimization.precison.*'precision'"),
        ({"models": {"SASRec": {"optimization": {"properties": {"sed": 1}}}}}, "properties.sed.*'seed'"),
        (VALID | {"writer": {"dataset_name": "../x"}}, "dataset_name is '../x'.*one folder"),
        (VALID | {"reader": {"local_pth": "x"}}, "reader.local_pth.*'local_path'"),
        (VALID | {"evaluation": {"top_k": [0]}}, "top_k is \\[0\\]"),
        (VALID | {"evaluation": {"metrics": ["nDGC"]}}, "unknown metric 'nDGC'.*'NDCG'"),
        (VALID | {"evaluation": {"validation_metric": "nDCG"}}, "expected name@k"),
        (VALID | {"filtering": {"UserMni": {}}}, "unknown filter 'UserMni', expected one of MinRating"),
        (VALID | {"filtering": {"UserMin": {"min": 3}}}, "UserMin takes min_interactions, got min"),
        (VALID | {"filtering": {"UserMax": {"max_interactions": 0}}}, "UserMax.max_interactions is 0, expected an int"),
        (VALID | {"splitter": {"test_splitting": {"ratio": 0.2}}}, "takes 'k', not 'ratio'"),
        (VALID | {"splitter": {"test_splitting": {"strategy": "temporal_holdout"}}}, "needs the key 'ratio'"),
        (VALID | {"splitter": {"test_splitting": {"strategy": "random"}}}, "expected one of temporal_holdout"),
        (VALID | {"splitter": {"validation_splitting": {"strategy": "k_fold_cross_validation"}}}, "folds train one"),
    ],
)
def test_errors_name_key_value_and_remedy(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(tree)


def test_missing_file_and_broken_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(broken)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*Config.model_fields, "SASRec", "k", "strategy"]) | st.text(max_size=6), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_any_tree_is_a_config_or_a_config_error(tree: object) -> None:
    try:
        load_config(yaml.safe_dump(tree) + "\n")
    except ConfigError:
        return


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        load_config(text + "\n")
    except ConfigError:
        return


def test_a_repeated_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"line 4: key 'SASRec' stands twice"):
        load_config("models:\n  SASRec:\n    epochs: 1\n  SASRec:\n    epochs: 2\n")
