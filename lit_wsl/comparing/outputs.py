"""The files of a comparison: written whole, read again from a directory that is whole or not."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_wsl.comparing.adapter_output import read_extraction
from lit_wsl.comparing.architecture import Architecture
from lit_wsl.comparing.journal import read_journal
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.comparing.stored import check_types, stored_fields
from lit_wsl.comparing.summary import summarise
from lit_wsl.comparing.texts import report_text
from lit_wsl.comparing.verdict import verdict_of
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.state.publish import published_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIFFERENCES, ARCHITECTURE = "weight_differences.json", "architecture_comparison.json"
LORA, CONFIGS = "lora_analysis.json", "config_comparison.json"
REPORT, PAGE, PLOTS = "comparison_report.txt", "report.html", "plots"
OUTPUTS = (
    "difference.txt",
    DIFFERENCES,
    CONFIGS,
    ARCHITECTURE,
    LORA,
    "lora_metadata.json",
    "extracted_lora_weights.safetensors",
    "adapter",
    REPORT,
    PAGE,
    PLOTS,
)
"""All that a comparison may leave in its directory, beside its journal."""


def write_outputs(comparison: Comparison, directory: Path, configs: Mapping[str, Any]) -> None:
    """Write the JSON files, the report, the page and its pictures; each is replaced whole.

    ``difference.txt`` is written while tensors are examined, by :class:`lit_wsl.comparing.texts.DifferenceText`.

    Args:
        comparison: What was found, be it complete or not.
        directory: Existing directory.
        configs: Differing values by kind of file and dotted key.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    from lit_wsl.comparing.page import page

    write_architecture(comparison, directory)
    _write_json(directory / DIFFERENCES, differences_of(comparison))
    _write_json(directory / LORA, lora_analysis(comparison))
    _write_json(directory / CONFIGS, configs)
    _write_text(directory / REPORT, report_text(comparison, configs))
    figures = comparison.figures()
    _write_text(directory / PAGE, page(comparison, configs, figures))
    _write_pictures(directory / PLOTS, figures)


def write_architecture(comparison: Comparison, directory: Path) -> None:
    """Write names, shapes and dtypes; known before the first tensor is read.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    content = comparison.architecture.to_json() | {"failed": comparison.failed()}
    _write_json(directory / ARCHITECTURE, content)


def differences_of(comparison: Comparison) -> dict[str, Any]:
    """Content of ``weight_differences.json``."""
    changes = {finding.name: finding.change for finding in comparison.findings if finding.change is not None}
    times = [change.total_time for change in changes.values()]
    return {
        "modified_layers": [name for name, change in changes.items() if change.modified],
        "all_differences": {name: dict(vars(change)) for name, change in changes.items()},
        "performance": {
            "total_time": comparison.seconds,
            "avg_layer_time": math.fsum(times) / max(len(times), 1),
            "max_layer_time": max(times, default=0.0),
            "layer_times": {
                name: {
                    "total_time": change.total_time,
                    "tensor_time": change.tensor_time,
                    "numpy_time": change.numpy_time,
                }
                for name, change in changes.items()
            },
        },
        "summary": summarise(comparison.findings).to_json(),
        "verdict": verdict_of(comparison).to_json(),
    }


def lora_analysis(comparison: Comparison) -> dict[str, Any]:
    """Content of ``lora_analysis.json``."""
    patterns = {finding.name: finding.pattern for finding in comparison.findings if finding.pattern is not None}
    return {
        "potential_lora_layers": [name for name, pattern in patterns.items() if pattern.is_potential_lora],
        "analysis": {name: dict(vars(pattern)) for name, pattern in patterns.items()},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that is none
        text = json.dumps(_strict(content), indent=1, ensure_ascii=False, allow_nan=False)
    _write_text(path, text + "\n")


def _write_pictures(directory: Path, figures: "Mapping[str, Figure]") -> None:
    """Write a PNG of each figure, if there is one."""
    for name, drawing in figures.items():
        from lit_wsl.comparing.plots import png_of  # matplotlib takes a while to import

        directory.mkdir(exist_ok=True)
        with published_file(directory / f"{name}.png") as partial:
            partial.write_bytes(png_of(drawing))


def _write_text(path: Path, text: str) -> None:
    with published_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _strict(value: Any) -> Any:
    """The value with null for numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return value


def read_outputs(directory: Path) -> Comparison:
    """The comparison that a directory holds, also one that was killed while it ran.

    Raises:
        CheckpointError: If it holds none, or a damaged one.
    """
    work, findings = read_journal(directory)
    try:
        check_types({name: work[name] for name in ("base", "finetuned")}, {"base": str, "finetuned": str})
        settings = CompareSettings(**stored_fields(CompareSettings, work["settings"]))
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"The journal in {directory} does not say what was compared ({error!r}); repeat the comparison."
        ) from error
    architecture, is_known = _architecture(directory, findings)
    place = {name: at for at, name in enumerate(architecture.common_keys)}
    latest = {finding.name: finding for finding in findings}
    ordered = sorted(latest.values(), key=lambda finding: place.get(finding.name, len(place)))
    return Comparison(
        work["base"],
        work["finetuned"],
        settings,
        architecture,
        ordered,
        seconds=_seconds(directory, findings),
        extraction=read_extraction(directory),
        is_complete=is_known and latest.keys() >= set(architecture.comparable()),
    )


def _architecture(directory: Path, findings: list[Finding]) -> tuple[Architecture, bool]:
    """Names as they were written, else those of the findings; and whether they were written."""
    path = directory / ARCHITECTURE
    if path.is_file():
        try:
            return Architecture(**stored_fields(Architecture, json.loads(path.read_text(encoding="utf-8")))), True
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); repeat the comparison.") from error
    return Architecture([finding.name for finding in findings], [], [], []), False


def _seconds(directory: Path, findings: list[Finding]) -> float:
    """How long the comparison took; the time of its tensors one after the other where that was not written."""
    try:
        content = json.loads((directory / DIFFERENCES).read_text(encoding="utf-8"))
        return float(content["performance"]["total_time"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return math.fsum(finding.change.total_time for finding in findings if finding.change is not None)
