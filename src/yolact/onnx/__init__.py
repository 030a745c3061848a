"""Export to ONNX: the traced graph, passes over it, its metadata and the parity check."""
