import json

import pytest

from lit_wsl.errors import ConfigError
from lit_wsl.training.text import TextClassificationData
from lit_wsl.training.tokenizer import read_tokenizer


@pytest.mark.parametrize("kind", ["bert", "qwen2", "gpt2", "llama"])
def test_a_model_without_a_tokenizer_gives_no_empty_one(tmp_path, kind):
    """Of some models transformers makes a tokenizer without words, and training would go on with unknown tokens."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "a.csv").write_text("text,label\ngood,yes\nbad,no\n")
    with pytest.raises(ConfigError, match="has no tokenizer; copy"):
        TextClassificationData(str(tmp_path), train_file=tmp_path / "a.csv").setup("fit")


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="has no tokenizer that can be read") as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
