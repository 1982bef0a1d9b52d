"""Where the time of a captured step goes: each kind of product and kernel by itself, over all layers."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...blocks.engine.decode_step import Kernels, load_kernels
from ...blocks.engine.fused_weights import joined_weight
from ...blocks.engine.graph_generation import store_of
from ...blocks.model.decoder import Attention, Decoder
from ...blocks.model.feed_forward import FeedForward
from ...blocks.model.layers import RMSNorm
from ...blocks.model.quantized_linear import Weight, decode
from ...blocks.model.rope import rotary_table
from .measure import Bench

_RUNS = 20


@torch.no_grad()
def bench_kernels(bench: Bench, decoder: Decoder, rows: int, filled: int, bandwidth: float) -> None:
    """Lines for one layer of each kind; nothing where steps do not go through kernels. Weights of different
    layers follow each other, so that none is in the device's cache."""
    kernels = load_kernels(bench.device)
    if kernels is None or decoder.capture is False:
        return
    groups: dict[str, list[Weight]] = {}
    for module in decoder.modules():
        for name, weight in _weights(module):
            groups.setdefault(name, []).append(weight)
    for name, weights in groups.items():
        _bench_products(bench, decoder, kernels, name, weights, rows, bandwidth)
    _bench_between(bench, decoder, kernels, rows, filled, bandwidth)


def _weights(module: torch.nn.Module) -> list[tuple[str, Weight]]:
    found: list[tuple[str, Weight | None]] = []
    if isinstance(module, Attention):
        found += [("q, k, v", joined_weight(module.q_proj, module.k_proj, module.v_proj))]
        found += [("o", joined_weight(module.o_proj))]
    elif isinstance(module, FeedForward):
        found += [("gate, up", joined_weight(module.gate_proj, module.up_proj))]
        found += [("down", joined_weight(module.down_proj))]
    return [(f"{name} {_shape(weight)}", weight) for name, weight in found if weight is not None]


def _shape(weight: Weight) -> tuple[int, int]:
    """Outputs and inputs."""
    outputs, columns = weight.codes.shape
    return outputs, 2 * columns if weight.kind == "int4" else columns


def _library(x_RI: Tensor, weight: Weight) -> Tensor:
    """The library's product, to compare with; of quantized weights, once they are decoded."""
    if weight.scale is None:
        return linear(x_RI, weight.codes)
    return linear(x_RI, decode(weight.codes, weight.scale, weight.zero, x_RI.dtype))


def _bench_products(
    bench: Bench,
    decoder: Decoder,
    kernels: Kernels,
    name: str,
    weights: list[Weight],
    rows: int,
    bandwidth: float,
) -> None:
    first, dtype = weights[0], decoder.embed_tokens.weight.dtype
    x_RI = torch.randn(rows, _shape(first)[1], device=bench.device).to(dtype)
    limit = sum(part.nbytes for part in first[:3] if part is not None) / bandwidth
    plain = first.kind == "plain"
    forms: dict[str, Callable[[Tensor, Weight], Tensor]] = {"library" if plain else "decoded": _library}
    if not plain or kernels.products.serves(x_RI, first):
        gated = name.startswith("gate")
        forms["kernel"] = kernels.products.gated_product if gated else kernels.products.product
    for form, run in forms.items():
        works = [lambda w=w, run=run: run(x_RI, w) for w in weights]
        kind = form if plain else f"{first.kind}, {form}"
        _measure(bench, decoder, f"{name}, {rows} rows, {kind}", limit, works)


def _bench_between(
    bench: Bench, decoder: Decoder, kernels: Kernels, rows: int, filled: int, bandwidth: float
) -> None:
    config, weight = decoder.config, decoder.embed_tokens.weight
    x_RD = torch.randn(rows, weight.shape[1], device=bench.device).to(weight.dtype)
    norms = [module for module in decoder.modules() if isinstance(module, RMSNorm)]
    norms = [norm for norm in norms if len(norm.weight) == x_RD.shape[1]]
    works = [lambda n=n: kernels.step.add_norm(x_RD, x_RD, n.weight, n.eps) for n in norms]
    _measure(bench, decoder, f"sum and norm, {rows} rows", None, works)
    if config.latent is not None:
        return
    cache = decoder.new_cache(rows, filled + 1)
    cache.positions.fill_(filled)
    slots = torch.arange(cache.buffers[0].shape[2], device=bench.device)
    cos, sin = rotary_table(slots[None], config.rotary_dim, config.rope_theta)
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = torch.randn(rows, width, device=bench.device).to(weight.dtype)
    attend = kernels.attention.attend
    pairs = [(cache.buffers[0][i], cache.buffers[1][i]) for i in range(config.num_layers)]
    works = [
        lambda k=k, v=v: attend(
            qkv, (cos[0], sin[0]), cache.positions, k, v, config.num_heads, cache.arrivals
        )
        for k, v in pairs
    ]
    read = cache.row_bytes(filled, 1, config.cache_widths, weight.dtype) * rows
    _measure(bench, decoder, f"attention over {filled} slots, {rows} rows", read / bandwidth, works)


def _measure(
    bench: Bench, decoder: Decoder, work: str, limit: float | None, works: list[Callable[[], object]]
) -> None:
    """Times works that are recorded together; figures are for one of them."""

    def all_works() -> None:
        for one in works:
            one()

    replay = store_of(decoder).recorder(all_works)

    def run() -> None:
        for _ in range(_RUNS):
            replay()

    bench.measure("a layer", work, run, repeats=3, per=_RUNS * len(works), limit=limit)
