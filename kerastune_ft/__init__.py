"""Fine-tunes pre-trained Keras models, from a recipe or from your own Keras script."""

__version__ = "0.1.0"
