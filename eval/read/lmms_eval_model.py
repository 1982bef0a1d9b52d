"""lmms-eval's model `bifrons`: a Janus or DeepSeek-VL2 model in its process, which reads or paints.

lmms-eval finds it by the entry point in pyproject.toml. It imports lmms-eval, so nothing here imports it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import Image

from ...blocks.checkpoints.hub import open_model
from ...blocks.errors import OptionError, PromptError, check_integer
from ...janus.pipeline import JanusPipeline
from ...vl2.pipeline import VL2Pipeline
from ..atomic_io import atomic_file, make_folder

_TAG = "<image>"
_DEFAULT_TOKENS = 128


class Bifrons(lmms):
    """lmms-eval's interface of a model, for `--model bifrons --model_args pretrained=MODEL,...`.

    pretrained: a folder, a hub id or an embedded model. mode: "read" answers questions about pictures,
    "paint" generates a picture of the context and answers {"text": "", "images": [its file]}, as
    lmms-eval's painting tasks expect; the files go to `output_dir`. seed: of document 0's picture; document
    i has seed + i. Raises OptionError for another mode, or a model that doesn't paint.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "vl2-nano",
        mode: str = "read",
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        output_dir: str = "lmms-eval-pictures",
        guidance_scale: float | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        if mode not in ("read", "paint"):
            raise OptionError(f"mode is {mode!r}; accepted: read, paint")
        self._batch_size = check_integer("batch_size", int(batch_size), low=1)
        janus = open_model(pretrained).config.get("model_type") != "deepseek_vl_v2"
        if mode == "paint" and not janus:
            raise OptionError(f"{pretrained} doesn't paint; accepted with mode=paint: a Janus model")
        family = JanusPipeline if janus else VL2Pipeline
        # lmms-eval's own default is the device "cuda:0", with or without a GPU.
        self._pipe = family.from_pretrained(pretrained, _existing(device), dtype, progress=False)
        self._mode, self._output_dir, self._seed = mode, Path(output_dir), seed
        self._painting: dict[str, Any] = {}
        if guidance_scale is not None:
            self._painting["guidance_scale"] = float(guidance_scale)

    @property
    def batch_size(self) -> int:
        """Answers that are generated together."""
        return self._batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer, or the JSON of a picture, for each request."""
        if self._mode == "paint":
            return [self._paint(request) for request in requests]
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(_options(request.args[1]), sort_keys=True), []).append(place)
        for key, places in groups.items():
            options = json.loads(key)
            until = options.pop("until")
            for start in range(0, len(places), self._batch_size):
                part = places[start : start + self._batch_size]
                texts = self._pipe.chat_batch([self._messages(requests[i]) for i in part], **options)
                for place, text in zip(part, texts, strict=True):
                    ends = [text.index(mark) for mark in until if mark in text]
                    answers[place] = text[: min(ends)] if ends else text
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported: raises PromptError."""
        raise PromptError(
            "bifrons answers tasks of output_type generate_until; this one compares likelihoods"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported: raises PromptError."""
        raise PromptError("bifrons answers tasks of output_type generate_until; this one has several rounds")

    def _pictures(self, request: Any) -> list[Any]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        return list(doc_to_visual(self.task_dict[task][split][doc_id]) or ())

    def _messages(self, request: Any) -> list[dict[str, Any]]:
        """The context with the document's pictures at its `<image>` marks, or before it without any."""
        text, pictures = request.args[0], self._pictures(request)
        odd = [picture for picture in pictures if not isinstance(picture, Image.Image | str)]
        if odd:
            raise PromptError(f"the task gives a {type(odd[0]).__name__}; accepted: pictures")
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        pieces = text.split(_TAG)
        if len(pieces) == 1:
            return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        if len(pieces) != len(parts) + 1:
            raise PromptError(f"the task has {len(pieces) - 1} marks {_TAG} for {len(parts)} pictures")
        content = []
        for place, piece in enumerate(pieces):
            if piece.strip():
                content.append({"type": "text", "text": piece.strip()})
            content += parts[place : place + 1]
        return [{"role": "user", "content": content}]

    def _paint(self, request: Any) -> str:
        prompt, _, _, doc_id, task, split = request.args
        assert isinstance(self._pipe, JanusPipeline)
        (image,) = self._pipe.generate(prompt.strip(), seed=self._seed + int(doc_id), **self._painting)
        assert isinstance(image, Image.Image)
        path = make_folder(self._output_dir) / f"{task}-{split}-{doc_id}.png"
        with atomic_file(path) as stream:
            image.save(stream, "PNG")
        return json.dumps({"text": "", "images": [str(path)]})


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """`chat_batch`'s options and the strings that end an answer, from a task's generation_kwargs."""
    until = given.get("until") or []
    sampled = given.get("do_sample", True) and given.get("temperature")
    return {
        "max_new_tokens": int(given.get("max_new_tokens", _DEFAULT_TOKENS)),
        "temperature": float(given["temperature"]) if sampled else 0.0,
        "top_p": float(given.get("top_p") or 1.0) if sampled else 1.0,
        "until": [until] if isinstance(until, str) else list(until),
        **({"seed": 0} if sampled else {}),
    }


def _existing(device: str | None) -> str | None:
    import torch

    return None if device and device.startswith("cuda") and not torch.cuda.is_available() else device
