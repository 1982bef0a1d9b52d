"""The server's options, and the limits of a model's requests, which follow the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...blocks.engine.scheduler import Scheduler
from ...blocks.errors import OptionError, PromptError, check_integer, check_number, counted
from ...blocks.model.kv_cache import KVCache
from ...blocks.placement.memory_budget import rows_that_fit
from ...blocks.sampling.request import check_context
from ...blocks.speculate import Speculate, check_speculate
from ..pipelines import as_janus, as_text
from .errors import ApiError

if TYPE_CHECKING:
    from ..pipelines import Pipeline

LEAST_ROWS = 4
"""Rows that should fit with the model's whole context; else the context is shortened until they do."""
LEAST_CONTEXT = 2048
"""Tokens down to which it is shortened; then there are fewer rows."""
LEAST_ANSWERS = 32
"""Answers without `max_tokens` that should find room in a pool at the same time."""
_STEP = 256


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server. Requests that exceed them are refused early, before costly work."""

    max_queue: int = 64
    """Rows that may wait; an answer takes one row, an image with guidance two."""
    rows: int | None = None
    """Rows that run together; fewer if memory is short. None is 256 with CUDA and 32 elsewhere."""
    context: int | None = None
    """Tokens per row, prompt and answer together, up to the model's own. None is that, or less where memory
    is short."""
    max_new_tokens: int | None = None
    """Tokens of an answer. None is what the prompt leaves of the context."""
    max_images: int | None = None
    """Images in one request. None is as many as fit into the context."""
    max_body: int = 20_000_000
    """Bytes of a request body, images in base64 included."""
    max_bodies: int = 8
    """Bodies of that size that may be held at the same time; smaller ones are more."""
    max_pixels: int = 16_000_000
    """Pixels of one image."""
    max_side: int = 16_384
    """Pixels of the longer side of one image: resizing makes one as wide as the model's, as high as it."""
    allow_url_fetch: bool = False
    """Whether images may be given by public URLs."""
    image_urls: int = 0
    """MB of memory for images that are served by URL for an hour."""
    adapters_from: Path | None = None
    """A folder with adapters that clients may load while the server runs; None: they may not."""
    allow_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the server; `*` is any."""
    speculate: Speculate = "auto"
    """How many tokens a step may check: see `blocks/drafts.py`."""
    grace: float = 6.0
    """Seconds in which running requests may finish when the server stops."""

    def __post_init__(self) -> None:
        check_speculate(self.speculate)
        if self.adapters_from is not None and not self.adapters_from.is_dir():
            raise OptionError(f"adapters-from is {str(self.adapters_from)!r}; accepted: a folder")
        check_number("grace", self.grace, low=0.0, high=86_400.0)
        least = {"max_queue": 0, "rows": 2, "context": 64, "max_new_tokens": 1}
        least |= {"max_images": 0, "image_urls": 0}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None:
                check_integer(name.replace("_", "-"), value, low=low)


class Limits:
    """What one request to a model may ask for, and why no more."""

    def __init__(self, options: ServerOptions, pipe: "Pipeline", rows: int, sharing: int) -> None:
        """For a cache of up to `rows` rows in one of `sharing` equal shares of the free memory."""
        decoder = pipe.model.decoder
        config, dtype = decoder.config, decoder.dtype
        self.options, self.own = options, config.max_positions
        self._position_bytes = KVCache.row_bytes(32, config.num_layers, config.cache_widths, dtype) // 32
        self.image_tokens = _image_tokens(pipe)
        self.context = min(options.context or self.own, self.own)
        if options.context is None:
            while self.context > LEAST_CONTEXT:
                size = sharing * self.context * self._position_bytes
                if rows_that_fit(size, decoder.device, decoder.layout) >= min(rows, LEAST_ROWS):
                    break
                self.context = max(LEAST_CONTEXT, (self.context - 1) // _STEP * _STEP)
        self.default_new_tokens: int | None = None
        """Tokens of an answer whose request states none, where a pool of memory is short."""

    def share(self, scheduler: Scheduler) -> None:
        """Limit answers of no stated length where requests take their memory from a pool, before they run."""
        positions = scheduler.runner.cache_bytes // self._position_bytes
        if 0 < positions < LEAST_ANSWERS * self.context:
            self.default_new_tokens = max(512, positions // LEAST_ANSWERS)

    @property
    def text(self) -> str:
        """Where the length of the context comes from."""
        if self.context == self.own:
            return "the model's own context"
        reason = "set by --context" if self.options.context else "memory is short: set --context or --rows"
        return f"of the model's {self.own:,}; {reason}"

    @property
    def startup_text(self) -> str:
        """The `text`, and the length of answers whose requests state none, if it isn't what fits."""
        counts = [one for one in (self.options.max_new_tokens, self.default_new_tokens) if one is not None]
        return self.text + (f"; answers without max_tokens: up to {min(counts):,}" if counts else "")

    def new_tokens(self, prompt: int, asked: int | None, param: str = "messages") -> int:
        """Tokens of an answer to a prompt of some tokens, if `asked` fits. Raises `ApiError`."""
        most, room = self.options.max_new_tokens, self.context - prompt
        if asked is not None and most is not None and asked > most:
            text = f"max_tokens is {asked:,}; this server gives answers of up to {most:,} (--max-new-tokens)"
            raise ApiError(400, text, code="invalid_value", param="max_tokens")
        default = min(one for one in (most, self.default_new_tokens, room) if one is not None)
        count = max(1, default) if asked is None else asked
        self.check(prompt, count, param)
        return count

    def check(self, prompt: int, new: int, param: str) -> None:
        """Raise an `ApiError` about a field if this many prompt and new tokens exceed the context."""
        try:
            check_context(prompt, new, self.context)
        except PromptError as error:
            text = f"{error} ({self.text})"
            raise ApiError(400, text, code="context_length_exceeded", param=param) from error

    def check_images(self, count: int) -> None:
        """Raise an `ApiError` for more images than a request may have."""
        most, fitting = self.options.max_images, self.context // self.image_tokens
        if most is not None and count > most:
            reason = f"at most {most} are accepted (--max-images)"
        elif count > fitting:
            reason = f"of at least {self.image_tokens} tokens each at most {fitting} fit into the context of "
            reason += f"{self.context:,} ({self.text})"
        else:
            return
        text = f"the request has {counted(count, 'picture')}; {reason}"
        raise ApiError(400, text, code="too_many_images", param="messages")


def _image_tokens(pipe: "Pipeline") -> int:
    """Tokens of an image, at least."""
    if (janus := as_janus(pipe)) is not None:
        return janus.processor.num_image_tokens + 2  # with the marks of its start and end
    if as_text(pipe) is not None:
        return 1  # its processor refuses images
    from ...vl2.tiles import num_image_tokens

    return num_image_tokens((1, 1), cast(Any, pipe.processor).side)
