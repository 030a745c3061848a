"""Proof after training: what became of every layer, and whether the recipe was followed."""
