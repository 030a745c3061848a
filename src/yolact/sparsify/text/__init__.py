"""Recipes as text: where they come from, their variables, their stages."""
