"""Reference configurations as they stand, defaults, and errors that name the key and the nearest one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fastseq.cli.configuration import (
    Config,
    EarlyStopping,
    Optimization,
    Section,
    SplitReading,
    load_config,
    load_tree,
    parse_config,
)
from fastseq.cli.dashboard import Dashboard
from fastseq.errors import ConfigError
from fastseq.models import MODELS
from tests.conftest import Outside
from tests.models.small import small_params

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
    for none in (None, {}, {"strategy": None}):
        config = parse_config({"splitter": {"validation_splitting": none}, "models": {"SASRec": SASREC}})
        assert config.splitter.validation_splitting is None
    again = load_config(config.resolved(config.models[0], SASREC))
    assert again.splitter.validation_splitting is None


# Values tried for every key: each that is accepted must come back from the run folder.
TRIED: list[Any] = [None, False, 3, 0.25, [7, 3], ["MRR"], "MRR@3", " ", "1e3", {}, {"warmup_steps": 5}]
TRIED += ["random_holdout", "ConstantLR", "AdamW", {"eps": 0.5}, {"ItemMin": {"min_interactions": 5}}]
# What some keys need beside them.
BESIDE: dict[str, dict[str, Any]] = {
    **{
        f"splitter.{part}_splitting.{key}": {"splitter": {"test_splitting": both, "validation_splitting": both}}
        for part in ("test", "validation")
        for key, both in (
            ("k", {"k": 3}),
            ("strategy", {"strategy": "temporal_holdout", "ratio": 0.2}),
            ("ratio", {"strategy": "temporal_holdout", "ratio": 0.2}),
            ("timestamp", {"strategy": "timestamp_slicing", "timestamp": 9}),
        )
    },
    **{
        f"models.GRU4Rec.early_stopping.{key}": {"models": {"GRU4Rec": {"early_stopping": {"patience": 4}}}}
        for key in EarlyStopping.model_fields
    },
    **{f"reader.split.{key}": {"reader": {"split": {"local_path": "folder"}}} for key in SplitReading.model_fields},
    "reader.loading_strategy": {"reader": {"split": {"local_path": "folder"}}},
}


def leaves(kind: type[BaseModel], *path: str) -> Iterator[tuple[str, list[Any]]]:
    """The path of every key of a section and of the sections inside it, with its types and words."""
    for name, field in kind.model_fields.items():
        types = [field.annotation, *get_args(field.annotation)]
        for inner in types:
            if inspect.isclass(inner) and issubclass(inner, Section):
                yield from leaves(inner, *path, name)
        yield ".".join((*path, name)), [word for t in types for word in get_args(t) or [t]]


def merged(tree: Any, other: Any) -> Any:
    """Both trees; where both have a value, that of ``other``."""
    if not (isinstance(tree, dict) and isinstance(other, dict)):
        return other
    return tree | {key: merged(tree.get(key), value) for key, value in other.items()}


KEYS = {
    key: types
    for section, path in (
        (Config, ()),
        (Optimization, ("models", "GRU4Rec", "optimization")),
        (EarlyStopping, ("models", "GRU4Rec", "early_stopping")),
    )
    for key, types in leaves(section, *path)
    if key != "models"
}


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_every_key_survives_the_round_trip(key: str) -> None:
    base = {"models": {"GRU4Rec": small_params("GRU4Rec")}}
    words = {word for word in KEYS[key] if isinstance(word, str)}
    taken = []
    for value in [*TRIED, *words]:
        tree: Any = value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        try:
            config = parse_config(merged(merged(base, BESIDE.get(key, {})), tree))
        except ConfigError:
            continue
        again = load_config(config.resolved(config.models[0], config.models[0].params))
        config.reader.local_path = config.reader.local_path and config.reader.local_path.absolute()
        if config.reader.split is not None:
            config.reader.split.local_path = config.reader.split.local_path.absolute()
        config.writer.local_experiment_path = config.writer.local_experiment_path.absolute()
        config.dashboard = Dashboard(**config.dashboard.resolved())  # tests/cli/test_dashboard.py compares the two
        config._unused = []  # the run folder has what is used
        assert again == config, f"{key}: {value!r} has become {again!r}"
        taken.append(config)
    differ = any(config != parse_config(base) for config in taken)
    section = any(inspect.isclass(t) and issubclass(t, Section) for t in KEYS[key])
    fixed = len(words) == 1 or True in KEYS[key]
    assert section or fixed or differ, f"no value of {key} was tried: add one to TRIED, or what it needs to BESIDE"


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "Caser"])
def test_hyperparameters_survive_the_round_trip(name: str) -> None:
    """Those beyond WarpRec's, each away from its default, as the run folder gets them from the model."""
    others = [
        {"window_stride": 2},
        {"initializer_range": 0.1},
        {"negatives": "shared"},
        {"loss": "gbce", "gbce_t": 0.5},
    ]
    if name == "Caser":
        others += [{"user_vectors": False}, {"output_activation": "none"}]
    for other in [*others, {"negative_distribution": "popularity", "negative_alpha": 0.3}, {"reg_weight": 1e-7}]:
        config = parse_config({"models": {name: small_params(name, **other)}})
        model = MODELS[name](config.models[0].params, {"n_users": 4, "n_items": 5})
        again = load_config(config.resolved(config.models[0], model.get_params()))
        assert MODELS[name].check_params(again.models[0].params) == MODELS[name].check_params(config.models[0].params)


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
        (VALID | {"filtering": {"UserMni": {}}}, "unknown filter 'UserMni': did you mean 'UserMin'?"),
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


def test_merge_keys_and_repeated_keys_go_together() -> None:
    """Also of a base that merges and overrides itself, and is read after the mapping that merges it."""
    config = load_config("""
models:
  SASRec: &base
    embedding_size: 16
    optimization: &options {gradient_clip: 1.0, eval_every_n: 3}
  Caser:
    <<: *base
    embedding_size: 32
    optimization: {<<: [{gradient_clip: 2.0}, *options], eval_every_n: 4}
""")
    caser = config.models[1]
    assert caser.params == {"embedding_size": 32}
    assert (caser.optimization.gradient_clip, caser.optimization.eval_every_n) == (2.0, 4)
    assert load_tree("a: {b: &b {<<: {x: 1}, x: 2}}\nc: {<<: *b}\n")[0]["c"] == {"x": 2}
    for text in ("a: {<<: {x: 1, x: 2}}\n", "a: {<<: {x: 1}, x: 2, x: 3}\n"):
        with pytest.raises(ConfigError, match="line 1: key 'x' stands twice"):
            load_tree(text)
    for text in ("a: {<<: {x: 1}, <<: {y: 1}}\n", "a: {<<: 3}\n", "a: &a {<<: *a}\n"):
        with pytest.raises(ConfigError, match=r"'<<' (stands twice|takes a mapping)|not valid YAML"):
            load_tree(text)


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHERE", "some/where")
    sections = {"reader": {"local_path": "~/x.csv"}, "writer": {"local_experiment_path": "${WHERE}/$WHERE"}}
    config = parse_config(VALID | sections)
    assert config.reader.local_path == tmp_path / "home" / "x.csv"
    assert config.writer.local_experiment_path == Path("some/where/some/where")
    monkeypatch.chdir(tmp_path)
    Path("$odd").touch()
    assert parse_config(VALID | {"reader": {"local_path": "$odd"}}).reader.local_path == Path("$odd")
    for wrong, message in (
        ("$NOWHERE/x", "variable NOWHERE is not set"),
        ("~nobody-here/x", "home folder .*~nobody-here"),
    ):
        with pytest.raises(ConfigError, match=rf"reader\.local_path: .*{message}"):
            parse_config(VALID | {"reader": {"local_path": wrong}})


def test_updates_have_a_short_form() -> None:
    def parsed(optimizer: object) -> Any:
        tree = {"models": {"SASRec": VALID["models"]["SASRec"] | {"optimization": {"optimizer": optimizer}}}}
        return parse_config(VALID | tree).models[0].optimization.optimizer

    assert parsed("rows") == parsed({"updates": "rows"}) and parsed("rows").updates == "rows"
    assert parsed(None).updates == parsed({"name": "adam"}).updates == "auto"
    with pytest.raises(ConfigError, match="optimizer"):
        parsed("row")


def test_warprecs_keys_without_a_meaning_are_listed_and_one_element_lists_are_values() -> None:
    optimization = {"strategy": "grid", "num_samples": 3, "properties": {"mode": "max", "seed": 7}, "optimizer": None}
    config = parse_config(
        {
            "models": {"SASRec": {"embedding_size": [8], "meta": {"save_model": True}, "optimization": optimization}},
            "general": {"ray_verbose": 0, "custom_modules": ["x.py"], "device": "cpu"},
            "evaluation": {"complex_metrics": [], "max_metric_per_row": 4},
            "writer": {"save_split": True, "dataset_name": "x"},
            "dashboard": {"wandb": {"enabled": False, "log_config": True}, "codecarbon": {"enabled": False}},
        }
    )
    assert config.models[0].params == {"embedding_size": 8}
    assert config.models[0].optimization.properties.seed == 7 and config.general.device == "cpu"
    assert config.unused == [
        "dashboard.codecarbon", "dashboard.wandb.log_config", "evaluation.complex_metrics",
        "evaluation.max_metric_per_row", "general.custom_modules", "general.ray_verbose",
        "models.SASRec.optimization.num_samples",
        "models.SASRec.optimization.properties.mode", "models.SASRec.optimization.strategy", "writer.save_split",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "unused"),
    [
        ({"reader": {"duplicates": "last", "split": {"ext": ".csv"}}}, {"reader.duplicates", "reader.split"}),
        (
            {"reader": {"labels": {"cluster_label": "c", "context_labels": []}}},
            {"reader.labels.cluster_label", "reader.labels.context_labels"},
        ),
        (
            {"evaluation": {"negative_sampling": "popularity", "candidates": "all"}},
            {"evaluation.negative_sampling", "evaluation.candidates"},
        ),
        (
            {"splitter": {"test_splitting": {"strategy": "temporal_holdout", "ratio": 0.1, "k": 3, "folds": 2}}},
            {"splitter.test_splitting.k", "splitter.test_splitting.folds"},
        ),
        ({"rerank": {"name": None, "pool": 50}, "run": {"name": "x"}}, {"rerank.pool", "run"}),
        ({"rerank": None}, set()),
        (
            {"models": {"SASRec": SASREC | {"n_layers": ["grid", 2], "meta": {"save_recs": True}}}},
            {"models.SASRec.meta.save_recs"},
        ),
    ],
)
def test_values_that_change_nothing_here_are_listed(tree: dict[str, Any], unused: set[str]) -> None:
    assert set(parse_config(VALID | tree).unused) == unused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models.SASRec.meta.load_from", "x.pth"),
        ("models.SASRec.optimization.properties.mode", "min"),
        ("models.SASRec.optimization.scheduler", "asha"),
        ("models.SASRec.optimization.validation_metric", "Recall@5"),
        ("models.SASRec.optimization.precision", "16-mixed"),
        ("models.SASRec.early_stopping.monitor", "loss"),
        ("reader.duplicates", "sum"),
        ("reader.side", {"local_path": "attributes.tsv"}),
        ("reader.labels.context_labels", ["weather"]),
        ("rerank.name", "MMR"),
        ("evaluation.candidates", "cold"),
        ("evaluation.negative_sampling", "popularity"),
        ("general.seed", 7),
        ("general.precision", "float64"),
    ],
)
def test_values_that_would_change_the_result_are_refused_by_name(key: str, value: Any) -> None:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    base = {"models": {"SASRec": SASREC | {"early_stopping": {"patience": 2}}}, "evaluation": {"strategy": "sampled"}}
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_config(merged(base, tree))


@pytest.mark.parametrize(
    ("rating_type", "metric", "validation", "said"),
    [
        ("explicit", "nDCG", "Recall@5", True),
        ("explicit", "MAP", "nDCG@5", True),
        ("explicit", "nDCGRendle2020", "Recall@5", False),
        ("implicit", "nDCG", "nDCG@5", False),
    ],
)
def test_a_ndcg_that_warprec_weighs_by_ratings_is_said(
    rating_type: str, metric: str, validation: str, said: bool
) -> None:
    tree = {
        "reader": {"rating_type": rating_type},
        "evaluation": {"metrics": [metric], "validation_metric": validation},
    }
    assert parse_config(VALID | tree).binary_ndcg is said
