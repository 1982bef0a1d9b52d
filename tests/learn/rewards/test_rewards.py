"""Rewards: detectors, judges, servers that hang, fail or reply nonsense, functions, and rules for answers."""

import base64
import io
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

import pytest
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.eval.judges import endpoint
from bifrons.eval.judges.judge import JudgeChoice
from bifrons.learn.reward import checked_scores
from bifrons.learn.rewards import detector
from bifrons.learn.rewards.answers import AnswerReward, FormatReward
from bifrons.learn.rewards.choose import RewardOptions, WeightedRewards, make_reward
from bifrons.learn.rewards.detector import DetectorReward
from bifrons.learn.rewards.judge import JudgeReward
from bifrons.learn.rewards.server import ServerReward
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.sentences import sample_case
from PIL import Image


class Server(ThreadingHTTPServer):
    """Replies with `reply(body)`: a status, and bytes or JSON; with a `pause`, byte by byte."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Any = None
        self.bodies: list[dict[str, Any]] = []
        self.pause = 0.0
        self.key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.key = self.headers.get("Authorization")
        status, content = self.server.reply(body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        size = 1 if self.server.pause else len(data) + 1
        for start in range(0, len(data), size):
            try:
                self.wfile.write(data[start : start + size])
                self.wfile.flush()
            except OSError:  # the client has given up
                return
            threading.Event().wait(self.server.pause)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)


RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
PROMPTS = [{"prompt": "a red square", "tag": "colors"}, {"prompt": "a blue square"}]


def test_the_exact_detector_scores_by_the_prompts_rows() -> None:
    cases = [sample_case("color_attr", Random(seed)) for seed in range(2)]
    pictures = [to_pil(case.scene, 128) for case in cases]
    rows = [case.metadata for case in cases]
    reward = make_reward("shapes", RewardOptions())
    assert reward(rows, pictures) == [1.0, 1.0]
    assert reward(rows, pictures[::-1]) == [0.0, 0.0]
    assert isinstance(reward, DetectorReward)
    reward.check(rows[0])
    with pytest.raises(BifronsError, match="tag"):
        reward.check({"prompt": "a red star"})
    with pytest.raises(BifronsError, match="include"):
        reward.check({"prompt": "a red star", "tag": "colors", "include": "nonsense"})


def test_many_pictures_are_shared_among_workers(monkeypatch) -> None:
    pools = []

    def pool(workers, context, initializer):  # processes take seconds to start
        pools.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(detector, "ProcessPoolExecutor", pool)
    cases = [sample_case("colors", Random(seed)) for seed in range(40)]
    pictures = [to_pil(case.scene, 64) for case in cases[1:] + cases[:1]]
    rows = [case.metadata for case in cases]
    reward = DetectorReward("shapes", workers=2)
    alone = DetectorReward("shapes", workers=1)
    assert reward(rows, pictures) == reward(rows, pictures) == alone(rows, pictures)
    assert pools == [2]


def test_what_a_reward_server_is_sent_and_gives(server, monkeypatch) -> None:
    monkeypatch.setenv("REWARD_API_KEY", "abc")
    server.reply = lambda body: (200, {"scores": [0.5, None]})
    assert make_reward(f"{server.url}/score", RewardOptions())(PROMPTS, [RED, BLUE]) == [0.5, None]
    (body,) = server.bodies
    assert server.key == "Bearer abc"
    assert body["prompts"] == ["a red square", "a blue square"]
    assert body["rows"] == PROMPTS
    colors = [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in body["images"]]
    assert colors == [(255, 0, 0), (0, 0, 255)]
    parts = [{"type": "image", "image": "x.png"}, {"type": "text", "text": "How many?"}]
    server.reply = lambda body: (200, {"scores": [1] * len(body["answers"])})
    assert (
        ServerReward(server.url)([{"messages": [{"role": "user", "content": parts}]}] * 20, ["3"] * 20)
        == [1] * 20
    )
    assert [len(one["answers"]) for one in server.bodies[1:]] == [16, 4]
    assert server.bodies[1]["prompts"][0] == "How many?"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"scores": 1},
        {"scores": [1]},
        {"scores": [1, 2, 3]},
        [1, 2],
        b"",
        b"nonsense",
        b'{"scores": [1, 2',
        None,
    ],
)
def test_a_server_that_replies_nonsense_is_refused(content, server) -> None:
    server.reply = lambda body: (200, content)
    with pytest.raises(BifronsError, match=server.url):
        ServerReward(server.url)(PROMPTS, [RED, BLUE])


def test_scores_of_a_server_that_are_no_numbers_are_refused(server) -> None:
    for scores in (["a", 1], [{}, 1], [True, 1], [1e300, 1]):
        server.reply = lambda body, scores=scores: (200, {"scores": scores})
        with pytest.raises(BifronsError, match="score"):
            checked_scores(ServerReward(server.url)(PROMPTS, [RED, BLUE]), 2)


def test_a_server_that_fails_is_asked_again(server) -> None:
    replies = iter([(500, {}), (503, {}), (200, {"scores": [1, 0]})])
    server.reply = lambda body: next(replies)
    assert ServerReward(server.url)(PROMPTS, [RED, BLUE]) == [1, 0]
    server.reply = lambda body: (500, {})
    with pytest.raises(BifronsError, match="failed 6 times"):
        ServerReward(server.url)(PROMPTS, [RED, BLUE])
    assert len(server.bodies) == 9
    with pytest.raises(BifronsError, match="failed 6 times, at last with ConnectError"):
        ServerReward("http://127.0.0.1:9")(PROMPTS, [RED, BLUE])


def test_a_server_that_hangs_or_drips_is_given_up(server, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "TRIES", 2)
    wait = threading.Event()

    def hang(body):
        wait.wait(5)
        return 200, {"scores": [1, 0]}

    server.reply = hang
    start = time.monotonic()
    with pytest.raises(BifronsError, match="ReadTimeout"):
        ServerReward(server.url, timeout=0.2)(PROMPTS, [RED, BLUE])
    wait.set()
    server.reply, server.pause = lambda body: (200, {"scores": [1, 0]}), 0.1
    with pytest.raises(BifronsError, match="took more than"):
        ServerReward(server.url, timeout=0.3)(PROMPTS, [RED, BLUE])
    assert time.monotonic() - start < 20


@pytest.fixture
def judge(server):
    """Sure of red pictures, unsure of others."""

    def reply(body):
        first = [{"token": "Yes", "logprob": math.log(0.6)}, {"token": "No", "logprob": math.log(0.2)}]
        choice = {"message": {"content": server.answer}, "logprobs": {"content": [{"top_logprobs": first}]}}
        return 200, {"choices": [choice]}

    server.reply, server.answer = reply, "Yes"
    return server


def test_a_judge_is_asked_about_each_picture(judge) -> None:
    reward = make_reward(f"judge:{judge.url}", RewardOptions(judge_model="m", workers=1))
    assert reward(PROMPTS, [RED, BLUE]) == pytest.approx([0.75, 0.75])
    texts = [body["messages"][0]["content"][1]["text"] for body in judge.bodies]
    assert texts == [f'Does this picture show "{one["prompt"]}"? Answer yes or no.' for one in PROMPTS]
    by_answer = JudgeReward(JudgeChoice(judge.url, "m"), by_answer=True)
    assert by_answer(PROMPTS[:1], [RED]) == [1.0]
    assert "logprobs" not in judge.bodies[-1]
    judge.answer = "No."
    assert by_answer(PROMPTS[:1], [RED]) == [0.0]
    judge.answer = "I am a teapot"
    assert by_answer(PROMPTS[:1], [RED]) == [None]
    judge.reply = lambda body: (400, {"error": "no such picture"})
    assert reward(PROMPTS[:1], [RED]) == [None]
    judge.reply = lambda body: (200, {"choices": []})
    with pytest.raises(BifronsError, match="no chat completion"):
        reward(PROMPTS[:1], [RED])
    with pytest.raises(OptionError, match="prompt"):
        JudgeReward(JudgeChoice(judge.url, "m"), question="Is it good?")


def test_answers_and_forms() -> None:
    prompts = [{"answer": "3"}, {"answer": 3}, {"answer": "Two"}, {"answer": "2"}]
    answers = ["<answer>3</answer>", "it is: 3.0", "two.", "<think>x</think><answer>3</answer>"]
    assert make_reward("answer", RewardOptions())(prompts, answers) == [1, 1, 1, 0]
    boxed = ["<think>4</think> \\boxed{\\frac{6}{2}}", "three", "2", "2"]  # the rules of `bifrons eval math`
    assert make_reward("answer", RewardOptions())(prompts, boxed) == [1, 1, 1, 1]
    assert make_reward("format", RewardOptions())(prompts, answers) == [0, 0, 0, 1]
    assert FormatReward(r"[a-z]+\.")(prompts, answers) == [0, 0, 1, 0]
    for bad in ({}, {"answer": None}, {"answer": True}, {"answer": [1]}):
        with pytest.raises(OptionError, match="answer"):
            AnswerReward().check(bad)
    with pytest.raises(OptionError, match="regular expression"):
        make_reward("format:(", RewardOptions())


def test_functions_and_sums(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def width(prompts, outputs): return [one.width for one in outputs]\n"
    )
    monkeypatch.chdir(tmp_path)
    width = make_reward("my_rewards:width", RewardOptions())
    total = WeightedRewards([width, lambda prompts, outputs: [None, 1]], [0.5, 2])
    assert total(PROMPTS, [RED, BLUE]) == [None, 6.0]
    with pytest.raises(OptionError, match="1 weights for 2"):
        WeightedRewards([width, width], [1])
    for name in ("my_rewards:height", "no_such:width", "nonsense", "judge:", "", "my_rewards:__doc__"):
        with pytest.raises(OptionError, match="accepted"):
            make_reward(name, RewardOptions())
    with pytest.raises(OptionError, match="timeout"):
        RewardOptions(timeout=0)
