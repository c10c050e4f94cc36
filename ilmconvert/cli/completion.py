"""``ilmconvert completion SHELL``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "ilmconvert"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script with which SHELL completes commands, options, model names and files.

    \b
    Examples:
      ilmconvert completion bash > ~/.local/share/bash-completion/completions/ilmconvert
      ilmconvert completion zsh > ~/.zfunc/_ilmconvert  # in a folder of $fpath, before compinit
      ilmconvert completion fish > ~/.config/fish/completions/ilmconvert.fish
    """
    context = click.get_current_context().find_root()
    found = get_completion_class(shell)
    assert found is not None
    script = found(context.command, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    click.echo(script.source_template % script.source_vars())
