"""Real data: the built-in corpora, one file each, and `from_path` for the user's own."""

from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji

__all__ = ["About", "Corpus", "emoji"]
