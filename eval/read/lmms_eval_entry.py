"""The entry point by which lmms-eval finds the model `bifrons`; imports nothing heavy."""

from typing import Any


def manifest() -> Any:
    """lmms-eval's description of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    module = __name__.replace("lmms_eval_entry", "lmms_eval_model")
    return ModelManifest(model_id="bifrons", simple_class_path=f"{module}.Bifrons")
