"""What a model really has: sparsity and quantization, layer by layer, against what was promised."""
