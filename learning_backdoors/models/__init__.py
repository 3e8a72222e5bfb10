"""Base models, adapters, checkpoints and run directories, as training, generation, chat and the hub use them."""
