"""Writing safetensors: complete files or none."""

import errno
import shutil

import pytest
import torch
from bifrons.blocks.conversion.writer import write_safetensors
from bifrons.blocks.errors import CheckpointError
from safetensors.torch import load_file


def specs(state):
    return [(n, lambda n=n: state[n], tuple(t.shape), t.dtype) for n, t in state.items()]


def test_written_files_read_back_here_and_in_safetensors(tmp_path, odd_state, assert_holds):
    state = odd_state | {"ü": torch.zeros(3, dtype=torch.uint8)}
    assert [p.name for p in write_safetensors(tmp_path / "one", specs(state))] == ["model.safetensors"]
    assert_holds(tmp_path / "one", state)
    loaded = load_file(tmp_path / "one" / "model.safetensors")
    assert all(torch.equal(loaded[n], t) for n, t in state.items())

    files = write_safetensors(tmp_path / "many", specs(state), max_shard_bytes=60)
    assert files[-1].name == "model.safetensors.index.json"
    assert files[0].name == f"model-00001-of-{len(files) - 1:05d}.safetensors"
    assert len(files) > 3
    assert_holds(tmp_path / "many", state)
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == sorted(p.name for p in files)
    with pytest.raises(CheckpointError, match="other weights"):
        write_safetensors(tmp_path / "many", specs(state))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path, error, state, assert_holds):
    write_safetensors(tmp_path, specs(state))

    def fail() -> torch.Tensor:
        raise error

    bad = [*specs({"x": torch.zeros(4)}), ("y", fail, (2,), torch.float32)]
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
        write_safetensors(tmp_path, bad)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert_holds(tmp_path, state)


def test_a_full_disk_is_noticed_at_once(tmp_path, monkeypatch, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(CheckpointError, match="0 bytes free"):
        write_safetensors(tmp_path, specs(state))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path, state):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't write"):
        write_safetensors(tmp_path / "file" / "folder", specs(state))
