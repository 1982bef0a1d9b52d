"""What a process of test_distributed.py does: `distributed_work.py FOLDER TASK`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from bifrons import JanusPipeline
from bifrons.blocks.errors import BifronsError, PromptError
from bifrons.learn.adapters import LoraOptions
from bifrons.learn.distributed import (
    OtherProcessError,
    agreed,
    exchange,
    from_first,
    gathered,
    joined,
    rank,
    whole,
)
from bifrons.learn.examples import Example, PaintExample, read_example
from bifrons.learn.sft import SftOptions, SftRun

sys.path.insert(0, str(Path(__file__).parent))  # where a process of torchrun doesn't look
from pretraining_work import pretrain

STEPS = 4
MODEL = Path(__file__).parent.parent / "data" / "janus-mini"


def examples(pipe: JanusPipeline) -> list[Example]:
    """Rows for painting, and others for reading with and without a picture: processes get different kinds."""
    generator = torch.Generator().manual_seed(0)
    prompts = [pipe.processor.generation_ids(text)[0] for text in ("a photo of a star", "two blue hearts")]
    paint = [PaintExample(ids, torch.randint(0, 512, (64,), generator=generator)) for ids in prompts]
    picture = {"type": "image", "image": torch.zeros(3, 32, 32, dtype=torch.uint8)}
    text, answer = {"type": "text", "text": "What?"}, {"role": "assistant", "content": "a star"}
    questions = ([picture, text], [text])
    return [*paint, *(read_example(pipe, [{"role": "user", "content": q}, answer]) for q in questions)]


def start(folder: Path, lora: bool) -> SftRun:
    pipe = JanusPipeline.from_pretrained(MODEL, "cpu", progress=False)
    folder.mkdir(exist_ok=True)
    options = SftOptions(
        STEPS,
        batch_size=4,
        rows_at_once=1,
        learning_rate=1e-3,
        lora=LoraOptions(4, image_head="whole") if lora else None,
        recompute=lora,
        save_every=2,
    )
    data: Any = [examples(pipe)]
    return SftRun(pipe, data, [1.0], options, folder)


def weights(run: SftRun) -> dict[str, torch.Tensor]:
    named = run.model.named_parameters()
    return dict(whole((name, parameter) for name, parameter in named if parameter.requires_grad))


def train(folder: Path, lora: bool, dies: bool = False) -> None:
    run, figures = start(folder, lora), list[Any]()
    run.resume()
    take_step = run.take_step

    def take_step_or_die(batches: Any) -> Any:
        if dies and rank() == 1 and run.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(batches)

    run.take_step = take_step_or_die
    run.run(figures.append)
    trained = weights(run)
    if rank() == 0:
        torch.save((trained, figures), folder / "trained.pt")
    with gathered(run.model, torch.float32):
        if rank() == 0 and not lora:
            run.pipe.save_pretrained(folder / "model")
    again = weights(run)
    if rank() == 0:
        assert all(torch.equal(again[name], trained[name]) for name in trained)


def agree() -> None:
    """A failure of the second process is its own error there, and no other's."""

    def work() -> int:
        if rank() == 1:
            raise PromptError("mine")
        return 7

    try:
        caught: Any = agreed(work)
    except (PromptError, OtherProcessError) as error:
        caught = error
    found = (rank(), type(caught), str(caught))
    assert found == [(0, OtherProcessError, "process 1 failed"), (1, PromptError, "mine")][rank()]
    assert agreed(rank) == rank()
    assert exchange(rank()) == [0, 1]
    assert from_first(lambda: 7 + rank()) == 7


def main(folder: Path, task: str) -> None:
    with joined("cpu"):
        agree()
        if task == "die":
            train(folder / "killed", False, dies=True)
        else:
            for name, lora in (("killed", False), ("full", False), ("lora", True)):
                train(folder / name, lora)
            objective = pretrain(folder / "pretrained")
            torch.save(objective.state_dict(), folder / f"pretrained-{rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except BifronsError as error:
        sys.exit(f"error: {error}")
