"""Commands that run out of memory end with one line that says what would fit."""

import pytest
from bifrons.apps import pipelines
from bifrons.blocks.placement import memory_budget
from bifrons.janus.pipeline import JanusPipeline


def test_out_of_memory(failed, janus_mini, monkeypatch):
    def fail_to_allocate(*args, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(JanusPipeline, "generate", fail_to_allocate)
    text = failed("generate", "x", "-m", janus_mini, "--device", "cpu")
    assert "out of memory while painting 1 picture; each picture takes 885 kB of cache" in text
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: 2_000_000)
    text = failed("ask", "x", "-m", janus_mini, "--device", "cpu")
    assert "needs 2.41 MB for its weights as float32 on cpu, where 2 MB are free; accepted" in text
    assert "1.2 MB as bfloat16, 960 kB as bfloat16 with int8 weights, 862 kB as" in text
    monkeypatch.undo()
    monkeypatch.setattr(JanusPipeline, "from_pretrained", fail_to_allocate)
    assert "out of memory while loading" in failed("ask", "x", "-m", janus_mini, "--device", "cpu")


def test_other_errors_are_not_reported_as_out_of_memory(monkeypatch):
    with pytest.raises(RuntimeError, match="shapes"), pipelines.explain_out_of_memory("x", lambda: "y"):
        raise RuntimeError("shapes differ")
