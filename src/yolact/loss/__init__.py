"""The training loss: priors matched to objects, one file per term, and their weighted sum."""
