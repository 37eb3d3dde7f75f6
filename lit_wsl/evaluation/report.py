"""A score table for the terminal, and a page with a plot for the browser."""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.table import Table

from lit_wsl.evaluation.scores import ScoreTable

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } p.lead { color: #556; margin-top: 0; }
table { border-collapse: collapse; width: 100%; margin: 1.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid #e3e7ee; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #9aa5b5; } tr.best td { background: #eaf4ec; font-weight: 600; }
img { width: 100%; } code { background: #f3f5f8; padding: .1rem .3rem; border-radius: .2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: #556; } dd { margin: 0; }
"""

_COLUMNS = ("mean", "± s.e.", "recovered", "chosen")


def score_table(scores: ScoreTable, notes: Mapping[str, str]) -> Table:
    """Table of models by tasks, in percent.

    Args:
        scores: What to show.
        notes: A remark per row, such as the chosen parameters.
    """
    table = Table(
        "model", *scores.tasks, "mean", "± s.e.", "recovered", "chosen", title="Accuracy on test rows, percent"
    )
    for column in table.columns[1:-1]:
        column.justify = "right"
    for name in scores.rows:
        table.add_row(name, *_cells(scores, name), notes.get(name, ""))
    return table


def write_report(
    path: Path, title: str, scores: ScoreTable, notes: Mapping[str, str], facts: Mapping[str, str], best: str
) -> None:
    """Write one self-contained HTML page: table, plot, and how the figures came about.

    Args:
        path: File to write.
        title: Heading.
        scores: What to show.
        notes: A remark per row.
        facts: Name and value of what a reader should know of the run.
        best: Row to mark; choose it on validation rows, as these are test scores.
    """
    head = "".join(f"<th>{html.escape(c)}</th>" for c in ["model", *scores.tasks, *_COLUMNS])
    body = "".join(_html_row(scores, name, notes.get(name, ""), best=name == best) for name in scores.rows)
    listed = "".join(f"<dt>{html.escape(k)}</dt><dd><code>{html.escape(v)}</code></dd>" for k, v in facts.items())
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        '<p class="lead">Accuracy on test rows in percent; parameters were chosen on validation rows. '
        "<em>Recovered</em> is the share of the individual fine-tunes' gain over the base that one merged model keeps; "
        "± s.e. is the sampling error of the mean. The marked row is the merge that was best on validation rows.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f'<img alt="Bars of accuracy per task and model" src="data:image/png;base64,{_plot(scores)}">'
        f"<h2>How it was made</h2><dl>{listed}</dl></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _cells(scores: ScoreTable, name: str) -> list[str]:
    error, share = scores.standard_error(name), scores.recovered(name)
    return [
        *(f"{100 * scores.rows[name][task]:.1f}" for task in scores.tasks),
        f"{100 * scores.mean(name):.1f}",
        "–" if error is None else f"{100 * error:.1f}",
        "–" if share is None else f"{share:.2f}",
    ]


def _html_row(scores: ScoreTable, name: str, note: str, *, best: bool) -> str:
    cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in [name, *_cells(scores, name), note])
    return f"<tr{' class=best' if best else ''}>{cells}</tr>"


def _plot(scores: ScoreTable) -> str:
    """Grouped bars, one group a task and one for the mean; PNG in base64."""
    groups = [*scores.tasks, "mean"]
    width = 0.82 / len(scores.rows)
    figure = Figure(figsize=(9.5, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(scores.rows):
        heights = [100 * v for v in (*(scores.rows[name][task] for task in scores.tasks), scores.mean(name))]
        places = [g + (i - (len(scores.rows) - 1) / 2) * width for g in range(len(groups))]
        colour = colormaps["viridis"](0.05 + 0.85 * i / max(1, len(scores.rows) - 1))
        axes.bar(places, heights, width * 0.94, label=name, color=colour)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("accuracy, percent")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=min(6, len(scores.rows)), frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
