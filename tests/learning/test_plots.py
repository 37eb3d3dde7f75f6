"""Pictures of what was learned."""

import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from lit_wsl.learning.drawing import save, spread
from lit_wsl.learning.heldout.plots import deltas_picture, tradeoffs_picture
from lit_wsl.learning.plots import coefficient_plot, history_plot
from lit_wsl.learning.rows import rows_of

ROLES = ("attn.q.weight", "attn.k.weight", "mlp.up.weight", "mlp.up.bias")


def parameters(layers, towers=("model",)):
    inner = [f"{tower}.layers.{at}.{role}" for tower in towers for at in range(layers) for role in ROLES]
    return ["embed.weight", *inner, "head.weight"]


def values(rows, sources, shift=0.0):
    return [[0.3 + shift + 0.2 * math.sin(row + source) for source in range(sources)] for row in range(len(rows.names))]


@pytest.mark.parametrize("shift", [0.0, -0.4])
@pytest.mark.parametrize(
    ("granularity", "layers", "groups"),
    [
        ("task", 2, ()),
        ("layer", 3, ()),
        ("layer", 70, ()),
        ("tensor", 3, ()),
        ("tensor", 40, ()),
        ("groups", 2, ["mlp"]),
    ],
)
def test_every_granularity_is_drawn(tmp_path, granularity, layers, groups, shift):
    rows = rows_of(parameters(layers), granularity, groups)
    save(coefficient_plot(rows, ["one", "two", "two"], values(rows, 3, shift)), tmp_path / "c.png")
    picture = imread(tmp_path / "c.png")
    assert min(picture.shape[:2]) > 100
    assert picture.shape[1] < 2500
    assert picture.std() > 0.05


def test_towers_and_single_values_are_drawn(tmp_path):
    for granularity in ("layer", "tensor"):
        rows = rows_of(parameters(2, ("text", "vision")), granularity)
        save(coefficient_plot(rows, ["one"], [[0.0]] * len(rows.names)), tmp_path / f"{granularity}.png")
        assert (tmp_path / f"{granularity}.png").stat().st_size > 3_000


def test_each_cell_shows_its_own_value():
    rows = rows_of([f"layers.{at}.w" for at in (10, 9, 2)] + ["embed"], "layer")
    grid = [[0.5, -0.25], [0.1, 0.11], [0.9, 0.91], [0.2, 1.25]]
    assert rows.names == ("default", ":10", ":9", ":2")
    axes = coefficient_plot(rows, ["a", "b"], grid).axes[0]
    texts = [one.get_text() for one in axes.texts]
    minus = "\N{MINUS SIGN}"
    assert texts == [".50", f"{minus}.25", ".20", "1.2", ".90", ".91", ".10", ".11"]  # by columns, in order of layers
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all else", "2", "9", "10"]


def test_a_tensor_stands_in_its_layer_and_role():
    rows = rows_of(["layers.1.b.weight", "layers.0.a.weight", "layers.0.b.weight", "out.weight"], "tensor")
    axes = coefficient_plot(rows, ["t"], [[0.1], [0.2], [0.3], [0.4]]).axes[0]
    columns = [np.ma.filled(mesh.get_array(), np.nan).ravel().tolist() for mesh in axes.collections]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a", "out"]
    np.testing.assert_equal(columns, [[np.nan, np.nan, 0.4], [0.3, 0.2, np.nan], [0.1, np.nan, np.nan]])


def history(path, count, **extra):
    lines = [
        {
            "update": update,
            "objective": 1.0 / update,
            "losses": {"a": 1.0, "b": 2.0 / update},
            "coefficients": {"a": 0.3, "b": -0.1 * update},
            "gradient": {"norm": 0.5 / update, "mean_abs": {"a": 0.1, "b": 0.2}},
            **extra,
        }
        for update in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("count", [1, 3, 200])
def test_a_history_is_drawn(tmp_path, count):
    rows = {"layer_coefficients": {"default": [0.2, -0.2], ":0": [0.4, -0.3]}}
    save(history_plot(history(tmp_path / "h.jsonl", count, **rows)), tmp_path / "h.png")
    assert imread(tmp_path / "h.png").std() > 0.05


def test_a_history_with_gaps_is_drawn(tmp_path):
    path = history(tmp_path / "h.jsonl", 4, objective=None, gradient={"norm": None, "mean_abs": {}})
    save(history_plot(path), tmp_path / "h.png")
    plain = [{key: line[key] for key in ("update", "objective", "losses")} for line in map(json.loads, path.open())]
    path.write_text("".join(json.dumps(line) + "\n" for line in plain))
    save(history_plot(path), tmp_path / "plain.png")
    assert imread(tmp_path / "plain.png").shape[0] < imread(tmp_path / "h.png").shape[0]


def test_without_a_line_nothing_is_drawn(tmp_path):
    save(history_plot(tmp_path / "none.jsonl"), tmp_path / "h.png")
    assert not (tmp_path / "h.png").exists()


def rows_measured(tasks, count):
    return [
        {
            "update": 10 * at,
            "deltas": {task: -3.0 if at == 1 else 0.1 * at + 0.05 * n for n, task in enumerate(tasks)},
            "on_frontier": at > 1,
            "chosen": at == count,
        }
        for at in range(1, count + 1)
    ]


@pytest.mark.parametrize("tasks", [["a", "b"], ["a", "b", "c"], [f"task_{at}" for at in range(12)]])
@pytest.mark.parametrize("count", [1, 6])
def test_held_out_pictures_are_drawn(tmp_path, tasks, count):
    for name, content in (
        ("d", deltas_picture(rows_measured(tasks, count), "test", "min")),
        ("t", tradeoffs_picture(rows_measured(tasks, count), "test")),
    ):
        (tmp_path / name).write_bytes(content)
        assert imread(tmp_path / name, format="png").std() > 0.05


def test_names_at_line_ends_keep_their_distance_and_order():
    found = spread([0.0, 0.01, 0.02, 1.0], 0.1)
    assert found == pytest.approx([-0.09, 0.01, 0.11, 1.0])
    assert spread([0.0, 0.5], 0.1) == [0.0, 0.5]
    crowded = spread([0.0, 0.05, 0.1, 0.12, 0.3], 0.1)
    assert all(later - earlier > 0.0999 for earlier, later in zip(crowded, crowded[1:], strict=False))
