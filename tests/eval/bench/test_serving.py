"""The load test: what its figures mean, and one run of the command in small."""

import json

import pytest
import torch
from bifrons.eval.bench.configs import pick_config
from bifrons.eval.bench.pipelines import random_pipeline, wide_tokenizer
from bifrons.eval.bench.serving import gap_figures, load_figures, percentile

from ...models import SHAPES_JANUS


def reply(start, end, arrivals=(), tokens=0, retries=0):
    return {
        "status": 200,
        "start": start,
        "end": end,
        "arrivals": [*arrivals],
        "tokens": tokens,
        "retries": retries,
    }


def test_percentiles():
    values = list(range(100, 0, -1))
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (51, 100, 7.0)


def test_figures_of_a_load():
    replies = [
        reply(1.0, 3.0, [1.5, 2.0], 10),
        reply(0.0, 5.0, [2.0], 20, retries=2),
        reply(0.0, 1.0, [0.5], 6),
    ]
    load = load_figures("answers", 2, {"replies": replies, "seconds": 6.0, "lead": None})
    assert (load.requests, load.rate, load.tokens, load.retries) == (3, 0.5, 6.0, 2)
    assert (load.latency_p50, load.latency_p99, load.earliest) == (2.0, 5.0, 2.0)
    assert (load.first_p50, load.first_p99) == (0.5, 2.0)
    pictures = load_figures("pictures", 1, {"replies": [reply(0.0, 2.0)], "seconds": 2.0, "lead": None})
    assert (pictures.tokens, pictures.first_p50, pictures.latency_p50) == (None, None, 2.0)


def test_gaps_are_those_while_pictures_were_painted():
    lead = reply(0.0, 9.0, [1.0, 2.0, 2.5, 3.0, 5.0, 9.0], tokens=9)
    gaps = gap_figures({"replies": [reply(2.2, 4.0), reply(2.3, 6.0)], "seconds": 3.8, "lead": lead})
    assert (gaps.pictures, gaps.pieces, gaps.longest, gaps.step) == (2, 3, 2.0, 1.0)
    assert gaps.as_json()["p99_steps"] == 2.0


def test_every_token_of_a_wide_vocabulary_has_a_text_and_none_ends_an_answer():
    narrow, wide = wide_tokenizer(SHAPES_JANUS, 590), wide_tokenizer(SHAPES_JANUS, 3000)
    text = "a red star and two blue squares, word700"
    assert wide.encode(text, bos=False) == narrow.encode(text, bos=False)
    assert 590 < wide.bos_id < 3000
    assert all(wide.decode([i], skip_special_tokens=False) for i in range(3000))
    assert (narrow.eos_id, wide.eos_id) == (590, 3000)


@pytest.mark.parametrize("family", ["janus", "vl2"])
def test_random_pipelines_answer_as_long_as_asked(family):
    pipe = random_pipeline(pick_config(family, "nano", 1), torch.device("cpu"), torch.float32, None)
    lengths = []
    for seed in range(3):
        answer = "".join(pipe.chat([{"role": "user", "content": "Hello"}], 40, 1.0, seed=seed, stream=True))
        lengths.append(len(pipe.tokenizer.encode(answer, bos=False)))
    assert min(lengths) > 20


def test_the_command(bifrons_main, capsys):
    words = ["bench", "serve", "janus", "--size", "nano", "--layers", 1, "--requests", 2, "--tokens", 8]
    words += ["--device", "cpu", "--context", 1024, "--rows", 8]
    assert bifrons_main(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    works = ["pictures", "answers of 8 tokens", "answers about a picture"]
    assert [(load["work"], load["at_once"]) for load in report["loads"]] == [
        (work, count) for work in works for count in (1, 2)
    ]
    for load in report["loads"]:
        assert load["requests"] == 2
        assert load["rate"] > 0
        assert load["latency_p99"] >= load["latency_p50"] > 0
        if load["work"] != "pictures":
            assert load["tokens"] == pytest.approx(8 * load["rate"])
            assert 0 < load["first_p50"] < load["latency_p50"]
    assert list(report["pipeline"]) == works
    assert all(rate > 0 for rates in report["pipeline"].values() for rate in rates.values())
    assert report["gaps"]["pictures"] == 2
    assert report["gaps"]["p99"] > 0
    assert report["held"] > 0
    assert report["ready"] > 0


def test_the_command_in_words(bifrons_main, capsys):
    words = ["bench", "serve", "vl2", "--size", "nano", "--layers", 2, "--requests", 1, "--tokens", 4]
    assert bifrons_main(*words, "--device", "cpu", "--context", 512, "--rows", 4) == 0
    out = capsys.readouterr().out
    assert "answers of 4 tokens          1 at once" in out
    assert "answers about a picture" in out
    assert "the pipeline's batch of 1: " in out
    assert "pictures are painted" not in out
    assert bifrons_main("bench", "serve", "janus", "--size", "nano", "--requests", 0) == 2
    assert "requests is 0; accepted: at least 1" in capsys.readouterr().err
