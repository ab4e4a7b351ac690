"""A trained net as files: the packed file and back, its integer reference, ONNX, QONNX, torchao, AIMET."""
