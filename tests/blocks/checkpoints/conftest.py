"""Small checkpoints, and what a folder must hold or be refused for."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints.reader import TensorReader, list_tensors
from bifrons.blocks.errors import CheckpointError
from torch import Tensor, nn

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    """Tensors of several dtypes and shapes."""
    return {
        "a.weight": torch.arange(12.0).view(3, 4),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.tensor(2.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True, False, True]),
    }


@pytest.fixture
def odd_state(state: State) -> State:
    """With tensors that share a storage, are transposed, expanded, or parameters."""
    base = torch.arange(100.0, dtype=torch.bfloat16)
    odd = OrderedDict(state)
    odd["slice"] = base[10:30]
    odd["transposed"] = base[40:90].view(5, 10).t()
    odd["expanded"] = base[3:6, None].expand(3, 4)
    odd["param"] = nn.Parameter(torch.randn(2, 3))
    return odd


@pytest.fixture
def assert_holds() -> Callable[[Path, State], None]:
    """`assert_holds(folder, state)`: the folder's tensors, read one by one, are those of `state`."""

    def check(folder: Path, state: State) -> None:
        entries = list_tensors(folder)
        assert entries.keys() == state.keys()
        with TensorReader() as reader:
            for name, entry in entries.items():
                assert (entry.shape, entry.dtype) == (tuple(state[name].shape), state[name].dtype)
                tensor = reader.read(entry)
                assert tensor.is_contiguous()
                assert tensor.dtype == state[name].dtype
                assert torch.equal(tensor, state[name])

    return check


@pytest.fixture
def assert_refused() -> Callable[..., None]:
    """`assert_refused(folder, *words)`: listing the tensors is an error that holds the words."""

    def check(folder: Path, *words: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            list_tensors(folder)
        for word in words:
            assert word in str(caught.value)

    return check
