"""WarpRec's initialisation and optimizer groups: same seed, same parameters, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .shards import ShardedEmbedding

# PyTorch's functions and methods that take a generator.
_DRAWS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_"}
_DRAWS |= {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "kaiming_uniform_"}
if "generator" in (torch.rand_like.__doc__ or ""):  # newer versions
    _DRAWS |= {"rand_like", "randn_like", "randint_like"}
_constructing: ContextVar[SeededDraws | None] = ContextVar("_constructing", default=None)


class SeededDraws(TorchFunctionMode):
    """While ``model`` is constructed, PyTorch draws what it would after ``torch.manual_seed(seed)``, from generators of
    the model's own.

    Neither the global generators nor other threads notice, and nothing that they do changes what is drawn.

    Attributes:
        seed: of the generators. Until ``SequentialRecommender.__init__`` sets it the global ones are drawn from.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seed: int | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        draws = self.seed is not None and getattr(func, "__name__", "") in _DRAWS
        if draws and kwargs.get("generator") is None:
            tensor = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            default = kwargs.get("device") or torch.get_default_device()
            device = torch.device(default) if tensor is None else tensor.device
            if device.type != "meta":
                kwargs["generator"] = self._generator(device)
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            assert self.seed is not None
            self._generators[device] = torch.Generator(device).manual_seed(int(self.seed))
        return self._generators[device]


def seeded(init: Callable[..., None]) -> Callable[..., None]:
    """A model's ``__init__`` inside ``SeededDraws``; the original is its ``__wrapped__``."""

    @wraps(init)
    def construct(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        outer = _constructing.get()
        if outer is not None and outer.model is model:  # called by a subclass's
            return init(model, *args, **kwargs)
        draws = SeededDraws(model)
        token = _constructing.set(draws)
        try:
            with draws:
                init(model, *args, **kwargs)
        finally:
            _constructing.reset(token)

    return construct


def seed_draws(model: nn.Module, seed: int) -> None:
    """Says with which seed ``model``, which is being constructed, draws from here on."""
    draws = _constructing.get()
    if draws is not None and draws.model is model:
        draws.seed = seed


def init_weights(module: nn.Module, std: float | None = None) -> None:
    """For ``model.apply``: xavier normal for Linear, Conv and Embedding weights (the padding row zero), xavier
    uniform for recurrent weights, LayerNorm 1 and 0, biases 0. Other modules keep what torch gave them.

    Args:
        std: standard deviation of Linear, Conv and Embedding weights in place of Xavier's, whose deviation falls with
            the number of items: .006 for the embeddings of 54,542 items beside .13 for those of 50 positions.
    """
    with torch.no_grad():
        match module:
            case nn.Linear() | nn.Conv1d() | nn.Conv2d():
                if module.weight.numel() > 0:  # a Caser without filters of one kind draws nothing
                    _normal(module.weight, std)
                if module.bias is not None:
                    module.bias.zero_()
            case ShardedEmbedding():
                module.draw(std)
            case nn.Embedding():
                _normal(module.weight, std)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            case nn.RNNBase():
                for name, parameter in module.named_parameters():
                    if "bias" in name:
                        parameter.zero_()
                    else:
                        nn.init.xavier_uniform_(parameter)
            case nn.LayerNorm():
                module.weight.fill_(1.0)
                module.bias.zero_()


def _normal(weight: Tensor, std: float | None) -> None:
    if std is None:
        nn.init.xavier_normal_(weight)
    else:
        weight.normal_(0.0, std)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimizer groups: weight decay on Linear, Conv, recurrent and positional weights; none on biases,
    LayerNorms, item and user embeddings. A parameter's group follows from its name and its module's type. Without
    weight decay they are one group, in the same order: an optimizer launches its kernels once a group.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        entity = id(parameter) in embeddings and "position" not in name
        (free if entity or "bias" in name or "norm" in name else decayed).append(parameter)
    if weight_decay == 0.0:
        return [{"params": decayed + free, "weight_decay": 0.0}]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
