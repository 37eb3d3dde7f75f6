"""Begins a training with the weights of a smaller model."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from lit_wsl.callbacks.starting import StartingWeights, part_to_fill, told_part
from lit_wsl.errors import ConfigError
from lit_wsl.models.backbone import DEFAULT_GROUPS, BackboneReport, init_from_backbone


class BackboneInit(StartingWeights):
    """Copy a backbone, such as the language model of a multimodal one, into a module at setup of ``fit``.

    It happens once for a module, before a strategy wraps or moves it, on every process alike. A run that takes up a
    checkpoint (``ckpt_path``) keeps the weights of that checkpoint, and the backbone is not opened. What is copied
    and what stays as initialised is that of :func:`lit_wsl.models.backbone.init_from_backbone`. Put it before
    callbacks that copy the weights at setup, such as averages of weights.

    Args:
        backbone: A model directory, a file of weights, a universal checkpoint, or a hub id.
        module: Dotted path of the submodule to fill, such as ``model``; empty for the whole module.
        weight_map: Map that ``lit-wsl map --save`` wrote; by default the names are found by their endings.
        skip: Components of names whose tensors are left out; empty for a backbone that is multimodal itself.
        allow_mismatch: Whether tensors of another shape are left as initialised, rather than refused.
    """

    stages = ("fit",)
    report: BackboneReport | None = None
    """What was copied, once it was."""

    def __init__(
        self,
        backbone: str | Path,
        *,
        module: str = "",
        weight_map: str | Path | None = None,
        skip: Sequence[str] = DEFAULT_GROUPS,
        allow_mismatch: bool = False,
    ) -> None:
        if isinstance(skip, str):
            raise ConfigError(f"BackboneInit: `skip` must be a list of names, got {skip!r}; write [{skip!r}].")
        super().__init__(module)
        self.backbone = backbone
        self.weight_map = weight_map
        self.skip = skip
        self.allow_mismatch = allow_mismatch

    def load(self, module: nn.Module) -> BackboneReport:
        """Fill a module at once, without a trainer: before adapters are put in, or in ``configure_model``.

        Args:
            module: The module in which :attr:`module` names a part; changed in place.

        Returns:
            What was copied; also kept as :attr:`report`.

        Raises:
            CheckpointError: If the backbone cannot be read or does not fit the module.
            ConfigError: If there is no such submodule, or its tensors cannot be filled yet.
        """
        self.report = init_from_backbone(
            part_to_fill(module, self.module, self.call),
            self.backbone,
            weight_map=self.weight_map,
            skip=self.skip,
            allow_mismatch=self.allow_mismatch,
            where=told_part(module, self.module),
            load=self.call,
        )
        return self.report

    def told(self, where: str) -> str:
        """Counts of tensors; the report itself has more."""
        report = self.report
        assert report is not None
        moved = ", ".join(map(str, report.rewrites))
        parts = [f"{len(report.copied)} tensors of {where} copied from {report.backbone}"]
        parts += [
            f"{len(some)} {what}" for what, some in (("in part", report.partial), ("skipped", report.skipped)) if some
        ]
        left = ", ".join(f"{name} ({count})" for name, count in report.uninitialised().items())
        return ", ".join(parts) + (f" ({moved})" if moved else "") + f"; as initialised: {left or 'none'}"
