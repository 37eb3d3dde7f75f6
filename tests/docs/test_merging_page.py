"""The configurations of the page on merging are one spec together."""

import yaml

from lit_wsl.merging import MergeSpec
from tests.docs.blocks import DOCS, blocks_of

PAGE = "merging.md"


def test_the_configurations_are_specs():
    fields = {}
    for block in (one for one in blocks_of(DOCS / PAGE) if one.language == "yaml"):
        fields |= yaml.safe_load(block.text)
    spec = MergeSpec(**fields)
    assert [rule.match for rule in spec.rules] == ["*.attention.*", "re:embeddings|LayerNorm"]
    assert [one.name for one in spec.transforms] == ["layer_l2_normalize", "consensus"]
