"""`lit-wsl inspect model|data|weights`: what they find, and their exit codes."""

import json
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch
from PIL import Image

from lit_wsl.cli.main import run
from lit_wsl.errors import CheckpointError
from lit_wsl.models.alternating import ALIASES
from lit_wsl.models.backbone import init_from_backbone
from tests.cli.test_main import one_line
from tests.models.alternating.test_models import plain_twin
from tests.tiny_llava import tiny_llava
from tests.tiny_qwen import TENSORS, tiny_qwen


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of tiny models."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llava("alternating").save_pretrained(folder / "alternating")
    tiny_llava("alternating_cross").save_pretrained(folder / "alternating_cross")
    plain_twin(tiny_llava()).save_pretrained(folder / "plain-alternating-in-name-only")
    tiny_qwen().save_pretrained(folder / "qwen")
    tiny_qwen(hidden_size=64).save_pretrained(folder / "wide")
    return folder


@pytest.fixture
def config(models):
    """The configuration of a model, to be changed."""
    return json.loads((models / "alternating/config.json").read_text())


def write(folder, config, name="config.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def found_in(capsys, *arguments, code=0):
    """What a command prints as JSON."""
    capsys.readouterr()
    assert run(["inspect", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refused(capsys, code, *arguments_and_words):
    """One line on stderr with these words, and no model is shown."""
    *arguments, words = arguments_and_words
    one_line(capsys, code, ["inspect", *map(str, arguments)], *words)


def test_a_model_is_told_without_its_weights(capsys, models):
    found = found_in(capsys, "model", models / "alternating")
    total = sum(parameter.numel() for parameter in tiny_llava().parameters())
    assert found["model_type"] == "llava_onevision_alternating"
    assert found["architecture"] == "LlavaOnevisionAlternatingForConditionalGeneration"
    assert found["class"].endswith(f".{found['architecture']}")
    assert (found["variant"], found["modality_layers"]) == ("alternating", [1])
    assert found["sizes"]["text"]["hidden_size"] == 32
    assert found["sizes"]["vision"]["image_size"] == 16
    assert (found["parameters"], found["counted_from"]) == (total, "headers")
    assert found["weights"] == {"float32": {"tensors": 93, "parameters": total, "bytes": 4 * total}}
    assert "step" not in found


def test_a_configuration_is_enough(capsys, tmp_path, config):
    for path in (write(tmp_path, config), tmp_path / "config.json"):
        found = found_in(capsys, "model", path)
        assert (found["parameters"], found["counted_from"], found["weights"]) == (46144, "configuration", None)


def test_tied_parameters_count_once(capsys, tmp_path):
    for tied in (True, False):
        tiny_qwen(tie_word_embeddings=tied).config.save_pretrained(tmp_path)
        assert found_in(capsys, "model", tmp_path)["parameters"] == 37408 - tied * 96 * 32


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_variant(capsys, tmp_path, config, alias):
    del config["text_config"]["attention_variant"]
    found = found_in(capsys, "model", write(tmp_path, config | {"model_type": alias}), "--variant", ALIASES[alias])
    assert (found["model_type"], found["variant"]) == ("llava_onevision_alternating", ALIASES[alias])


def test_the_variant_is_that_of_the_configuration(capsys, models):
    plain = models / "plain-alternating-in-name-only"
    for path, variant in (
        (models / "alternating", "alternating"),
        (models / "alternating_cross", "alternating_cross"),
        (plain, "base"),
        (models / "qwen", "base"),
    ):
        for wanted in ("auto", variant):
            assert found_in(capsys, "model", path, "--variant", wanted)["variant"] == variant
        for other in {"alternating", "alternating_cross", "base"} - {variant}:
            words = [f"of variant {variant!r}", f"not {other!r}", "`--force` goes on"]
            words += [f"`--as {other}` builds"] if other != "base" else []
            refused(capsys, 3, "model", path, "--variant", other, words)
            capsys.readouterr()
            assert run(["inspect", "model", str(path), "--variant", other, "--force"]) == 0
            shown = capsys.readouterr()
            assert variant in shown.out
            assert shown.err.startswith("WARNING: ")
            assert shown.err.count("\n") == 1


def test_a_base_configuration_as_a_variant(capsys, models):
    plain = models / "plain-alternating-in-name-only"
    options = ["--as", "alternating_cross", "--variant", "alternating_cross", "--instantiate"]
    found = found_in(capsys, "model", plain, *options)
    assert found["architecture"] == "LlavaOnevisionForConditionalGeneration"
    built = "LlavaOnevisionAlternatingForConditionalGeneration"
    assert found["class"].endswith(built)
    assert found["step"]["class"].endswith(built)
    assert (found["variant"], found["modality_layers"], found["step"]["random"]) == ("alternating_cross", [1], [])
    found = found_in(capsys, "model", models / "qwen", "--as", "alternating")
    assert found["class"].endswith("AlternatingQwen2ForCausalLM")


def test_what_has_no_variants(capsys, tmp_path, bert_dir):
    refused(capsys, 1, "model", bert_dir, "--as", "alternating", ["got model_type 'bert'"])
    refused(capsys, 2, "model", bert_dir, "--as", "base", ['"as"', "alternating_cross"])
    assert found_in(capsys, "model", bert_dir)["variant"] == "base"


@pytest.mark.parametrize("name", ["alternating", "qwen"])
def test_one_step(capsys, models, name):
    step = found_in(capsys, "model", models / name, "--instantiate")["step"]
    assert step["loss"] > 0
    assert step["seconds"] > 0
    assert step["load_seconds"] > 0
    assert step["peak_bytes"] > 1e8
    assert step["random"] == []
    assert step["dtype"] == "float32"
    assert ("an image of 16×16 pixels" in step["batch"]) == (name == "alternating")
    assert run(["inspect", "model", str(models / name), "--instantiate"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{step['loss']:.4f}" in shown
    assert f"{step['gradients']} of {step['parameters']} parameters" in shown


def test_random_weights_are_told(capsys, tmp_path, models, config):
    step = found_in(capsys, "model", write(tmp_path, config), "--instantiate")["step"]
    assert len(step["random"]) == 93
    state = {name: t for name, t in tiny_llava().state_dict().items() if "lm_head" not in name}
    tiny_llava().save_pretrained(tmp_path, state_dict=state)
    assert found_in(capsys, "model", tmp_path, "--instantiate")["step"]["random"] == ["lm_head.weight"]
    assert run(["inspect", "model", str(tmp_path), "--instantiate"]) == 0
    assert "1 tensors that no file has, first lm_head.weight" in " ".join(capsys.readouterr().out.split())


def test_configurations_that_cannot_be_read(capsys, tmp_path, models, config):
    refused(capsys, 1, "model", tmp_path, ["has no config.json"])
    refused(capsys, 1, "model", tmp_path / "none", ["does not exist"])
    for text, words in (
        ("[1]", ["is no JSON object"]),
        ("{", ["cannot be read"]),
        ("", ["cannot be read"]),
        ('{"a": 1}', ["names no `model_type`"]),
        ('{"model_type": 3}', ["names no `model_type`"]),
        ('{"model_type": "qwen22"}', ["no model of model_type 'qwen22'", "'qwen2"]),
        ('{"model_type": "qwen2", "hidden_size": "wide"}', ["no configuration of type 'qwen2'"]),
        (config | {"text_config": config["text_config"] | {"alternating_every": 0}}, ["`alternating_every >= 1`"]),
    ):
        refused(capsys, 1, "model", write(tmp_path, text), words)
    refused(capsys, 1, "model", models / "qwen/model.safetensors", ["`lit-wsl inspect checkpoint`"])


def test_weights_that_cannot_be_read(capsys, tmp_path, models, config):
    write(tmp_path, config)
    whole = (models / "alternating/model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    refused(capsys, 1, "model", tmp_path, ["model.safetensors"])
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(capsys, 1, "model", tmp_path, ["`git lfs pull`"])


def test_weights_of_other_sizes_are_not_loaded(capsys, tmp_path, models):
    wide = json.loads((models / "wide/config.json").read_text())
    write(tmp_path, wide)
    (tmp_path / "model.safetensors").write_bytes((models / "qwen/model.safetensors").read_bytes())
    refused(capsys, 1, "model", tmp_path, "--instantiate", ["cannot be loaded into Qwen2ForCausalLM"])


FLAT = {"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"], "hidden_size": 896, "vocab_size": 7}


def test_another_librarys_layout(capsys, tmp_path, models):
    """LLaVA-NeXT's: the type and class are told, and nothing is made up."""
    found = found_in(capsys, "model", write(tmp_path, FLAT))
    assert (found["model_type"], found["architecture"]) == ("llava", "LlavaQwenForCausalLM")
    assert (found["class"], found["parameters"]) == (None, None)
    assert found["sizes"] == {"model": {"hidden_size": 896, "vocab_size": 7}}
    refused(capsys, 1, "model", tmp_path, "--instantiate", ["convert it to transformers' layout"])
    assert run(["inspect", "model", str(tmp_path)]) == 0
    (tmp_path / "model.safetensors").write_bytes((models / "qwen/model.safetensors").read_bytes())
    assert found_in(capsys, "model", tmp_path)["parameters"] == 37408
    refused(capsys, 1, "weights", "--target", tmp_path, "--backbone", models / "qwen", ["convert it"])


def test_a_model_on_the_hub_is_not_fetched(capsys, tmp_path, monkeypatch, config):
    asked = []
    write(tmp_path, config)

    def download(*names):
        asked.append(names)
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = found_in(capsys, "model", "some/model")
    assert (asked, found["parameters"]) == ([("some/model", "config.json")], 46144)
    monkeypatch.undo()
    refused(capsys, 1, "model", "some/model", ["the hub did not give it"])
    refused(capsys, 1, "model", "some/model", "--instantiate", ["the hub did not give it"])


def test_what_a_backbone_gives(capsys, models):
    found = found_in(capsys, "weights", "--target", models / "alternating", "--backbone", models / "qwen")
    report = init_from_backbone(tiny_llava(), tiny_qwen())
    assert found["copied"]["tensors"] == TENSORS
    assert found["uninitialised"] == report.to_dict()["uninitialised"]
    assert found["refusal"] is None
    target = models / "alternating/config.json"
    assert run(["inspect", "weights", "--target", str(target), "--backbone", str(models / "qwen")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "'model.' → 'model.language_model.': 50" in shown
    assert "Stays uninitialised: model.image_newline (1), model.vision_tower (37), model.multi_modal_proj" in shown


def test_a_backbone_that_would_be_refused(capsys, models):
    found = found_in(capsys, "weights", "--target", models / "alternating", "--backbone", models / "wide")
    assert (found["copied"]["tensors"], found["mismatched"]["tensors"]) == (0, TENSORS)
    with pytest.raises(CheckpointError) as raised:
        init_from_backbone(tiny_llava(), tiny_qwen(hidden_size=64))
    assert str(raised.value).split(":")[1:] == found["refusal"].split(":")[1:]


@pytest.mark.parametrize("mapped", ["alternating", "alternating/config.json"])
def test_a_weight_map(capsys, tmp_path, models, mapped):
    """A map of files has other names for the target than its module, which a map to the configuration has."""
    target, backbone, path = str(models / "alternating"), str(models / "qwen"), str(tmp_path / "map.json")
    assert run(["map", backbone, str(models / mapped), "--save", path, "--min_coverage", "0"]) == 0
    options = ["--target", target, "--backbone", backbone, "--weight_map", path]
    of_module = "model.language_model.norm.weight" in (tmp_path / "map.json").read_text()
    assert of_module == mapped.endswith(".json")
    assert found_in(capsys, "weights", *options)["copied"]["tensors"] == TENSORS
    model = tiny_llava()
    init_from_backbone(model, backbone, weight_map=path)
    assert torch.equal(model.model.language_model.norm.weight, tiny_qwen().model.norm.weight)
    options[1] = str(models / "qwen")
    assert run(["map", target, target, "--save", path, "--overwrite"]) == 0
    options[3] = target
    refused(capsys, 1, "weights", *options, ["makes 42 tensors that", "make it for these two models"])


def test_what_weights_refuses(capsys, tmp_path, models):
    qwen, llava = models / "qwen", models / "alternating"
    refused(capsys, 1, "weights", "--target", tmp_path, "--backbone", qwen, ["has no config.json"])
    refused(capsys, 1, "weights", "--target", llava, "--backbone", tmp_path, ["no weight file"])
    write(tmp_path, "[1]", "list.json")
    options = ["--target", llava, "--backbone", qwen, "--weight_map", tmp_path / "list.json"]
    refused(capsys, 1, "weights", *options, ["is no weight map"])
    refused(capsys, 2, "weights", "--target", llava, ["backbone"])


ROW = {
    "id": "1",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Black."}],
}


@pytest.fixture
def rows(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def write_rows(*found, name="rows.jsonl"):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in found]
        text = f"[{','.join(lines)}]" if name.endswith("json") else "\n".join(lines)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_rows


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_good_rows(capsys, rows, name):
    found = found_in(capsys, "data", rows(ROW, ROW | {"id": "2"}, name=name))
    assert (found["rows"], found["with_image"], found["faulty"], found["faults"]) == (2, 2, 0, [])
    assert found["first"] == ROW
    assert run(["inspect", "data", found["path"]]) == 0
    assert "What?" in capsys.readouterr().out


def test_faults_are_named_and_the_exit_code_tells(capsys, rows):
    unknown = [{"from": "humn", "value": "<image>"}, ROW["conversations"][1]]
    path = rows(ROW, ROW | {"image": "b.png"}, ROW | {"conversations": []}, ROW | {"conversations": unknown}, "{oops")
    found = found_in(capsys, "data", path, code=1)
    assert (found["rows"], found["faulty"]) == (5, 4)
    places = [row["where"] for row in found["faults"]]
    assert places == [f"{path}, line {number}" for number in (2, 3, 4, 5)]
    texts = ["; ".join(row["faults"]) for row in found["faults"]]
    for text, words in zip(texts, ["b.png does not exist", "is empty", "unknown role 'humn'", "no JSON"], strict=True):
        assert words in text
    assert run(["inspect", "data", str(path)]) == 1
    shown = capsys.readouterr()
    assert "line 4" in shown.out
    assert shown.err == f"lit-wsl: {path}: 4 of 5 rows have faults; mend them, or train with `on_bad_row: skip`.\n"


def test_images_are_looked_for_not_opened(capsys, tmp_path, rows):
    path = rows(ROW)
    (tmp_path / "a.png").write_text("no image")
    assert found_in(capsys, "data", path)["faulty"] == 0
    (tmp_path / "images").mkdir()
    options = ["--image_folder", tmp_path / "images"]
    assert found_in(capsys, "data", path, *options, code=1)["faulty"] == 1
    (tmp_path / "images/a.png").touch()
    assert found_in(capsys, "data", path, *options)["faulty"] == 0
    refused(capsys, 1, "data", path, "--image_folder", tmp_path / "none", ["--image_folder", "is no directory"])


def test_as_many_rows_as_asked_for(capsys, rows):
    path = rows(ROW, ROW, "{oops")
    assert found_in(capsys, "data", path, "--limit", 2)["rows"] == 2
    assert found_in(capsys, "data", path, "--limit", 3, code=1)["faulty"] == 1
    refused(capsys, 2, "data", path, "--limit", 0, ["`limit >= 1` must hold, got 0"])


def test_many_faults_are_counted_and_some_named(capsys, rows):
    path = rows(*[ROW | {"image": "b.png"}] * 50)
    found = found_in(capsys, "data", path, code=1)
    assert (found["faulty"], len(found["faults"])) == (50, 20)
    assert run(["inspect", "data", str(path)]) == 1
    assert "and 30 more rows" in capsys.readouterr().out


def test_a_listing_of_files(capsys, tmp_path, rows):
    rows(ROW, ROW, name="one.json")
    rows(ROW, ROW | {"image": "b.png"}, name="two.jsonl")
    listing = "datasets:\n- json_path: one.json\n  sampling_strategy: first:1\n- json_path: two.jsonl\n"
    (tmp_path / "all.yaml").write_text(listing)
    found = found_in(capsys, "data", tmp_path / "all.yaml", code=1)
    assert (found["rows"], len(found["files"])) == (3, 2)


def test_files_that_are_no_rows(capsys, tmp_path, rows):
    capsys.readouterr()
    assert run(["inspect", "data", str(rows(name="none.json"))]) == 1
    assert "none.json has no rows." in capsys.readouterr().err
    refused(capsys, 1, "data", tmp_path, ["rows are in .json"])
    refused(capsys, 1, "data", tmp_path / "none.json.gz", ["rows are in .json"])
    refused(capsys, 1, "data", tmp_path / "other.json", ["does not exist"])
    (tmp_path / "cut.json").write_text(f"[{json.dumps(ROW)}, {{")
    refused(capsys, 1, "data", tmp_path / "cut.json", ["cut.json, line 1"])
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    refused(capsys, 1, "data", tmp_path / "bytes.json", ["is no UTF-8 text"])


def test_the_group_lists_its_commands(capsys):
    assert run(["inspect", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"inspect {name} " in shown for name in ("checkpoint", "model", "data", "weights"))
    assert "merge" not in shown.partition("commands:")[2]
    assert run(["inspect"]) == 2
    assert run(["runs", "-h"]) == 0
    assert "runs best" in capsys.readouterr().out
    one_line(capsys, 2, ["inspect", "modle", "x"], "Did you mean 'inspect model'?")
    one_line(capsys, 2, ["inspect", "model", "x", "--varaint", "base"], "Did you mean 'variant'?")


@pytest.mark.parametrize("words", [[], ["model"], ["data"], ["weights"], ["checkpoint"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; from lit_wsl.cli.main import run; code = run(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules); sys.exit(code)"
    )
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", *words, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - begin < 5, "0.2 s on a machine that does nothing else"


def test_no_weight_is_read(models):
    """A file of which nothing but the header is there: whoever reads on gets noise or an error."""
    code = (
        "import sys; import lit_wsl.state.safetensors as s; from lit_wsl.cli.main import run;"
        "s.SafetensorsFile.read = None; sys.exit(run(sys.argv[1:]))"
    )
    for words in (
        ["model", models / "qwen"],
        ["weights", "--target", models / "alternating", "--backbone", models / "qwen"],
    ):
        command = [sys.executable, "-c", code, "inspect", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_nothing_is_random_twice(capsys, tmp_path, config):
    """The step is the same on every call, given the seed."""
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(found_in(capsys, "model", write(tmp_path, config), "--instantiate")["step"]["loss"])
    assert losses[0] == losses[1]
