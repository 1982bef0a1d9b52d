"""What the tests of kernels and of bitwise equality share."""

import pytest
import torch


@pytest.fixture(scope="session")
def measured_processor(bitwise_products: bool) -> None:
    """Skips on other processors than those on which bitwise equality of products was measured."""
    if not bitwise_products:
        pytest.skip("which products agree in every bit was measured on AMD processors with AVX-512")


@pytest.fixture
def few_blocks(monkeypatch):
    """No gradients; and in the interpreter, where every program takes time, larger and fewer programs."""
    from bifrons.blocks.kernels import moe_decode, moe_router  # need Triton

    if not torch.cuda.is_available():
        monkeypatch.setattr(moe_decode, "GEMV_BLOCK_OUTPUTS", 32)
        monkeypatch.setattr(moe_router, "BLOCK_EXPERTS", 16)
    with torch.no_grad():
        yield
