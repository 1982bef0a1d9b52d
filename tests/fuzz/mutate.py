"""Changes to bytes and to JSON, drawn from a seeded generator."""

import copy
import json
import random
from typing import Any

INTEGERS = (0, 1, 2, 3, 7, 255, 256, 65535, 65536, 10**5, 2**31 - 1, 2**31, 2**32, 10**9, 2**63 - 1, 2**63)
WORDS = (
    "", " ", "x", "0", "-1", "true", "null", "NaN", "..", "../x", "/etc/passwd", "/dev/zero", "a/b", "a\\b",
    "x" * 300, "x" * 5000, "a\0b", "a\nb", "\x1b[31mred\x1b[0m", "\x9b2J", "\u202egnp", "\ud800", "é", "🎨",
    "%s%n", "{0}", "model.safetensors", "pytorch_model.bin", "<image>", "<|User|>", "silu", "gelu", "default",
    "siglip_large_patch16_384", "multi_modality", "janus", "deepseek_vl_v2", "int8", "int4", "fp8", "float16",
)  # fmt: skip
LITERALS = (
    "NaN", "Infinity", "-Infinity", "1e400", "-0.0", "1e-400", "9" * 5000, "-" + "9" * 400, "1" * 20 + ".5",
    "[" * 500 + "]" * 500, "[" * 200_000, "[" * 200_000 + "]" * 200_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "[" + "0," * 300_000 + "0]",
    '{"a":1,"a":2}', "'x'", "tru", "0x10", "01", '"\\ud800"', '"\\u0000"', '"' + "\\n" * 99 + '"',
    '"unfinished', "[1,]", "{,}", "",
)  # fmt: skip
"""JSON texts that `json.dumps` would not write, some of which are no JSON."""
_MARK = "@literal@"


def mutate_bytes(rng: random.Random, data: bytes, header: int = 512) -> bytes:
    """The bytes with one to eight changes, half of them in the first `header` bytes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(content)
        at = rng.randrange(min(size, header) if rng.random() < 0.5 else size) if size else 0
        end = min(size, at + rng.choice((1, 2, 4, 16, 200, 5000)))
        change = rng.randrange(8)
        if change == 0 and size:
            content[at] ^= 1 << rng.randrange(8)
        elif change == 1 and size:
            content[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
        elif change == 2:
            del content[at:end]
        elif change == 3:
            content[at:at] = content[at:end] * rng.choice((1, 1, 2, 50))
        elif change == 4:
            content[at:at] = rng.randbytes(rng.choice((1, 2, 7, 300)))
        elif change == 5:
            del content[at:]
        elif change == 6:
            width = rng.choice((2, 4, 8))
            value = rng.choice(INTEGERS) % 256**width
            content[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        else:
            to = rng.randrange(size) if size else 0
            content[to : to + end - at] = content[at:end]
    return bytes(content)


def mutate_json(rng: random.Random, value: Any, changes: int | None = None) -> bytes:
    """A JSON text of the value with some changes; now and then of another encoding, damaged or no JSON."""
    value, literals = copy.deepcopy(value), []
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if changes is None else changes):
        value = _change(rng, value, literals)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for number, literal in enumerate(literals):
        text = text.replace(f'"{_MARK}{number}{_MARK}"', literal)
    data = text.encode("utf-8", "surrogatepass")
    what = rng.randrange(30)
    if what == 0:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-16-le", "utf-8-sig")), "surrogatepass")
    if what == 1:
        return mutate_bytes(rng, data, len(data))
    if what == 2:
        return rng.choice((b"", b"\0", b"null", b"[]", b"5", b'"x"', b"{}", b"{", data * 2, data + b"\0"))
    if what == 3:
        return b" " * rng.choice((1, 10**6)) + data
    return data


def bad_value(rng: random.Random, literals: list[str]) -> Any:
    """A value that is probably wrong; a JSON text that can't be a value is added to `literals`."""
    what = rng.randrange(8)
    if what == 0:
        literals.append(rng.choice(LITERALS))
        return f"{_MARK}{len(literals) - 1}{_MARK}"
    if what == 1:
        return rng.choice(WORDS)
    if what in (2, 3):
        return rng.choice(INTEGERS) * rng.choice((1, 1, 1, -1))
    if what == 4:
        return rng.choice((0.5, -0.5, 1e-30, 1e30, 1.5, 3.999, 1e308, 14.0, -1e10))
    if what == 5:
        return rng.choice((None, True, False))
    item = rng.choice((0, 1, "x", None, [], {}, 1.5, 2**40, True, [1, 2]))
    return [item] * rng.choice((0, 1, 2, 3, 4, 9, 1000)) if what == 6 else {rng.choice(WORDS): item}


def _change(rng: random.Random, value: Any, literals: list[str]) -> Any:
    """One change at a random place."""
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return bad_value(rng, literals)
    owner, key = rng.choice(places)
    what = rng.randrange(8)
    if what == 0:
        del owner[key]
    elif what == 1:
        new = rng.choice(WORDS) if isinstance(owner, dict) else 0
        if isinstance(owner, dict):
            owner[new] = owner.pop(key)
        else:
            owner.insert(new, bad_value(rng, literals))
    elif what == 2 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        number = owner[key]
        owner[key] = rng.choice(
            (number + 1, number - 1, number * 2, number // 2, -number, float(number), number * 997)
        )
    elif what == 3:
        other, name = rng.choice(places)
        owner[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
    else:
        owner[key] = bad_value(rng, literals)
    return value


def _keys(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else range(len(owner))


def _places(value: Any) -> Any:
    """Every (container, key) in a value; of long containers only the first and last."""
    if not isinstance(value, dict | list):
        return
    keys = list(_keys(value))
    for key in keys if len(keys) < 60 else (*keys[:5], *keys[-5:]):
        yield value, key
        yield from _places(value[key])
