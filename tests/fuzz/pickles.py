"""Pickles as no program writes them: changed ones, and ones made by hand."""

import pickletools
import random
import struct

from mutate import INTEGERS, mutate_bytes

GLOBALS = (
    "os system", "builtins eval", "builtins getattr", "builtins bytearray", "builtins set", "_codecs encode",
    "torch load", "torch Size", "torch device", "torch Tensor", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_wrapper_subclass",
    "torch._utils _rebuild_device_tensor_from_numpy", "torch.serialization _get_layout",
    "numpy.core.multiarray _reconstruct", "numpy dtype", "collections Counter", "collections OrderedDict",
    "torch._tensor _rebuild_from_type_v2", "torch.jit._pickle build_tensor_from_id", "torch zeros",
    "torch float32", "torch nn.Module", "torch FloatStorage", "torch.storage UntypedStorage",
    "torch.storage _load_from_bytes",
)  # fmt: skip


def _integer(value: int) -> bytes:
    size = max(1, (value.bit_length() + 8) // 8)
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _global(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


OPERATIONS = (
    lambda rng: _global(rng.choice(GLOBALS)),
    lambda rng: _integer(rng.choice(INTEGERS) * rng.choice((1, -1))),
    lambda rng: b"\x8b" + struct.pack("<i", rng.choice((2**31 - 1, -1, 10**9))),
    lambda rng: b"B" + struct.pack("<I", rng.choice((2**31, 2**32 - 1))),
    lambda rng: b"X" + struct.pack("<I", rng.choice((2**31, 2**32 - 1))),
    lambda rng: b"\x8e" + struct.pack("<Q", rng.choice((2**40, 2**63 - 1, 2**64 - 1))),
    lambda rng: b"\x96" + struct.pack("<Q", rng.choice((2**34, 2**63 - 1))),
    lambda rng: b"r" + struct.pack("<I", 2**32 - 1),
    lambda rng: b"j" + struct.pack("<I", 2**32 - 1),
    lambda rng: b"\x80" + bytes([rng.randrange(256)]),
    lambda rng: b"I" + b"9" * rng.choice((5, 5000)) + b"\n",
    lambda rng: b"L" + b"9" * 5000 + b"L\n",
    lambda rng: rng.choice(
        (b"Q", b"R", b"b", b"\x81", b"\x92", b"0", b"1", b"2", b"u", b"s", b"e", b"a", b".", b"(")
    ),
    lambda rng: rng.randbytes(rng.randrange(1, 9)),
)
"""Operations of a pickle, most of them with sizes that the file does not have."""


def _storage(rng: random.Random, key: str = "0") -> bytes:
    """A persistent id: ("storage", kind, key, place, count), with odd parts now and then."""
    kind = _global(
        rng.choice(
            ("torch FloatStorage",) * 4
            + ("torch HalfStorage", "torch.storage UntypedStorage", "builtins set")
        )
    )
    place = rng.choice((b"cpu",) * 5 + (b"meta", b"cuda:0", b"nowhere", b""))
    count = rng.choice((24, 24, 24, 0, *INTEGERS)) * rng.choice((1, 1, 1, -1))
    words = b"".join(b"X" + struct.pack("<I", len(w)) + w for w in (place,))
    name = b"X" + struct.pack("<I", len(key)) + key.encode()
    return b"(X\x07\0\0\0storage" + kind + name + words + _integer(count) + b"tQ"


def changed_program(rng: random.Random, program: bytes) -> bytes:
    """A pickle with operations that are gone, doubled, swapped or changed."""
    starts = [place for _, _, place in pickletools.genops(program) if place is not None]
    steps = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, to = rng.randrange(len(steps)), rng.randrange(len(steps))
        what = rng.randrange(5)
        if what == 0 and len(steps) > 1:
            del steps[at]
        elif what == 1:
            steps.insert(to, steps[at])
        elif what == 2:
            steps[at], steps[to] = steps[to], steps[at]
        elif what == 3:
            steps[at] = rng.choice(OPERATIONS)(rng)
        else:
            steps[at] = mutate_bytes(rng, steps[at], 9)
    return b"".join(steps)


def odd_program(rng: random.Random) -> bytes:
    """A pickle made by hand: one tensor of odd sizes, a call, a bomb, or deep nesting."""
    what = rng.randrange(6)
    if what <= 1:
        numbers = [
            rng.choice((2, 3, 4, 6, 24, *INTEGERS)) * rng.choice((1, 1, 1, 1, -1))
            for _ in range(rng.randrange(4))
        ]
        strides = [rng.choice((0, 1, 6, *INTEGERS)) * rng.choice((1, 1, 1, -1)) for _ in numbers]
        offset = _integer(rng.choice((0, 0, 0, 1, 20, *INTEGERS)))
        shapes = b"".join(b"(" + b"".join(map(_integer, part)) + b"t" for part in (numbers, strides))
        tensor = (
            b"(" + _storage(rng) + offset + shapes + b"\x89" + _global("collections OrderedDict") + b")Rt"
        )
        value = _global("torch._utils _rebuild_tensor_v2") + tensor + b"R"
    elif what == 2:
        count = _integer(rng.choice((2 * 10**10, 2**62, -1, 3)))
        value = (
            _global(rng.choice(GLOBALS))
            + b"("
            + rng.choice((count, _storage(rng), b"X\x02\0\0\0ls"))
            + b"t"
            + rng.choice((b"R", b"\x81"))
        )
    elif what == 3:  # each list holds the one before it ten times
        value = b"]q\0" + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(9))
    elif what == 4:
        depth = rng.choice((900, 10**5, 10**6))
        value = rng.choice((b"]" * depth + b"a" * (depth - 1), b")" + b"\x85" * depth, b"(" * depth))
    else:
        value = b"".join(rng.choice(OPERATIONS)(rng) for _ in range(rng.randrange(1, 6)))
    return b"\x80\x02}X\x01\0\0\0w" + value + b"s."
