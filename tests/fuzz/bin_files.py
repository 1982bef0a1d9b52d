"""The kind `bin`: damaged `pytorch_model.bin` files, as zips and in the older formats."""

import io
import pickle
import random
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from cases import Kind
from commands import JANUS, VL2, link_folder, warm_up
from mutate import WORDS, mutate_bytes
from pickles import changed_program, odd_program
from safetensors_files import TENSORS, read_folder


def build_bin(rng: random.Random, folder: Path) -> Path:
    """A model folder with a damaged `pytorch_model.bin`."""
    model = link_folder(rng.choice((JANUS, VL2)), folder / "model", "model.safetensors")
    makers = (_bytes_of_zip, *[_members] * 2, *[_pickle] * 4, _older, _tar)
    (model / "pytorch_model.bin").write_bytes(rng.choice(makers)(rng))
    return model


def _saved(rng: random.Random, **options: Any) -> bytes:
    """What `torch.save` writes for some tensors, views among them."""
    base = torch.arange(64, dtype=torch.float32).reshape(8, 8)
    state: dict[str, Any] = {**TENSORS, "view": base[2:5, 1:4], "turned": base.T, "part": base[0]}
    odd = (
        lambda: torch.nn.Parameter(base),
        lambda: torch.zeros(2, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(base, 0.1, 0, torch.qint8),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: base.expand(4, 8, 8),
        lambda: {"nested": base},
        lambda: 5,
        lambda: OrderedDict(x=base),
        lambda: torch.Size([1, 2]),
    )
    if rng.random() < 0.3:
        state[rng.choice(WORDS[:30])] = rng.choice(odd)()
    stream = io.BytesIO()
    torch.save(OrderedDict(state) if rng.random() < 0.5 else state, stream, **options)
    return stream.getvalue()


def _bytes_of_zip(rng: random.Random) -> bytes:
    """A zip with changed bytes, in its directory at the end rather than elsewhere."""
    data = _saved(rng)
    if rng.random() < 0.5:
        return mutate_bytes(rng, data[::-1], 1500)[::-1]
    return mutate_bytes(rng, data, 2000)


def _rezipped(rng: random.Random, members: dict[str, bytes], compressed: bool) -> bytes:
    stream = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _members(rng: random.Random) -> bytes:
    """A zip with a member that is gone, renamed, changed, or inflates to far more than the file."""
    members = _unzipped(_saved(rng))
    name = rng.choice([name for name in members if "/data/" not in name or rng.random() < 0.2])
    what = rng.randrange(7)
    if what == 0:
        del members[name]
    elif what == 1:
        new = rng.choice(
            ("../x", "/x", "x" * 300, "archive/code/x.py", "archive/constants.pkl", "data.pkl", "\x1b[31m")
        )
        members[new] = members.pop(name)
    elif what == 2:
        members[name] = rng.choice(
            (b"", b"big", b"little\n", b"BIG", b"\xff", b"3", b"99" * 99, bytes(10**6))
        )
    elif what == 3:
        members[name.replace("data.pkl", "byteorder") if "data.pkl" in name else name] = b"big"
    elif what == 4:
        members[name] = members[name][:6] + bytes(rng.choice((10**6, 300_000_000)))
        return _rezipped(rng, members, compressed=True)
    elif what == 5:
        data = bytearray(_rezipped(rng, members, compressed=rng.random() < 0.3))
        place = data.index(b"PK\x01\x02") if rng.random() < 0.7 else 0  # an entry of the directory
        at = place + rng.randrange(4, 46)
        data[at : at + 2] = rng.choice((b"\xff\xff", b"\0\0", b"\x01\x08", rng.randbytes(2)))
        return bytes(data)
    else:
        old, new = name.encode(), bytes(rng.choice((0xFF, 0x80, 0x1B, 0x2F, 0)) for _ in range(len(name)))
        return _rezipped(rng, members, compressed=False).replace(old, new)
    return _rezipped(rng, members, compressed=rng.random() < 0.2)


def _pickle(rng: random.Random) -> bytes:
    """A zip with another pickle."""
    members = _unzipped(_saved(rng))
    name = next(name for name in members if name.endswith("data.pkl"))
    program = odd_program(rng) if rng.random() < 0.5 else changed_program(rng, members[name])
    return _rezipped(rng, members | {name: program}, compressed=rng.random() < 0.1)


def _older(rng: random.Random) -> bytes:
    """The format before zip: five pickles, then the storages."""
    data = _saved(rng, _use_new_zipfile_serialization=False)
    if rng.random() < 0.3:
        stream = io.BytesIO(data)
        parts = [pickle.load(stream) for _ in range(2)]
        information = {"protocol_version": rng.choice((1001, 5)), "little_endian": False, "type_sizes": {}}
        changed = rng.choice(
            ((parts[0], 5, information), (7, parts[1], information), (parts[0], parts[1], information))
        )
        return b"".join(pickle.dumps(part, 2) for part in changed) + data[stream.tell() :]
    return mutate_bytes(rng, data, rng.choice((100, 1500)))


def _tar(rng: random.Random) -> bytes:
    """The oldest format, or another file altogether."""
    if rng.random() < 0.3:
        return rng.choice(
            (
                zlib.compress(bytes(10**6)),
                b"PK\x03\x04",
                b"PK\x05\x06" + bytes(18),
                rng.randbytes(300),
                b"\x80\x02.",
            )
        )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = rng.choice((pickle.dumps({}), pickle.dumps(3), rng.randbytes(40), b""))
            information = tarfile.TarInfo(rng.choice((name, name, "../x")))
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    data = stream.getvalue()
    return data if rng.random() < 0.5 else mutate_bytes(rng, data, 1500)


BIN = Kind("bin", build_bin, read_folder, warm_up, seconds=40)
