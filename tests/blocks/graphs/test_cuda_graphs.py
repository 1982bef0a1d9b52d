"""Which decoders run as CUDA graphs, and which give a row the same bits in any batch."""

import pytest
import torch
from bifrons.blocks import torch_threads
from bifrons.blocks.graphs.cuda_graphs import checks_windows, is_row_invariant
from bifrons.blocks.kernels.batch_invariant import use_batch_invariant_libraries

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")


def test_row_invariance_on_the_cpu_takes_float32(small_model) -> None:
    decoder = small_model("dense").decoder
    assert is_row_invariant(decoder.to(torch.float32))
    assert not is_row_invariant(decoder.to(torch.bfloat16))


@on_cuda
def test_row_invariance_on_cuda_takes_half_precision_and_graphs(small_model) -> None:
    assert use_batch_invariant_libraries(torch.device("cuda"))
    decoder = small_model("dense").decoder.to("cuda", torch.bfloat16)
    assert is_row_invariant(decoder)
    assert not is_row_invariant(decoder.to(torch.float32))
    decoder.to(torch.float16).capture = False
    assert not is_row_invariant(decoder)
    decoder.capture = None
    assert is_row_invariant(decoder)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, True)
    assert not is_row_invariant(decoder)
    assert use_batch_invariant_libraries(torch.device("cuda"))
    assert is_row_invariant(decoder)


def test_drafts_are_exact_on_few_threads_of_a_cpu(small_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_threads, "_chosen", True)
    decoder, before = small_model("dense").decoder, torch.get_num_threads()
    try:
        for threads, exact in ((1, True), (4, True), (5, False)):
            torch.set_num_threads(threads)
            assert checks_windows(decoder) is exact
        torch.set_num_threads(1)
        assert not checks_windows(decoder.to(torch.bfloat16))
    finally:
        torch.set_num_threads(before)
