"""What a training is made of: batches, the optimizer and its schedule, and what it is judged by."""

from __future__ import annotations

from typing import cast

import torch

from fastseq.data.loader import Loader
from fastseq.data.negatives import Distribution, Mode, NegativeSampler
from fastseq.data.split import Split
from fastseq.errors import ConfigError
from fastseq.models.base import SequentialRecommender
from fastseq.ops.sampled_loss import needs_log_q
from fastseq.optim import RowAdam

from . import optimizers
from .distributed import Ranks
from .metrics import parse_metric
from .options import TrainingOptions


def optimizer(
    model: SequentialRecommender, options: TrainingOptions, rows: bool
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """The optimizer, by ``rows`` or dense, and its schedule, None where that is by step."""
    name, params = options.optimizer, options.optimizer_params
    if rows:
        made: torch.optim.Optimizer = RowAdam(model.parameter_groups(), model.learning_rate, **params)
    elif name == "Adam" and not params:
        made = model.configure_optimizers()  # a subclass may have its own
    else:
        made = optimizers.make_optimizer(name, model.parameter_groups(), model.learning_rate, params)
    if options.schedule not in optimizers.SCHEDULERS:
        return made, None
    return made, optimizers.make_scheduler(options.schedule, made, options.schedule_params)


def loader(
    model: SequentialRecommender, split: Split, options: TrainingOptions, ranks: Ranks, device: torch.device
) -> Loader:
    """The batches of a model, with their negatives.

    Raises:
        DataError: if there is no negative to draw for some user, naming the user.
    """
    sampler = None
    if model.neg_samples > 0:
        sampler = NegativeSampler(
            split,
            model.neg_samples,
            mode=cast(Mode, model.negatives),
            distribution=cast(Distribution, model.negative_distribution),
            alpha=model.negative_alpha,
            with_log_q=needs_log_q(model.loss_name),
        )
        sampler.check_drawable()
    return Loader(
        split,
        batch_size=model.batch_size,
        max_len=model.max_seq_len,
        window_stride=model.window_stride,
        seed=options.seed,
        sampler=sampler,
        per_target=options.per_target,
        # Caser reads the whole history of every target.
        context=model.needs_context,
        l2=model.reg_weight > 0,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
    )


def validation_metric(options: TrainingOptions, split: Split) -> str | None:
    """What epochs are judged by, such as ``"NDCG@10"``; None where nothing is validated.

    Raises:
        ConfigError: if patience waits for a validation that there is not.
    """
    if options.validation_metric is None:
        return None
    if len(split.part("validation")):
        name, k = parse_metric(options.validation_metric)
        return f"{name}@{k}"
    if options.patience is None:
        return None
    raise ConfigError(
        f"patience is {options.patience}, but the split has no validation targets; split some off, or set "
        "patience to None"
    )
