"""An image tokenizer learns its pictures, draws a codebook on the way, and goes on where it was stopped."""

import torch
from bifrons.learn.image_tokenizer import Codebook, TokenizerObjective, psnr
from bifrons.learn.pretraining import Pretraining, PretrainingOptions
from bifrons.tokenizers.vq.config import VQConfig
from bifrons.tokenizers.vq.model import VQModel


def start(folder, steps: int) -> tuple[TokenizerObjective, Pretraining]:
    torch.manual_seed(0)
    model = VQModel(VQConfig(64, 8, ch=32, ch_mult=(1, 1), z_channels=32, num_res_blocks=1))

    colours = torch.rand(4, 2, 3, 1, 1) * 2 - 1
    is_left = torch.arange(16) < torch.tensor([3, 6, 9, 12])[:, None, None, None]
    pictures = torch.where(is_left, colours[:, 0], colours[:, 1]).expand(4, 3, 16, 16)

    def draw() -> torch.Tensor:
        """Pictures of two colours, parted by a vertical line, mirrored at random."""
        return pictures if torch.rand(()) < 0.5 else pictures.flip(-1)

    objective = TokenizerObjective(model, draw, warmup=0.5)
    options = PretrainingOptions(5e-3, steps=steps, optimizer="adamw", average=0.9, report_every=1)
    return objective, Pretraining(objective, options, folder)


def test_it_learns_and_goes_on(tmp_path) -> None:
    objective, run = start(tmp_path, 40)
    figures: list[dict[str, float]] = []
    random = objective.model.quantize.embedding.weight.detach().clone()
    run.run(figures.append)
    assert figures[-1]["reconstruction_loss"] < 0.5 * figures[0]["reconstruction_loss"]
    assert [one["step"] for one in figures if one["commitment_loss"] > 0] == list(range(22, 41))
    book = objective.model.quantize.embedding.weight
    assert not torch.equal(book, random)
    torch.testing.assert_close(book.norm(dim=1), torch.ones(64))
    assert book.data_ptr() == objective.codebook.weight.data_ptr()
    with run.averaged():
        images = ((objective.draw() + 1) * 127.5).to(torch.uint8)
        values = psnr(objective.model.eval(), images)
    assert values.shape == (4,)
    assert values.mean() > 10

    again, second = start(tmp_path, 40)
    assert second.resume() == 40
    assert bool(again.quantizes)
    for name, tensor in objective.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert torch.equal(again.codebook.counts, objective.codebook.counts)


def test_unused_codes_are_drawn_anew() -> None:
    torch.manual_seed(0)
    latents = torch.nn.functional.normalize(torch.randn(500, 8), dim=-1)
    book = Codebook(torch.zeros(16, 8))
    book.start(latents)
    torch.testing.assert_close(book.weight.norm(dim=1), torch.ones(16))
    before = (latents @ book.weight.T).amax(-1).mean()
    assert before > 0.6  # of random codes: 0.55
    book.counts[3] = 0.0
    book.weight[3] = 0.0
    used = (latents @ book.weight.T).argmax(-1)
    book.update(latents[used != 3], used[used != 3])
    fresh = (latents @ book.weight[3]).max()
    assert abs(fresh - 1) < 1e-5  # it is one of the latents
    assert book.counts[3] == 1
    moved = book.weight[0]
    mean = torch.nn.functional.normalize(latents[used == 0].sum(0), dim=-1)
    assert moved @ mean > 0.99
