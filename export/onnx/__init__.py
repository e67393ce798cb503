"""From torch modules to ONNX graphs that ONNX Runtime computes as torch does."""
