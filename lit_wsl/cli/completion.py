"""Shell completion: a script for bash, which zsh runs too, with every command and its options written into it."""

import inspect
from collections.abc import Mapping

_SCRIPT = """# Completion of lit-wsl; in ~/.bashrc or ~/.zshrc:  eval "$(lit-wsl completion {shell})"
{prologue}_lit_wsl() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" typed="" word options=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in -*) continue ;; esac
        typed="$typed $word"
    done
    case "${{typed# }}" in
{cases}
        *) options="" ;;
    esac
    COMPREPLY=($(compgen -W "$options" -- "$current"))
    if [ "${{#COMPREPLY[@]}}" -eq 0 ]; then
        case "$current" in -*) ;; *) COMPREPLY=($(compgen -f -- "$current")) ;; esac
    fi
}}
complete -o filenames -F _lit_wsl lit-wsl
"""
_PROLOGUES = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}


def completion_script(shell: str, options: Mapping[str, list[str]]) -> str:
    """Script that completes every command and its options in one shell.

    Args:
        shell: ``bash`` or ``zsh``.
        options: Command to its options, each with its dashes.
    """
    words: dict[str, list[str]] = {"": sorted({name.split()[0] for name in options})}
    for name in options:
        if " " in name:
            words.setdefault(name.split()[0], []).append(name.split()[1])
    cases = [f'        "{typed}") options="{" ".join(known)}" ;;' for typed, known in words.items()]
    cases += [f'        "{name}" | "{name} "*) options="{" ".join(known)}" ;;' for name, known in options.items()]
    return _SCRIPT.format(shell=shell, prologue=_PROLOGUES[shell], cases="\n".join(cases))


def trainer_options(command: str) -> list[str]:
    """Options that a trainer command takes; those of a module or callback depend on its class."""
    from lit_wsl.cli.trainer import Trainer, TrainerCLI

    general = ("--config", "--print_config", "--seed_everything", "--model", "--data", "--threads", "--help")
    given = {"self", *TrainerCLI.subcommands()[command]}  # not by options
    own = [name for name in inspect.signature(getattr(Trainer, command)).parameters if name not in given]
    settings = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    return [*general, *(f"--{name}" for name in own), *(f"--trainer.{name}" for name in settings)]
