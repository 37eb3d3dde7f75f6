"""The page of a mapping counts recipes, as its summary does, and not the rows that repeated blocks share."""

import re

from lit_wsl.mapper.mapper import WeightMapper
from lit_wsl.mapper.page import page
from lit_wsl.mapper.tables import summary


def test_sections_and_summary_count_the_same():
    source = {f"h.{i}.fc.weight": (4, 3) for i in range(5)} | {"a.x": (6, 6), "b.y": (6, 6)}
    target = {f"layers.{i}.linear.weight": (4, 3) for i in range(5)} | {"p": (6, 6), "q": (6, 6)}
    result = WeightMapper(source_params=source, target_params=target).suggest_mapping(0.0)
    counts = dict(re.findall(r"<h2>(\w+) <small>(\d+)", page(result)))
    assert sum(map(int, counts.values())) == len(result.matches) == 7
    assert f"; {counts['Ambiguous']} ambiguous" in summary(result)[1]
