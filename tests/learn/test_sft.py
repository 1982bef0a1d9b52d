"""Fine-tuning of both embedded models by LoRA: it learns, goes on where it stopped, and its adapter loads."""

from pathlib import Path
from random import Random

import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.blocks.errors import OptionError
from bifrons.learn.adapters import LoraOptions, save_adapter
from bifrons.learn.examples import Examples, PaintExample, draw, encode_pictures, prepare
from bifrons.learn.losses import TrainingModel, collate
from bifrons.learn.reference import logits_of
from bifrons.learn.rows import PaintRow, ReadRow
from bifrons.learn.sft import SftOptions, SftRun
from bifrons.nano.world.pieces import PAINTED
from bifrons.nano.world.sampling import sample_example
from PIL import Image, ImageDraw

from ..models import SHAPES_JANUS, SHAPES_VL2

pytest.importorskip("peft")
LORA = LoraOptions(rank=4)


def striped(path: Path, color: str) -> Path:
    image = Image.new("RGB", (128, 128), "white")
    draw_on = ImageDraw.Draw(image)
    for top in range(30, 90, 12):
        draw_on.rectangle((30, top, 90, top + 5), fill=color)
    image.save(path)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two rows for painting, and two for reading."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = {color: striped(folder / f"{color}.png", color) for color in ("red", "blue")}
    paint = [PaintRow(color, f"a photo of a {color} square", path) for color, path in pictures.items()]
    read = []
    for color, path in pictures.items():
        question = [{"type": "image", "image": str(path)}, {"type": "text", "text": "What?"}]
        answer = {"role": "assistant", "content": "two stars"}
        read.append(ReadRow(color, [{"role": "user", "content": question}, answer]))
    return paint, read


def load(kind):
    return kind.from_pretrained(SHAPES_JANUS if kind is JanusPipeline else SHAPES_VL2, "cpu", progress=False)


def start(pipe, rows, folder, steps=4, **options) -> SftRun:
    folder.mkdir(exist_ok=True)
    examples, faults = prepare(pipe, rows, folder / "codes.safetensors")
    assert not faults
    chosen = SftOptions(
        steps, batch_size=len(rows), rows_at_once=2, save_every=2, **{"lora": LORA, **options}
    )
    return SftRun(pipe, [examples], [1.0], chosen, folder)


def trained_weights(pipe) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in pipe.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", [JanusPipeline, VL2Pipeline])
def test_a_run_learns_goes_on_and_gives_an_adapter(kind, rows, tmp_path) -> None:
    paint, read = rows
    data = [*paint, *read] if kind is JanusPipeline else read
    whole = load(kind)
    figures: list[dict[str, float]] = []
    run = start(whole, data, tmp_path / "whole", learning_rate=1e-3, unconditional=0.0)
    run.run(figures.append)
    total = [sum(f[k] for k in ("image_loss", "text_loss") if k in f) for f in figures]
    assert len(total) == 4
    assert total[-1] < 0.9 * total[0]

    # Stopped after two of four steps and started again by another process: bit for bit the same.
    first = start(load(kind), data, tmp_path / "parts", learning_rate=1e-3, unconditional=0.0)

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    again = load(kind)
    second = start(again, data, tmp_path / "parts", learning_rate=1e-3, unconditional=0.0)
    assert second.resume() == 2
    second.run()
    expected = trained_weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in trained_weights(again).items())
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-4"]

    # Added to the weights of a fresh model, the adapter gives what was trained, and can be taken out again.
    save_adapter(whole.model, run.adapter, tmp_path / "adapter")
    plain, question = load(kind), [{"role": "user", "content": "What?"}]
    before = plain.next_logits(question)
    plain.load_adapter(tmp_path / "adapter")
    merged, applied = plain.next_logits(question), whole.next_logits(question)
    assert (merged - applied).abs().max() < 1e-4 * applied.abs().max()
    assert (merged - before).abs().max() > 1e-3
    plain.unload_adapter()
    assert torch.equal(plain.next_logits(question), before)


@pytest.mark.parametrize("trains", [False, True])
def test_the_vision_encoder_is_trained_if_asked(rows, tmp_path, trains) -> None:
    pipe = load(VL2Pipeline)
    before = {name: p.detach().clone() for name, p in pipe.model.named_parameters()}
    start(pipe, rows[1], tmp_path, 1, lora=None, train_vision=trains, learning_rate=1e-3).run()
    changed = {name for name, p in pipe.model.named_parameters() if not torch.equal(p, before[name])}
    vision = {name for name in before if name.startswith("vision.")}
    assert changed & vision == (vision if trains else set())
    assert "language.model.layers.0.mlp.up_proj.weight" in changed
    with pytest.raises(OptionError, match="or lora"):
        SftOptions(1, lora=LORA, train_vision=True)


class Numbers:
    """Prompts with codes that are made as they are drawn."""

    def __init__(self, pipe: JanusPipeline) -> None:
        self.pipe, self.made = pipe, list[int]()

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> PaintExample:
        self.made.append(index)
        ids = self.pipe.processor.generation_ids(f"number {index}")[0]
        return PaintExample(ids, torch.full((256,), index))


def test_examples_may_be_made_as_they_are_drawn(tmp_path) -> None:
    pipe = load(JanusPipeline)
    numbers, figures = Numbers(pipe), list[dict[str, float]]()
    options = SftOptions(1, batch_size=2, lora=LORA)
    run = SftRun(pipe, [numbers], [1.0], options, tmp_path)
    run.run(figures.append)
    assert figures[0]["image_loss"] > 3  # one code again and again is no picture
    assert set(numbers.made) == set(run.order.tolist())


def test_bad_rows_are_found_before_training(rows, tmp_path) -> None:
    paint, read = rows
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    long = [{"role": "user", "content": "word " * 3000}, {"role": "assistant", "content": "yes"}]
    bad = [
        PaintRow("1", "a star", broken),
        PaintRow("2", "a star", tmp_path / "missing.png"),
        ReadRow("3", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]),
        ReadRow("4", long),
        ReadRow("5", [{"role": "user", "content": []}, {"role": "assistant", "content": "yes"}]),
    ]
    pipe = load(JanusPipeline)
    examples, faults = prepare(pipe, [paint[0], *bad, read[0]], tmp_path / "codes.safetensors")
    assert [fault.where for fault in faults] == ["1", "2", "3", "4", "5"]
    assert len(examples) == 2
    _, faults = prepare(load(VL2Pipeline), [paint[0], read[0]], tmp_path / "codes2.safetensors")
    assert [str(fault) for fault in faults] == [
        "red: it is a row for painting, which the model can't learn; accepted: messages"
    ]


def test_codes_of_pictures_are_kept(rows, tmp_path, monkeypatch) -> None:
    paint, _ = rows
    pipe = load(JanusPipeline)
    first, _ = prepare(pipe, paint, tmp_path / "codes.safetensors")
    monkeypatch.setattr("bifrons.learn.examples.encode_pictures", lambda *_: pytest.fail("encoded again"))
    again, _ = prepare(pipe, paint, tmp_path / "codes.safetensors")
    assert first.codes.keys() == again.codes.keys()
    assert all(torch.equal(codes, again.codes[path]) for path, codes in first.codes.items())


def test_codes_are_those_that_the_model_was_trained_on(tmp_path) -> None:
    pipe, rng = JanusPipeline.from_pretrained("janus-nano", "cpu", progress=False), Random(5)
    rows = []
    for number, kind in enumerate(("single_object", "colors", "counting")):
        case = sample_example(kind, rng, variety=PAINTED)
        case.picture.image().save(path := tmp_path / f"{number}.png")
        rows.append(PaintRow(str(number), case.prompt, path))
    examples, _ = prepare(pipe, rows, tmp_path / "codes.safetensors")
    batch = collate([examples[number] for number in range(len(rows))], pipe.processor.pad_id, [False] * 3)
    with torch.no_grad():
        loss = TrainingModel(pipe.model)(batch)["image"].item() / batch.counts["image"]
    assert loss < 0.3  # 0.06; of the nearest in bfloat16 it is 0.84


def test_codes_do_not_depend_on_the_dtype(tmp_path) -> None:
    path = striped(tmp_path / "red.png", "red")
    dtypes = ("float32", "bfloat16")
    pipes = [JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", dtype, progress=False) for dtype in dtypes]
    first, second = (encode_pictures(pipe, [path]) for pipe in pipes)
    assert torch.equal(first, second)
    assert pipes[1].dtype == torch.bfloat16


@pytest.mark.parametrize("lora", [LORA, None])
def test_the_model_of_before_is_kept_in_mind(lora, rows, tmp_path) -> None:
    pipe = load(JanusPipeline)
    examples, _ = prepare(pipe, rows[0], tmp_path / "codes.safetensors")
    own = Examples(pipe, examples.rows, examples.codes, replayed=True)
    expected = logits_of(TrainingModel(pipe.model), collate([own[0]], 0, [False]))[0]
    run = SftRun(pipe, [own], [1.0], SftOptions(4, 2, lora=lora, learning_rate=1e-2), tmp_path)
    first = run.take_step(run.batches(0)).figures()
    assert first["image_loss"] < 1e-6
    assert first["norm"] < 1e-3
    assert run.reference is not None
    with torch.no_grad():
        run.updates.trained[0].add_(1.0)
    found, _ = run.reference.logits(collate([own[0]], 0, [False]))
    assert torch.allclose(found, expected, atol=1e-4)
    assert run.take_step(run.batches(1)).figures()["image_loss"] > 0.01


def test_learning_rates() -> None:
    assert SftOptions(1).peak_rate == 2e-5
    assert SftOptions(1, lora=LORA).peak_rate == 2e-4
    assert SftOptions(1, learning_rate=0).peak_rate == 0
    with pytest.raises(OptionError, match="learning_rate"):
        SftOptions(1, learning_rate=-1e-3)


def test_order_of_rows() -> None:
    rows = draw([3, 100], [3.0, 1.0], 4000, seed=5)
    small = rows[rows < 3]
    assert 2850 < len(small) < 3150  # 3,000 expected, standard deviation 27
    assert small[:3].sort().values.tolist() == [0, 1, 2]  # each once before any comes again
    assert torch.equal(rows, draw([3, 100], [3.0, 1.0], 4000, seed=5))
    for weights in ([1.0], [0.0, 1.0], [float("nan"), 1.0]):
        with pytest.raises(OptionError, match="positive"):
            draw([3, 100], weights, 10, seed=0)
    with pytest.raises(OptionError, match="no usable row"):
        draw([3, 0], [1.0, 1.0], 10, seed=0)
