"""Faults of sparseml 1.8, mended in place; ``yolact.sparsify._compat`` imports these."""
