"""From rows to what a model is trained on: token ids, image codes, and which tokens are learned.

L tokens of a prompt or conversation, T image tokens of a picture, S pixels along a side of the model's input.
"""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..blocks.chat.inputs import ChatInputs
from ..blocks.device import inference_on
from ..blocks.errors import BifronsError, OptionError, one_line
from ..blocks.files import temporary_path
from ..blocks.image_fit import FittedImage, as_tiles, normalized
from ..blocks.image_io import open_image
from ..janus.pipeline import JanusPipeline
from ..text.pipeline import TextPipeline
from .distributed import exchange, from_first, rank, world
from .rows import Fault, PaintRow, ReadRow, Row


@dataclass(frozen=True)
class PaintExample:
    """A prompt's ids int64 `[L]`, up to the start of the image, and the codes of its picture, int64 `[T]`.

    `replayed` says that the model painted it: not its codes are learned, but how likely each code was before
    training.
    """

    ids: Tensor
    codes: Tensor
    replayed: bool = False

    @property
    def count(self) -> int:
        """Learned tokens."""
        return len(self.codes)


@dataclass(frozen=True)
class ReadExample:
    """A conversation, and which of its tokens are learned, bool `[L]`: the assistant's answers and the end
    token after each."""

    inputs: ChatInputs
    learned: Tensor

    @property
    def count(self) -> int:
        """Learned tokens."""
        return int(self.learned.sum())


Example = PaintExample | ReadExample


def read_example(pipe: Any, messages: Sequence[dict[str, Any]]) -> ReadExample:
    """The example of a conversation that ends with an answer.

    Raises `PromptError`, `PictureError`, and `OptionError` if it is longer than the model's context.
    """
    inputs = pipe.processor.chat_inputs(messages)
    ids = torch.cat((inputs.ids, torch.tensor([pipe.tokenizer.eos_id])))
    learned = torch.zeros(len(ids), dtype=torch.bool)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = pipe.processor.chat_inputs([*messages[:number], {"role": "assistant", "content": ""}]).ids
            answered = pipe.processor.chat_inputs(messages[: number + 1]).ids
            opens = isinstance(pipe, TextPipeline) and pipe.thinks
            if opens and not torch.equal(answered[: len(asked)], asked):
                raise OptionError(
                    f"message {number} doesn't begin as this model's answers do; accepted: an answer that "
                    "begins with <think> and a line break"
                )
            if not torch.equal(ids[: len(answered)], answered) or len(asked) >= len(answered):
                raise OptionError(f"message {number} is no answer of its own; accepted: one a question")
            learned[len(asked) : len(answered) + 1] = True
    most = pipe.model.decoder.config.max_positions
    if len(ids) > most:
        raise OptionError(f"it takes {len(ids)} tokens; accepted: at most {most}, the model's context")
    mask = torch.cat((inputs.image_mask, torch.tensor([False])))
    return ReadExample(replace(inputs, ids=ids, image_mask=mask), learned)


def square_pixels(pipe: JanusPipeline, path: Path) -> Tensor:
    """The middle square of a picture to paint, scaled to the model's side: float32 `[3, S, S]` in -1..1.

    Unlike a picture to read it is cut, not padded: the model would learn to paint the padding. Raises
    `PictureError`.
    """
    transform = pipe.processor.transform
    square = ImageOps.fit(open_image(path), (transform.size, transform.size), Image.Resampling.BICUBIC)
    fitted = FittedImage(as_tiles(square, transform.size), square.size)
    return torch.from_numpy(normalized([fitted], transform.table, transform.size))[0]


def picture_encoder(pipe: JanusPipeline) -> nn.Module:
    """The image tokenizer's encoder in float32, of which other dtypes get a copy: their features are noise
    where a picture is plain."""
    vq = pipe.model.gen_vision_model
    encoder = nn.Sequential(vq.encoder, vq.quant_conv)
    return encoder if pipe.model.decoder.dtype == torch.float32 else deepcopy(encoder).float()


def encode_pictures(pipe: JanusPipeline, paths: Sequence[Path], encoder: nn.Module | None = None) -> Tensor:
    """Codes int64 `[N, T]` of pictures to paint, the nearest in float32.

    `encoder` is that of `picture_encoder`, for several calls. Raises `PictureError`.
    """
    pixels = torch.stack([square_pixels(pipe, path) for path in paths])
    with inference_on(pipe.device):
        features_NEHW = (encoder or picture_encoder(pipe))(pixels.to(pipe.device))
        return pipe.model.gen_vision_model.quantize.nearest(features_NEHW).flatten(1).cpu()


class CodesFile:
    """Codes of pictures by the digest of their files, kept in a safetensors file between runs.

    `tokenizer` identifies the image tokenizer: codes of another one are not used. `new` are those that the
    file doesn't hold.
    """

    def __init__(self, path: Path, tokenizer: str) -> None:
        self.path, self.tokenizer, self.codes = path, tokenizer, dict[str, Tensor]()
        self.new: dict[str, Tensor] = {}
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("tokenizer") == tokenizer:
                    digests = metadata["digests"].split()
                    self.codes = dict(zip(digests, file.get_tensor("codes").long(), strict=True))
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            pass  # a cache: it is made anew

    def save(self) -> None:
        """Write the file; the old one stays whole until the new one is."""
        metadata = {"tokenizer": self.tokenizer, "digests": " ".join(self.codes)}
        with temporary_path(self.path) as temporary:
            save_file({"codes": torch.stack(list(self.codes.values())).int()}, temporary, metadata)
            os.replace(temporary, self.path)


def tokenizer_digest(pipe: JanusPipeline) -> str:
    """Identifies the weights of the image tokenizer's encoder and the precision that it runs in."""
    digest = sha256(f"nearest in float32, {pipe.dtype}".encode())
    for name, tensor in sorted(pipe.model.gen_vision_model.state_dict().items()):
        if not name.startswith("decoder."):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Examples:
    """The examples of rows that were checked: row i is read by `examples[i]`."""

    pipe: Any
    rows: Sequence[Row]
    codes: dict[Path, Tensor]
    """Codes int64 `[T]` of the pictures to paint."""
    replayed: bool = False
    """Whether the model painted them; see `PaintExample`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        if isinstance(row, ReadRow):
            return read_example(self.pipe, row.messages)
        ids, _ = self.pipe.processor.generation_ids(row.prompt)
        return PaintExample(ids, self.codes[row.picture], self.replayed)


def prepare(
    pipe: Any, rows: Sequence[Row], cache: Path, progress: Callable[[int], object] = lambda count: None
) -> tuple[Examples, list[Fault]]:
    """Check every row, and encode the pictures to paint. Several processes, which all call it with the same
    rows, do a part each.

    Returns the examples and the faults of the rows left out. `cache` is the file that keeps the codes;
    `progress` is called with the number of rows done since its last call.
    """
    paints = isinstance(pipe, JanusPipeline) and pipe.model.parts == "all"
    file = CodesFile(cache, tokenizer_digest(pipe)) if paints else None
    encoder = lru_cache(lambda: picture_encoder(pipe))
    digests: dict[Path, str] = {}
    faults: dict[int, Fault] = {}
    for place in range(rank(), len(rows), world()):
        row = rows[place]
        try:
            if isinstance(row, ReadRow):
                read_example(pipe, row.messages)
            elif file is None:
                raise OptionError("it is a row for painting, which the model can't learn; accepted: messages")
            else:
                digests[row.picture] = _encode(pipe, row, file, encoder)
        except (BifronsError, OSError) as error:
            faults[place] = Fault(row.where, one_line(str(error)))
        progress(min(world(), len(rows) - place))
    for their_digests, their_faults, new in exchange((digests, faults, {} if file is None else file.new)):
        digests, faults = digests | their_digests, faults | their_faults
        if file is not None:
            file.codes |= new
    codes: dict[Path, Tensor] = {}
    if file is not None and digests:
        from_first(file.save)
        codes = {picture: file.codes[digest] for picture, digest in digests.items()}
    good = [row for place, row in enumerate(rows) if place not in faults]
    return Examples(pipe, good, codes), [faults[place] for place in sorted(faults)]


def _encode(pipe: JanusPipeline, row: PaintRow, file: CodesFile, encoder: Callable[[], nn.Module]) -> str:
    """Put the codes of a row's picture into the file, if they aren't there; returns their digest."""
    pipe.processor.generation_ids(row.prompt)
    with row.picture.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    if digest not in file.codes:
        file.codes[digest] = file.new[digest] = encode_pictures(pipe, [row.picture], encoder())[0]
    return digest


def draw(sizes: Sequence[int], weights: Sequence[float], count: int, seed: int) -> Tensor:
    """The rows of a run in order, int64 `[count]`: of the sources' rows one after another, mixed by weights.

    Each source is gone through in a new random order again and again. The same arguments give the same order,
    so that a run that was stopped goes on with the row that follows. Raises `OptionError`.
    """
    if len(weights) != len(sizes) or not all(0 < weight < float("inf") for weight in weights):
        raise OptionError(f"weights are {list(weights)}; accepted: a positive number for each source of data")
    if empty := [number for number, size in enumerate(sizes) if size == 0]:
        raise OptionError(f"source {empty[0]} of the data has no usable row")
    generator = torch.Generator().manual_seed(seed)
    sources = torch.multinomial(torch.tensor(weights, dtype=torch.float64), count, True, generator=generator)
    rows, start = torch.empty(count, dtype=torch.int64), 0
    for source, size in enumerate(sizes):
        places = (sources == source).nonzero()[:, 0]
        rounds = -(-len(places) // size)
        order = [torch.randperm(size, generator=generator) for _ in range(rounds)]
        rows[places] = start + torch.cat(order)[: len(places)] if order else rows[places]
        start += size
    return rows
