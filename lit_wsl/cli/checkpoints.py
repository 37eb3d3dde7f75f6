"""What the commands on checkpoints print."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lit_wsl.cli.console import table_console
from lit_wsl.models.describe import describe_checkpoint
from lit_wsl.state.sizes import told_size

if TYPE_CHECKING:
    from lit_wsl.models.export import ExportReport


def export_summary(report: "ExportReport") -> int:
    """Print what an export did."""
    checked = "verified" if report.verified else "not verified"
    size = f"{report.tensors} tensors, {told_size(report.nbytes)}"
    sys.stdout.write(f"{report.output}: {report.format}, {size}, {len(report.files)} files, {checked}\n")
    return 0


def show_checkpoint(source: str, *, as_json: bool) -> int:
    """Print what a checkpoint holds, as a table or as JSON."""
    found = describe_checkpoint(source)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return 0
    table = Table(show_header=False, title=f"{found['path']}: {found['kind']}, {told_size(found['bytes'])}")
    for name, text in _rows(found):
        table.add_row(name, text)
    table_console(markup=False).print(table)
    return 0


def quiet_transformers() -> None:
    """Keep transformers' own advice and progress bars off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    yield from ((name, str(found[name])) for name in ("module", "epoch", "global_step") if found[name] is not None)
    if versions:
        yield "versions", versions
    for dtype, total in found["weights"].items():
        yield dtype, f"{total['parameters']:,} parameters in {total['tensors']} tensors, {told_size(total['bytes'])}"
    for backbone in found["backbones"]:
        what = f"{backbone['class']} ({backbone['model_type']}), {backbone['layers']} layers"
        yield f"backbone {backbone['name']}".rstrip(), what
    if found["adapters"]:
        yield "adapters", _adapters(found["adapters"])
    if found["sidecar"]:
        yield "side-car", _kept(found["sidecar"]["kind"], found["sidecar"]["bytes"])
    for optimizer in found["optimizers"]:
        yield "optimizer", _kept(f"state of {optimizer['parameters']} parameters", optimizer["bytes"])
    for scheduler in found["schedulers"]:
        yield "scheduler", ", ".join(f"{key.strip('_')} {value}" for key, value in scheduler.items()) or "kept"
    if found["random_states"]:
        yield (
            "random states",
            "of 1 process" if found["random_states"] == 1 else f"of {found['random_states']} processes",
        )
    for name, value in found["hyper_parameters"].items():
        yield f"hyperparameter {name}", json.dumps(value, ensure_ascii=False)


def _adapters(adapters: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in adapters["layers"].items())
    ranks = ", ".join(f"{rank} on {count}" for rank, count in adapters["ranks"].items())
    scales = ", ".join(f"{scale} on {count}" for scale, count in adapters["scales"].items())
    dora = f"; DoRA on {adapters['dora']}" if adapters["dora"] else ""
    return f"{kinds}; rank {ranks or 'none'}; scale {scales or 'none'}{dora}; signature {adapters['signature']}"


def _kept(what: str, nbytes: int | None) -> str:
    return f"{what}, {'in the shards' if nbytes is None else told_size(nbytes)}"
