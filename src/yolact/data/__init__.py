"""Images and annotations: reading, checking, augmenting, batching, and a generated sample set."""
