"""Graphs as torch's own programs, or as ONNX, with weights of 8 bits if asked; the libraries of ONNX stand here alone."""

import importlib
import logging
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from fusionkit.checkpoints.graphs.examples import Example
from fusionkit.encoders.probe import first_line
from fusionkit.errors import ConfigError, install_extra

LINEAR = ("MatMul", "Gemm")  # what a linear layer is in ONNX
NEAR = 1e-3  # of the sum of the numbers: rounding of many layers in fp32 is far below
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise ConfigError where a package is missing that ONNX files are made with."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"layout=onnx needs the package {name}: pip install {' '.join(PACKAGES)}, or {install_extra('graphs')}; or "
                "choose layout=torch, which needs none"
            ) from error


def trace(name: str, example: Example) -> ExportedProgram:
    """The graph as a program whose named dimensions any call may choose; ConfigError where something in it cannot be one."""
    graph, inputs = example.graph, example.inputs
    open_dims = tuple(dict.fromkeys(example.dims[each], Dim.DYNAMIC) for each in graph.names)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(
                graph, tuple(inputs[each] for each in graph.names), dynamic_shapes=(open_dims,), strict=False
            )
    except Exception as error:  # whatever torch makes of a model's own code
        raise no_graph(name, error) from error


def no_graph(name: str, error: Exception) -> ConfigError:
    """What a part is refused with that does not trace or convert."""
    return ConfigError(
        f"the part '{name}' cannot be put in a graph ({first_line(error)}); leave its tasks out by tasks=[...], or export "
        "without layout, which every model can be"
    )


def to_onnx(name: str, program: ExportedProgram, example: Example) -> Any:
    """The program as an ONNX model in memory, with the names of inputs, outputs and dimensions; inputs that it reads alone."""
    try:
        with torch.no_grad(), quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=list(example.graph.names),
                output_names=list(example.outputs),
            )
    except Exception as error:  # an operation that ONNX does not have
        raise no_graph(name, error) from error
    assert made is not None
    shapes: Any = importlib.import_module("onnx_ir")
    graph = made.model.graph
    for value in (*graph.inputs, *graph.outputs):
        value.shape = shapes.Shape(example.shape(str(value.name)))
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    return made


def keep_outputs(made: Any, wanted: Collection[str]) -> None:
    """Leave out the outputs that are not wanted, and what is computed for them alone."""
    passes: Any = importlib.import_module("onnx_ir.passes.common")
    graph = made.model.graph
    for value in list(graph.outputs):
        if value.name not in wanted:
            graph.outputs.remove(value)
    passes.RemoveUnusedNodesPass()(made.model)


def ports(made: Any) -> tuple[list[str], list[str]]:
    """The names of the inputs and outputs of an ONNX model."""
    graph = made.model.graph
    return [str(value.name) for value in graph.inputs], [str(value.name) for value in graph.outputs]


def save_onnx(made: Any, path: Path, is_int8: bool) -> None:
    """Write an ONNX model, with its weights in a file beside it beyond 2 GB.

    With 8 bits: those of linear layers, a scale a channel.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        if not is_int8:
            made.save(path)
            return
        quantization: Any = importlib.import_module("onnxruntime.quantization")
        whole = path.parent / "fp32"
        whole.mkdir()
        made.save(whole / path.name)
        size = sum(file.stat().st_size for file in whole.iterdir())
        quantization.quantize_dynamic(
            whole / path.name,
            path,
            op_types_to_quantize=list(LINEAR),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=size > 2**31,
        )
        shutil.rmtree(whole)


def require_equal(name: str, path: Path, example: Example, outputs: Collection[str]) -> None:
    """Run a written ONNX graph on its example; ConfigError where it gives other numbers than the model, beyond rounding."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {each.name: example.inputs[each.name].numpy() for each in session.get_inputs()}
    for output, array in zip(outputs, session.run(list(outputs), given), strict=True):
        found, expected = torch.from_numpy(array).double(), example.outputs[output].double()
        apart = (found - expected).abs().where(found != expected, 0.0).sum()  # equal infinities are 0 apart
        scale = expected[expected.isfinite()].abs().sum() + 1.0
        if not apart <= NEAR * scale:
            raise ConfigError(
                f"the part '{name}' cannot be put in a graph: onnxruntime computes other numbers than the model for {output}; "
                "leave its tasks out by tasks=[...], or export without layout, which every model can be"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters log and warn of on their way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
