"""A judge behind an endpoint: what it is sent, what is tried again, what is bounded and refused."""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.eval.judges import endpoint
from bifrons.eval.judges.answers import AnswerFile
from bifrons.eval.judges.endpoint import EndpointJudge, Refused, only_model
from bifrons.eval.judges.judge import JudgeChoice, answer_key
from bifrons.eval.math.run import MathOptions, evaluate_math
from bifrons.eval.suites.questions import Answer, Question, probability
from PIL import Image

from ...models import SHAPES_VL2

QUESTION = Question("Is it red?", "Be brief.", picture_first=False, accepted=("Yes", " yes"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)


def test_what_is_sent_and_read(judge_server: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "abc")
    choice = JudgeChoice(f"{judge_server.url}/v1/", key="MY_KEY", options='{"top_k": 1}').resolved()
    assert choice.model == "fake/stand-in"
    answer = choice.make(None).ask(picture, QUESTION)
    (body,) = judge_server.bodies
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "fake/stand-in", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20,
        "top_k": 1,
    }  # fmt: skip
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    text, image = user["content"]
    assert text == {"type": "text", "text": "Is it red?"}
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == picture.read_bytes()
    assert judge_server.keys == {"Bearer abc"}
    assert sum(map(math.exp, answer.first.values())) == pytest.approx(1)
    assert probability(answer, ("Yes", "yes")) == pytest.approx(math.exp(answer.first["Yes"]))


def test_without_accepted_answers_no_logprobs_are_asked_for(judge_server: Any, picture: Path) -> None:
    judge = EndpointJudge(judge_server.url, "m", "NO_SUCH_KEY", {}, 2)
    assert judge.ask(picture, Question("Is it red?", max_tokens=8)).first == {}
    assert "logprobs" not in judge_server.bodies[0]
    assert judge_server.keys == {None}


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_passing_failure_is_tried_again(judge_server: Any, picture: Path, status: int) -> None:
    judge_server.fail = lambda number: status if number < 4 else 200
    assert EndpointJudge(judge_server.url, "m", "K", {}, 1).ask(picture, QUESTION).text
    assert judge_server.number == 4


@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [(400, Refused, 1), (413, Refused, 1), (401, BifronsError, 1), (503, BifronsError, 6)],
)
def test_a_lasting_failure(judge_server: Any, picture: Path, status: int, error: type, tries: int) -> None:
    judge_server.fail = lambda number: status
    with pytest.raises(BifronsError, match=f"status {status}: .*fault {status}") as caught:
        EndpointJudge(judge_server.url, "m", "K", {}, 1).ask(picture, QUESTION)
    assert type(caught.value) is error
    assert judge_server.number == tries


def test_nobody_there(picture: Path) -> None:
    with pytest.raises(
        BifronsError, match=r"failed 6 times, at last with ConnectError.*run the same command"
    ):
        EndpointJudge("http://127.0.0.1:9", "m", "K", {}, 1).ask(picture, QUESTION)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "no JSON object"),
        (b"<html>", "no JSON"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": {"content": 5}}]}', "no chat completion"),
        (b'{"choices": [{"message": {"content": "Yes"}}]}', "gives no logprobs"),
        (b" " * (5 << 20), "more than 4,194,304 bytes"),
    ],
)
def test_odd_replies(picture: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str) -> None:
    judge = EndpointJudge("http://judge", "m", "K", {}, 1)
    reply = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(content)))
    monkeypatch.setattr(judge, "_client", httpx.Client(transport=reply))
    with pytest.raises(BifronsError, match=reason):
        judge.ask(picture, QUESTION)


def test_which_of_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    real = httpx.Client
    reply = httpx.MockTransport(
        lambda request: httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})
    )
    monkeypatch.setattr(endpoint.httpx, "Client", lambda **options: real(transport=reply))
    with pytest.raises(BifronsError, match="serves a, b; name the judge's model with --judge-model"):
        only_model("http://judge", "K")


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (JudgeChoice("vl2"), "accepted: an address"),
        (JudgeChoice("vl2:"), "accepted: an address"),
        (JudgeChoice("gpt:4"), "accepted: an address"),
        (JudgeChoice("http://"), "the judge's address"),
        (JudgeChoice("http://user:secret@host"), "the judge's address"),
        (JudgeChoice("http://host:99999"), "the judge's address"),
        (JudgeChoice("http://host", options="[1]"), "accepted: a JSON object"),
        (JudgeChoice("http://host", options="{"), "can't be read as JSON"),
        (JudgeChoice(f"vl2:{SHAPES_VL2}", model="x"), "for endpoints"),
    ],
)
def test_choices_that_are_refused(choice: JudgeChoice, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        choice.resolved()


def test_keys_tell_judges_pictures_and_questions_apart() -> None:
    base = JudgeChoice("http://h", "m", "v")
    choices = [base, JudgeChoice("http://h", "n", "v"), JudgeChoice("http://h", "m", "w"),
               JudgeChoice("http://h", "m", "v", '{"a": 1}')]  # fmt: skip
    keys = {answer_key(choice.identity, "p", QUESTION) for choice in choices}
    keys |= {answer_key(base.identity, "q", QUESTION), answer_key(base.identity, "p", Question("Is it red?"))}
    assert len(keys) == 6
    assert answer_key(JudgeChoice("http://other", "m", "v").identity, "p", QUESTION) in keys


def test_answers_are_kept_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    kept = AnswerFile(path)
    answers = {f"key{i}": Answer(f"ja\n{i}", {"j": -0.5}, "" if i else "no") for i in range(1200)}
    for key, answer in list(answers.items())[::600]:
        kept.put(key, answer)
    other = AnswerFile(path)
    assert other.get(list(answers)) == {key: answers[key] for key in ("key0", "key600")}
    other.close()
    kept.close()
    path.write_bytes(b"something else, longer than a header of SQLite" * 9)
    with pytest.raises(BifronsError, match="can't be used: file is not a database"):
        AnswerFile(path)
    with pytest.raises(BifronsError, match="can't be used: unable to open"):
        AnswerFile(tmp_path / "nowhere" / "a.sqlite")


def test_pictures_of_other_formats_are_labelled(judge_server: Any, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    path = tmp_path / "picture"
    path.write_bytes(stream.getvalue())
    EndpointJudge(judge_server.url, "m", "K", {}, 1).ask(path, Question("?", max_tokens=8))
    url = judge_server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,/9j/")


def test_math_is_asked_by_http(judge_server: Any, picture: Path, tmp_path: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "red.png"}}, {"type": "text", "text": "Is it red?"}]
    seen = {"messages": [{"role": "user", "content": parts}], "answer": "yes"}
    rows = [seen, {"question": "So?", "answer": "no"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = MathOptions(samples=2, temperature=0.6, top_p=0.95, max_new_tokens=7, seed=3)
    choice = JudgeChoice(judge_server.url)
    found = evaluate_math(tmp_path / "r", tmp_path / "p.jsonl", choice, options)
    assert (found["problems"], found["samples"]) == (2, 2)
    assert sorted(body["seed"] for body in judge_server.bodies) == [3, 3, 4, 4]
    drawn = {(body["max_tokens"], body["temperature"], body["top_p"]) for body in judge_server.bodies}
    assert drawn == {(7, 0.6, 0.95)}
    sent = [body["messages"][0]["content"][0] for body in judge_server.bodies]
    data = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    assert sum(part == {"type": "image_url", "image_url": {"url": data}} for part in sent) == 2
    results = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    assert all(text in ("Yes.", "no") for one in results for text in one["answers"])
