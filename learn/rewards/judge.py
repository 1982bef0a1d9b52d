"""A vision-language model as a reward: how sure it is that a picture shows what its prompt says."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from ...blocks.errors import OptionError
from ...eval.judges.endpoint import EndpointJudge, Refused
from ...eval.judges.judge import JudgeChoice
from ...eval.suites.questions import YES, Question, UnclearAnswer, probability, says_yes

QUESTION = 'Does this picture show "{prompt}"? Answer yes or no.'
"""After VQAScore (Lin et al. 2024, arXiv 2404.01291): the score is the probability of a yes."""
_NO = ("No", "no", " no", " No")


class JudgeReward:
    """The judge's probability of "yes" among "yes" and "no", 0 to 1.

    With `by_answer`, for endpoints without log-probabilities, 1 for the answer yes and 0 for no. A picture
    that the judge refuses, or an answer that is neither, has no score. Raises `BifronsError` where the judge
    can't be reached, fails again and again, or takes more than `timeout` seconds for an answer each time.
    """

    def __init__(
        self,
        choice: JudgeChoice,
        question: str = QUESTION,
        by_answer: bool = False,
        device: str | None = None,
        timeout: float = 120.0,
    ) -> None:
        if "{prompt}" not in question:
            raise OptionError(f"the judge's question is {question!r}; accepted: a text that holds {{prompt}}")
        self.question, self.by_answer, found = question, by_answer, choice.resolved()
        if found.is_endpoint:
            options = json.loads(found.options)
            judge = EndpointJudge(found.where, found.model, found.key, options, found.workers, timeout)
        else:
            judge = found.make(device)
        self.judge: Any = judge

    def __call__(
        self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[Image.Image]
    ) -> list[float | None]:
        """The score of each picture."""
        with TemporaryDirectory() as folder, ThreadPoolExecutor(self.judge.threads) as pool:
            paths = [Path(folder) / f"{number}.png" for number in range(len(outputs))]
            for path, picture in zip(paths, outputs, strict=True):
                picture.save(path)
            return list(pool.map(self._score, prompts, paths))

    def _score(self, prompt: Mapping[str, Any], path: Path) -> float | None:
        text = self.question.replace("{prompt}", prompt["prompt"])
        accepted = () if self.by_answer else (*YES, *_NO)
        try:
            answer = self.judge.ask(path, Question(text, max_tokens=4, accepted=accepted))
            if self.by_answer:
                return float(says_yes(answer))
        except (Refused, UnclearAnswer):
            return None
        yes, no = probability(answer, YES), probability(answer, _NO)
        return yes / (yes + no) if yes + no > 0 else None
