"""What a runtime makes of an ONNX graph: its results, and which operators it runs in integers, once compiled."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnas.export.onnx_packages import need
from search_spaces.errors import InputError

_INTEGER_OPERATORS = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
_COMPUTING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def is_installed(runtime: str) -> bool:
    """Whether the package of a runtime is there."""
    return importlib.util.find_spec(runtime) is not None


def need_runtime(runtime: str) -> Any:
    """The package of a runtime; :class:`InputError` with the install command where it is missing."""
    return need(runtime, runtime, extra=extra_of(runtime))[0]


def extra_of(runtime: str) -> str:
    """The extra of ours that holds a runtime."""
    return "onnx" if runtime == "onnxruntime" else runtime


def integer_nodes(runtime: str, model: Any) -> set[str]:
    """The names of the nodes of ``model`` that the runtime, with all its optimizations, runs in integers of 8 bits."""
    compiled = _COMPILED[runtime](model)
    names = {node.name for node in model.graph.node if node.name}
    return {name for name in names if any(_same_node(name, found) for found in compiled)}


def run_graph(
    model: Any, feeds: Mapping[str, np.ndarray], names: list[str], *, optimized: bool = False
) -> dict[str, np.ndarray]:
    """Run ``model`` on inputs by name in ONNX Runtime: its outputs, its inputs, and the tensors ``names``."""
    (onnx,) = need("onnx", "onnx")
    seen = copy.deepcopy(model)
    made = {name for node in seen.graph.node for name in node.output} - {output.name for output in seen.graph.output}
    seen.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name in made
    )
    session = onnxruntime_session(seen, optimized=optimized)
    outputs = [output.name for output in session.get_outputs()]
    try:
        found = dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))
    except Exception as error:
        raise _cannot("ONNX Runtime", str(error).strip().splitlines()[0]) from error
    return {**feeds, **found}


def run_in_openvino(model: Any, x: np.ndarray) -> np.ndarray:
    """The first result of ``model`` for ``x`` in OpenVINO, with all its optimizations, on one thread."""
    return np.array(openvino_net(model)([x])[0])


def onnxruntime_session(
    model: Any, *, optimized: bool, keep: Path | None = None, threads: int = 1, provider: str = "CPUExecutionProvider"
) -> Any:
    """A session; ``keep`` gets the graph that it runs."""
    runtime = need_runtime("onnxruntime")
    options = runtime.SessionOptions()
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_ENABLE_BASIC
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4 if keep else 3
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    except Exception as error:
        raise _cannot("ONNX Runtime", str(error).strip().splitlines()[0]) from error


def openvino_net(model: Any, threads: int = 1) -> Any:
    """The net compiled for the CPU, in fp32 where it is not in integers."""
    core = need_runtime("openvino").Core()
    told = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        return core.compile_model(core.read_model(model.SerializeToString()), "CPU", told)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.startswith(("Exception from", "Check "))), "")
        raise _cannot("OpenVINO", reason) from error


def _cannot(runtime: str, reason: str) -> InputError:
    return InputError(f"{runtime} cannot run this network: {reason}")


def _in_onnxruntime(model: Any) -> Iterable[str]:
    (onnx,) = need("onnx", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "optimized.onnx"
        onnxruntime_session(model, optimized=True, keep=kept)
        return [node.name for node in onnx.load(kept).graph.node if node.op_type in _INTEGER_OPERATORS]


def _in_openvino(model: Any) -> Iterable[str]:
    found = []
    for node in openvino_net(model).get_runtime_model().get_ordered_ops():
        told = node.get_rt_info()
        types = {entry.get_element_type().to_string() for entry in node.inputs()[:2]}
        if told["layerType"].astype(str) in _COMPUTING and types <= {"u8", "i8"}:
            found += told["originalLayersNames"].astype(str).split(",")
    return found


def _same_node(name: str, compiled: str) -> bool:
    """Whether a compiled operator came from the node ``name``: runtimes put words of their own behind it."""
    return compiled == name or compiled.startswith((f"{name}_token_", f"{name}/"))


_COMPILED: Mapping[str, Callable[[Any], Iterable[str]]] = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}
