"""Models for other runtimes: ONNX, OpenVINO and `torch.export` files, and proof that they predict the same."""
