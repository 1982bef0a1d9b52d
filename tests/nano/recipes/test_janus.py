"""The recipes of janus-nano for the world of things, at toy size."""

import shutil
from dataclasses import replace
from random import Random

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.siglip import SiglipConfig, build_siglip
from bifrons.blocks.vocabulary import read_vocabulary
from bifrons.janus.config import JanusConfig
from bifrons.janus.pipeline import JanusPipeline
from bifrons.learn.packed import load_rows
from bifrons.learn.pretraining import PretrainingOptions
from bifrons.learn.scratch import initialize
from bifrons.nano.recipes import janus_data, janus_spec, pictures, train
from bifrons.nano.recipes.janus_data import PAINT, READ, RESTATE, Coder, write_examples
from bifrons.nano.recipes.janus_spec import PaintEncoder, write_folder
from bifrons.nano.recipes.parts import MODEL, TOWER, VQ, Job, write_weights
from bifrons.nano.recipes.pictures import picture_shard
from bifrons.nano.recipes.tokenizer import known_words
from bifrons.nano.world.asking import KINDS as QUESTIONS
from bifrons.nano.world.asking import ask
from bifrons.nano.world.describing import plain_sentence
from bifrons.nano.world.sampling import KINDS, sample_example, sample_request
from bifrons.nano.world.view import View
from bifrons.tokenizers.text import TextTokenizer
from bifrons.tokenizers.vq.config import VQConfig
from bifrons.tokenizers.vq.model import VQModel
from safetensors.torch import load_file

TOY_TOWER = SiglipConfig(image_size=192, patch_size=16, width=32, layers=1, heads=1)
CPU = torch.device("cpu")
TOY_VQ = VQConfig(
    32, 8, ch=4, ch_mult=(1, 1, 1, 1), z_channels=4, num_res_blocks=1, norm_groups=2, patch_width=8
)


def toy_config(vocab_size: int) -> JanusConfig:
    decoder = DecoderConfig(vocab_size, 64, 64, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64)
    return JanusConfig(TOY_TOWER, decoder, TOY_VQ, gen_head_width=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("janus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(janus_spec, "janus_config", toy_config)
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
    monkeypatch.setattr(pictures, "SHARD", 3)
    arrays = picture_shard(5)
    assert arrays["pixels"].shape == (3, 192, 192, 3)
    assert (arrays["there"].sum(1) >= 1).all()
    boxes = arrays["box"][arrays["there"] > 0]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 192


def test_the_tokenizer_part_trains_and_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "SHARD", 2)
    part = replace(train.PARTS["vq"], options=PretrainingOptions(1e-3, steps=2, optimizer="adamw"))
    job = Job(folder, (1,), (2,), 0, 1, CPU)
    train.train("vq", part, job, 0.0)
    assert "PSNR on 2 fresh pictures" in capsys.readouterr().out
    first = load_file(folder / VQ)
    assert "decoder.conv_out.weight" in first
    train.train("vq", part, job, 0.0)
    assert "goes on from step 2" in capsys.readouterr().out
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(folder / VQ).items())


def test_the_model_trains_on_its_examples_and_paints(folder, monkeypatch, capsys):
    for module in (pictures, janus_data):
        monkeypatch.setattr(module, "SHARD", 4)
    torch.manual_seed(0)
    write_weights(VQModel(TOY_VQ), folder / VQ, torch.bfloat16)
    tower = build_siglip(TOY_TOWER)
    initialize(tower, 1)
    write_weights(tower, folder / TOWER, torch.float32)
    job = Job(folder, (2, 2, 2), (4, 4, 4), 0, 1, CPU)
    part = replace(train.PARTS["janus"], options=PretrainingOptions(1e-3, steps=1))
    with pytest.raises(OptionError, match="janus-data first"):
        train.train("janus", part, job, 0.0)
    write_examples(job)
    read = load_rows(folder / READ)
    assert read.more["tiles"].shape == (4, 1, 3, 192, 192)
    assert load_rows(folder / PAINT).more["codes"].shape == (4, 576)
    decoded = TextTokenizer.from_folder(folder).decode(read.ids[0][read.learned[0]].tolist())
    assert decoded.strip()
    restated = load_rows(folder / RESTATE)
    decoded = TextTokenizer.from_folder(folder).decode(restated.ids[0][restated.learned[0]].tolist())
    assert decoded.split()[0] in ("one", "two", "three", "four", "five", "six")
    train.train("janus", part, job, 0.0)
    assert "1 steps done" in capsys.readouterr().out
    pipe = JanusPipeline.from_pretrained(folder / MODEL, "cpu")
    assert pipe.guidance_scale == janus_spec.GUIDANCE_SCALE
    codes = pipe.generate("a photo of a red cat", seed=1, output_type="codes")
    assert codes.shape == (1, 576)
    assert "wombat" in str(pipe.unknown_words(["a wombat"], "painting"))

    (folder / MODEL).rename(folder / "before")
    shutil.rmtree(folder / "runs" / "janus")
    part = replace(part, options=PretrainingOptions(0.0, steps=1, seed=1))
    train.train("janus", part, replace(job, start=folder / "before", seed=1), 0.0)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("before", MODEL))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_codes_do_not_depend_on_the_batch(folder):
    torch.manual_seed(0)
    write_weights(VQModel(TOY_VQ), folder / VQ, torch.bfloat16)
    coder = Coder(Job(folder, (), (), 0, 1, CPU))
    images = torch.randint(256, (3, 3, 192, 192), dtype=torch.uint8)
    codes = coder.encode(images)
    assert codes.dtype == torch.int16
    assert (codes[:1] == coder.encode(images[:1])).float().mean() > 0.97
    assert coder.reconstruct(images).shape == images.shape


def test_other_questions_are_known(folder):
    words = read_vocabulary(folder)
    assert words is not None
    assert set(janus_spec.UNASKED) < set(QUESTIONS)
    rng, asked = Random(11), []
    for _ in range(12):
        view = View(sample_example("many", rng, "train", 96, 96).picture)
        kinds = [kind for kind in QUESTIONS if kind not in janus_spec.UNASKED]
        asked += [question.text for kind in kinds if (question := ask(view, rng, kind))]
    assert len(asked) > 100
    assert not words.unknown(asked, "reading")
