"""The ``sparseml.yolact`` commands: options in, one call into the core, results out."""
