"""Writes docs/cli.md, every command and option, from the parsers: `make docs-help`.

It is not argparse's own text, whose form differs between versions of Python.
"""

# pyright: reportMissingImports=false
import argparse
from collections.abc import Iterator
from pathlib import Path

from bifrons.apps.cli.parsers import build_parser

PAGE = Path(__file__).parent / "cli.md"


def page() -> str:
    """The page as Markdown."""
    parser = build_parser()
    lines = ["# Command line", "", _sentence(parser.description), ""]
    lines += ["This page is written from the same texts as `bifrons COMMAND --help`.", ""]
    lines += _options(parser)
    if parser.epilog:
        lines += ["```text", parser.epilog, "```", ""]
    return "\n".join([*lines, *_commands(parser)]).rstrip() + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                helped = name in {choice.dest for choice in action._choices_actions}
                if not helped:  # an alias, or hidden
                    continue
                level = command.prog.count(" ") + 1
                yield from (f"{'#' * level} {command.prog}", "", _sentence(command.description), "")
                yield from ("```text", _usage(command), "```", "", *_options(command), *_commands(command))


def _usage(parser: argparse.ArgumentParser) -> str:
    if parser.usage:
        return parser.usage
    words = [parser.prog]
    optional = [action for action in parser._actions if action.option_strings]
    if optional:
        words.append("[options]")
    words += [_positional(action) for action in parser._actions if not action.option_strings]
    return " ".join(words)


def _positional(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return f"{action.metavar or 'COMMAND'} ..."
    name = _name(action)
    return {"*": f"[{name} ...]", "+": f"{name} ...", "?": f"[{name}]"}.get(str(action.nargs), name)


def _name(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or (action.dest.upper() if action.option_strings else action.dest)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table of what a command takes."""
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        hidden = action.help is argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction)
        if hidden or isinstance(action, argparse._HelpAction):
            continue
        words = ", ".join(action.option_strings) or _positional(action)
        if action.option_strings and action.nargs != 0:
            words += f" {_name(action)}" + (" ..." if action.nargs in ("+", "*") else "")
        text = formatter._expand_help(action) if action.help else ""
        rows.append(f"| `{_cell(words)}` | {_cell(text)} |")
    if rows:
        yield from ("| option | meaning |", "|---|---|", *rows, "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
