"""Modalities: for every kind of value its decoding, tensor shape, units and augmentation. One file per modality."""

from polymodal.errors import UnreadableExample
from polymodal.modalities.action import Actions
from polymodal.modalities.audio import Audio, Recordings
from polymodal.modalities.category import Category, Labels
from polymodal.modalities.conversation import Conversations
from polymodal.modalities.document import Interleaved, Words
from polymodal.modalities.expression import Expressions
from polymodal.modalities.findings import Findings
from polymodal.modalities.gene_expression import Cell
from polymodal.modalities.graph import Graph
from polymodal.modalities.history import History
from polymodal.modalities.image import Image, Images
from polymodal.modalities.interaction import Interactions
from polymodal.modalities.modality import Modality
from polymodal.modalities.molecule import Molecule
from polymodal.modalities.points import Points
from polymodal.modalities.preference import Preferences
from polymodal.modalities.question import Questions
from polymodal.modalities.region import Mask, Regions
from polymodal.modalities.series import Series
from polymodal.modalities.table import DataTable, Table
from polymodal.modalities.text import Text
from polymodal.modalities.thread import Threads
from polymodal.modalities.video import Video
from polymodal.modalities.view_caption import ViewCaptions
from polymodal.modalities.volume import Volume
from polymodal.modalities.webpage import Webpage

__all__ = [
    "Actions",
    "Audio",
    "Category",
    "Cell",
    "Conversations",
    "DataTable",
    "Expressions",
    "Findings",
    "Graph",
    "History",
    "Image",
    "Images",
    "Interactions",
    "Interleaved",
    "Labels",
    "Mask",
    "Modality",
    "Molecule",
    "Points",
    "Preferences",
    "Questions",
    "Recordings",
    "Regions",
    "Series",
    "Table",
    "Text",
    "Threads",
    "UnreadableExample",
    "Video",
    "ViewCaptions",
    "Volume",
    "Webpage",
    "Words",
]
