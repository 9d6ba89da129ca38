"""Fine-tunes pre-trained Keras models, from a recipe or from your own Keras script.

    import kerastune_ft as kft
    model = kft.image_classifier("mobilenet_v2", num_classes=5, weights="torchvision")
    kft.unfreeze(model, 4)

Importing the package does not import TensorFlow; the first use of a name that needs it does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerastune_ft import callbacks, losses, optimizers
    from kerastune_ft.errors import KftError
    from kerastune_ft.folds import fit
    from kerastune_ft.generation import write_texts
    from kerastune_ft.models import (
        Block,
        blocks,
        freeze,
        image_classifier,
        image_multilabel,
        image_regressor,
        unfreeze,
    )
    from kerastune_ft.predictions import evaluate, load_model, predict
    from kerastune_ft.preprocessing import Preprocessor
    from kerastune_ft.recipe import Recipe
    from kerastune_ft.recipe import load as load_recipe
    from kerastune_ft.runs import Run
    from kerastune_ft.text_models import (
        text_classifier,
        text_generator,
        text_multilabel,
        text_regressor,
        text_to_text,
        token_classifier,
    )

__version__ = "0.1.0"

_HOMES = {
    "Block": "models",
    "KftError": "errors",
    "Recipe": "recipe",
    "Preprocessor": "preprocessing",
    "Run": "runs",
    "blocks": "models",
    "callbacks": "callbacks",
    "evaluate": "predictions",
    "fit": "folds",
    "freeze": "models",
    "image_classifier": "models",
    "image_multilabel": "models",
    "image_regressor": "models",
    "load_model": "predictions",
    "load_recipe": "recipe",
    "losses": "losses",
    "optimizers": "optimizers",
    "predict": "predictions",
    "text_classifier": "text_models",
    "text_generator": "text_models",
    "text_multilabel": "text_models",
    "text_regressor": "text_models",
    "text_to_text": "text_models",
    "token_classifier": "text_models",
    "unfreeze": "models",
    "write_texts": "generation",
}

__all__ = [
    "Block",
    "KftError",
    "Preprocessor",
    "Recipe",
    "Run",
    "blocks",
    "callbacks",
    "evaluate",
    "fit",
    "freeze",
    "image_classifier",
    "image_multilabel",
    "image_regressor",
    "load_model",
    "load_recipe",
    "losses",
    "optimizers",
    "predict",
    "text_classifier",
    "text_generator",
    "text_multilabel",
    "text_regressor",
    "text_to_text",
    "token_classifier",
    "unfreeze",
    "write_texts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kerastune_ft' has no attribute '{name}'")
    module = importlib.import_module(f"kerastune_ft.{_HOMES[name]}")
    if name == _HOMES[name]:
        return module
    return getattr(module, {"load_recipe": "load"}.get(name, name))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
