"""The training loss: priors matched to objects, four terms, and their weighted sum."""
