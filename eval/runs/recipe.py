"""The recipe of an evaluation's images, and its fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...blocks.checkpoints.quantize import check_kind
from ...blocks.errors import BifronsError, OptionError, check_integer
from ...blocks.image_prompts import MAX_SEED
from ...janus.image_generation import ImageGenerationOptions
from ..suites.catalog import CATALOG

SEED_POLICIES = ("per-picture", "official")
SUITES = ("geneval", "shapes", "shapes-hard", *CATALOG)
"""Names of the suites; `stages.py` has the loader of each."""
PLACEHOLDER = "{prompt}"


@dataclass(frozen=True)
class Recipe:
    """All that determines the images of a run. Raises OptionError for a value out of its range.

    suite: `geneval`, `shapes` or `shapes-hard` (sentences by `suite_seed`), or one of questions. template:
    text around a sentence, inside the model's own chat template, with {prompt} for the sentence. seed_policy:
    "per-picture" derives each image's seed from (seed, prompt, image); "official" gives image j of every
    prompt `seed` + j, since the published generation scripts set 42 anew for each prompt. limit: number of
    prompts, evenly spaced over the suite; None for all. batch_size: images generated together, which may
    matter by rounding. dtype: as resolved for the device. quantize: int8,
    int4 or fp8; None for weights as they are stored. adapters: LoRA adapters, each FOLDER:SCALE.
    prompts_sha256: of the suite's lines.
    """

    suite: str = "geneval"
    model: str = "janus-nano"
    dtype: str = "float32"
    quantize: str | None = None
    adapters: tuple[str, ...] = ()
    template: str = PLACEHOLDER
    guidance_scale: float = ImageGenerationOptions.guidance_scale
    temperature: float = ImageGenerationOptions.temperature
    top_k: int = ImageGenerationOptions.top_k
    top_p: float = ImageGenerationOptions.top_p
    images_per_prompt: int = 4
    seed: int = 42
    seed_policy: str = SEED_POLICIES[0]
    suite_seed: int = 0
    limit: int | None = None
    batch_size: int = 64
    prompts_sha256: str = ""

    def __post_init__(self) -> None:
        for name, accepted in (("suite", SUITES), ("seed_policy", SEED_POLICIES)):
            if getattr(self, name) not in accepted:
                raise OptionError(f"{name} is {getattr(self, name)!r}; accepted: {', '.join(accepted)}")
        if not isinstance(self.template, str) or self.template.count(PLACEHOLDER) != 1:
            raise OptionError(
                f"template is {self.template!r}; accepted: a text with {PLACEHOLDER} in it once"
            )
        check_kind(self.quantize)
        if not all(isinstance(text, str) for text in self.adapters):
            raise OptionError(f"adapters is {self.adapters!r}; accepted: a list of FOLDER:SCALE")
        object.__setattr__(self, "adapters", tuple(self.adapters))  # a list in a file
        check_integer("images_per_prompt", self.images_per_prompt, low=1)
        check_integer("batch_size", self.batch_size, low=1)
        check_integer("seed", self.seed, 0, MAX_SEED - self.images_per_prompt)
        check_integer("suite_seed", self.suite_seed, 0)
        if self.limit is not None:
            check_integer("limit", self.limit, low=1)
        _ = self.options

    @property
    def options(self) -> ImageGenerationOptions:
        """The arguments of `generate`."""
        return ImageGenerationOptions(self.guidance_scale, self.temperature, self.top_k, self.top_p)

    def prompt(self, sentence: str) -> str:
        """The model's prompt for a sentence."""
        return self.template.replace(PLACEHOLDER, sentence)

    def image_seed(self, index: int, number: int) -> int:
        """Seed of image `number` of prompt `index`, both from 0. Below 2**53, exact in any JSON reader."""
        if self.seed_policy == "official":
            return self.seed + number
        digest = hashlib.sha256(f"{self.seed} {index} {number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 11

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_json`. Raises BifronsError for missing or unknown fields.

        Recipes of before there were `quantize` and `adapters` are of weights as they are stored.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(content, Mapping) or {*content, "quantize", "adapters"} != names:
            got = sorted(content) if isinstance(content, Mapping) else type(content).__name__
            raise BifronsError(f"a recipe has the fields {got}; accepted: {sorted(names)}")
        return cls(**content)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """A line for each field in which two recipes differ."""
    a, b = old.to_json(), new.to_json()
    return [f"{name} {a[name]!r}, not {b[name]!r}" for name in a if a[name] != b[name]]


def fingerprint(recipe: Recipe, model: str) -> str:
    """sha256 over a recipe and `model_fingerprint`, in place of the model's name: a folder may move.

    So do adapters, of which the model's fingerprint tells. `quantize` is left out where it is None, so that
    older runs keep their fingerprints.
    """
    content = {**recipe.to_json(), "model": model}
    del content["adapters"]
    if recipe.quantize is None:
        del content["quantize"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
