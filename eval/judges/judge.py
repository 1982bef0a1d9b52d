"""A judge: one interface for models behind an endpoint and in process, and how one is named."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...blocks.checkpoints.quantize import check_kind
from ...blocks.errors import OptionError
from ...blocks.json_config import parse_json
from ...blocks.placement.fingerprint import weights_fingerprint
from ...scale.models import FAMILIES
from ...scale.placement import NO_PLACEMENT, Placement
from ..suites.questions import Answer, Draw, Question
from .endpoint import EndpointJudge, check_url, only_model
from .local import LocalJudge

_ACCEPTED = "an address (http://host:port), vl2:MODEL or janus:MODEL"


class Judge(Protocol):
    """Answers questions about pictures; called from several threads if `threads` is above 1."""

    threads: int

    def ask(self, picture: Path, question: Question) -> Answer:
        """The greedy answer, and log-probabilities of its first token if answers are accepted.

        Raises Refused where this question alone can't be answered, BifronsError where none can.
        """
        ...

    def chat(self, conversations: Sequence[Sequence[Mapping[str, Any]]], draw: Draw) -> list[str]:
        """The next messages of conversations, whose pictures are files, all with one seed. Errors are those
        of `ask`; Refused is for all of them."""
        ...


@dataclass(frozen=True)
class JudgeChoice:
    """Which judge, as the user names it.

    where: an address, or `vl2:MODEL` or `janus:MODEL`. model: the endpoint's name of the model. version:
    what tells it from others of that name; by default the model's fingerprint, or the address. options: JSON
    of more fields for an endpoint's requests. key: the environment variable with the endpoint's key.
    workers: questions at once. dtype, quantize, placement, adapters (each FOLDER:SCALE): of a
    model in process.
    """

    where: str
    model: str = ""
    version: str = ""
    options: str = "{}"
    key: str = "OPENAI_API_KEY"
    dtype: str | None = None
    workers: int = 8
    quantize: str | None = None
    placement: Placement = NO_PLACEMENT
    adapters: tuple[str, ...] = ()

    @property
    def is_endpoint(self) -> bool:
        """Whether the judge is asked by HTTP."""
        return self.where.startswith(("http://", "https://"))

    def resolved(self) -> "JudgeChoice":
        """With the model's name and version filled in. Raises BifronsError where there is no such judge."""
        if self.is_endpoint:
            check_url(self.where)
            if self.dtype or self.quantize or self.adapters or self.placement != NO_PLACEMENT:
                raise OptionError(
                    "dtype, quantize, adapters, device_map, max_memory, tensor_parallel and eager are for a "
                    f"model in process, such as vl2:MODEL; {self.where} has loaded its own"
                )
            options = parse_json(self.options.encode(), "the judge's options", OptionError)
            if not isinstance(options, dict):
                raise OptionError(f"the judge's options are {self.options!r}; accepted: a JSON object")
            model = self.model or only_model(self.where, self.key)
            return replace(self, model=model, version=self.version or self.where)
        family, _, name = self.where.partition(":")
        if family not in FAMILIES or not name:
            raise OptionError(f"judge is {self.where!r}; accepted: {_ACCEPTED}")
        if self.model or self.options != "{}" or self.version:
            raise OptionError(
                "the judge's model name, version and options are for endpoints; a model in process is named "
                f"by {family}:MODEL alone"
            )
        check_kind(self.quantize)
        return replace(self, model=name, version=weights_fingerprint(name, self.adapters))

    def make(self, device: str | None) -> Judge:
        """The judge of a resolved choice; a model in process is loaded on the device."""
        if self.is_endpoint:
            return EndpointJudge(self.where, self.model, self.key, json.loads(self.options), self.workers)
        where = self.placement.keywords(device)
        load = {**where, "dtype": self.dtype, "quantize": self.quantize}
        return LocalJudge(self.where.partition(":")[0], self.model, load, self.adapters)

    @property
    def identity(self) -> dict[str, Any]:
        """What the answers depend on: name, version and options of a resolved choice."""
        kind = "endpoint" if self.is_endpoint else self.where.partition(":")[0]
        # In process, a model is known by its fingerprint: its folder may move.
        content = {"kind": kind, "version": self.version, "options": json.loads(self.options)}
        if self.is_endpoint:
            return {**content, "model": self.model}
        quantize = {} if self.quantize is None else {"quantize": self.quantize}
        return {**content, "dtype": self.dtype, **quantize}


def answer_key(identity: Mapping[str, Any], picture: str, question: Question) -> str:
    """sha256 over a judge's identity, a picture's sha256 and a question."""
    content = {"judge": dict(identity), "picture": picture, "question": question.to_json()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
