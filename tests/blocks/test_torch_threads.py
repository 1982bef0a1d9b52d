"""The number of torch's threads: one for small models, whatever torch has; the user's choice wins."""

import os
import subprocess
import sys

import pytest
import torch
from bifrons.blocks import torch_threads
from bifrons.blocks.device import inference_on
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.decoder import Decoder

CPU = torch.device("cpu")


@pytest.fixture
def decoder(monkeypatch):
    """A small decoder, in a process in which torch has three threads by default."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(torch_threads, "_default", 3)
    monkeypatch.setattr(torch_threads, "_chosen", False)
    yield Decoder(DecoderConfig(16, 64, 64, 2, 1, 1, 64))
    torch.set_num_threads(before)


def threads(decoder) -> int:
    with inference_on(CPU, decoder):
        return torch.get_num_threads()


def test_a_small_model_takes_one_and_leaves_the_others_as_they_were(decoder):
    assert threads(decoder) == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), inference_on(CPU, decoder):
        raise KeyError
    assert torch.get_num_threads() == 3
    with inference_on(CPU, decoder), inference_on(CPU, decoder):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_a_large_model_takes_what_torch_has(decoder, monkeypatch):
    monkeypatch.setattr(torch_threads, "SMALL_DECODER", 1000)
    assert threads(decoder) == 3


def test_the_users_choice_wins(decoder, monkeypatch):
    torch.set_num_threads(2)
    assert threads(decoder) == 2
    torch_threads.set_threads(3)
    assert threads(decoder) == 3
    torch_threads.set_threads(None)
    assert threads(decoder) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(decoder) == 3


@pytest.mark.parametrize(("given", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_asleep_and_the_environment_is_left_alone(given, seen):
    """What the OpenMP library finds is told by a stand-in for torch, which is loaded in its place."""
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from bifrons import JanusPipeline\n"
        "print(os.environ.get('OMP_WAIT_POLICY'))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [seen, str(given)]


def test_idle_cores_of_each_device():
    assert torch_threads.idle_cores(torch.device("meta")) == 1
    assert torch_threads.idle_cores(CPU) >= 1
