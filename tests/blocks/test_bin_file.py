"""Hostile `.bin` files: each is refused by an error of ours, without its memory, time or code."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch
from bifrons.blocks.bin_file import read_bin
from bifrons.blocks.errors import CheckpointError

LIST = """
for path in sorted(Path(sys.argv[2]).glob("*.bin")):
    try:
        print(path.name, "listed", len(reader.list_bin(path)))
    except BifronsError as error:
        print(path.name, "refused:", " ".join(str(error).split()))
"""


@pytest.fixture
def plain(tmp_path) -> dict[str, bytes]:
    """The members of a sound file."""
    torch.save(
        {"x": torch.arange(6.0).view(2, 3), "y": torch.zeros(3, dtype=torch.int64)}, tmp_path / "plain"
    )
    with zipfile.ZipFile(tmp_path / "plain") as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_bombs_of_zip_members(tmp_path, plain, run_bounded):
    """Each member inflates to 0.5 GiB from 0.5 MB; the process may take 150 MB."""
    for name in ("byteorder", "version", "data.pkl", "data/0"):
        with zipfile.ZipFile(tmp_path / f"{name.replace('/', '-')}.bin", "w") as archive:
            for other, content in plain.items():
                if other != f"plain/{name}":
                    archive.writestr(other, content)
            info = zipfile.ZipInfo(f"plain/{name}")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as stream:
                for _ in range(1 << 9):
                    stream.write(bytes(1 << 20))
    printed = run_bounded(LIST, tmp_path, memory=150 << 20).splitlines()
    assert len(printed) == 4
    assert all("refused: " in line and "20 times the file's" in line for line in printed)


def tensor(
    first: int = 0, shape: bytes = b"K\x06\x85", strides: bytes = b"K\x01\x85", count: int = 6
) -> bytes:
    """A pickle of a dict with one tensor: opcodes of protocol 2, with arguments that a writer never gives."""
    number = lambda n: b"\x8a\x09" + n.to_bytes(9, "little", signed=True)  # noqa: E731
    storage = (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu" + number(count) + b"tQ"
    )
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(first) + shape + strides
    return b"\x80\x02}X\x01\0\0\0x" + call + b"\x89}tRs."


BIG = b"\x8a\x09" + (2**63).to_bytes(9, "little")
NEST = b"N" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(200))
"""A tuple of tuples that takes 200 steps to make, and 2**200 to print, compare or hash."""
PICKLES = {
    "bytearray of 20 GB": (b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\xc8\x17\xa8\x04\x85R.", "code"),
    "bytes of 20 GB": (b"\x80\x02\x96" + struct.pack("<Q", 20 << 30) + b".", "damaged"),
    "text of 4 GB": (b"\x80\x02X\xff\xff\xff\x7f.", "damaged"),
    "number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged"),
    "memo of 2**31": (b"\x80\x02}r\xff\xff\xff\x7f.", "no tensors"),
    "code": (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "holds code"),
    "a global by its stack": (b"\x80\x04X\x02\0\0\0osX\x06\0\0\0system\x93.", "holds code"),
    "a class made": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "holds code"),
    "nested key": (b"\x80\x02}" + NEST + b"Ns.", "damaged"),
    "nested value": (b"\x80\x02}X\x01\0\0\0x" + NEST + b"s.", "tuple"),
    "nested storage": (b"\x80\x02(" + NEST + b"NNNNtQ.", "holds code"),
    "a mark too many": (b"\x80\x02tttt.", "damaged"),
    "instructions": (b"\x80\x02" + b"}" * 3_000_000 + b".", "instructions"),
    "empty": (b"", "damaged"),
    "meta tensor": (b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R.", "plain, dense"),
    "shape of 2**63": (tensor(shape=BIG + b"\x85"), "malformed"),
    "negative stride": (tensor(strides=b"J\xff\xff\xff\xff\x85"), "malformed"),
    "stride of 2**62": (tensor(strides=b"\x8a\x08" + (2**62).to_bytes(8, "little") + b"\x85"), "outside"),
    "begins beyond": (tensor(first=1 << 40), "outside"),
    "begins before": (tensor(first=-1), "malformed"),
    "storage of 2**62": (tensor(count=2**62), "another size"),
    "storage of -1": (tensor(count=-1), "malformed"),
    "shape is a text": (tensor(shape=b"X\x01\0\0\0a"), "malformed"),
    "a call of nothing": (b"\x80\x02NNR.", "holds code"),
}  # fmt: skip


def test_hostile_pickles(tmp_path, plain, run_bounded):
    for name, (content, _) in PICKLES.items():
        write(tmp_path / f"{name}.bin", plain | {"plain/data.pkl": content})
        (tmp_path / f"legacy {name}.bin").write_bytes(
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}." + content
        )
    printed = run_bounded(LIST, tmp_path, memory=1 << 30).splitlines()
    assert len(printed) == 2 * len(PICKLES)
    lines = dict(line.split(".bin refused: ") for line in printed)
    for name, (_, word) in PICKLES.items():
        assert word in lines[name], name
    (tmp_path / "good.bin").write_bytes(b"")
    write(tmp_path / "good.bin", plain | {"plain/data.pkl": tensor()})
    assert read_bin(tmp_path / "good.bin")["x"].shape == (6,)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"plain/byteorder": b"middle"}, "middle"),
        ({"plain/data/0": b"short"}, "another size"),
        ({"other/data.pkl": b""}, "2 members"),
        ({"plain/constants.pkl": b""}, "holds code"),
    ],
)
def test_members_that_contradict_each_other(tmp_path, plain, change, word):
    with pytest.raises(CheckpointError, match=word):
        read_bin(write(tmp_path / "a.bin", plain | change))


def test_directories_that_lie(tmp_path, plain):
    data = bytearray(write(tmp_path / "a.bin", plain).read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    with zipfile.ZipFile(tmp_path / "a.bin") as archive:
        first = archive.infolist()[1].header_offset
    for place, change, word in (
        (42, struct.pack("<I", first), "overlaps"),  # two members at one place
        (42, b"\xff\xff\xff\x7f", "damaged"),
        (24, b"\xff\xff\xff\x7f", "contradicts"),  # stored, but larger than stored
        (8, b"\x01", "encrypted"),
        (10, b"\x63", "another way"),  # an unknown compression
    ):
        forged = bytearray(data)
        forged[entry + place : entry + place + len(change)] = change
        (tmp_path / "b.bin").write_bytes(forged)
        with pytest.raises(CheckpointError, match=word):
            read_bin(tmp_path / "b.bin")
    forged = bytearray(data)
    forged[entry + 9], forged[entry + 46] = 0x08, 0xFF  # a name that says it is UTF-8 and is not
    (tmp_path / "b.bin").write_bytes(forged)
    with pytest.raises(CheckpointError, match="damaged"):
        read_bin(tmp_path / "b.bin")
