"""`bifrons train`: the methods of training."""

import argparse
from importlib import import_module
from importlib.util import find_spec

from ...blocks.errors import BifronsError

_FUNCTIONS = {"sft": ("train_sft", "sft"), "grpo": ("train_grpo", "grpo")}
"""Module and function of each method."""


def train(args: argparse.Namespace) -> int:
    """Run the method named on the command line and return the exit status."""
    if find_spec("peft") is None:
        raise BifronsError("training needs the package peft: pip install 'bifrons[train]'")
    module, name = _FUNCTIONS[args.method]
    function = getattr(import_module(f".{module}", __package__), name)
    from ...learn.processes import is_launched

    if is_launched():
        from .train_processes import as_one_of_several

        return as_one_of_several(function, args)
    return function(args)
