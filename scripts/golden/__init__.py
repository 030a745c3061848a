"""What scripts/make_golden.py is made of: inputs of this project's own, numbers of the original."""
