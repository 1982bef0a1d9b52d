"""Reading JSON settings that others wrote, with errors that name the file and the field."""

import json
from pathlib import Path
from typing import Any

from .errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a `ConfigError` that says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; a model folder holds a {path.name}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; accepted: a JSON object")
    return content


def read_section(path: Path) -> "Section":
    """The object in a JSON file, for typed look-ups. Raises `ConfigError`."""
    return Section(read_json(path), str(path))


class Section:
    """One object of a config: typed look-ups with defaults. A wrong type is a `ConfigError` that names it."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def section(self, *names: str) -> "Section":
        """A nested object; a missing one counts as empty."""
        found: Any = self.values
        for name in names:
            found = found.get(name) or {}
            if not isinstance(found, dict):
                raise ConfigError(f"{self.where}: {'.'.join(names)} is not an object")
        return Section(found, f"{self.where}: {'.'.join(names)}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{self.where}.{name} is {value!r}; accepted: a whole number")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.where}.{name} is {value!r}; accepted: a number")
        return float(value)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.get(name, default)
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(type(n) is int and n > 0 for n in value)
        ):
            raise ConfigError(f"{self.where}.{name} is {value!r}; accepted: a list of whole numbers above 0")
        return tuple(value)

    def three_numbers(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        value = self.get(name, default)
        numbers = list(value) if isinstance(value, list | tuple) else []
        if len(numbers) != 3 or not all(type(n) in (int, float) for n in numbers):
            raise ConfigError(f"{self.where}.{name} is {value!r}; accepted: a list of three numbers")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def expect(self, name: str, accepted: Any) -> None:
        """Raise `ConfigError` unless a setting has the only value that is implemented, or is missing."""
        value = self.get(name, accepted)
        if value != accepted:
            raise ConfigError(f"{self.where}.{name} is {value!r}; accepted: {accepted!r}")
