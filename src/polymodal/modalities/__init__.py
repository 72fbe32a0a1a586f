"""What a value of each kind is: decoding, tensor shape, units, augmentations. One file a modality."""

from polymodal.modalities.category import Category
from polymodal.modalities.image import Image, UnreadableExample
from polymodal.modalities.region import Mask, Regions
from polymodal.modalities.text import Text

Modality = Image | Text | Category | Regions | Mask

__all__ = ["Category", "Image", "Mask", "Modality", "Regions", "Text", "UnreadableExample"]
