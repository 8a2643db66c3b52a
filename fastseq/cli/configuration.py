"""The configuration of `fastseq train`: WarpRec's shape, validated before anything is read or trained.

Needs the `cli` extra (pydantic, pyyaml). WarpRec's sections and keys are accepted as far as they apply; a key that
neither knows is an error that names the nearest one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ..data.filters import check_filter
from ..data.split import History
from ..data.strategies import STRATEGIES
from ..errors import ConfigError, did_you_mean
from ..models import MODELS
from ..training import optimizers
from ..training.metrics import MaskSeen, parse_metric
from ..training.options import SCHEDULES, Execution, Updates
from .dashboard import Dashboard
from .paths import expanded
from .section import Section
from .warprec_keys import UNUSED, used

_FLOAT = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$")


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


class Labels(Section):
    """Column names."""

    user_id_label: str | int = "user_id"
    item_id_label: str | int = "item_id"
    timestamp_label: str | int | None = "timestamp"
    rating_label: str | int | None = "rating"


class DataTypes(Section):
    """Types of columns; ids are integers of 64 bits or strings, and times are read as they are written."""

    user_id_type: Literal["int16", "int32", "int64", "str"] | None = None
    item_id_type: Literal["int16", "int32", "int64", "str"] | None = None
    rating_type: str | None = None
    timestamp_type: str | None = None


class SplitReading(Section):
    """Where train, validation and test are, each a file of that name with the extension."""

    local_path: Path
    file_format: Literal["tabular", "parquet"] = "tabular"
    ext: str | None = None
    sep: str = "\t"
    header: bool = True

    expand = field_validator("local_path")(expanded)

    @property
    def extension(self) -> str:
        """WarpRec's default is by the format."""
        if self.file_format == "parquet":
            return ".parquet" if self.ext in (None, ".tsv") else str(self.ext)
        return ".tsv" if self.ext is None else self.ext

    def file(self, part: str) -> Path:
        """The file of a part."""
        return self.local_path / f"{part}{self.extension}"


class Reader(Section):
    """Where the interactions come from. Without a path: the embedded demo data set."""

    local_path: Path | None = None
    file_format: Literal[
        "auto", "tabular", "csv", "tsv", "parquet", "inter", "pairs", "sequences", "user_sequences"
    ] = "auto"
    sep: str | None = None
    labels: Labels = Field(default_factory=Labels)
    # Accepted because WarpRec requires them; each has one value that applies here.
    loading_strategy: Literal["dataset", "split"] = "dataset"
    split: SplitReading | None = None
    dtypes: DataTypes = Field(default_factory=DataTypes)
    header: bool = True
    data_type: Literal["transaction"] = "transaction"
    reading_method: Literal["local"] = "local"
    rating_type: Literal["implicit", "explicit"] = "implicit"

    expand = field_validator("local_path")(expanded)

    @model_validator(mode="after")
    def complete(self) -> Reader:
        """The strategy split needs its files."""
        if self.loading_strategy == "split" and self.split is None:
            raise ValueError("loading_strategy: split needs the key split.local_path, the folder of the three files")
        return self


class Splitting(Section):
    """How one part is held out, by WarpRec's strategies."""

    strategy: str = "temporal_leave_k_out"
    k: int | None = Field(default=None, ge=1)
    ratio: float | None = Field(default=None, gt=0, lt=1)
    timestamp: int | float | str | None = None
    seed: int = Field(default=42, ge=0, lt=2**32)

    @field_validator("timestamp", mode="before")
    @classmethod
    def text(cls, value: Any) -> Any:
        """YAML reads a date as one."""
        return value.isoformat() if isinstance(value, date) else value

    @field_validator("strategy")
    @classmethod
    def known(cls, value: str) -> str:
        """One of WarpRec's that leave each model one training part, in which its users and items occur."""
        if value == "k_fold_cross_validation":
            raise ValueError("folds train one model each: WarpRec's pipelines do that, fastseq train does not")
        if value in ("item_cold_start", "user_cold_start"):
            raise ValueError("these models know a user or an item by its training events alone")
        if value not in STRATEGIES:
            raise ValueError(f"expected one of {', '.join(STRATEGIES)}")
        return value

    @model_validator(mode="after")
    def complete(self) -> Splitting:
        """Each strategy has its one parameter."""
        needs = STRATEGIES[self.strategy]
        if needs == "k" and self.k is None:
            self.k = 1
        if getattr(self, needs) is None:
            raise ValueError(f"strategy {self.strategy} needs the key {needs!r}")
        for key in ("k", "ratio", "timestamp"):
            if key != needs and getattr(self, key) is not None:
                raise ValueError(f"strategy {self.strategy} takes {needs!r}, not {key!r}")
        return self

    @property
    def spec(self) -> dict[str, Any]:
        """As ``warprec_split`` takes it."""
        key = STRATEGIES[self.strategy]
        return {"strategy": self.strategy, key: getattr(self, key), "seed": self.seed}


class Splitter(Section):
    """Test and validation splits: validation is cut from what the test split leaves. Left out beside a test split: no
    validation."""

    test_splitting: Splitting = Field(default_factory=lambda: Splitting(k=1))
    validation_splitting: Splitting | None = None
    cold: Literal["drop", "keep"] = "drop"

    @field_validator("validation_splitting", mode="before")
    @classmethod
    def empty_is_none(cls, value: Any) -> Any:
        """An empty section is no validation, as in WarpRec."""
        return None if isinstance(value, dict) and not any(v is not None for v in value.values()) else value

    @model_validator(mode="after")
    def default(self) -> Splitter:
        """Where neither part is given, leave-one-out twice."""
        if not self.model_fields_set & {"test_splitting", "validation_splitting"}:
            self.validation_splitting = Splitting(k=1)
        return self


class Evaluation(Section):
    """What is measured on the held-out parts."""

    top_k: list[int] = Field(default_factory=lambda: [10], min_length=1)
    metrics: list[str] = Field(default_factory=lambda: ["HitRate", "nDCG", "MRR"])
    validation_metric: str = "nDCG@10"
    validation_users: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)
    strategy: Literal["full", "sampled"] = "full"
    num_negatives: int = Field(default=99, ge=1)
    mask_seen: Literal["auto", "pair", "history", "none"] = "auto"
    history: History = "all"
    seed: int = Field(default=42, ge=0, lt=2**32)

    @property
    def mask(self) -> MaskSeen:
        """``mask_seen`` as ``evaluate`` takes it: without contexts "auto" is "pair"."""
        return "pair" if self.mask_seen == "auto" else self.mask_seen

    @field_validator("top_k")
    @classmethod
    def positive(cls, value: list[int]) -> list[int]:
        """Cut-offs are positive and unique."""
        if any(k < 1 for k in value):
            raise ValueError(f"top_k is {value}, expected positive integers")
        return sorted(set(value))

    @field_validator("metrics")
    @classmethod
    def known(cls, value: list[str]) -> list[str]:
        """Metric names, in any case."""
        for name in value:
            parse_metric(f"{name}@1")
        return value

    @field_validator("validation_metric")
    @classmethod
    def with_cutoff(cls, value: str) -> str:
        """`name@k`."""
        parse_metric(value)
        return value


class LearningRateSchedule(Section):
    """Learning-rate schedule: by optimizer step, or one of PyTorch's schedulers by epoch, as in WarpRec."""

    name: str = "constant"
    params: dict[str, Any] = Field(default_factory=dict)

    no_params = field_validator("params", mode="before")(_none_is_empty)

    @field_validator("name")
    @classmethod
    def known(cls, value: str) -> str:
        """In any case."""
        return optimizers.spelt(value, (*SCHEDULES, *optimizers.SCHEDULERS))

    @model_validator(mode="after")
    def complete(self) -> LearningRateSchedule:
        """Of the schedules by step the one parameter is warmup_steps."""
        if self.name in optimizers.SCHEDULERS:
            if (self.name, self.params.get("mode")) == ("ReduceLROnPlateau", "min"):
                del self.params["mode"]
            optimizers.check("Adam", {}, self.name, self.params)
            return self
        for key, number in self.params.items():
            if key != "warmup_steps":
                raise ValueError(f"unknown key {key!r} in lr_scheduler.params, expected 'warmup_steps'")
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"warmup_steps is {number!r}, expected an integer >= 0")
        return self


class Optimizer(Section):
    """PyTorch's optimizer, as in WarpRec; learning rate and weight decay are hyper-parameters."""

    name: str = "Adam"
    params: dict[str, Any] = Field(default_factory=dict)
    updates: Updates = "auto"

    no_params = field_validator("params", mode="before")(_none_is_empty)

    @field_validator("name")
    @classmethod
    def known(cls, value: str) -> str:
        """In any case."""
        return optimizers.spelt(value, optimizers.OPTIMIZERS)

    @model_validator(mode="after")
    def complete(self) -> Optimizer:
        """Its parameters are PyTorch's."""
        optimizers.check(self.name, self.params, "constant", {})
        return self


class Properties(Section):
    """Properties of the run."""

    seed: int = Field(default=42, ge=0, lt=2**32)


class Optimization(Section):
    """How a model is trained, beyond its hyper-parameters."""

    properties: Properties = Field(default_factory=Properties)
    lr_scheduler: LearningRateSchedule = Field(default_factory=LearningRateSchedule)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    precision: Literal["32-true", "bf16-mixed", "fp32", "tf32", "bf16"] = "32-true"
    execution: Execution = "auto"
    table: Literal["replicated", "sharded"] = "replicated"
    gradient_clip: float | None = Field(default=None, ge=0)  # 0 is none, as in WarpRec
    gradient_clip_algorithm: Literal["norm"] = "norm"
    eval_every_n: int = Field(default=1, ge=1)
    device: str | None = None

    @field_validator("optimizer", mode="before")
    @classmethod
    def short(cls, value: Any) -> Any:
        """`optimizer: rows` is short for `optimizer: {updates: rows}`."""
        return {"updates": value} if value in get_args(Updates) else value


class EarlyStopping(Section):
    """Stop when the validation metric has not improved for `patience` validations."""

    monitor: Literal["score"] = "score"
    patience: int = Field(ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    grace_period: int = Field(default=0, ge=0)


class Writer(Section):
    """Where run folders go: local_experiment_path / dataset_name / model."""

    dataset_name: str | None = None
    writing_method: Literal["local"] = "local"
    local_experiment_path: Path = Path("runs")

    expand = field_validator("local_experiment_path")(expanded)

    @field_validator("dataset_name")
    @classmethod
    def one_folder(cls, value: str | None) -> str | None:
        """A name, not a way to another place."""
        if value is not None and (value in ("", ".", "..") or "/" in value or "\\" in value):
            raise ValueError(
                f"dataset_name is {value!r}, expected the name of one folder; local_experiment_path says where"
            )
        return value


class General(Section):
    """The device: "auto" is the GPU where there is one."""

    device: str = "auto"


class ModelConfig(BaseModel):
    """One entry of `models`: hyper-parameters (checked by the model itself) and the sections beside them."""

    name: str
    params: dict[str, Any]
    optimization: Optimization
    early_stopping: EarlyStopping | None


class Config(Section):
    """A whole file."""

    reader: Reader = Field(default_factory=Reader)
    filtering: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    splitter: Splitter = Field(default_factory=Splitter)
    models: list[ModelConfig]
    evaluation: Evaluation = Field(default_factory=Evaluation)
    writer: Writer = Field(default_factory=Writer)
    general: General = Field(default_factory=General)
    dashboard: Dashboard = Field(default_factory=Dashboard)
    _unused: list[str] = PrivateAttr(default_factory=list)

    @property
    def unused(self) -> list[str]:
        """WarpRec's keys in the file that have no meaning here."""
        return self._unused

    @property
    def binary_ndcg(self) -> bool:
        """Whether WarpRec's nDCG would weigh targets by their ratings, which is not done here."""
        metrics = {name.lower() for name in (*self.evaluation.metrics, self.evaluation.validation_metric.split("@")[0])}
        return self.reader.rating_type == "explicit" and bool(metrics & {"ndcg"})

    @field_validator("filtering")
    @classmethod
    def known_filters(cls, value: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
        """WarpRec's filters, in the written order."""
        spelled = [check_filter(name, parameters or {}) for name, parameters in value.items()]
        if len(set(spelled)) < len(spelled):
            raise ValueError(f"a filter is given twice in two spellings: {', '.join(value)}")
        return dict(zip(spelled, (parameters or {} for parameters in value.values()), strict=True))

    @property
    def dataset_name(self) -> str:
        """The configured name, or that of the file."""
        given, path = self.reader.split, self.reader.local_path
        if given is not None and self.reader.loading_strategy == "split":
            path = given.local_path
        return self.writer.dataset_name or (path.stem if path else "demo")

    def run_name(self, model: str) -> str:
        """What the run of one model is called."""
        return f"{self.dataset_name}/{model}"

    def run_path(self, model: str) -> Path:
        """Its run folder."""
        return self.writer.local_experiment_path / self.run_name(model)

    def resolved(self, model: ModelConfig, params: dict[str, Any]) -> str:
        """YAML that trains this one model again, from any folder. It has every value: a default may not be null."""
        tree = self.model_dump(mode="json", exclude={"models"}) | {"dashboard": self.dashboard.resolved()}
        if self.reader.local_path is not None:
            tree["reader"]["local_path"] = str(self.reader.local_path.absolute())
        if self.reader.split is not None:
            tree["reader"]["split"]["local_path"] = str(self.reader.split.local_path.absolute())
        if self.reader.loading_strategy == "split":
            tree["splitter"] = {"cold": self.splitter.cold}
        tree["writer"]["local_experiment_path"] = str(self.writer.local_experiment_path.absolute())
        entry: dict[str, Any] = dict(params)
        entry["optimization"] = model.optimization.model_dump(mode="json")
        if model.early_stopping is not None:
            entry["early_stopping"] = model.early_stopping.model_dump(mode="json")
        tree["models"] = {model.name: entry}
        return yaml.safe_dump(tree, sort_keys=False)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML would keep the last without a word."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges ``<<: *base``: a key of the mapping's own wins, then that of the first base. PyYAML 6.0.4 lets a base
        of the base win over the base."""
        keys: list[Any] = []
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        bases: list[yaml.Node] = []
        for key, value in node.value:
            merges = key.tag == "tag:yaml.org,2002:merge"
            name = "<<" if merges else self.construct_object(key, deep=True)
            if name in keys:
                raise ConfigError(f"line {key.start_mark.line + 1}: key {name!r} stands twice")
            keys.append(name)
            if not merges:
                pairs.append((key, value))
                continue
            bases += value.value if isinstance(value, yaml.SequenceNode) else [value]
        for base in bases:
            if not isinstance(base, yaml.MappingNode):
                raise ConfigError(f"line {base.start_mark.line + 1}: '<<' takes a mapping, or a list of mappings")
            self.flatten_mapping(base)
            for key, value in base.value:
                name = self.construct_object(key, deep=True)
                if name not in keys:
                    keys.append(name)
                    pairs.append((key, value))
        node.value = pairs


def load_config(source: str | Path) -> Config:
    """Reads and validates a configuration.

    Args:
        source: a path, or the YAML text itself (a string with a line break).

    Raises:
        ConfigError: naming the file, the key, its value and what is accepted.
    """
    return parse_config(*load_tree(source))


def load_tree(source: str | Path) -> tuple[dict[str, Any], str]:
    """The sections of a configuration as they stand, and what errors call it; see load_config.

    Raises:
        ConfigError: if it cannot be read, is not YAML, or holds no sections.
    """
    if isinstance(source, Path) or "\n" not in source:
        origin, path = str(source), Path(source)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"{origin}: cannot be read: {error}") from error
    else:
        origin, text = "configuration", source
    try:
        tree = yaml.load(text, Loader=_UniqueKeys)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: expected sections such as 'models:', found {type(tree).__name__}")
    return tree, origin


def parse_config(tree: dict[str, Any], origin: str = "configuration") -> Config:
    """Validates a configuration that is already a dictionary; see load_config."""
    unused: list[str] = []
    tree = used(tree, "", unused, origin)
    reader, splitter = tree.get("reader"), tree.get("splitter")
    if isinstance(reader, dict) and isinstance(splitter, dict) and reader.get("loading_strategy") == "split":
        tree["splitter"] = {key: value for key, value in splitter.items() if not key.endswith("_splitting")}
        unused += [f"splitter.{key}" for key in splitter.keys() - tree["splitter"].keys()]
    if not tree.get("rerank", True):
        del tree["rerank"]
    for key in tree:
        if key not in Config.model_fields:
            raise ConfigError(f"{origin}: unknown section {key!r}: {did_you_mean(key, Config.model_fields)}")
    models = tree.get("models")
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"{origin}: 'models' must name at least one of {', '.join(MODELS)}")
    tree["models"] = [_model(name, entry, origin, unused) for name, entry in models.items()]
    names = [entry.name for entry in tree["models"]]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{origin}: 'models' names {name} {names.count(name)} times; both would be the same run")
    sections = {key: value for key, value in tree.items() if value is not None}
    config: Config = _validated(Config, sections, origin, "")
    config._unused = sorted(unused)
    return config


def validated_reader(keys: dict[str, Any]) -> Reader:
    """The section reader with these keys; ConfigError as ``load_config``."""
    reader: Reader = _validated(Reader, keys, "options", "reader.")
    return reader


def _model(name: Any, entry: Any, origin: str, unused: list[str]) -> ModelConfig:
    by_lower = {known.lower(): known for known in MODELS}
    if str(name).lower() not in by_lower:
        raise ConfigError(f"{origin}: unknown model {name!r} in 'models': {did_you_mean(name, MODELS)}")
    known = by_lower[str(name).lower()]
    if not isinstance(entry, dict):
        raise ConfigError(f"{origin}: models.{name} is {entry!r}, expected its hyper-parameters")
    single = {key: _single(value) for key, value in entry.items()}
    params = {str(key): _number(value) for key, value in single.items()}
    for key, value in params.items():
        if isinstance(value, list):
            raise ConfigError(
                f"{origin}: models.{known}.{key} is a list: a search space is WarpRec's to search; "
                "fastseq train takes one value"
            )
    sections = {key: params.pop(key, None) or {} for key in ("meta", "optimization")}
    if isinstance(sections["meta"], dict):  # the run folder always has the model
        sections["meta"] = {key: value for key, value in sections["meta"].items() if key != "save_model"}
    mine = {key: value for key, value in sections.items() if isinstance(value, dict)}
    mine = {key: used(value, key, unused, origin, f"models.{known}.") for key, value in mine.items()}
    if meta := mine.get("meta"):
        key = next(iter(meta))
        raise ConfigError(
            f"{origin}: unknown key 'models.{known}.meta.{key}': {did_you_mean(key, sorted(UNUSED['meta']))}"
        )
    optimization = mine.get("optimization", sections["optimization"])
    if isinstance(optimization, dict):
        optimization = {key: value for key, value in optimization.items() if value is not None}
    stopping = params.pop("early_stopping", None)
    return ModelConfig(
        name=known,
        params=params,
        optimization=_validated(Optimization, optimization, origin, f"models.{known}.optimization."),
        early_stopping=None
        if stopping is None
        else _validated(EarlyStopping, stopping, origin, f"models.{known}.early_stopping."),
    )


def _single(value: Any) -> Any:
    """The one value of a list of one, also as WarpRec's search spaces write it: ``[grid, 64]``."""
    values = value[value[:1] in (["grid"], ["choice"]) :] if isinstance(value, list) else []
    return values[0] if len(values) == 1 else value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string; WarpRec's users write it."""
    return float(value) if isinstance(value, str) and _FLOAT.match(value) else value


def _validated(kind: type[Any], tree: Any, origin: str, prefix: str) -> Any:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            where = prefix + ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                known = _fields_at(kind, item["loc"][:-1])
                problems.append(f"unknown key {where!r}: {did_you_mean(item['loc'][-1], known)}")
            else:
                shown = "" if isinstance(item["input"], dict) else f" (it is {item['input']!r})"
                message = item["msg"].removeprefix("Value error, ")
                problems.append(f"{where.rstrip('.') or prefix.rstrip('.')}: {message}{shown}")
        raise ConfigError(f"{origin}: " + "; ".join(problems)) from error


def _fields_at(kind: type[BaseModel], location: tuple[Any, ...]) -> Iterable[str]:
    """Names of the keys accepted at a nested place of a section."""
    for part in location:
        annotation = kind.model_fields[str(part)].annotation if str(part) in kind.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            break
        kind = nested[0]
    return kind.model_fields
