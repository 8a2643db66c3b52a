"""What a WarpRec configuration may say about fastseq's models: WarpRec's own keys, and three more.

The classes are named as WarpRec names them.
"""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar, Optional

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer
from warprec.errors import ConfigurationError
from warprec.utils.config.common import validate_greater_than_zero, validate_str_list
from warprec.utils.config.model_configuration import INT_FIELD, STR_FIELD, RecomModel
from warprec.utils.config.recommender_model_config import sequential_model_config as original
from warprec.utils.enums import SearchSpace

from ..models import Caser as CaserCore
from ..models import GRU4Rec as GRU4RecCore
from ..models import SASRec as SASRecCore
from ..models import SequentialRecommender
from ..models.hyperparameters import LOSSES
from ..training.options import PRECISIONS

KEYS = ("window_stride", "loss", "precision")  # what fastseq adds
# Which values contradict each other depends on these alone.
RELATED = ("window_stride", "max_seq_len", "loss", "neg_samples", "embedding_size", "n_heads", "n_h", "n_v")
SECTIONS = {"meta", "optimization", "early_stopping"}
_SPACES = {space.value for space in SearchSpace}


def core_params(params: dict[str, Any]) -> dict[str, Any]:
    """Those of a trial's parameters that the core model takes: fastseq's keys only where they are set."""
    return {
        key: value
        for key, value in params.items()
        if key not in (*SECTIONS, "fold", "precision") and not (key in KEYS and value is None)
    }


class FastKeys(RecomModel):
    """The keys that fastseq adds. Each is a value or a list, as every hyper-parameter; left out, WarpRec's behaviour.

    Attributes:
        window_stride: 1 … max_seq_len: shared windows, each counting its last ``window_stride`` positions. Left out:
            WarpRec's own batches, one target a row.
        loss: one of fastseq's, ``fastseq.models.hyperparameters.LOSSES``. Left out: as neg_samples says, as in WarpRec.
        precision: fp32; tf32: the same, but float32 products on a GPU may use TF32 in training steps; bf16: forward and
            loss under bfloat16 autocast, weights and optimizer in float32.
    """

    window_stride: Optional[INT_FIELD] = None  # noqa: UP045 - WarpRec compares annotations of this form
    loss: Optional[STR_FIELD] = None  # noqa: UP045
    precision: Optional[STR_FIELD] = None  # noqa: UP045
    need_single_trial_validation: ClassVar[bool] = True
    core: ClassVar[type[SequentialRecommender]]

    @model_serializer(mode="wrap")
    def without_unset_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What WarpRec makes a trial's parameters of. As a null, a key that nobody set would be a column of its table
        of trials, and grouping the folds by it drops every row."""
        return {key: value for key, value in handler(self).items() if value is not None or key not in KEYS}

    @field_validator("window_stride", mode="before")
    @classmethod
    def check_kind_of_window_stride(cls, v: Any) -> Any:
        """No truth value, which would count as 1."""
        if any(isinstance(value, bool) for value in (v if isinstance(v, list) else [v])):
            raise ConfigurationError(f"window_stride is {v!r}, expected a number from 1 to max_seq_len")
        return v

    @field_validator("window_stride")
    @classmethod
    def check_window_stride(cls, v: Any) -> Any:
        """At least 1."""
        return None if v is None else validate_greater_than_zero(cls, v, "window_stride")

    @field_validator("loss")
    @classmethod
    def check_loss(cls, v: Any) -> Any:
        """One of fastseq's losses."""
        return None if v is None else validate_str_list(cls, v, [*LOSSES], "loss")

    @field_validator("precision")
    @classmethod
    def check_precision(cls, v: Any) -> Any:
        """One of fastseq's precisions."""
        return None if v is None else validate_str_list(cls, v, [*PRECISIONS], "precision")

    def validate_single_trial_params(self) -> None:
        """Checks one trial's values together.

        Raises:
            ConfigurationError: naming the key, its value and what it contradicts.
        """
        super().validate_single_trial_params()
        self._check({key: values[0] for key, values in self._choices().items()})

    def validate_all_combinations(self) -> None:
        """Checks that at least one combination of the values that constrain each other can be trained.

        Raises:
            ConfigurationError: what is wrong with the first combination, where all are wrong.
        """
        super().validate_all_combinations()
        choices = self._choices()
        related = [key for key in RELATED if key in choices]
        problem: ConfigurationError | None = None
        for values in product(*(choices[key] for key in related)):
            try:
                self._check(
                    {key: first for key, (first, *_) in choices.items()} | dict(zip(related, values, strict=True))
                )
                return
            except ConfigurationError as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def _choices(self) -> dict[str, list[Any]]:
        """The values of every hyper-parameter that is set, the name of its search space left out."""
        fields = {key: getattr(self, key) for key in type(self).model_fields if key not in SECTIONS}
        return {
            key: values[1:] if isinstance(values[0], str) and values[0].lower() in _SPACES else list(values)
            for key, values in fields.items()
            if values is not None
        }

    def _check(self, params: dict[str, Any]) -> None:
        try:
            self.core.check_params(core_params(params))
        except ValueError as error:
            raise ConfigurationError(str(error)) from error


class SASRec(FastKeys, original.SASRec):
    """WarpRec's SASRec, and fastseq's keys."""

    core = SASRecCore


class GRU4Rec(FastKeys, original.GRU4Rec):
    """WarpRec's GRU4Rec, and fastseq's keys."""

    core = GRU4RecCore


class Caser(FastKeys, original.Caser):
    """WarpRec's Caser, and fastseq's keys."""

    core = CaserCore


class FastSASRec(SASRec):
    """SASRec under a name of its own."""


class FastGRU4Rec(GRU4Rec):
    """GRU4Rec under a name of its own."""


class FastCaser(Caser):
    """Caser under a name of its own."""
