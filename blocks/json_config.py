"""Reading JSON that others wrote, with errors that name the file and the field.

What is read is bounded (`parse_json`) and comes from regular files only; numbers of configs have plausible
limits (`LIMITS`), so that no file can make us build or allocate without end.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BifronsError, ConfigError, shown
from .files import describe_content, read_bounded

CONFIG_BYTES = 4 << 20
"""Largest file of settings that is read. The largest released one has 0.2 MB."""
TABLE_BYTES = 64 << 20
"""Largest file that lists something: tensors, tokens, codes or results. `tokenizer.json` has up to 7 MB."""
MAX_DEPTH, MAX_VALUES, MAX_DIGITS = 64, 2_000_000, 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

LIMITS: dict[str, tuple[float, float]] = {
    # the decoder
    "vocab_size": (1, 2**22),
    "hidden_size": (1, 2**16),
    "intermediate_size": (1, 2**18),
    "num_hidden_layers": (1, 256),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 4096),
    "max_position_embeddings": (1, 2**24),
    "rms_norm_eps": (0, 1),
    "rope_theta": (1, 1e12),
    "factor": (1e-3, 1e4),
    "original_max_position_embeddings": (1, 2**24),
    "low_freq_factor": (1e-3, 1e4),
    "high_freq_factor": (1e-3, 1e4),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "mscale": (0, 100),
    "mscale_all_dim": (0, 100),
    "attention_factor": (1e-3, 100),
    "num_nextn_predict_layers": (0, 16),
    # its latent attention
    "kv_lora_rank": (0, 2**16),
    "q_lora_rank": (1, 2**16),
    "qk_nope_head_dim": (0, 4096),
    "qk_rope_head_dim": (0, 4096),
    "v_head_dim": (0, 4096),
    # its experts
    "n_routed_experts": (1, 1024),
    "num_experts_per_tok": (1, 1024),
    "moe_intermediate_size": (1, 2**18),
    "n_shared_experts": (0, 64),
    "first_k_dense_replace": (0, 256),
    "moe_layer_freq": (1, 256),
    "n_group": (1, 1024),
    "topk_group": (1, 1024),
    "routed_scaling_factor": (0, 1e4),
    # the vision encoder and the projectors
    "image_size": (1, 4096),
    "patch_size": (1, 1024),
    "width": (1, 2**16),
    "layers": (1, 256),
    "heads": (1, 1024),
    "mlp_ratio": (1e-3, 64),
    "depth": (1, 16),
    # adapters
    "lora_alpha": (-1e6, 1e6),
    "downsample_ratio": (1, 64),
    # the image tokenizer
    "image_token_size": (1, 2**20),
    "num_embeddings": (1, 2**20),
    "n_embed": (1, 2**16),
    "embed_dim": (1, 2**16),
    "ch": (1, 4096),
    "base_channels": (1, 4096),
    "ch_mult": (1, 64),
    "channel_multiplier": (1, 64),
    "z_channels": (1, 2**16),
    "latent_channels": (1, 2**16),
    "num_res_blocks": (1, 16),
    "norm_groups": (1, 64),
    "patch_width": (0, 4096),
    "image_token_embed": (1, 2**16),
    "image_token_embed_dim": (1, 2**16),
    # preparing pictures, and generating them
    "min_size": (0, 4096),
    "rescale_factor": (1e-6, 1e3),
    "background_color": (0, 255),
    "image_mean": (-1e3, 1e3),
    "image_std": (1e-6, 1e3),
    "guidance_scale": (0, 1e3),
    # generating texts
    "temperature": (0, 100),
    "top_p": (1e-6, 1),
}
"""Accepted ranges of the numbers in configs, by name: several times what any released model has."""
MAX_STAGES = 10
"""Largest number of entries of a list of integers: each halves an image's side."""


def decode_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises `ValueError` with the reason for any other text.

    Refused are more than `MAX_DEPTH` levels, `MAX_VALUES` values or `MAX_DIGITS` digits of a whole number,
    numbers that aren't finite, a name twice in one object, and lone surrogates.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"it has more than the accepted {MAX_VALUES:,} values")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
        _check_depth(value)
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError(f"it has more than {MAX_DEPTH} levels") from error
    return value


def parse_json(content: bytes, where: str, error: type[BifronsError] = ConfigError) -> Any:
    """`decode_json`, with an `error` that begins with `where`."""
    try:
        return decode_json(content)
    except ValueError as problem:
        foreign = describe_content(content)
        reason = problem if foreign is None else f"it is {foreign}"
        raise error(f"{where} can't be read as JSON: {reason}") from problem


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {shown(name)} twice")
    return result


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits; accepted: {MAX_DIGITS}")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value


def _check_depth(value: Any) -> None:
    level, containers = [value], {dict, list}
    for _ in range(MAX_DEPTH + 1):
        nodes = [node.values() if type(node) is dict else node for node in level if type(node) in containers]
        inner = [node for node in nodes if not containers.isdisjoint(map(type, node))]
        level = [child for node in inner for child in node]
        if not nodes:
            return
    raise RecursionError


def read_value(path: Path, limit: int = CONFIG_BYTES, error: type[BifronsError] = ConfigError) -> Any:
    """The value in a JSON file of at most `limit` bytes; see `parse_json`. Raises `error`."""
    try:
        content = read_bounded(path, limit)
    except OSError as problem:
        raise error(f"{path} can't be read as JSON: {problem.strerror}") from problem
    return parse_json(content, str(path), error)


def read_json(path: Path, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file, or a `ConfigError` that says what is wrong with the file."""
    try:
        content = read_value(path, limit)
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(f"{path} is missing; a model folder holds a {path.name}") from error
        raise
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; accepted: a JSON object")
    return content


def read_section(path: Path) -> "Section":
    """The object in a JSON file, for typed look-ups. Raises `ConfigError`."""
    return Section(read_json(path), str(path))


def names_token(path: Path, token: str) -> bool:
    """Whether a `tokenizer.json` has this text as a name. Raises `ConfigError` if the file can't be read."""
    try:
        return f'"{token}"'.encode() in read_bounded(path, TABLE_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} can't be read as a tokenizer: {error.strerror}") from error


class Section:
    """One object of a config: typed look-ups with defaults. A wrong type, or a number outside `LIMITS`, is a
    `ConfigError` that names it."""

    def __init__(self, values: dict[str, Any], where: str, origins: Mapping[str, str] | None = None) -> None:
        """`origins` says where values stand that don't come from `where`, by their names."""
        self.values, self.where, self._origins = values, where, origins or {}

    def origin(self, name: str) -> str:
        """Where a value stands, for messages."""
        return self._origins.get(name, self.where)

    def section(self, *names: str) -> "Section":
        """A nested object; a missing one counts as empty."""
        found: Any = self.values
        for name in names:
            found = found.get(name)
            found = {} if found is None else found
            if not isinstance(found, dict):
                raise ConfigError(f"{self.where}: {'.'.join(names)} is not an object")
        return Section(found, f"{self.where}: {'.'.join(names)}")

    def integer(self, name: str, default: int | None = None) -> int:
        value, (low, high) = self.get(name, default), LIMITS.get(name, (0, 2**31 - 1))
        if type(value) is not int or not low <= value <= high:
            raise self._refusal(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float) -> float:
        value, (low, high) = self.get(name, default), LIMITS.get(name, (-math.inf, math.inf))
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._refusal(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value, (low, high) = self.get(name, default), LIMITS.get(name, (1, 2**31 - 1))
        found = list(value) if isinstance(value, list | tuple) and 0 < len(value) <= MAX_STAGES else [None]
        if not all(type(n) is int and low <= n <= high for n in found):
            accepted = f"a list of 1 to {MAX_STAGES} whole numbers from {low} to {high}"
            raise self._refusal(name, value, accepted)
        return tuple(value)

    def three_numbers(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        value, (low, high) = self.get(name, default), LIMITS.get(name, (-math.inf, math.inf))
        numbers = list(value) if isinstance(value, list | tuple) else []
        if len(numbers) != 3 or not all(type(n) in (int, float) and low <= n <= high for n in numbers):
            raise self._refusal(name, value, f"a list of three numbers from {low:g} to {high:g}")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._refusal(name, value, "true or false")
        return value

    def name(self, name: str, default: str | None = None) -> str:
        """A text that names something: a model, a token, a method."""
        value = self.get(name, default)
        if not isinstance(value, str) or not value:
            raise self._refusal(name, value, "a name")
        return value

    def token(self, name: str, default: str) -> str:
        """The name of a token, which may be an object with `content` as transformers writes it."""
        value = self.get(name, default)
        value = value.get("content") if isinstance(value, dict) else value
        if not isinstance(value, str) or not value:
            raise self._refusal(name, value, "a token's name")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def expect(self, name: str, accepted: Any) -> None:
        """Raise `ConfigError` unless a setting has the only value that is implemented, or is missing."""
        value = self.get(name, accepted)
        if value != accepted:
            raise self._refusal(name, value, repr(accepted))

    def _refusal(self, name: str, value: object, accepted: str) -> ConfigError:
        return ConfigError(f"{self.origin(name)}.{name} is {shown(value)}; accepted: {accepted}")
