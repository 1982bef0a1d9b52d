"""How the words of a command line are read: options may stand anywhere, in British or American spelling."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

_AMERICAN = (("colour", "color"), ("grey", "gray"), ("centre", "center"), ("ise", "ize"), ("logue", "log"))


class UsageError(Exception):
    """The words are no command; `usage` says what is accepted."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class CommandParser(argparse.ArgumentParser):
    """A parser whose options may stand before, between and behind other arguments, and before a subcommand.

    Raises `UsageError` where argparse would end the process.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # argparse calls it for
        """Parse a list of words; see `ArgumentParser`."""  # subcommands, too
        words = self._ordered(list(args))
        parsed, extra = super().parse_known_args(words, namespace)
        if extra := [word for word in extra if word != "--"]:
            near = get_close_matches(extra[0].partition("=")[0], self._option_string_actions, 1)
            hint = f"; did you mean {near[0]}?" if near and extra[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(extra)}{hint}")
        return parsed, []

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`."""
        raise UsageError(message, f"usage: {self.usage or self._short_usage()}\n")

    def _short_usage(self) -> str:
        """The usage in one line: a command with thirty options would bury the error below it."""
        known = [action for action in self._actions if not action.option_strings]
        pattern = self._get_formatter()._format_args
        return " ".join([self.prog, "[options]", *(pattern(a, a.dest) for a in known)])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse, and name what was probably meant."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if near := get_close_matches(str(value), [str(choice) for choice in action.choices or ()], 1):
                error.message += f"; did you mean {near[0]}?"
            raise

    def _ordered(self, words: list[str]) -> list[str]:
        """The subcommand first; without one, options first, then `--` and the other arguments."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                places = [place for place, word in enumerate(words) if word in action.choices]
                if not places or not words[0].startswith("-"):
                    return words
                return [words.pop(places[0]), *words]
        options, others = self._separated(words)
        return [*options, "--", *others] if others else options

    def _separated(self, words: list[str]) -> tuple[list[str], list[str]]:
        """The options with their values, and all other arguments."""
        options, others, place = [], [], 0
        while place < len(words):
            word = words[place] = self._american(words[place])
            place += 1
            if word == "--":
                return options, others + words[place:]
            if not self._is_option(word):
                others.append(word)
                continue
            options.append(word)
            count = self._most_values(word)
            while count and place < len(words) and words[place] != "--" and not self._is_option(words[place]):
                options.append(words[place])
                place, count = place + 1, count - 1
        return options, others

    def _american(self, word: str) -> str:
        """An option in the spelling that the parser knows; any other word as it is."""
        name, sign, value = word.partition("=")
        if not word.startswith("--") or " " in name or self._matches(name):
            return word
        for british, american in _AMERICAN:
            name = name.replace(british, american)
        return name + sign + value if self._matches(name) else word

    def _matches(self, word: str) -> Sequence[Any]:
        """What the parser knows by this word, which may be shortened or hold its value: (action, ...,
        value)."""
        exact = self._option_string_actions.get(word)
        return [(exact, None)] if exact is not None else self._get_option_tuples(word)

    def _is_option(self, word: str) -> bool:
        """Whether argparse takes a word for an option, known or not: no `-`, no negative number, no text."""
        if not word.startswith("-") or word == "-":
            return False
        number = self._negative_number_matcher.match(word)
        return bool(self._matches(word)) or not (number or " " in word)

    def _most_values(self, word: str) -> int:
        """How many of the words that follow an option are its values, at most."""
        matches = self._matches(word)
        if len(matches) != 1:
            return 0
        action, value = matches[0][0], matches[0][-1]
        if value is not None:  # `--seed=1`, `-n4`, or flags of one letter such as `-qn`, maybe with a value
            return self._most_values(f"-{value}") if action.nargs == 0 and value else 0
        if isinstance(action.nargs, int):
            return action.nargs
        return 1 if action.nargs in (None, "?") else 10**6
