"""The network: DarkNet-53, feature pyramid, prototypes, prediction head and their weights."""
