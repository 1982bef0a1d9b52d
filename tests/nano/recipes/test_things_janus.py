"""The recipes of janus-nano for the world of things, at toy size."""

from dataclasses import replace
from random import Random

import pytest
import torch
from bifrons.blocks.vocabulary import read_vocabulary
from bifrons.learn.pretraining import PretrainingOptions
from bifrons.nano.recipes import things_janus_spec, things_pictures, things_train
from bifrons.nano.recipes.things_janus_spec import PaintEncoder, write_folder
from bifrons.nano.recipes.things_parts import VQ, Job
from bifrons.nano.recipes.things_pictures import picture_shard
from bifrons.nano.recipes.things_tokenizer import known_words
from bifrons.nano.world.describing import plain_sentence
from bifrons.nano.world.sampling import KINDS, sample_request
from bifrons.tokenizers.text import TextTokenizer
from bifrons.tokenizers.vq.model import VQConfig
from safetensors.torch import load_file

CPU = torch.device("cpu")
TOY_VQ = VQConfig(32, 8, ch=4, ch_mult=(1, 1, 1, 1), z_channels=4, num_res_blocks=1, norm_groups=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("janus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(things_janus_spec, "vq_config", lambda: TOY_VQ)
        write_folder(folder)
    return folder


def test_words_are_single_tokens_in_any_case(folder):
    tokenizer = TextTokenizer.from_folder(folder)
    for word in known_words():
        lower = tokenizer.encode(f" {word}", bos=False)
        assert len(lower) == 1, word
        assert tokenizer.encode(f" {word.title()}", bos=False) == lower
    assert tokenizer.encode("a grey dog", bos=False) == tokenizer.encode("a gray dog", bos=False)
    assert tokenizer.decode(tokenizer.encode("zwölf Äpfel, 7!")) == "zwölf äpfel, 7!"


def test_all_sentences_are_known_and_fit(folder):
    words, encode = read_vocabulary(folder), PaintEncoder(folder)
    assert words is not None
    rng = Random(3)
    for kind in KINDS:
        sentence = plain_sentence(sample_request(kind, rng))
        assert not words.unknown([sentence], "painting")
        assert len(encode(sentence)) < 40
    assert words.unknown(["a photo of a wombat and an elehpant, a goat and a dgo"], "painting") == [
        "wombat",
        "goat",
    ]
    assert words.unknown(["seven dogs on jupiter"], "painting") == ["seven", "jupiter"]
    assert words.unknown(["What colour are the skis?"], "reading") == []
    assert words.unknown(["What does the sign say?"], "reading") == ["say"]


def test_truth_is_where_the_pictures_have_it(monkeypatch):
    monkeypatch.setattr(things_pictures, "SHARD", 3)
    arrays = picture_shard(5)
    assert arrays["pixels"].shape == (3, 192, 192, 3)
    assert (arrays["there"].sum(1) >= 1).all()
    boxes = arrays["box"][arrays["there"] > 0]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 192


def test_the_tokenizer_part_trains_and_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setattr(things_pictures, "SHARD", 2)
    part = replace(things_train.PARTS["vq"], options=PretrainingOptions(1e-3, steps=2, optimizer="adamw"))
    job = Job(folder, (1,), (2,), 0, 1, CPU)
    things_train.train("vq", part, job, 0.0)
    assert "PSNR on 2 fresh pictures" in capsys.readouterr().out
    first = load_file(folder / VQ)
    assert "decoder.conv_out.weight" in first
    things_train.train("vq", part, job, 0.0)
    assert "goes on from step 2" in capsys.readouterr().out
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(folder / VQ).items())
