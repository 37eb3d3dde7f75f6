"""The verdict says what was really done to a model."""

import json
from dataclasses import replace

import pytest

from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.verdict import verdict_of
from tests.comparing.examples import EXAMPLES, base, bfloat16, compared, dense, example, lora

HEADLINES = {
    "identical": ("identical", "Identical in all 30 tensors, bit for bit"),
    "cast": ("rounding", "Only rounding to bfloat16, in 23 of 30 tensors"),
    "cast and back": ("rounding", "Only rounding to bfloat16, in 23 of 30 tensors"),
    "lora": ("lora", "LoRA of rank 4 on q_proj and v_proj in all 3 layers; nothing else changed"),
    "lora in bfloat16": ("lora", "LoRA of rank 4 on q_proj and v_proj in all 3 layers; nothing else changed"),
    "lora of two layers": ("lora", "LoRA of rank 4 on q_proj and v_proj in 2 of 3 layers; nothing else changed"),
    "lora, cast": (
        "lora",
        "LoRA of rank 4 on q_proj and v_proj in all 3 layers; 17 tensors only rounded to bfloat16",
    ),
    "lora and head": (
        "partly_low_rank",
        "LoRA of rank 4 on q_proj in all 3 layers, and a dense change of lm_head; 7 biases and norms changed too",
    ),
    "dense": ("dense", "Dense fine-tune of all 30 tensors, by 14.8 % of the weights' norm"),
    "dense head": ("dense", "Dense change of lm_head, by 3.5 % of the whole model's norm; nothing else changed"),
    "norms": ("vectors", "Only biases and norms changed, 7 of 30 tensors; nothing else changed"),
    "resized": ("resized", "8 rows added to lm_head and embed_tokens; all else is identical"),
    "resized lora": (
        "lora",
        "LoRA of rank 4 on q_proj and v_proj in all 3 layers; 8 rows added to lm_head and embed_tokens",
    ),
    "damaged": (
        "incomplete",
        "1 of 30 tensors could not be compared; the rest: LoRA of rank 4 on q_proj and v_proj in all 3 layers; "
        "nothing else changed",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_verdict_names_what_was_done(name):
    verdict = verdict_of(example(name))
    assert (verdict.kind, verdict.headline) == HEADLINES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_findings_are_sentences_and_the_verdict_is_json(name):
    verdict = verdict_of(example(name))
    assert all(one.endswith(".") and one[0].isascii() for one in verdict.findings)
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False)) == verdict.to_json()
    assert all(one not in " ".join([verdict.headline, *verdict.findings]) for one in ("nan %", "inf ", "None", "[]"))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("cast", "30 tensors stored as float32 in the base and as bfloat16 in the fine-tuned model."),
        ("lora", "Confidence of the ranks: the last singular value that counts lies"),
        ("lora and head", "7 biases and norms changed, most of all model."),
        ("dense", "Of the squared norm of the dense changes (23 matrices) rank 16 holds"),
        ("resized", "lm_head.weight has 104 rows instead of 96, 8 more; only the common rows were compared."),
        ("damaged", "Not compared: model.layers.1.mlp.up_proj.weight (1 NaN"),
    ],
)
def test_findings_say_what_a_reader_should_know(name, part):
    assert any(one.startswith(part) for one in verdict_of(example(name)).findings)


def test_a_rank_that_varies_is_told():
    def mixed():
        model, other = lora(rank=2, kinds=("q_proj",)), lora(rank=6, kinds=("v_proj",)).state_dict()
        model.load_state_dict({n: other[n] for n in other if "v_proj" in n}, strict=False)
        return model

    verdict = verdict_of(compared(base(), mixed()))
    assert verdict.headline.startswith("LoRA of rank")
    assert "The rank is not the same everywhere: 2 in 3 matrices and 6 in 3 matrices." in verdict.findings


def test_an_interrupted_comparison_is_incomplete_and_says_what_is_known():
    whole = example("lora")
    begun = replace(whole, findings=whole.findings[:20], is_complete=False)
    verdict = verdict_of(begun)
    assert (verdict.kind, verdict.kind_of_compared) == ("incomplete", "lora")
    assert verdict.headline.startswith("Incomplete: only 20 of 30 tensors compared; so far: LoRA of rank 4")


def test_without_a_tensor_there_is_no_verdict():
    whole = example("lora")
    nothing = Comparison(whole.base, whole.finetuned, whole.settings, whole.architecture)
    assert verdict_of(nothing).kind == "incomplete"
    assert verdict_of(nothing).headline == "Incomplete: only 0 of 30 tensors compared"


def test_equal_tensors_are_no_identical_models_if_others_are_on_one_side_only():
    whole = example("identical")
    known = replace(whole.architecture, only_in_finetuned=["model.score.weight"])
    verdict = verdict_of(replace(whole, architecture=known))
    assert (verdict.kind, verdict.headline) == (
        "other_tensors",
        "30 common tensors identical; 1 tensor only in the fine-tuned model",
    )


def test_a_change_as_small_as_rounding_is_called_that_and_no_more():
    verdict = verdict_of(compared(bfloat16(base()), bfloat16(dense(share=0.0002))))
    assert verdict.kind == "dense"
    told = next(one for one in verdict.findings if one.startswith("No larger than"))
    assert "a round trip through bfloat16 gives" in told
    assert "does not tell training from rounding" in told


def test_changes_below_the_bars_are_counted():
    verdict = verdict_of(compared(base(), dense(share=0.005), min_ratio=1.0))
    assert any(one.startswith("Not beyond the bars of `modified` (100 % of") for one in verdict.findings)
