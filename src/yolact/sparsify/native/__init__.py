"""The recipe engine of this package: recipes without sparseml, on every Python.

Its modifiers have the names, fields, clock and numbers of sparseml 1.8's, as
:mod:`yolact.sparsify.sparseml` corrects them: masks are the same to the bit, learning rates to
1e-12. A run that one engine began goes on with the other.
"""
