"""Training by rewards: on-policy probabilities, seeds, groups without a difference, and going on."""

import json
from dataclasses import replace

import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.blocks.engine import plain_runner
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.blocks.sampling.request import SamplingParams
from bifrons.blocks.sampling.sampling import guided_logits, process_logits
from bifrons.learn.adapters import LoraOptions
from bifrons.learn.grpo import GrpoOptions, GrpoRun
from bifrons.learn.policy import Policy, answer, paint
from bifrons.learn.reward import checked_scores
from PIL import ImageStat

from ..models import SHAPES_JANUS, SHAPES_VL2

pytest.importorskip("peft")
PROMPTS = [{"prompt": "a red star"}, {"prompt": "two small blue hearts"}, {"prompt": "a square"}]
QUESTIONS = [{"messages": [{"role": "user", "content": text}]} for text in ("How many?", "What is it?")]
SMALL = GrpoOptions(3, prompts_per_step=2, group_size=3, rows_at_once=4, learning_rate=1e-3, save_every=2)


def load(folder) -> JanusPipeline:
    return JanusPipeline.from_pretrained(folder, "cpu", "float32", progress=False)


def brightness(prompts, pictures):
    return [ImageStat.Stat(picture.convert("L")).mean[0] / 255 for picture in pictures]


def length(prompts, answers):
    return [len(text) for text in answers]


@pytest.fixture
def drawn(monkeypatch):
    """Log-probabilities of the tokens that the engine draws, in the distribution that it draws them from: a
    list of steps, `[requests]` each."""
    found = []

    def sample(logits, mode, params, *rest):
        tokens, filtered = original(logits, mode, params, *rest)
        scores = process_logits(guided_logits(logits, mode, params), mode, params)
        scores = (scores / params.temperature[:, None]).log_softmax(-1)
        found.append(scores.gather(1, tokens[:, None])[:, 0])
        return tokens, filtered

    original = plain_runner.sample
    monkeypatch.setattr(plain_runner, "sample", sample)
    monkeypatch.setattr(plain_runner, "window_on_cpu", lambda *args: 1)  # without drafts, a token a step
    return found


@pytest.mark.parametrize(
    "options",
    [{"guidance_scale": 5.0}, {}, {"guidance_scale": 2.0, "temperature": 0.8, "top_k": 40, "top_p": 0.9}],
)
def test_painting_is_on_policy(options, janus_mini, drawn) -> None:
    pipe, sampling = load(janus_mini), SamplingParams(**options)
    samples = paint(pipe, PROMPTS[:2], [1, 2, 3, 4], sampling)
    found, none = Policy(pipe, sampling).log_probs(samples.examples, with_reference=False)
    assert none is None
    expected = torch.stack(drawn, dim=1)
    assert (found.view_as(expected) - expected).abs().max() < 1e-5
    # Those of the conditional row alone are of another distribution.
    if sampling.guidance_scale is not None:
        other, _ = Policy(pipe, sampling, conditional=True).log_probs(samples.examples, False)
        assert (other.view_as(expected) - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", [JanusPipeline, VL2Pipeline])
def test_answers_are_on_policy(kind, drawn) -> None:
    pipe = kind.from_pretrained(SHAPES_JANUS if kind is JanusPipeline else SHAPES_VL2, "cpu", progress=False)
    sampling = SamplingParams(temperature=1.5, top_k=30)
    samples = answer(pipe, QUESTIONS, [5, 6, 7, 8], sampling, 6)
    found, _ = Policy(pipe, sampling).log_probs(samples.examples, with_reference=False)
    lengths = [one.count for one in samples.examples]
    assert len(samples.outputs) == 4
    assert max(lengths) <= 6
    expected = [[] for _ in lengths]
    for step in drawn:
        going = [row for row in range(4) if len(expected[row]) < lengths[row]]
        for row, value in zip(going, step.tolist(), strict=True):
            expected[row].append(value)
    assert (found - torch.tensor([value for row in expected for value in row])).abs().max() < 1e-5


def train(folder, path, options=SMALL, prompts=PROMPTS, reward=brightness) -> tuple[GrpoRun, list[dict]]:
    path.mkdir(exist_ok=True)
    run = GrpoRun(load(folder), prompts, reward, options, path)
    run.resume()
    run.run()
    lines = map(json.loads, (path / "log.jsonl").read_text().splitlines())
    return run, [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def weights(run: GrpoRun) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.updates.trained]


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=2)])
def test_a_run_is_repeatable_and_goes_on_where_it_stopped(lora, janus_mini, tmp_path) -> None:
    options = replace(SMALL, lora=lora)
    whole, log = train(janus_mini, tmp_path / "whole", options)
    assert log[0]["kl"] == 0
    assert log[2]["kl"] > 0
    assert all(line["skipped_groups"] == 0 and line["clipped"] == 0 and line["norm"] > 0 for line in log)
    train(janus_mini, tmp_path / "halves", replace(options, steps=2))
    again, log_again = train(janus_mini, tmp_path / "halves", options)
    assert log_again == log
    assert all(map(torch.equal, weights(whole), weights(again)))
    _, other = train(janus_mini, tmp_path / "other", replace(options, seed=1, steps=1))
    assert other[0]["reward"] != log[0]["reward"]


def test_several_updates_of_a_batch_change_the_ratio(janus_mini, tmp_path) -> None:
    _, log = train(janus_mini, tmp_path / "run", replace(SMALL, steps=1, updates=3, learning_rate=5e-2))
    assert log[0]["clipped"] > 0


def test_groups_without_a_difference_are_skipped(janus_mini, tmp_path) -> None:
    before = load(janus_mini).model.state_dict()
    run, log = train(janus_mini, tmp_path / "run", reward=lambda prompts, pictures: [0.1] * len(pictures))
    assert [line["skipped_groups"] for line in log] == [2, 2, 2]
    assert [line["reward"] for line in log] == pytest.approx([0.1] * 3)
    after = run.pipe.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_samples_without_a_score_are_left_out(janus_mini, tmp_path) -> None:
    def some(prompts, pictures):
        return [None if index % 3 == 0 else index for index in range(len(pictures))]

    _, log = train(janus_mini, tmp_path / "run", replace(SMALL, steps=1), reward=some)
    assert (log[0]["unscored"], log[0]["skipped_groups"]) == (2, 0)
    with pytest.raises(BifronsError, match="none of 6 samples a score"):
        train(janus_mini, tmp_path / "none", reward=lambda prompts, pictures: [None] * len(pictures))


@pytest.mark.parametrize(
    "scores", [None, 1.0, [0.5], [1, 2, 3], [1, "2"], [1, float("nan")], [1, float("inf")], [1, True], "12"]
)
def test_rewards_that_are_no_numbers_are_refused(scores) -> None:
    with pytest.raises(BifronsError, match="reward"):
        checked_scores(scores, 2)
    assert checked_scores(torch.tensor([1.0, 2.0]), 2).tolist() == [1, 2]


def test_answers_are_learned(janus_mini, tmp_path) -> None:
    options = replace(SMALL, max_new_tokens=8, learning_rate=3e-3, steps=4)
    run, log = train(janus_mini, tmp_path / "run", options, QUESTIONS, length)
    assert all(0 < line["length"] <= 8 for line in log)
    assert log[-1]["kl"] > 0
    assert {"answering_seconds"} <= set(json.loads((run.folder / "log.jsonl").read_text().splitlines()[0]))


def test_a_rule_for_answers_is_learned(janus_mini, tmp_path) -> None:
    """The share of vowels among an answer's characters rises, by sampling alone."""

    def vowels(prompts, answers):
        return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in answers]

    options = replace(SMALL, steps=8, group_size=8, rows_at_once=16, max_new_tokens=6, learning_rate=3e-3)
    _, log = train(janus_mini, tmp_path / "run", options, QUESTIONS, vowels)
    rewards = [line["reward"] for line in log]
    assert sum(rewards[-2:]) > 1.3 * sum(rewards[:2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group_size", 1),
        ("steps", 0),
        ("temperature", 0.0),
        ("top_p", 0.0),
        ("log_probs", "both"),
        ("beta", -1.0),
    ],
)
def test_options_are_checked(name, value) -> None:
    with pytest.raises(OptionError, match=name):
        replace(SMALL, **{name: value})
