"""Exports: ONNX and ``torch.export`` files, stock timm networks, and folders for timm and the hub."""
