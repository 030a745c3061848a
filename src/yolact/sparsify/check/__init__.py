"""Checking a recipe before training: what fits, what happens when, what comes out."""
