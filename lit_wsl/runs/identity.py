"""What a run is called, and what tells one merge from another: its content, never the clock alone."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.runs.names import joined, safe_name, source_names
from lit_wsl.runs.strict import plain
from lit_wsl.state.locate import model_path

_CONTENT = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp"}
_CONFIGURATION = {"config.json", "adapter_config.json"}
_MERGE_KEYS = ("merge_mode", "transforms", "lambda_policy", "optimizer", "rules", "include", "exclude", "base", "spec")
_NO_CONTENT = {"output", "overwrite", "threads", "verify", "shard_size", "adapters", "models", "deltas", "tally"}


def content_hash(value: Any) -> str:
    """SHA-256 of plain values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def hash_inputs(sources: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of the weights and configuration of every source, wherever it lies.

    Raises:
        CheckpointError: If a source is missing or has no such file.
    """
    return {str(source): _hash_model(model_path(source)) for source in sources}


def new_run_id(now: datetime | None = None, content: Any = None, label: str = "") -> str:
    """``run_[LABEL_]YYYYMMDD_HHMMSS[_HASH]``.

    Args:
        now: Time of the run; default now, in UTC.
        content: What the run is made of; its hash is appended.
        label: Such as the optimizer, of :func:`optimizer_label`.
    """
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d_%H%M%S")
    words = ["run", *([safe_name(label)] if label else []), stamp]
    return "_".join(words if content is None else [*words, content_hash(content)[:8]])


def claim_run(runs: Path, now: datetime | None = None, content: Any = None, label: str = "") -> Path:
    """Make the directory of a new run: nobody else gets it, in the same second neither.

    The first run of a second has the plain name, any other the hash of its content, then a number.

    Raises:
        CheckpointError: If the directory cannot be made.
    """
    now = now or datetime.now(UTC)
    hashed = new_run_id(now, content, label)
    numbered = (f"{hashed}_{number}" for number in count(2))
    for name in chain(dict.fromkeys([new_run_id(now, None, label), hashed]), numbered):
        try:
            runs.mkdir(parents=True, exist_ok=True)
            (runs / name).mkdir()
        except FileExistsError:
            if not runs.is_dir():
                raise CheckpointError(f"{runs} is a file; choose another output.") from None
            continue
        except OSError as error:
            raise CheckpointError(f"{runs} cannot be written ({error.strerror}); choose another output.") from error
        return runs / name
    raise AssertionError("numbers do not end")


def optimizer_label(optimizer: Mapping[str, Any] | None) -> str:
    """``TYPE[_VARIANT[_plusplus]]`` of a merge whose coefficients were learned; empty for any other."""
    kind = str((optimizer or {}).get("type") or "none").lower()
    if optimizer is None or kind == "none":
        return ""
    params = optimizer.get("params") or {}
    words = [kind, str(params.get("variant") or "")]
    if params.get("plus_plus"):
        words.append("plusplus")
    return "_".join(word for word in words if word)


def merge_tag(
    method: str, params: Mapping[str, Any], sources: Sequence[str | Path], content: str, root: str | Path = "artifacts"
) -> str:
    """``merged_METHOD_TASKS[_lambdaX]_HASH``: merges that differ in anything have different tags.

    Args:
        method: The merge method.
        params: Its parameters.
        sources: What was merged, in order.
        content: Hash of everything that makes the merge, of :func:`content_hash`.
        root: The folder of all outputs.
    """
    words = ["merged", safe_name(method), joined(source_names(sources, root))]
    lam = params.get("lambda", params.get("lam"))
    if isinstance(lam, int | float) and not isinstance(lam, bool):
        words.append(f"lambda{lam:g}")
    return "_".join([*words, safe_name(content[:8])])


def merge_hash(
    method: str,
    params: Mapping[str, Any],
    sources: Sequence[Any],
    metadata: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Hash of what makes a merge.

    Args:
        method: The merge method.
        params: Its parameters.
        sources: Hashes of the sources' content, or their names, in order.
        metadata: Of the merge; settings that change weights count, where and when it ran does not.
        inputs: Hashes of content by path; a base among them counts by content.
    """
    settings = {key: metadata[key] for key in _MERGE_KEYS if metadata.get(key)}
    if isinstance(settings.get("spec"), Mapping):
        settings["spec"] = {key: value for key, value in settings["spec"].items() if key not in _NO_CONTENT}
    for place in (settings, settings.get("spec")):
        if isinstance(place, dict) and isinstance(place.get("base"), str):
            place["base"] = (inputs or {}).get(place["base"], place["base"])
    return content_hash([method, params, list(sources), settings])


def source_hashes(sources: Sequence[str | Path], inputs: Mapping[str, str]) -> list[str]:
    """What tells sources apart, in order: hashes of their content where known, else what they are called."""
    named = [str(source) for source in sources]
    return [*(inputs.get(name, name) for name in named), *(inputs[name] for name in inputs if name not in named)]


def build_merge_tag(metadata: Mapping[str, Any], sources: Sequence[str | Path] | None = None) -> str:
    """The merge tag of a merge by its metadata; one that has none yet gets it from its method, parameters and sources.

    Args:
        metadata: Of :func:`lit_wsl.runs.load_merge_metadata`.
        sources: What was merged; default what the metadata says.
    """
    if metadata.get("merge_tag"):
        return str(metadata["merge_tag"])
    named = sources if sources is not None else metadata.get("source_tasks") or _adapter_names(metadata)
    method = str(metadata.get("merge_method") or metadata.get("method") or "unknown")
    params = metadata.get("params") or metadata.get("method_params") or {}
    content = source_hashes(metadata.get("sources") or named, metadata.get("inputs") or {})
    return merge_tag(method, params, named, merge_hash(method, params, content, metadata, metadata.get("inputs")))


def _adapter_names(metadata: Mapping[str, Any]) -> list[str]:
    return [str(one.get("name")) for one in metadata.get("source_adapters") or []]


def _hash_model(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _is_content(file))
    if not files:
        raise CheckpointError(f"{path} holds no weights; name the directory or file that does.")
    digest = hashlib.sha256()
    for file in files:
        name = file.name if file == path else str(file.relative_to(path))
        status = file.stat()
        digest.update(f"{name}\0{_hash_file(str(file.resolve()), status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _is_content(file: Path) -> bool:
    return file.is_file() and (file.suffix in _CONTENT or file.name in _CONFIGURATION)


@lru_cache(maxsize=4096)
def _hash_file(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time of change tell a new content from one that was read before."""
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if os.fstat(file.fileno()).st_size != size:
            raise CheckpointError(f"{path} changed while it was read ({size} bytes before); run again.")
    return digest
