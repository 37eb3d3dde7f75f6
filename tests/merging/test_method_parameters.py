"""Parameters of methods of every kind, and the number of sources."""

import pytest
import torch
from safetensors.torch import load_file

from lit_wsl.cli.main import run
from lit_wsl.errors import ConfigError, LitWslError
from lit_wsl.merging import build_method, merge, merge_state_dict, merge_tensors
from tests.merging.toys import states

pytestmark = pytest.mark.usefixtures("toys")


def test_a_list_of_weights_by_yaml_command_line_and_python(models, tmp_path, capsys):
    weights = [0.2, 0.8]
    _, tuned = states(models)
    fields = {"models": models[1][:2], "base": models[0], "method": "toy_blend"}
    report = merge(**fields, method_params={"weights": weights}, output=str(tmp_path / "python"))
    assert report.params == {"weights": (0.2, 0.8)}
    config = tmp_path / "merge.yaml"
    paths = "".join(f"  - {path}\n" for path in models[1][:2])
    config.write_text(f"models:\n{paths}base: {models[0]}\nmethod: toy_blend\nmethod_params:\n  weights: {weights}\n")
    assert run(["merge", "--config", str(config), "--output", str(tmp_path / "yaml")]) == 0
    argv = ["merge", "--models", *models[1][:2], "--base", models[0], "--method", "toy_blend"]
    assert run([*argv, "--method_params.weights=[0.2,0.8]", "--output", str(tmp_path / "equals")]) == 0
    assert run([*argv, "--method-params.weights", "[0.2, 0.8]", "--output", str(tmp_path / "space")]) == 0
    merged = load_file(tmp_path / "python" / "model.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.2 * tuned[0][name] + 0.8 * tuned[1][name])
    for place in ("yaml", "equals", "space"):
        again = load_file(tmp_path / place / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[0.2,0.8,0.1]", "2 numbers, got 3"),
        ("[]", "2 numbers, got 0"),
        ("0.5", "must be a list of numbers, got 0.5"),
        ("[0.2,x]", "must be a list of numbers"),
        ("[0.2,true]", "must be a list of numbers"),
        ("[0.2,[1]]", "must be a list of numbers"),
        ("[0.2,.nan]", "must hold finite numbers"),
        ("{a: 1}", "must be a list of numbers"),
        ("text", "must be a list of numbers, got 'text'"),
    ],
)
def test_wrong_lists_are_refused_in_one_line(models, tmp_path, capsys, text, words):
    argv = ["merge", "--models", *models[1][:2], "--base", models[0], "--method", "toy_blend"]
    assert run([*argv, f"--method_params.weights={text}", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


def test_no_list_is_the_default(models, tmp_path):
    assert build_method("toy_blend").params() == {"weights": None}
    assert build_method("toy_blend", {"weights": None}).params() == {"weights": None}
    assert build_method("toy_blend", {"weights": (1, 2)}).params() == {"weights": (1.0, 2.0)}


def test_every_kind_of_parameter_is_taken():
    values = {"flag": True, "number": 2, "count": 3, "share": 1, "kind": "b", "numbers": [1, 2.5], "weights": [1]}
    taken = build_method("toy_typed", values).params()
    assert taken == {**values, "numbers": (1.0, 2.5), "weights": (1.0,)}
    assert [type(taken[key]) for key in ("flag", "number", "count", "share")] == [bool, float, int, float]
    nothing = dict.fromkeys(("count", "share", "kind", "weights"))
    assert build_method("toy_typed", nothing).params() == build_method("toy_typed").params()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"flag": 1}, "`flag` of 'toy_typed' must be of type bool, got 1"),
        ({"flag": "true"}, "of type bool"),
        ({"flag": None}, "of type bool"),
        ({"number": None}, "of type float"),
        ({"number": True}, "of type float"),
        ({"count": 1.5}, "of type int"),
        ({"count": False}, "of type int"),
        ({"share": "1"}, "of type float"),
        ({"share": float("inf")}, "finite"),
        ({"number": 10**400}, "must be finite, got 1000"),
        ({"numbers": [1, 10**400]}, "must hold finite numbers"),
        ({"kind": "c"}, "one of a, b"),
        ({"numbers": None}, "list of numbers, got None"),
        ({"numbers": "12"}, "list of numbers"),
        ({"numbers": {1: 2}}, "list of numbers"),
    ],
    ids=str,
)
def test_every_kind_of_parameter_is_checked(params, words):
    with pytest.raises(ConfigError, match=words):
        build_method("toy_typed", params)


@pytest.mark.parametrize(
    ("method", "count", "words"),
    [
        ("toy_pair", 1, "'toy_pair' merges exactly 2 sources, got 1"),
        ("toy_pair", 3, "'toy_pair' merges exactly 2 sources, got 3"),
        ("toy_several", 1, "'toy_several' merges 2 to 4 sources, got 1"),
        ("toy_several", 5, "'toy_several' merges 2 to 4 sources, got 5"),
    ],
)
def test_numbers_of_sources_are_checked_before_anything_is_read(tmp_path, method, count, words):
    """A3.3"""
    with pytest.raises(ConfigError, match=words):
        build_method(method).check_sources(count)
    for field in ("models", "adapters"):
        sources = [str(tmp_path / f"nowhere{n}") for n in range(count)]
        with pytest.raises(ConfigError, match=words):
            merge(**{field: sources}, base=str(tmp_path / "nobase"), method=method, output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=words):
        merge_tensors(method, torch.zeros(count, 3), torch.zeros(3))


def test_adapters_and_models_count_together(models, adapters):
    fields = {"base": models[0], "method": "toy_pair"}
    merge_state_dict(adapters=adapters[0][:1], models=models[1][:1], **fields)
    with pytest.raises(LitWslError, match="got 3"):
        merge_state_dict(adapters=adapters[0], models=models[1][:1], **fields)
