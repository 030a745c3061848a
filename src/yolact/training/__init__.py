"""The training loop: what a run begins with, its steps, its files and its log."""
