"""What NVIDIA's Triton inference server wants to know of an ONNX graph: config.pbtxt."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.checkpoints.graphs.examples import BATCH

TYPES = {  # of ports, by the names that torch has for them
    "float64": "TYPE_FP64",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
MOST_ROWS = 64  # of one call


def triton_config(name: str, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> str:
    """The configuration of a model of that name; ports are {"name", "dtype", "shape"}, of which the rows are left out.

    Calls of equal shapes are put together (``dynamic_batching``). Where a port has no rows, none are.
    """
    has_rows = all(port["shape"][:1] == [BATCH] for port in (*inputs, *outputs))
    blocks = [_ports("input", inputs, has_rows), _ports("output", outputs, has_rows)]
    rows, joined = (MOST_ROWS, "dynamic_batching { }\n") if has_rows else (0, "")
    return f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {rows}\n{"".join(blocks)}{joined}'


def _ports(kind: str, ports: Sequence[Mapping[str, Any]], has_rows: bool) -> str:
    lines = []
    for port in ports:
        dims = [size if isinstance(size, int) else -1 for size in port["shape"][1 if has_rows else 0 :]]
        # a number a row is a vector without its rows, which Triton writes as [ 1 ] and reshapes
        shape = "dims: [ 1 ] reshape: { shape: [ ] }" if not dims else f"dims: [ {', '.join(map(str, dims))} ]"
        lines.append(f'  {{ name: "{port["name"]}" data_type: {TYPES[port["dtype"]]} {shape} }}')
    return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"
