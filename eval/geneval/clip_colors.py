"""GenEval's colour classifier: CLIP ViT-L/14 in transformers, from its own weights or open_clip's.

Each object is cut out by its mask, pasted on plain grey #999, cropped to its box and embedded by CLIP; its
colour is the nearest of ten text embeddings. The official scorer computes in mixed precision on a GPU; here
it is float32 everywhere.

Shape suffixes: N objects, D width of the shared embedding, C colours, T templates, L tokens.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from ...blocks.checkpoints.formats import list_bin, list_safetensors
from ...blocks.checkpoints.reader import TensorReader
from ...blocks.errors import BifronsError, CheckpointError
from ...blocks.tokenizer_file import library_errors
from ..atomic_io import make_folder, read_file, read_json, write_file
from .clip_convert import convert_open_clip, open_clip_config
from .mask2former_convert import sha256
from .options import OFFICIAL, ScorerOptions
from .schema import COLORS

TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 16

OPENAI_SHA256 = frozenset(
    (
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "f1a17cdbe0f36fec524f5cafb1c261ea3bbbc13e346e0f74fc9eb0460dedd0d3",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    )
)
"""Of OpenAI's weights: model.safetensors and pytorch_model.bin of openai/clip-vit-large-patch14, and
open_clip_model.safetensors of timm/vit_large_patch14_clip_224.openai, which open_clip's `openai` loads. They
are the names of the files' blobs in Hugging Face's cache, as published by others."""
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
MISSING_CLIP = (
    "the colours need CLIP ViT-L/14 by OpenAI: a folder of openai/clip-vit-large-patch14 (config.json, "
    "tokenizer.json, model.safetensors) or open_clip's timm/vit_large_patch14_clip_224.openai "
    "(open_clip_config.json, tokenizer.json, open_clip_model.safetensors); download it anywhere and give the "
    "folder with --clip-weights"
)


class ColorClassifier:
    """Classifies the colours of objects in an image.

    sha256: of the weights' file, if known. tensors: `tensors_sha256` of the weights, if known. options:
    `bgcolor` and `crop` of them are used.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        sha256: str | None = None,
        options: ScorerOptions = OFFICIAL,
        tensors: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.sha256 = sha256
        self.tensors = tensors
        self.options = options
        self.side: int = model.config.vision_config.image_size
        self._tokenizer = tokenizer
        self._context: int = model.config.text_config.max_position_embeddings
        self._texts: dict[str, Tensor] = {}

    @property
    def verified(self) -> bool:
        """Whether the weights are OpenAI's: by their file's sha256, or by their tensors' where a file with
        such a sha256 was loaded on this machine before."""
        return self.sha256 in OPENAI_SHA256 or (self.tensors is not None and self.tensors in _known_tensors())

    @torch.no_grad()
    def classify(
        self, image: Image.Image, boxes_N4: np.ndarray, masks_NHW: np.ndarray, name: str
    ) -> list[str]:
        """The colour of each of N objects of class `name`; boxes in pixels, masks at the image's size."""
        texts_CD = self._texts.get(name)
        if texts_CD is None:
            texts_CD = self._texts[name] = self._embed_texts(name)
        crops = [self.crop(image, box, mask) for box, mask in zip(boxes_N4, masks_NHW, strict=True)]
        colors: list[str] = []
        for start in range(0, len(crops), BATCH):
            pixels = torch.stack(crops[start : start + BATCH]).to(texts_CD.device)
            objects_ND = F.normalize(_features(self.model.get_image_features(pixel_values=pixels)), dim=-1)
            colors += [COLORS[int(best)] for best in (objects_ND @ texts_CD.T).argmax(1)]
        return colors

    def crop(self, image: Image.Image, box: np.ndarray, mask_HW: np.ndarray) -> Tensor:
        """CLIP's input for one object: float32 [3, side, side]."""
        image = image.convert("RGB")
        background = self.options.background
        if background is not None:
            blank = Image.new("RGB", image.size, background)
            image = Image.composite(image, blank, Image.fromarray(mask_HW.astype(np.uint8) * 255))
        if self.options.crop:
            x0, y0, x1, y1 = (round(float(edge)) for edge in box[:4])
            image = image.crop((x0, y0, x1, y1))
        pixels = np.asarray(_resize_and_crop(image, self.side), np.float32) / 255
        normal = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        return torch.from_numpy(normal).permute(2, 0, 1)

    def _embed_texts(self, name: str) -> Tensor:
        """[C, D]: per colour, the mean of the templates' embeddings, normalised before and after."""
        rows = []
        for color in COLORS:
            texts = [template.format(color=color, name=name) for template in TEMPLATES]
            ids_TL = self._ids(texts)
            out = self.model.get_text_features(input_ids=ids_TL, attention_mask=torch.ones_like(ids_TL))
            mean_D = F.normalize(_features(out), dim=-1).mean(0)
            rows.append(mean_D / mean_D.norm())
        return torch.stack(rows)

    def _ids(self, texts: Sequence[str]) -> Tensor:
        """int64 [T, L] on the model's device: start, text, end; padded with ends that causal
        attention never reaches."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        longest = max(map(len, ids))
        if longest > self._context:
            raise BifronsError(
                f"{texts[0]!r} has {longest} tokens; accepted by the classifier: {self._context}"
            )
        end = ids[0][-1]
        device = next(self.model.parameters()).device
        return torch.tensor([row + [end] * (longest - len(row)) for row in ids], device=device)


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """CLIP's preprocessing: bicubic resize of the shorter side to `side`, then a centre crop."""
    width, height = image.size
    short = min(width, height)
    small = image.resize((int(side * width / short), int(side * height / short)), Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2) for edge in small.size)
    return small.crop((left, top, left + side, top + side))


def _features(out: Any) -> Tensor:
    """[N, D]: the output itself before transformers 5, its `pooler_output` since."""
    return out if isinstance(out, Tensor) else out.pooler_output


def load_color_classifier(
    folder: Path, transformers: Any, options: ScorerOptions = OFFICIAL
) -> ColorClassifier:
    """Load CLIP's weights, in transformers' format or open_clip's, and its tokenizer.json from a folder.

    Raises BifronsError where the folder has no weights, CheckpointError where they do not fit.
    """
    for files, load in ((TRANSFORMERS_FILES, _load_transformers), (OPEN_CLIP_FILES, _load_open_clip)):
        weights = next((folder / name for name in files if os.path.isfile(folder / name)), None)
        if weights is None:
            continue
        tokenizer_file = folder / "tokenizer.json"
        if not os.path.isfile(tokenizer_file):
            raise CheckpointError(f"{folder} has no tokenizer.json. {MISSING_CLIP}")
        content = read_file(tokenizer_file)
        with library_errors(f"{tokenizer_file} can't be read as a tokenizer"):
            tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        model, loading = load(weights, transformers)
        _check_loaded(loading)
        digest, tensors = sha256(weights), tensors_sha256(model)
        if digest in OPENAI_SHA256 and tensors not in _known_tensors():
            make_folder(_known_file().parent)
            write_file(
                _known_file(), "".join(f"{known}\n" for known in (*_known_tensors(), tensors)).encode()
            )
        return ColorClassifier(model, tokenizer, digest, options, tensors)
    raise BifronsError(
        f"{folder} holds none of {', '.join(TRANSFORMERS_FILES + OPEN_CLIP_FILES)}. {MISSING_CLIP}"
    )


def tensors_sha256(model: Any) -> str:
    """sha256 over names, shapes and float32 values of a CLIPModel's weights, whatever file they came from.

    Without the temperature, which no colour depends on, and the positions, which are no weights.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name != "logit_scale" and "position_ids" not in name:
            total.update(f"{name}\0{list(tensor.shape)}\n".encode())
            total.update(tensor.detach().float().cpu().contiguous().numpy().astype("<f4").data)
    return total.hexdigest()


def _known_file() -> Path:
    """In `$BIFRONS_CACHE`, or `bifrons` in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("BIFRONS_CACHE") or Path(user_cache) / "bifrons")
    return folder / "clip-vit-large-patch14.tensors"


def _known_tensors() -> list[str]:
    """`tensors_sha256` of OpenAI's weights, as loaded before from a file that is known to be theirs."""
    path = _known_file()
    return read_file(path).decode("ascii", "replace").split() if os.path.isfile(path) else []


def _load_transformers(weights: Path, transformers: Any) -> tuple[Any, dict[str, Any]]:
    try:
        return transformers.CLIPModel.from_pretrained(
            weights.parent,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=weights.suffix == ".safetensors",
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{weights.parent} is no CLIP model of transformers: {error}") from error


def _load_open_clip(weights: Path, transformers: Any) -> tuple[Any, dict[str, Any]]:
    source = weights.parent / "open_clip_config.json"
    try:
        settings = read_json(source)["model_cfg"]
        with TensorReader() as reader:
            list_file = list_safetensors if weights.suffix == ".safetensors" else list_bin
            state = {entry.name: reader.read(entry) for entry in list_file(weights)}
    except (BifronsError, KeyError, TypeError) as error:
        raise CheckpointError(f"{weights.parent} can't be read as an open_clip folder: {error}") from error
    config = open_clip_config(settings, transformers)
    return transformers.CLIPModel.from_pretrained(
        None,
        config=config,
        state_dict={name: tensor.float() for name, tensor in convert_open_clip(state).items()},
        dtype=torch.float32,
        output_loading_info=True,
    )


def _check_loaded(loading: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # Older files hold the positions 0, 1, 2, ... as tensors, which are not weights.
        names = sorted(str(name) for name in loading[kind] if "position_ids" not in str(name))
        if names:
            raise CheckpointError(
                f"the colour classifier's tensors do not fit its network, {kind}: {', '.join(names[:4])}"
            )
