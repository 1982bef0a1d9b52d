"""What Triton's interpreter needs where there is no GPU."""

from importlib.util import find_spec
from typing import Any

import numpy as np


def keep_masks_boolean() -> None:
    """In Triton 3.9's interpreter a comparison has the type of what is compared. That of two numbers becomes
    int32 when it is spread over a block, and then loads refuse the mask that it is combined with."""
    if not find_spec("triton"):
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    compute = InterpreterBuilder.binary_op

    def binary_op(self: InterpreterBuilder, *operands: Any) -> TensorHandle:
        found = compute(self, *operands)
        return TensorHandle(found.data, tl.int1) if found.data.dtype == np.bool_ else found

    InterpreterBuilder.binary_op = binary_op
