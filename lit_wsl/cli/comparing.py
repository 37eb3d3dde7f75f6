"""What changed between two models (`compare`), as an adapter (`extract-lora`), and what was found (`analyze`)."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.errors import WrongUsage

if TYPE_CHECKING:
    from lit_wsl.comparing.run import Comparison

_MODEL = "a directory, a file of weights, a hub id, or `package:NAME/sub/dir`"


def _configure(parser: ArgumentParser, output: str) -> None:
    """Options that `compare` and `extract-lora` share; each writes to a directory of its own."""
    parser.add_argument("base", type=str, help=f"The model before: {_MODEL}.")
    parser.add_argument("finetuned", type=str, help="The model after, or a PEFT adapter on the base.")
    parser.add_argument("--output_dir", type=str, default=output, help="Directory to write.")
    parser.add_argument("--threshold", type=float, default=1e-6, help="Difference from which an entry is changed.")
    parser.add_argument(
        "--max_rank", type=int, default=64, help="Largest rank of factors of a change that is not of low rank."
    )
    parser.add_argument("--exact", action="store_true", help="Decompose every matrix in full; slow.")
    parser.add_argument("--skip_1d", action="store_true", help="Leave changed biases and norms out of the adapter.")
    parser.add_argument(
        "--weight_map", type=str | None, default=None, help="Map from the base's tensors, made by `lit-wsl map --save`."
    )
    parser.add_argument("--verify", action="store_true", help="Run base and adapter against the fine-tuned model.")
    parser.add_argument("--resume", action="store_true", help="Go on with an interrupted comparison.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier comparison.")
    parser.add_argument("--threads", type=int, default=0, help="Workers; 0 takes one per core.")


def configure_compare(parser: ArgumentParser) -> None:
    """Options of `compare`."""
    _configure(parser, "model_comparison")
    parser.add_argument(
        "--lora_rank",
        type=str,
        default="",
        help="Extract factors of every changed matrix: a rank, `auto`, or `energy:0.99`. By default those of low rank.",
    )
    parser.add_argument("--min_ratio", type=float, default=0.01, help="Share of changed entries that counts.")
    parser.add_argument("--min_relative", type=float, default=0.01, help="Relative difference that counts.")
    parser.add_argument(
        "--method", type=Literal["tensor", "both"], default="tensor", help="`both` repeats every figure with NumPy."
    )


def configure_extract(parser: ArgumentParser) -> None:
    """Options of `extract-lora`."""
    _configure(parser, "extracted_adapter")
    parser.add_argument(
        "--rank", type=str, default="auto", help="A rank, `auto` (what is found in each matrix), or `energy:0.99`."
    )


def configure_analyze(parser: ArgumentParser) -> None:
    """Options of `analyze`."""
    parser.add_argument("directory", type=str, help="Output of a comparison, finished or not.")
    parser.add_argument("--json", action="store_true", help="Print JSON for programs.")


def run_compare(options: Namespace) -> int:
    """Compare two models, and say in the end what changed."""
    rank = {"rank": options.lora_rank, "extraction": "always"} if options.lora_rank else {}
    fields = {name: options[name] for name in ("min_ratio", "min_relative", "method")}
    return _run(options, **fields, **rank)


def run_extract(options: Namespace) -> int:
    """Take an adapter out of a fine-tuned model."""
    return _run(options, rank=options.rank, extraction="always")


def run_analyze(options: Namespace) -> int:
    """Say what an earlier comparison found."""
    import json

    from lit_wsl.comparing.outputs import read_outputs
    from lit_wsl.comparing.verdict import verdict_of

    comparison = read_outputs(Path(options.directory).expanduser())
    if options.json:
        sys.stdout.write(json.dumps(verdict_of(comparison).to_json(), indent=2, ensure_ascii=False) + "\n")
        return 0
    _show(comparison)
    return 0


def _run(options: Namespace, **fields: Any) -> int:
    if options.resume and options.overwrite:
        raise WrongUsage("`--resume` goes on with a comparison and `--overwrite` replaces it; pass one of them.")
    from lit_wsl.cli.progress import progress_bar
    from lit_wsl.comparing.api import compare

    with progress_bar("comparing") as progress:
        comparison = compare(
            options.base,
            options.finetuned,
            options.output_dir,
            weight_map=options.weight_map,
            resume=options.resume,
            overwrite=options.overwrite,
            threads=options.threads,
            progress=progress,
            threshold=options.threshold,
            max_rank=options.max_rank,
            is_exact=options.exact,
            skip_1d=options.skip_1d,
            **fields,
        )
    directory = Path(options.output_dir).expanduser()
    _show(comparison)
    sys.stdout.write(f"{_extracted(comparison)}\n")
    if options.verify:
        _verify(comparison, directory)
    sys.stdout.write(f"Written to {directory}: report.html, comparison_report.txt, difference.txt and JSON files.\n")
    return _tell_failed(comparison)


def _extracted(comparison: "Comparison") -> str:
    if comparison.extraction is not None:
        return "\n".join(comparison.extracted())
    return "No adapter was extracted: low rank does not say what changed; `--lora_rank` extracts one all the same."


def _show(comparison: "Comparison") -> None:
    from lit_wsl.cli.console import table_console
    from lit_wsl.comparing.tables import comparison_tables

    console = table_console(markup=False)
    for part in comparison_tables(comparison):
        console.print(part)


def _tell_failed(comparison: "Comparison") -> int:
    failed = comparison.failed()
    for name, why in list(failed.items())[:3]:
        sys.stderr.write(f"lit-wsl: {name} could not be compared: {why}\n")
    if len(failed) > 3:
        sys.stderr.write(f"lit-wsl: and {len(failed) - 3} more; see architecture_comparison.json.\n")
    return 1 if failed else 0


def _verify(comparison: "Comparison", directory: Path) -> None:
    adapter = directory / "adapter"
    if not adapter.is_dir():
        sys.stdout.write("Nothing to verify: no adapter was extracted.\n")
        return
    from lit_wsl.cli.checkpoints import quiet_transformers
    from lit_wsl.models.equivalence import compare_outputs

    quiet_transformers()
    agreement = compare_outputs(comparison.base, comparison.finetuned, adapter)
    sys.stdout.write(f"{agreement.sentence()}\n")
