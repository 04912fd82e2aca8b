"""Networks as ONNX graphs and as folders to share."""
