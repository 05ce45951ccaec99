"""Models as single files that run without this package: ONNX for any runtime, and programs of `torch.export`."""

from .export import ExportedFile, export_model
from .formats import read_metadata

__all__ = ["ExportedFile", "export_model", "read_metadata"]
