"""The ``config.json`` of a model whose layers are stacked anew."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_wsl.merging.slices import SlicedState
from lit_wsl.state.formats import read_object
from lit_wsl.state.names import parse_name

logger = logging.getLogger(__name__)

_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)
"""Names of the number of layers in configurations."""
_BY_LAYER = re.compile(r"(layer|block|attention).*_types?$")
"""Names of lists with one kind a layer, such as ``layer_types``."""


def restack_config(config: Path, state: SlicedState) -> None:
    """Make a carried configuration name the number of layers, and the kind of each, that a stack has.

    Args:
        config: The configuration of the first model, copied beside the output; nothing is done without one.
        state: The stack.
    """
    if not config.exists():
        return
    content = read_object(config)
    changed = False
    for path, part in _parts(content, state):
        counts = _counts(part, state.first.depth, state.first.tower)
        part.update(dict.fromkeys(counts, state.depth))
        if counts:
            changed = True
            _restack_lists(part, path, state)
    if not changed:
        logger.warning(
            "%s names no number of layers that was %d; set it to %d.", config, state.first.depth, state.depth
        )
        return
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _parts(content: dict[str, Any], state: SlicedState) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration itself, and those of the models inside it, with their names; none that is of another tower."""
    others = {place.tower for place in map(parse_name, state.first.outside) if place.layer is not None}
    yield "", content
    for name, part in content.items():
        of_what = name.removesuffix("_config")
        is_other = of_what not in state.first.tower and any(of_what in tower for tower in others)
        if isinstance(part, dict) and not is_other:
            yield name, part


def _counts(part: Mapping[str, Any], depth: int, tower: str) -> list[str]:
    """Keys that say how many layers the tower has."""
    found = [key for key in _COUNTS if part.get(key) == depth]
    plain = [key for key in found if "coder" not in key]
    if "decoder" in tower:
        return [key for key in found if "decoder" in key] or plain
    return [*plain, *(key for key in found if "encoder" in key)]


def _restack_lists(part: dict[str, Any], path: str, state: SlicedState) -> None:
    """Take the kind of each layer from the model that it comes from; what some model does not say is left out."""
    lists = [key for key, value in part.items() if _BY_LAYER.search(key) and isinstance(value, list)]
    origins = [(_part_of(reader.where, path), layer) for reader, layer in state.origins if lists]
    for key in lists:
        kinds = [kinds[layer] for known, layer in origins if layer < len(kinds := known.get(key) or [])]
        if len(kinds) == state.depth:
            part[key] = kinds
        else:
            del part[key]


def _part_of(where: str, path: str) -> dict[str, Any]:
    """A part of a model's configuration; empty where there is none."""
    model = Path(where)
    config = (model if model.is_dir() else model.parent) / "config.json"
    content = read_object(config) if config.exists() else {}
    return dict(content.get(path) or {}) if path else content
