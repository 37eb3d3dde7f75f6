"""A side of a mapper may be an inventory that was taken before."""

from torch import nn

from lit_wsl.mapper.inventory import take_inventory
from lit_wsl.mapper.mapper import WeightMapper

SHAPES = {"a.weight": (4, 3), "bn.weight": (4,), "bn.running_mean": (4,)}


def test_an_inventory_is_a_side():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    source, target = take_inventory(SHAPES, "file"), take_inventory(module)
    mapper = WeightMapper(source_params=source, target_params=target)
    plain = WeightMapper(None, module, source_params=SHAPES)
    assert mapper.suggest_mapping().recipes == plain.suggest_mapping().recipes
    assert mapper.source.where == "file"
    assert len(source.weights) == 3, "the inventory itself stays as it is"
