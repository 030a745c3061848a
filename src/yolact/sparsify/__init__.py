"""Recipes: pruning and quantization while a model trains."""
