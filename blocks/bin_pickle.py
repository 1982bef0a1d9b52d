"""Interprets the pickle of a PyTorch `.bin` file, of which nothing is run.

No function is called, and no object is made but what a flat dict of tensors needs: tuples, lists, dicts,
texts, numbers, storages and tensors. Length and numbers of the pickle are bounded.
"""

import io
import pickletools
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from .json_config import shown

MAX_INSTRUCTIONS = 2_000_000
"""A model of 6,000 tensors has about 250,000."""
_MAX_DIMENSIONS, _MAX_NUMBER = 64, 2**63 - 1

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_DTYPES = [
    *_STORAGES.values(),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.uint16, torch.uint32, torch.uint64),
]
_GLOBALS: dict[str, Any] = {
    "collections OrderedDict": "dict",
    "torch Size": "size",
    "torch._utils _rebuild_tensor": "tensor",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_tensor_v3": "tensor",
    "torch._utils _rebuild_parameter": "parameter",
    "torch._utils _rebuild_parameter_with_state": "parameter",
}
_GLOBALS |= {
    f"{module} {name}": dtype for name, dtype in _STORAGES.items() for module in ("torch", "torch.cuda")
}
_GLOBALS |= {"torch.storage UntypedStorage": torch.uint8}
_GLOBALS |= {str(dtype).replace(".", " "): dtype for dtype in _DTYPES}
_NOT_DENSE = ("_rebuild_sparse", "_rebuild_qtensor", "_rebuild_meta", "_rebuild_nested", "_rebuild_wrapper")


class CodeError(Exception):
    """The pickle wants something that is no tensor."""


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle names, and the bytes that it must have."""

    key: str
    dtype: torch.dtype
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor: its first element, and its strides, count in elements of its storage."""

    storage: Storage
    dtype: torch.dtype
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def interpret(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """The object of the pickle at the stream's position, and the storages that it names, by their keys."""
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
        if opcode.name == "STOP":
            return machine.stack.pop(), machine.storages
        run = _INSTRUCTIONS.get(opcode.name)
        if run is None:
            raise CodeError(f"the pickle instruction {opcode.name}")
        run(machine, argument)
    raise ValueError("its pickle has no end")


class _Machine:
    """The pickle's stack, memo and marks, and the instructions that a state dict needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise ValueError("its pickle takes more than it has")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def since_mark(self) -> tuple[Any, ...]:
        return self.take(len(self.stack) - self.marks.pop())

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.push(self.memo[place])

    def find(self, name: str) -> None:
        if name not in _GLOBALS:
            if name.partition(" ")[2].startswith(_NOT_DENSE):
                raise ValueError(f"it uses {shown(name)}; accepted are plain, dense tensors with data")
            raise CodeError(shown(name))
        self.push(_Global(_GLOBALS[name]))

    def set_items(self, pairs: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("its pickle sets items of what is no dict")
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(name) not in (str, int):
                raise ValueError(f"a dict in it has a {type(name).__name__} as a name")
            if name in target:
                raise ValueError(f"a dict in it has the name {shown(name)} twice")
            target[name] = value

    def append(self, values: tuple[Any, ...]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("its pickle appends to what is no list")
        self.stack[-1].extend(values)

    def build(self, _: Any) -> None:
        """Attributes, such as the `_metadata` of a state dict, are dropped."""
        target, _ = self.take(2)
        if not isinstance(target, dict | StoredTensor):
            raise CodeError("attributes of an object")
        self.push(target)

    def call(self, _: Any) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise CodeError("a call")
        self.push(self._call(function.meaning, arguments))

    def _call(self, meaning: Any, arguments: tuple[Any, ...]) -> Any:
        if meaning == "dict" and not arguments:
            return {}
        if meaning == "dict" and len(arguments) == 1 and isinstance(arguments[0], list):  # Python 2's
            self.push({})
            self.set_items(tuple(part for pair in arguments[0] for part in _pair(pair)))
            return self.stack.pop()
        if meaning == "size" and len(arguments) == 1:
            return arguments[0]
        if meaning == "parameter" and arguments and isinstance(arguments[0], StoredTensor):
            return arguments[0]
        if meaning == "tensor":
            return _rebuilt(*arguments)
        raise CodeError("a call")

    def find_storage(self, _: Any) -> None:
        (fields,) = self.take(1)
        kind, storage_type, key, _, count, *view = fields
        if kind != "storage" or not isinstance(storage_type, _Global):
            raise CodeError("an object of its own")
        if view not in ([], [None]):
            raise ValueError("it has views of storages, as PyTorch before 0.4; save it again")
        dtype = storage_type.meaning
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not _is_count(count):
            raise ValueError("one of its storages is malformed")
        storage = Storage(key, dtype, count * dtype.itemsize)
        if self.storages.setdefault(key, storage).nbytes != storage.nbytes:
            raise ValueError(f"its storage {shown(key)} has two sizes")
        self.push(storage)


@dataclass(frozen=True)
class _Global:
    """An accepted global: a dtype (also for a storage's type), or a word of `_GLOBALS`."""

    meaning: Any


_PUSHED = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING")
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_INSTRUCTIONS: dict[str, Any] = {
    "PROTO": lambda machine, version: None,
    "MARK": _Machine.mark,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "TUPLE": lambda machine, _: machine.push(machine.since_mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.find,
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "BUILD": _Machine.build,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.find_storage,
}
_INSTRUCTIONS |= dict.fromkeys(_PUSHED, _Machine.push)
_INSTRUCTIONS |= {
    f"TUPLE{count}": lambda machine, _, count=count: machine.push(machine.take(count)) for count in (1, 2, 3)
}
_INSTRUCTIONS |= {
    name: lambda machine, _, value=value: machine.push(value) for name, value in _CONSTANTS.items()
}


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a dict in it is malformed")
    return list(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER


def _rebuilt(storage: Any, first: Any, shape: Any, strides: Any, *more: Any) -> StoredTensor:
    """The tensor of `_rebuild_tensor` and its second and third versions, whose further arguments are whether
    it takes gradients, hooks, [a dtype,] and [a view's metadata]."""
    numbers = (first, *shape, *strides)
    sound = isinstance(storage, Storage) and len(shape) == len(strides) <= _MAX_DIMENSIONS
    if not sound or not all(map(_is_count, numbers)) or prod(shape) > _MAX_NUMBER:
        raise ValueError("a tensor in it is malformed")
    dtype, metadata = storage.dtype, list(more[2:])
    if metadata and isinstance(metadata[0], _Global):
        dtype = metadata.pop(0).meaning
    if not isinstance(dtype, torch.dtype) or any(metadata):
        raise ValueError(
            "a tensor in it is conjugated, negated or of an unknown dtype; accepted are plain ones"
        )
    return StoredTensor(storage, dtype, first, tuple(shape), tuple(strides))
