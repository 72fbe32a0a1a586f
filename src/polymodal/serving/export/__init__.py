"""A trained run in the formats of other libraries; every export is compared with the run before it is kept."""

from polymodal.serving.export.folder import FORMATS, Export, export, push

__all__ = ["FORMATS", "Export", "export", "push"]
