"""Training with a teacher: its outputs, its features, and the loss between them."""
