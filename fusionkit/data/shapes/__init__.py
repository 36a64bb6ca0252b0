"""The embedded data set: a drawn world of shapes as files in the public formats. Imports numpy and PIL only."""

from fusionkit.data.shapes.write import make_shapes

__all__ = ["make_shapes"]
