"""Run a model once and see in which order its modules work; the model is left as it was."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lit_wsl.errors import ConfigError
from lit_wsl.mapper.inventory import Inventory


def in_order_of_execution(inventory: Inventory, module: nn.Module, dummy_input: Any, side: str) -> Inventory:
    """The inventory with tensors in the order in which a forward pass first reaches their modules.

    Tensors of modules that do not run stay behind their predecessor in registration.

    Raises:
        ConfigError: If the model does not run on the input.
    """
    reached: dict[str, int] = {}
    names = {id(child): name for name, child in module.named_modules()}

    def note(child: nn.Module, _: Any) -> None:
        reached.setdefault(names[id(child)], len(reached))

    with evaluating(module):
        hooks = [child.register_forward_pre_hook(note) for child in module.modules()]
        try:
            with torch.no_grad():
                call(module, dummy_input, side)
        finally:
            for hook in hooks:
                hook.remove()
    place, last = {}, -1
    for weight in inventory.weights:
        last = place[weight.name] = reached.get(weight.name.rpartition(".")[0], last)
    ordered = sorted(inventory.weights, key=lambda weight: (place[weight.name], weight.order))
    return replace(inventory, weights=[replace(weight, order=at) for at, weight in enumerate(ordered)])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then has its own mode again."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def call(run: Callable[..., Any], dummy_input: Any, side: str) -> Any:
    """What a model returns for a tensor, a tuple of arguments, or a mapping of keywords.

    Args:
        run: The model, or a function that runs it.
        dummy_input: The input; a mapping with the keys ``source`` and ``target`` alone holds one for either model.
        side: Which of both this is.

    Raises:
        ConfigError: If the model refuses the input.
    """
    own = input_of(dummy_input, side)
    try:
        if isinstance(own, Mapping):
            return run(**own)
        return run(*own) if isinstance(own, (tuple, list)) else run(own)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ConfigError(
            f"The {side} model does not run on the dummy input ({reason}); pass one that it takes."
        ) from error


def input_of(dummy_input: Any, side: str) -> Any:
    """The input of one side."""
    if isinstance(dummy_input, Mapping) and set(dummy_input) == {"source", "target"}:
        return dummy_input[side]
    return dummy_input
