"""Batch-invariant products and attention: a row's result does not depend on the other rows in the batch. In
float32 on the CPU, and in bfloat16 and float16 on CUDA, this holds bit for bit, as it does for products of up
to 512 rows in float32 on CUDA; elsewhere the fastest path is taken.

On the CPU, libraries sum the products of few rows in another order than those of more rows, and fused
attention splits its work by the whole batch. The results differ in the last bits only, but these decide near
ties in sampling: about one image in several hundred would depend on the rest of its batch. So few rows are
padded to a multiple of four, and attention is computed by plain products. Measured with MKL on a Zen 4
processor: products of 4, 8 and of 12 or more rows agree in every bit of a row, as do sums over 32, 64 and
more slots of which the last have no weight. On a Xeon of the fourth generation, products with a weight stored
by outputs change at up to 16 rows, the sooner the fewer inputs there are; with a weight stored by inputs,
those of 2 to 48 rows agree with one thread (up to 128 do), and take half the time. With two to four threads
they agree, too, except where few outputs have many inputs (512 have 1,408): then those of 20 to 48 do. Which
of these a processor, and a shape, is, is tried once.

On CUDA, a product is one sum over ascending positions whatever the tiles, unless a library splits the sum
for few rows, and flash attention splits its work by the batch. `use_batch_invariant_libraries` avoids both.
Measured on an H100: products of 1 to 1,458 rows agree, as does attention through cuDNN.

B rows, H heads, T positions, S cache slots, K dimensions of a head, M rows of a product.
"""

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

ROW_MULTIPLE = 4
"""Products of this many rows, twice as many, or three times as many and more agree in every bit of a row."""
_ANY_ROWS = 12  # from here on, the number of rows does not matter
_INPUTS_PER_ROW, _MOST_PADDED = 16, 16  # where few rows differ: rows to pad to, by inputs, and at most
_BLOCK_ROWS = 48  # where few rows differ: most rows of a product with a weight stored by inputs
_TRIED_ROWS = (4, 8, 12, 16, 20, 24, 32, 40)  # of such a product, by several threads
_DIVIDED_OUTPUTS = 4096  # more than these are divided among threads, never the sums
MAX_THREADS = 4
"""Threads of a CPU up to which products of few rows agree in every bit of a row: measured on a Xeon of the
fourth generation with one to five threads; with six and more, sums are divided by the number of rows."""
VECTOR = 32
"""Most numbers that a vectorized loop processes at a time (two vectors of 16); it processes the remainder
one by one."""
_MAX_SCORES = 1 << 24  # of all heads of a row (64 MiB); longer prompts take fused attention
_ALIGNED = 8
"""Numbers in half precision that take 16 bytes, the width of the loads of the usual kernels."""
MAX_BLOCKS_ROWS = 512
"""Rows up to which products in float32 on CUDA are computed in blocks of one size, as cuBLAS sums by size."""
_CUDA_BLOCK_ROWS = 32
_FLASH = SDPBackend.FLASH_ATTENTION.value  # in the order of backends
_HALF = (torch.bfloat16, torch.float16)
_SPLITS_SUMS = (
    "allow_bf16_reduced_precision_reduction_split_k",
    "allow_fp16_reduced_precision_reduction_split_k",
)


def is_batch_invariant(x: Tensor) -> bool:
    """Whether the functions below make results for this tensor, on the CPU, independent of the other rows."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def use_batch_invariant_libraries(device: torch.device) -> bool:
    """Make torch's products and attention on CUDA batch-invariant in bfloat16 and float16, for the whole
    process: through cuBLASLt without split sums, and with flash attention as the last choice of all.

    Returns whether that is now so. It is not on other devices, and where this torch can't forbid split sums
    (older versions, AMD's GPUs, Windows); no setting is then changed.
    """
    matmul = torch.backends.cuda.matmul
    if device.type != "cuda" or torch.version.hip is not None or not hasattr(matmul, _SPLITS_SUMS[0]):
        return False
    if not libraries_are_batch_invariant():
        # torch prints a warning of C++ unless it is raised inside an operator: then it is one of Python.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.zeros(1, device="cpu").apply_(_prefer_cublaslt)
        if not _prefers_cublaslt():
            return False
        matmul.allow_bf16_reduced_precision_reduction = (False, False)  # the second: split sums
        matmul.allow_fp16_reduced_precision_reduction = (False, False)
        with torch.no_grad():
            x = torch.zeros(1, 1, 8, 8, dtype=torch.float16, device=device)
            F.scaled_dot_product_attention(x, x, x)  # the first call sets the order of backends
        order = [backend for backend in torch._C._get_sdp_priority_order() if backend != _FLASH]
        torch._C._set_sdp_priority_order([*order, _FLASH])
    return libraries_are_batch_invariant()


def libraries_are_batch_invariant() -> bool:
    """Whether the settings of `use_batch_invariant_libraries` are in force."""
    matmul = torch.backends.cuda.matmul
    if any(getattr(matmul, name, True) for name in _SPLITS_SUMS):
        return False
    return _prefers_cublaslt() and torch._C._get_sdp_priority_order()[-1] == _FLASH


def _prefer_cublaslt(number: float) -> float:
    torch.backends.cuda.preferred_blas_library("cublaslt")
    return number


def _prefers_cublaslt() -> bool:
    return torch.backends.cuda.preferred_blas_library() == torch._C._BlasBackend.Cublaslt


@cache
def few_rows_agree() -> bool:
    """Whether products of few rows agree on this processor with those of more, for weights stored by outputs.
    If not, these should be stored by inputs."""
    with torch.no_grad():
        numbers = torch.arange(192 * 768, device="cpu").float().sin().view(192, 768)
        many = F.linear(numbers[:16], numbers[16:])
        return all(torch.equal(F.linear(numbers[:rows], numbers[16:]), many[:rows]) for rows in (4, 8, 12))


@torch.inference_mode(False)
def by_inputs(weight: Tensor) -> Tensor:
    """A weight `[..., O, I]` as a view of memory in which the outputs of an input are adjacent."""
    return weight.detach().transpose(-2, -1).contiguous().transpose(-2, -1)


@torch.inference_mode(False)
def by_outputs(weight: Tensor) -> Tensor:
    """A weight of `by_inputs` in the usual order."""
    return weight.detach().contiguous()


def should_be_by_inputs(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight should be stored by inputs for products with rows like `x`, and is not yet."""
    if not weight.is_contiguous() or not is_batch_invariant(x) or weight.dtype != x.dtype:
        return False
    trains = weight.requires_grad or x.requires_grad
    return not (weight.is_meta or trains or torch.compiler.is_compiling() or few_rows_agree())


def missing_rows(count: int, inputs: int = 0) -> int:
    """The number of padding rows for a product of `count` rows: over `inputs` if its weight is stored by
    outputs, else 0."""
    least = ROW_MULTIPLE
    if inputs and not few_rows_agree():
        least = min(_MOST_PADDED, -(-inputs // (_INPUTS_PER_ROW * ROW_MULTIPLE)) * ROW_MULTIPLE)
    return max(least - count, 0 if count >= _ANY_ROWS else -count % ROW_MULTIPLE)


@cache
@torch.inference_mode(False)
@torch.no_grad()
def _agreeing_rows(outputs: int, inputs: int, threads: int) -> int:
    """Fewest rows of which products with a weight of this shape, stored by inputs, agree with those of more;
    tried once for each shape and number of threads, which must be the present one."""
    if threads == 1 or outputs > _DIVIDED_OUTPUTS:
        return ROW_MULTIPLE
    size = (_BLOCK_ROWS + outputs) * inputs
    numbers = torch.arange(size, dtype=torch.float32, device="cpu").sin_().view(-1, inputs)
    rows, weight = numbers[:_BLOCK_ROWS], by_inputs(numbers[_BLOCK_ROWS:])
    many = F.linear(rows, weight)
    differ = [n for n in _TRIED_ROWS if not torch.equal(F.linear(rows[:n], weight), many[:n])]
    return next((n for n in _TRIED_ROWS if n > max(differ, default=0)), _BLOCK_ROWS)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Batch-invariant `F.linear`."""
    on_cuda = x.is_cuda and x.dtype in _HALF
    if not on_cuda and not is_batch_invariant(x):
        return _linear_in_blocks(x, weight, bias) if _takes_blocks(x, weight) else F.linear(x, weight, bias)
    count = x.numel() // x.shape[-1]
    if not on_cuda:
        return _linear_on_cpu(x.reshape(count, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))
    # On CUDA torch takes other paths for one row, and for rows in more than two dimensions that are not
    # contiguous, as those of a batch may be where one row is: it then rounds before it adds the bias.
    rows = x.reshape(count, x.shape[-1])
    if unaligned := -x.shape[-1] % _ALIGNED:  # cuBLASLt splits these sums for few rows
        rows, weight = F.pad(rows, (0, unaligned)), F.pad(weight, (0, unaligned))
    if count > 1:  # not even a slice of everything, whose gradient would be copied
        return F.linear(rows, weight, bias).view(*x.shape[:-1], len(weight))
    return F.linear(F.pad(rows, (0, 0, 0, 1)), weight, bias)[:1].view(*x.shape[:-1], len(weight))


def _takes_blocks(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product of a few rows in float32 on CUDA, without gradients."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    few = 0 < x.numel() <= MAX_BLOCKS_ROWS * x.shape[-1]
    return x.is_cuda and x.dtype == weight.dtype == torch.float32 and few and not learns


def _linear_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of rows in blocks of one size, the last one padded."""
    rows = x.reshape(-1, x.shape[-1])
    padded = F.pad(rows, (0, 0, 0, -len(rows) % _CUDA_BLOCK_ROWS))
    parts = [F.linear(part, weight, bias) for part in padded.split(_CUDA_BLOCK_ROWS)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out[: len(rows)].view(*x.shape[:-1], len(weight))


def _linear_on_cpu(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    count, by_outputs = len(rows), weight.is_contiguous()
    if count > _BLOCK_ROWS and not by_outputs:
        return torch.cat([_linear_on_cpu(part, weight, bias) for part in rows.split(_BLOCK_ROWS)])
    if by_outputs:
        missing = missing_rows(count, rows.shape[1])
    else:
        missing = max(missing_rows(count), _agreeing_rows(*weight.shape, torch.get_num_threads()) - count)
    if not missing:
        return F.linear(rows, weight, bias)
    return F.linear(F.pad(rows, (0, 0, 0, missing)), weight, bias)[:count]


def sigmoid(x_MN: Tensor) -> Tensor:
    """Batch-invariant `torch.sigmoid`: rows are padded to whole vectors, as remainders are computed
    differently."""
    width = x_MN.shape[1]
    missing = -width % VECTOR if is_batch_invariant(x_MN) else 0
    return F.pad(x_MN, (0, missing)).sigmoid()[:, :width]


def row_sums(x_MN: Tensor) -> Tensor:
    """Batch-invariant sums of short rows, from left to right, `[M, 1]`."""
    if x_MN.is_cuda:
        return sum(x_MN.split(1, dim=-1), x_MN.new_zeros(()))
    if not is_batch_invariant(x_MN):
        return x_MN.sum(-1, keepdim=True)
    return torch.stack(x_MN.unbind(-1)).cumsum(0)[-1][:, None]


def bmm(x_HMK: Tensor, weight_HKN: Tensor) -> Tensor:
    """Batch-invariant `torch.bmm`: each head's rows times its weight, `[H, M, N]`."""
    count = x_HMK.shape[1]
    missing = missing_rows(count, x_HMK.shape[2]) if is_batch_invariant(x_HMK) else 0
    return torch.bmm(F.pad(x_HMK, (0, 0, 0, missing)), weight_HKN)[:, :count]


def per_head_matmul(x_BHTK: Tensor, weight_HKN: Tensor) -> Tensor:
    """Each head's rows times its weight, `[B, H, T, N]`."""
    rows_HMK = x_BHTK.transpose(0, 1).flatten(1, 2)
    return bmm(rows_HMK, weight_HKN).unflatten(1, (len(x_BHTK), -1)).transpose(0, 1)


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """Batch-invariant attention `[B, H, T, K]` under a mask (None: causal); grouped-query if there are fewer
    key/value heads."""
    heads, kv_heads = q_BHTK.shape[1], k_BHSK.shape[1]
    scores = heads * q_BHTK.shape[2] * k_BHSK.shape[2]
    if mask_B1TS is None or not is_batch_invariant(q_BHTK) or q_BHTK.requires_grad or scores > _MAX_SCORES:
        return F.scaled_dot_product_attention(
            q_BHTK,
            k_BHSK,
            v_BHSK,
            attn_mask=mask_B1TS,
            is_causal=mask_B1TS is None,
            enable_gqa=heads != kv_heads,
        )
    if heads != kv_heads:
        k_BHSK, v_BHSK = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BHSK, v_BHSK))
    count = q_BHTK.shape[2]
    missing = missing_rows(count, q_BHTK.shape[3])
    q_BHTK = F.pad(q_BHTK * q_BHTK.shape[-1] ** -0.5, (0, 0, 0, missing))
    mask_B1TS = F.pad(mask_B1TS, (0, 0, 0, missing), value=True)
    # The cache's keys are not copied here, and have the same strides for one row as for many.
    scores = torch.bmm(q_BHTK.flatten(0, 1), k_BHSK.flatten(0, 1).transpose(1, 2))
    scores_BHTS = scores.unflatten(0, q_BHTK.shape[:2]).masked_fill(~mask_B1TS, -torch.inf)
    out = torch.bmm(scores_BHTS.softmax(-1).flatten(0, 1), v_BHSK.flatten(0, 1))
    return out.unflatten(0, q_BHTK.shape[:2])[:, :, :count]
