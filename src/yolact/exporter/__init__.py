"""From a network to an ONNX file: traced, rewritten, checked, written."""
