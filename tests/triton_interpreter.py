"""What Triton's interpreter needs where there is no GPU."""

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch


def interpret_kernels() -> None:
    """Run kernels in the interpreter where there is no GPU. Triton reads the variable when it is imported."""
    os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
    if os.environ["TRITON_INTERPRET"] == "1" and find_spec("triton"):
        _keep_masks_boolean()
        _patch_language_once()
        _save_time()


def _keep_masks_boolean() -> None:
    """In Triton 3.9's interpreter a comparison has the type of what is compared. That of two numbers becomes
    int32 when it is spread over a block, and then loads refuse the mask that it is combined with."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    compute = InterpreterBuilder.binary_op

    def binary_op(self: InterpreterBuilder, *operands: Any) -> TensorHandle:
        found = compute(self, *operands)
        return TensorHandle(found.data, tl.int1) if found.data.dtype == np.bool_ else found

    InterpreterBuilder.binary_op = binary_op


def _patch_language_once() -> None:
    """The interpreter replaces some 250 functions of the language anew whenever a kernel or a function of one
    is called, and so spends a quarter of its time. Here they stay replaced: nothing else uses them."""
    import triton.language as tl
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):
        return  # an older one, which patches otherwise
    patch, patched, nothing = interpreter._patch_lang, set[str](), interpreter._LangPatchScope()

    def patch_once(function: Any) -> Any:
        seen = {one.__name__ for one in function.__globals__.values() if one is tl or one is tl.core}
        if not seen or not seen <= patched:
            patch(function)
            patched.update(seen)
        return nothing

    interpreter._patch_lang = patch_once


def _save_time() -> None:
    """Without sums that look for overflow, which only Triton's debug mode reads, and without a new table of
    types at every look into it."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if hasattr(builder.options, "sanitize_overflow"):
        builder.options = replace(builder.options, sanitize_overflow=False)
    read, known = interpreter._get_np_dtype, dict[str, Any]()

    def np_dtype(kind: Any) -> Any:
        if kind.name not in known:
            known[kind.name] = read(kind)
        return known[kind.name]

    interpreter._get_np_dtype = np_dtype
