"""Compare two models, and take an adapter out of the fine-tuned one: the entry points of Python and the commands."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_wsl.comparing.adapter_output import write_extracted
from lit_wsl.comparing.configs import compare_configs
from lit_wsl.comparing.journal import NAME as JOURNAL
from lit_wsl.comparing.journal import Journal, identity
from lit_wsl.comparing.models import ComparedModel, open_base, open_tuned
from lit_wsl.comparing.outputs import OUTPUTS, write_architecture, write_outputs
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import FACTORS, Comparison, Progress, examine_all, new_comparison
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.comparing.texts import DifferenceText
from lit_wsl.comparing.verdict import verdict_of
from lit_wsl.errors import CheckpointError
from lit_wsl.state.publish import check_writable, locked
from lit_wsl.state.remap import WeightMap


def compare(
    base: str | Path,
    finetuned: str | Path,
    output_dir: str | Path,
    settings: CompareSettings | None = None,
    *,
    weight_map: str | Path | WeightMap | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
    **fields: Any,
) -> Comparison:
    """Say what changed between two models, tensor by tensor, and write it as files for people and programs.

    Args:
        base: The model before: a directory, a file, a hub id, ``package:NAME/sub/dir``.
        finetuned: The model after, or a PEFT adapter on the base.
        output_dir: Directory to write.
        settings: Bars and choices; or give the fields of :class:`CompareSettings` by keyword.
        weight_map: Map from the base's tensors to the names and layout of the fine-tuned model.
        resume: Go on with a comparison that was interrupted.
        overwrite: Replace an earlier comparison.
        threads: Workers; 0 takes one per core.
        progress: Told after each tensor.
        **fields: Fields of the settings, or changes to them.

    Returns:
        All findings; ``failed()`` lists tensors that could not be compared.

    Raises:
        LitWslError: If a model cannot be read, the models have nothing in common, or the directory is in use.
    """
    settings = replace(settings or CompareSettings(), **fields)
    before = open_base(base, _read_map(weight_map))
    after = open_tuned(finetuned, before)
    comparison = new_comparison(before, after, settings)
    directory = Path(output_dir).expanduser()
    check_writable(directory)
    with locked(directory):
        _make_way(directory, resume=resume, overwrite=overwrite)
        _fill(comparison, before, after, directory, resume=resume, threads=threads, progress=progress)
    return comparison


def extract_lora(
    base: str | Path, finetuned: str | Path, output_dir: str | Path, rank: int | str = "auto", **options: Any
) -> Comparison:
    """Take a LoRA adapter out of a fine-tuned model: :func:`compare` with factors of every changed matrix.

    Args:
        base: The model before.
        finetuned: The model after.
        output_dir: Directory to write; ``adapter/`` in it is a PEFT adapter.
        rank: A number, ``auto`` (the rank found in each matrix) or ``energy:0.99``.
        **options: Further options of :func:`compare`.

    Returns:
        What was found; ``extraction`` in it says what was written.

    Raises:
        LitWslError: As :func:`compare`.
    """
    return compare(base, finetuned, output_dir, rank=str(rank), extraction="always", **options)


def _read_map(weight_map: str | Path | WeightMap | None) -> WeightMap | None:
    return weight_map if weight_map is None or isinstance(weight_map, WeightMap) else WeightMap.load(weight_map)


def _fill(
    comparison: Comparison,
    base: ComparedModel,
    tuned: ComparedModel,
    directory: Path,
    *,
    resume: bool,
    threads: int,
    progress: Progress | None,
) -> None:
    """Examine all tensors and write every file, also after an interruption for what is done until then."""
    write_architecture(comparison, directory)
    journal = Journal(directory, _work(comparison, base, tuned), is_resumed=resume)
    text = DifferenceText(directory / "difference.txt", comparison)

    def found(finding: Finding) -> None:
        if finding.name not in journal.finished:
            journal.add(finding)
        text.add(finding)

    configs = compare_configs(base.path, tuned.path)
    try:
        finished = dict(journal.finished)
        examine_all(
            comparison, base, tuned, directory, finished=finished, found=found, threads=threads, progress=progress
        )
        if _is_worth_extracting(comparison):
            comparison.extraction = write_extracted(comparison, base, tuned, directory)
    finally:
        journal.close()
        text.close(comparison)
        write_outputs(comparison, directory, configs)
    shutil.rmtree(directory / FACTORS, ignore_errors=True)


def _is_worth_extracting(comparison: Comparison) -> bool:
    """Whether factors were asked for, or say most of what changed."""
    if comparison.settings.extraction != "found":
        return comparison.settings.extraction == "always"
    return verdict_of(comparison).kind_of_compared in ("lora", "partly_low_rank")


def _work(comparison: Comparison, base: ComparedModel, tuned: ComparedModel) -> Mapping[str, Any]:
    """What a resumed comparison must have in common with the one that was interrupted."""
    return {
        "base": comparison.base,
        "finetuned": comparison.finetuned,
        "settings": comparison.settings.to_json(),
        "files": identity([*base.files(), *tuned.files()]),
    }


def _make_way(directory: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the directory; keep, or remove, an earlier comparison in it.

    Raises:
        CheckpointError: If it holds something else, or a comparison that is neither to be resumed nor replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in directory.iterdir()}
    if not there:
        return
    strangers = sorted(name for name in there if not _is_ours(name))
    if strangers:
        raise CheckpointError(
            f"Output directory {directory} holds {strangers[0]!r}, which no comparison wrote; choose another."
        )
    if resume:
        return
    if not overwrite:
        raise CheckpointError(
            f"Output directory {directory} holds a comparison; pass `--resume` to go on with it, `--overwrite` to "
            "replace it, or choose another."
        )
    for name in there:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_ours(name: str) -> bool:
    """Whether a comparison wrote it, or was killed while it did."""
    known = (*OUTPUTS, JOURNAL, FACTORS)
    return name in known or (name.endswith(".partial") and name.startswith(tuple(f"{one}." for one in known)))
