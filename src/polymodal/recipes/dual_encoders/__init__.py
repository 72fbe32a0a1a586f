"""Two towers and a loss between them: images and texts meet only in the embedding space."""

from polymodal.recipes.dual_encoders._base import DualEncoder, DualEncoderRecipe

__all__ = ["DualEncoder", "DualEncoderRecipe"]
