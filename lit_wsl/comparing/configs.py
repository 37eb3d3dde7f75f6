"""What differs in the files beside the weights: configuration, generation settings, tokenizer."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_FILES = {"config": "config.json", "generation_config": "generation_config.json"}
_MISSING = "(absent)"
_LONG = 400
"""Characters of a text that are shown."""


def compare_configs(base: Path, tuned: Path) -> dict[str, Any]:
    """Differing values by dotted key, for each kind of file: ``{kind: {key: {"base": ..., "finetuned": ...}}}``.

    A file that cannot be read counts as a value that says so.
    """
    left, right = (path if path.is_dir() else path.parent for path in (base, tuned))
    found = {kind: _differences(_read(left / file), _read(right / file)) for kind, file in _FILES.items()}
    return {**found, "tokenizer": _differences(_tokenizer(left), _tokenizer(right))}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {path.name: f"(damaged: {error})"}
    return content if isinstance(content, dict) else {path.name: "(no object)"}


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    left, right = dict(_flat(one)), dict(_flat(two))
    keys = [*left, *(key for key in right if key not in left)]
    pairs = ((key, left.get(key, _MISSING), right.get(key, _MISSING)) for key in keys)
    return {key: {"base": a, "finetuned": b} for key, a, b in pairs if a != b}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _tokenizer(directory: Path) -> dict[str, Any]:
    """Vocabulary size, added tokens and chat template, as far as the files tell."""
    fast, settings = _read(directory / "tokenizer.json"), _read(directory / "tokenizer_config.json")
    found: dict[str, Any] = {}
    if (size := _vocabulary(directory, fast)) is not None:
        found["vocab_size"] = size
    added = [token.get("content") for token in fast.get("added_tokens") or [] if isinstance(token, Mapping)]
    if added:
        found["added_tokens"] = added
    template = directory / "chat_template.jinja"
    text = (
        template.read_text(encoding="utf-8", errors="replace") if template.is_file() else settings.get("chat_template")
    )
    if text:
        found["chat_template"] = _shortened(str(text))
    return found


def _vocabulary(directory: Path, fast: Mapping[str, Any]) -> int | None:
    model = fast.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("vocab"), dict | list):
        return len(model["vocab"])
    if vocabulary := _read(directory / "vocab.json"):
        return len(vocabulary)
    text = directory / "vocab.txt"
    return len(text.read_text(encoding="utf-8", errors="replace").splitlines()) if text.is_file() else None


def _shortened(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text)} characters)"
