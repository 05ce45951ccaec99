"""Weights from elsewhere: the authors' checkpoints, CLAP's audio tower, Swin transformers trained on images."""

from .authors import authors_model
from .clap import clap_from_htsat, htsat_from_clap
from .clap_files import htsat_from_clap_file, publisher_of
from .convert import convert_checkpoint
from .reading import ConversionError
from .swin import htsat_from_swin

__all__ = [
    "ConversionError",
    "authors_model",
    "clap_from_htsat",
    "convert_checkpoint",
    "htsat_from_clap",
    "htsat_from_clap_file",
    "htsat_from_swin",
    "publisher_of",
]
