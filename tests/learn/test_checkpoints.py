"""A checkpoint that can't be written whole is none."""

import resource

import pytest
import torch
from bifrons.blocks.errors import ResourceError
from bifrons.learn import checkpoints


def test_a_full_disk_leaves_the_last_whole_checkpoint(tmp_path) -> None:
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    checkpoints.save(tmp_path, 1, model, optimizer)
    weight = model.weight.detach().clone()
    optimizer.step()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes of a file: what a full disk does
    try:
        with pytest.raises(ResourceError, match="step 2"):
            checkpoints.save(tmp_path, 2, model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    checkpoints.load(found[1], model, optimizer)
    assert torch.equal(model.weight, weight)
