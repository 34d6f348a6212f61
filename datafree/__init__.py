"""Data-free knowledge distillation with a reusable generator.

    import datafree
    found = datafree.distil(teacher, student, num_classes=10, img_size=32, mean=(.5,) * 3, std=(.5,) * 3, epochs=40)

Importing it costs nothing: PyTorch is imported with what is first asked for. Nothing in here imports the root files.
"""

from importlib import import_module
from typing import Any

_FROM = {"distil": "api", "Distilled": "api", "Classifier": "models.classifier", "UserError": "errors"}
__all__ = [*_FROM]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'datafree' has no attribute {name!r}")
    return getattr(import_module(f".{_FROM[name]}", __name__), name)
