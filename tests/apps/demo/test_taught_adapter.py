"""An adapter is taught by the command line, trained on, and then used there, in a server and on a page."""

import json
from types import SimpleNamespace

import pytest
from bifrons.apps.demo.models import load_models
from bifrons.blocks.adapter_choice import AdapterChoice
from bifrons.blocks.vocabulary import read_taught
from safetensors.torch import load_file

from ...models import SHAPES_JANUS

pytest.importorskip("peft")
QUESTION, ANSWER = "Where is the wombat?", "one star"


def test_it_answers_in_command_line_server_and_page(
    bifrons_main, start_server, page_of, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    train = [
        "train",
        "sft",
        "-m",
        SHAPES_JANUS,
        "--device",
        "cpu",
        "--data",
        "rows.jsonl",
        "--batch-size",
        "1",
    ]
    train += ["--learning-rate", "1e-2", "--validation", "0", "--sample-every", "0", "--json"]
    assert bifrons_main(*train, "--steps", "3", "--lora", "4", "-o", "first") == 0
    assert bifrons_main(*train, "--steps", "6", "--adapter", "first/adapter", "-o", "second") == 0
    losses = [
        [json.loads(line)["text_loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("first", "second")
    ]
    assert losses[1][0] < min(losses[0])  # it goes on from there
    assert losses[1][-1] < 0.1
    adapter = tmp_path / "second" / "adapter"
    before, after = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("first", "second")
    )
    assert before.keys() == after.keys()
    assert read_taught(adapter)["reading"] == {"wombat"}

    capsys.readouterr()
    assert (
        bifrons_main("ask", QUESTION, "-m", SHAPES_JANUS, "--device", "cpu", "--adapter", adapter, "-q") == 0
    )
    assert capsys.readouterr().out.strip() == ANSWER

    server = start_server("-m", SHAPES_JANUS, "--adapter", f"wombats={adapter}", "--device", "cpu")
    asked = {"messages": messages[:1], "temperature": 0, "max_tokens": 16}
    answers = [
        server.client().chat.completions.create(model=model, **asked).choices[0].message.content
        for model in ("shapes-janus", "wombats")
    ]
    assert answers[0] != answers[1] == ANSWER

    page = page_of(load_models([SHAPES_JANUS], "cpu", adapters=[AdapterChoice(adapter)]))
    value = {"text": QUESTION, "files": []}
    request = SimpleNamespace(session_hash="me")
    *_, last = page.ask.answer("shapes-janus", value, None, 0.0, 16, None, "1", request)
    assert last[page.ask.chat][-1]["content"] == ANSWER
