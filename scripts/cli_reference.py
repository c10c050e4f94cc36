"""``docs/cli.md`` from the commands themselves: ``python -m scripts.cli_reference``.

A test compares the file with what this writes, so that it can't fall behind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from ilmconvert.cli import main
from ilmconvert.cli._exit import EXIT_CODES
from ilmconvert.cli._global import global_options

# What click and this library put behind an option's help, as in "[default: 1] [x>=1]".
_BRACKETED = re.compile(r"(?:\s*\[[^\]]*\])+$")

# A backslash before "<" is shown by the site; these are shown by none.
_ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in "*<[]"}

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

HEAD = """\
# Command line

This page is written by `python -m scripts.cli_reference`; change the commands, not the page.

`ilmconvert` and `python -m ilmconvert` are the same. `ilmconvert MODEL` is short for `ilmconvert convert MODEL`.
Results go to stdout, everything else to stderr. On a terminal progress is a bar or a spinner; elsewhere, as in a log
file, `finetune` says a line an epoch, and other commands that take longer than ten seconds a line a step. `--json`
prints one JSON object. Colours are left out where stdout is no terminal, and with `NO_COLOR` set.
"""

COMPLETION = """\
## Completion

`ilmconvert completion bash`, `zsh` or `fish` prints the script that completes commands, options, names of models and
files; `ilmconvert completion --help` says where to put it. It answers from a packaged list of names, without loading
torch.
"""

CONFIG = """\
## Options from a file

`--config FILE.yaml` gives options of long runs: a section a command, in it the long names of its options, and its
arguments. What is given on the command line counts more. Unknown commands and options, and values that an option
doesn't take, are errors. Paths are relative to the folder that the command runs in. `ilmconvert finetune --show-config`
prints such a file with every field of the recipe, and a run keeps it as `run.yaml` (see [fine-tuning](finetune.md)).

```yaml
verify:
  data: photos
  batch-size: 16
  layers: [norms, head]
  json: true
finetune:
  model: resnet50
  data: pets
  num-classes: 37
  recipe: distill
  distill: 0.5
  epochs: 20
```

    ilmconvert --config long-run.yaml finetune -o run
    ilmconvert verify resnet50-ilm_gn.safetensors --config long-run.yaml
"""


def page() -> str:
    """The whole page."""
    root = click.Context(main, info_name="ilmconvert")
    parts = [HEAD, _exit_codes(), _options("Options of every command", global_options(), root), COMPLETION, CONFIG]
    parts += [_command(name, root) for name in main.list_commands(root)]
    return "\n".join(parts)


def _exit_codes() -> str:
    rows = "\n".join(f"- `{code}`: {_escaped(text)}" for code, text in EXIT_CODES.items())
    return f"## Exit codes\n\n{rows}\n"


def _command(name: str, root: click.Context) -> str:
    command = main.get_command(root, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=root)
    shared = {"help", *(option.name for option in global_options())}
    own = [p for p in command.params if isinstance(p, click.Option) and p.name not in shared]
    words = " ".join(a.make_metavar(context) for a in command.params if isinstance(a, click.Argument))
    parts = [f"## ilmconvert {name}\n", f"    ilmconvert {name} {words}".rstrip() + " [OPTIONS]\n", _help(command)]
    for section in dict.fromkeys(getattr(option, "section", "") for option in own):
        found = [option for option in own if getattr(option, "section", "") == section]
        parts.append(_options(section, found, context))
    return "\n".join(parts)


def _help(command: click.Command) -> str:
    """The description as text, its examples as a block of code."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    lines = re.sub(r"\n{3,}", "\n\n", text).strip()
    block = "\n".join(f"    {line.strip()}" for line in examples.splitlines())
    return f"{_escaped(lines)}\n\n{block}\n"


def _options(title: str, options: list[click.Option], context: click.Context) -> str:
    """A list of options: choices hold a "|", which a table could show only with a backslash before it."""
    heading = [f"{'#' * (2 if context.parent is None else 3)} {title}", ""] if title else []
    return "\n".join([*heading, *_items(options, context), ""])


def _items(options: list[click.Option], context: click.Context) -> Iterator[str]:
    for option in options:
        record = option.get_help_record(context)
        if record is not None:
            names, text = record
            yield f"- `{names}`: {_description(text)}"


def _description(text: str) -> str:
    """What an option does, its default and its range: "[default: 1] [x>=1]" would read as two links."""
    text = " ".join(text.split())
    body = _BRACKETED.sub("", text)
    notes = re.findall(r"\[([^\]]*)\]", text[len(body) :])
    return " ".join([*filter(None, [_escaped(body)]), *([f"({_escaped('; '.join(notes))})"] if notes else [])])


def _escaped(text: str) -> str:
    """Text in which Markdown sees nothing but code between backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.translate(_ENTITIES) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}")
