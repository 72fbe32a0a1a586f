"""Export of a trained run to the formats of other libraries; every export is verified against the run."""

from polymodal.serving.export.folder import FORMATS, Export, export, push

__all__ = ["FORMATS", "Export", "export", "push"]
