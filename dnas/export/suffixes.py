"""What names of files end in, by the format of a net: known without loading what writes them."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    "packed": (".safetensors", ".dnas"),
    "onnx": (".onnx",),
    "qonnx": (".onnx",),
    "pt2e": (".pt2",),
    "torchao": (".json",),
    "aimet": (".json",),
}
