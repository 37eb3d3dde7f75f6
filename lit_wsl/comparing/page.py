"""A comparison as one page of HTML that asks nothing of the network."""

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lit_wsl.comparing.html import name_of, titled
from lit_wsl.comparing.page_tables import configurations, failures, ranks, tensors, totals
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.comparing.summary import Summary, Total, short_kinds, summarise
from lit_wsl.comparing.verdict import Verdict, verdict_of
from lit_wsl.comparing.wording import amount, counted, percent, share_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(comparison: Comparison, configs: Mapping[str, Any], figures: "Mapping[str, Figure] | None" = None) -> str:
    """The page: the verdict, plots and tables of where the change lies, then every tensor.

    Args:
        comparison: What was found.
        configs: Differing values by kind of file and dotted key.
        figures: Those of the comparison, if they are drawn already.
    """
    verdict, sums = verdict_of(comparison), summarise(comparison.findings)
    title = f"{comparison.base} → {comparison.finetuned}"
    style, script = (files("lit_wsl.comparing").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>\n{style}</style></head><body><main>",
            *_opening(comparison, verdict, sums),
            *(_changes(comparison, sums, figures or comparison.figures()) if sums.whole.changed else ()),
            *failures(comparison.failed()),
            *configurations(configs),
            *tensors(comparison.findings),
            f"</main><script>\n{script}</script></body></html>\n",
        ]
    )


def _opening(comparison: Comparison, verdict: Verdict, sums: Summary) -> Iterator[str]:
    whole, settings = sums.whole, comparison.settings
    common = max(len(comparison.architecture.common_keys), whole.tensors)
    facts = {
        "base": name_of(comparison.base),
        "fine-tuned": name_of(comparison.finetuned),
        "compared": f"{share_of(whole.tensors, common, 'common tensor')}, {amount(whole.entries)} entries, "
        f"in {comparison.seconds:.1f} s",
        "changed": _changed(sums.whole, settings) if whole.changed else "nothing",
    }
    yield f'<h1 class="{verdict.kind}">{escape(verdict.headline)}.</h1>'
    yield f"<dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in facts.items())}</dl>"
    told = [*verdict.findings, *comparison.extracted()]
    if told:
        yield f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in told)}</ul>"


def _changed(whole: Total, settings: CompareSettings) -> str:
    return (
        f"{counted(whole.changed, 'tensor')}, {whole.modified} of them <em>modified</em>: by more than rounding, and "
        f"in more than {escape(percent(settings.min_ratio))} of the entries or by a relative difference above "
        f"{settings.min_relative:g}"
    )


def _changes(comparison: Comparison, sums: Summary, figures: "Mapping[str, Figure]") -> Iterator[str]:
    """Where the change lies, and what it looks like."""
    findings, threshold = comparison.findings, comparison.settings.threshold
    yield from _plot(
        "Where it changed",
        "Norm of the difference over that of the base, on a logarithmic scale; grey cells did not change.",
        "Relative difference by layer and kind of module",
        figures.get("heat_map"),
    )
    short = short_kinds(sums.kinds)
    kinds = sorted(sums.kinds.items(), key=lambda pair: -pair[1].diff_norm)
    changed = [(titled(short[name], name), one) for name, one in kinds if one.changed]
    yield from totals("By kind of module", "the largest difference first", changed)
    if sums.has_towers():
        yield from totals("By tower", "", [(name_of(name), one) for name, one in sums.towers.items()])
    layers = [(name_of(name), one) for name, one in sums.layers.items()]
    yield from totals("By layer", "", layers, noun="layer")
    yield from _plot(
        "Singular values of the differences",
        "One line for each matrix (their number stands behind the module), from the first layer (dark) to the last "
        "(light), as shares of its largest value. "
        "Below the dashed line, the median of the matrices, could be noise; a cliff shows a change of low rank.",
        "Singular values by kind of module",
        figures.get("spectra"),
    )
    yield from ranks(findings)
    yield from _plot(
        "Sizes of the changes",
        f"Entries of the tensors that changed, from a sample; the dashed line is the threshold of {threshold:g}.",
        "Entries by the size of their difference",
        figures.get("histogram"),
    )


def _plot(title: str, explanation: str, label: str, drawing: "Figure | None") -> Iterator[str]:
    if drawing is not None:
        from lit_wsl.comparing.plots import svg_of  # matplotlib takes a while to import

        yield f"<h2>{title}</h2><p class=faint>{escape(explanation)}</p>"
        yield f'<div class="wide">{svg_of(drawing, title, label)}</div>'
