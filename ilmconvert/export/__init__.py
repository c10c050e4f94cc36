"""What leaves the library: ONNX and ``torch.export`` files, stock timm networks, and folders for the hub."""
