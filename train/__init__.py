"""Training byte models from recipes."""
