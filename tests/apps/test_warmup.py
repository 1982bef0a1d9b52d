"""Warm-up: what it runs, when, and what it says. Nothing is compiled or captured on a CPU."""

import socket
import sys
from collections import Counter

import pytest
import torch
from bifrons.apps import allowed_hosts, warmup
from bifrons.apps.pipelines import load_pipeline
from bifrons.apps.server import app, registry
from bifrons.apps.warmup import ProgressLine, kernel_cache, warm_up
from bifrons.blocks import device as device_module
from bifrons.blocks.engine.generate import scheduler_of
from bifrons.blocks.graphs.graphed_module import BATCH_SIZES

from ..models import SHAPES_JANUS


class RecordedScheduler:
    """Reports three captures, and remembers for which requests."""

    def warm_up(self, heads, progress):
        self.modes = [params.mode for _, params in heads]
        for done in (1, 2, 3):
            progress(done, 3)


@pytest.mark.parametrize(("folder", "paints"), [("janus-mini", True), ("vl2-mini-mla", False)])
def test_the_usual_requests_and_towers_are_warmed_up(janus_mini, monkeypatch, capsys, folder, paints):
    pipe = load_pipeline(str(janus_mini.parent / folder), "cpu")
    assert warm_up(folder, pipe, RecordedScheduler()) is None
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(warmup, "uses_cuda_graphs", lambda decoder: True)
    encoded, decoded = Counter(), Counter()
    encode = type(pipe.model)._encode_vision

    def counting_encode(self, pixels):
        encoded[len(pixels)] += 1
        return encode(self, pixels)

    monkeypatch.setattr(type(pipe.model), "_encode_vision", counting_encode)
    if paints:
        decode = type(pipe.model).decode_codes

        def counting_decode(self, codes):
            decoded[len(codes)] += 1
            return decode(self, codes)

        monkeypatch.setattr(type(pipe.model), "decode_codes", counting_decode)
    scheduler = RecordedScheduler()
    assert warm_up(folder, pipe, scheduler) > 0
    tiles = 1 if paints else 2  # of the picture in a question
    assert encoded == Counter({**dict.fromkeys(BATCH_SIZES, 2), tiles: 4})
    assert decoded == ({1: 2} if paints else {})
    assert [(mode.guided, mode.greedy) for mode in scheduler.modes] == [
        (False, True),
        (False, False),
        *([(True, False)] if paints else []),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{folder}: warming up: 1"
    assert lines[-1].startswith(f"{folder}: warm after ")


def test_progress_on_a_terminal_is_one_line(monkeypatch, capsys):
    line = ProgressLine("model")
    line(1, 9)
    line(2, 9)
    assert capsys.readouterr().err == "model: 1 of 9\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line(3, 9)
    line.end("done")
    assert capsys.readouterr().err == "\rmodel: 3 of 9\r\x1b[Kdone\n"


def test_the_kernel_cache_is_triton_s(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert kernel_cache() == tmp_path
    monkeypatch.delenv("TRITON_CACHE_DIR")
    assert kernel_cache().parts[-2:] == (".triton", "cache")


def test_the_command_has_nothing_to_do_without_a_gpu(bifrons_main, capsys):
    assert bifrons_main("warmup", "-m", SHAPES_JANUS, "--device", "cpu") == 0
    assert capsys.readouterr().out.startswith("nothing to do: kernels are compiled for CUDA only")
    assert bifrons_main("warmup", "-m", SHAPES_JANUS, "--device-map", "=cpu") == 0
    assert capsys.readouterr().out == "nothing to do: a model that is spread over devices is not captured\n"


def test_the_command_says_how_long_it_took_and_where_kernels_are(bifrons_main, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(device_module, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(
        registry, "load_pipeline", lambda *args, **options: load_pipeline(SHAPES_JANUS, "cpu")
    )
    monkeypatch.setattr(warmup, "warm_up", lambda name, pipe, scheduler: 2.5)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert bifrons_main("warmup", "-m", SHAPES_JANUS) == 0
    out = capsys.readouterr().out
    assert out.startswith("loaded in ")
    assert out.endswith(f"warm after another 2.5 s; kernels are in {tmp_path}\n")


@pytest.mark.parametrize("flags", [[], ["--no-warmup"]])
def test_the_server_accepts_no_connection_before_it_is_warm(bifrons_main, janus_mini, monkeypatch, flags):
    events, listeners, bind = [], [], allowed_hosts.listen

    def listen(host, port):
        listeners.append(bind(host, port))
        return listeners[-1]

    def connects():
        with socket.socket() as link:
            return link.connect_ex(listeners[0].getsockname()) == 0

    monkeypatch.setattr(allowed_hosts, "listen", listen)
    monkeypatch.setattr(registry, "warm_up", lambda name, pipe, scheduler: events.append((name, connects())))
    monkeypatch.setattr(
        app, "serve", lambda application, models, *_: (events.append("serves"), models.close())
    )
    assert bifrons_main("serve", "-m", janus_mini, "--device", "cpu", "--port", 0, *flags) == 0
    assert events == [*([("janus-mini", False)] if not flags else []), "serves"]


@pytest.mark.parametrize("flags", [[], ["--no-warmup"]])
def test_the_page_is_served_once_its_models_are_warm(bifrons_main, janus_mini, monkeypatch, flags):
    from bifrons.apps.demo import app as page

    events = []
    monkeypatch.setattr(warmup, "warm_up", lambda name, pipe, scheduler: events.append((name, scheduler)))
    monkeypatch.setattr(page, "serve", lambda models, host, port, share, hosts: events.append(models[0]))
    assert bifrons_main("demo", "-m", janus_mini, "--device", "cpu", *flags) == 0
    loaded = events.pop()
    assert events == ([] if flags else [("janus-mini", scheduler_of(loaded.pipe.model.decoder))])
