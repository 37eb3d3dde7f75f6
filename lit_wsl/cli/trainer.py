"""The trainer commands: ``fit``, ``validate``, ``test``, ``predict`` and ``gather`` on LightningCLI."""

import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pydoc import locate
from typing import Any, NoReturn

import torch
from jsonargparse import ActionConfigFile
from lightning import pytorch as lightning
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_wsl.callbacks.backbone_init import BackboneInit as BackboneInit
from lit_wsl.callbacks.gathering import Split, gather_statistics
from lit_wsl.callbacks.merge_statistics import Kind, Labels
from lit_wsl.callbacks.merge_statistics import MergeStatistics as MergeStatistics
from lit_wsl.callbacks.save_adapter import SaveAdapter as SaveAdapter  # `as`: found by the short name in YAML
from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback as UniversalCheckpointCallback
from lit_wsl.callbacks.weight_map_init import WeightMapInit as WeightMapInit
from lit_wsl.cli.checkpoints import quiet_transformers
from lit_wsl.cli.commands import TRAINER_COMMANDS
from lit_wsl.cli.parser import OneLineErrors
from lit_wsl.cli.refusals import is_refusal, refused_option
from lit_wsl.cli.training_files import SaveRunConfig, TrainingFile, find_shipped_paths
from lit_wsl.errors import ConfigError, LitWslError, WrongUsage, did_you_mean
from lit_wsl.learning.adamerging import AdaMerging as AdaMerging
from lit_wsl.learning.data import MergeTaskData as MergeTaskData
from lit_wsl.learning.gradient import GradientMerging as GradientMerging
from lit_wsl.learning.gradient import SuperMerge as SuperMerge
from lit_wsl.learning.heldout import HeldOutSelection as HeldOutSelection
from lit_wsl.learning.history import LearningHistory as LearningHistory
from lit_wsl.learning.regret_smoothmax import RegretSmoothMax as RegretSmoothMax
from lit_wsl.learning.saving import SaveCoefficients as SaveCoefficients
from lit_wsl.learning.stopping import Plateau as Plateau
from lit_wsl.training.causal_lm import CausalLMModule as CausalLMModule
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.image_text import ImageTextModule as ImageTextModule
from lit_wsl.training.image_text_data import ImageTextData
from lit_wsl.training.parallel import UniversalModelParallelStrategy as UniversalModelParallelStrategy
from lit_wsl.training.quiet import NOT_OF_USE
from lit_wsl.training.text import TextClassificationData
from lit_wsl.training.token_blocks import TokenBlockData as TokenBlockData

_INTERRUPTED = 130
_NO_CLASS = re.compile(r"(?:Expected a dot import path string: |Problem with given class_path ')([\w.]+)")
_OF_CLASS = re.compile(r"Problem with given class_path '([\w.]+)': (.+?)(?= - Expected a <class 'NoneType'>|$)")
"""What a class refuses, behind what jsonargparse has to say of the option that the class is given for."""
_OF_ARGUMENT = re.compile(r"Option '([\w.]+)' is not accepted")
_OF_VALUE = re.compile(r"Parser key \"([\w.]+)\": ")
_NO_OPTION = re.compile(r"Subcommand '\w+' does not accept option '")
_CLASSES = {"model": SequenceClassificationModule, "data": TextClassificationData}


def _refused_by(path: str, reason: str) -> str:
    """What a class refuses, with the nearest of its arguments."""
    name, found = path.rsplit(".", 1)[-1], _OF_ARGUMENT.match(reason)
    if found is None:
        return f"{name}: " + _OF_VALUE.sub(r"`\1`: ", reason)
    cls = locate(path)
    known = list(inspect.signature(cls).parameters) if isinstance(cls, type) else []
    return f"{name} has no argument {found[1]!r}. {did_you_mean(found[1], known)}"


class TrainerParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with our manner of errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line; of a class that is not there, its name and the nearest."""
        text = " ".join(str(message).split())
        refused = _OF_CLASS.search(text)
        unknown = _NO_CLASS.search(text)
        if refused and (refused[2].startswith(("Option '", "Parser key")) or locate(refused[1]) is not None):
            text = _refused_by(refused[1], refused[2])
        elif unknown:
            known = [name for base in (LightningModule, LightningDataModule, Callback) for name in _class_names(base)]
            near = [] if "." in unknown[1] else get_close_matches(unknown[1], known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Give `class_path` as `module.Class`."
            text = f"there is no class {unknown[1]!r}. {hint}"
        if self.exit_on_error and TrainerCLI.typed_command is not None:
            self.prog = f"lit-wsl {TrainerCLI.typed_command}"  # what the user typed; it ends here
        super().error(_NO_OPTION.sub("Option '", text), ex)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option; a configuration file may be one that ships."""
        if kwargs.get("action") is ActionConfigFile:
            kwargs["action"] = TrainingFile
        return super().add_argument(*args, **kwargs)

    def _option_names(self) -> set[str]:
        commands = getattr(self._subcommands_action, "choices", None) or {}
        return super()._option_names().union(*(parser._option_names() for parser in commands.values()))


class Trainer(lightning.Trainer):
    """Lightning's trainer with one more command."""

    def gather(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        kind: Kind,
        output: str,
        split: Split = "train",
        batches: int | None = None,
        labels: Labels = "data",
        module: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Gather on a tuned model's data what `merge --method fisher` or `regmean` needs.

        Args:
            model: The tuned model.
            datamodule: Gives the rows.
            kind: `fisher` for squared gradients, `gram` (for regmean) for inputs of linear layers.
            output: Safetensors file to write.
            split: Rows to gather on.
            batches: How many batches; all by default.
            labels: Labels that Fisher information is taken at: those of the data, or the model's own.
            module: Dotted path of the submodule that the base is; by default the backbone.
            ckpt_path: Checkpoint to load first.
        """
        options: dict[str, Any] = {"split": split, "batches": batches, "labels": labels, "module": module}
        gather_statistics(self, model, datamodule, output, kind, **options, ckpt_path=ckpt_path)


class TrainerCLI(LightningCLI):
    """LightningCLI with a text classifier as the default model and data, and quieter manners."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands and ``gather``, with the arguments that come from elsewhere."""
        return {**LightningCLI.subcommands(), "gather": {"model", "datamodule"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        # Each full parser costs a good part of a second; only that of the typed command is needed.
        if self.typed_command in (None, subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

    typed_command: str | None = None
    """The trainer command in the arguments, None to build every parser."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--threads``, default classes, and the links from data to model."""
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; by default torch's choice.")
        parser.set_defaults({name: {"class_path": _class_path(cls)} for name, cls in _CLASSES.items()})
        parser.link_arguments(("model.init_args.model", "data"), "data.init_args.tokenizer", compute_fn=_tokenizer)
        for field in ("tasks", "base"):
            parser.link_arguments(f"model.init_args.merge.{field}", f"data.init_args.{field}")
        parser.link_arguments("model.init_args.model", "data.init_args.model")
        parser.link_arguments("data.labels", "model.init_args.labels", apply_on="instantiate")
        parser.link_arguments("data.prompts", "model.init_args.prompts", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Find what ships, and set the number of threads before any model computes.

        Raises:
            WrongUsage: If the number is below 1.
        """
        find_shipped_paths(self.config[self.subcommand])
        threads = self.config[self.subcommand].threads
        if threads is not None:
            if threads < 1:
                raise WrongUsage(f"`threads >= 1` must hold, got {threads}.")
            torch.set_num_threads(threads)

    def instantiate_classes(self) -> None:
        """Make trainer, model and data; an error of ours comes out as it was raised.

        Raises:
            LitWslError: If a constructor raised it; jsonargparse wraps it in several lines of its own.
            ConfigError: If another constructor refused its options by a ``ValueError`` or ``TypeError``.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            ours = _own_error(error)
            if ours is None:
                raise refused_option(error) from error
            raise ours from error

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would let the hyperparameters in a checkpoint override what the user typed.
        return

    def _run_subcommand(self, subcommand: str) -> None:
        # On Ctrl-C Lightning shuts down and exits with 1, which means that the work failed.
        try:
            super()._run_subcommand(subcommand)
        except LitWslError:
            raise
        except (ValueError, TypeError) as error:
            if is_refusal(error):
                raise refused_option(error) from error
            raise
        except SystemExit as error:
            if self.trainer.state.status == TrainerStatus.INTERRUPTED:
                raise KeyboardInterrupt from error
            raise


def run_trainer(argv: list[str]) -> int:
    """Run one trainer command.

    Args:
        argv: Arguments without the program's name, such as ``["fit", "--config", "train.yaml"]``.

    Returns:
        0 when done, 2 on wrong usage, 130 when interrupted.

    Raises:
        LitWslError: If the work fails for a reason that the user can mend.
    """
    _import_from_working_directory()
    _quieten()
    TrainerCLI.typed_command = next((word for word in argv if word in TRAINER_COMMANDS), None)
    try:
        with _program_arguments(argv):
            TrainerCLI(
                LightningModule,
                LightningDataModule,
                trainer_class=Trainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
                auto_configure_optimizers=False,
                parser_class=TrainerParser,
                parser_kwargs={"prog": "lit-wsl", "description": "Train and evaluate models."},
            )
    except KeyboardInterrupt:
        return _INTERRUPTED
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _own_error(error: BaseException | None) -> LitWslError | None:
    """The first error of ours in the chain of causes."""
    while error is not None and not isinstance(error, LitWslError):
        error = error.__cause__
    return error


def _tokenizer(model: Any, data: Any) -> Any:
    """Tokenizer of the data: that of the model, except for data that names its own."""
    cls = locate(data.class_path)
    if isinstance(cls, type) and issubclass(cls, TokenBlockData | ImageTextData):
        return data.init_args.tokenizer
    return model


def _class_names(base: type) -> list[str]:
    """Names of the classes below ``base``, which YAML takes without their module."""
    below: list[type] = base.__subclasses__()
    return [name for cls in below for name in (cls.__name__, *_class_names(cls))]


def _class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@contextmanager
def _program_arguments(argv: list[str]) -> Iterator[None]:
    """Hand over the arguments through ``sys.argv``: LightningCLI warns of any other way."""
    before = sys.argv
    sys.argv = [before[0] if before else "lit-wsl", *argv]
    try:
        yield
    finally:
        sys.argv = before


def _import_from_working_directory() -> None:
    """Let ``class_path: my_module.MyModel`` find a module beside the user: console scripts do not."""
    here = os.getcwd()  # noqa: PTH109 -- an entry of sys.path is a string
    if here not in sys.path:
        sys.path.insert(0, here)


def _quieten() -> None:
    """Silence advice that a user of these commands cannot act on, or has answered by the configuration."""
    for message in (*NOT_OF_USE, ".*The dirpath has changed from.*"):
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _plain_warning
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tips)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_transformers()


def _plain_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without the place in our code that it comes from."""
    return f"WARNING: {message}\n"


def _no_tips(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
