"""Corpora by kind: where their labels are, what their classes are, and which clips are for what."""

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from ..clips import SPLITS, Corpus
from .audioset import load_audioset, load_hdf5
from .audioset_strong import load_audioset_strong
from .desed import load_desed
from .esc50 import load_esc50
from .hub import load_hub
from .listing import nearest
from .own_sounds import load_events, load_folders, load_table
from .soundscapes import load_soundscapes
from .speech_commands import load_speech_commands

CORPORA: dict[str, Callable[..., Corpus]] = {
    "audioset": load_audioset,
    "audioset_strong": load_audioset_strong,
    "hdf5": load_hdf5,
    "esc50": load_esc50,
    "speech_commands": load_speech_commands,
    "desed": load_desed,
    "soundscapes": load_soundscapes,
    "folders": load_folders,
    "table": load_table,
    "events": load_events,
    "hub": load_hub,
}


def load_corpus(kind: str, location: str | os.PathLike[str], split: str, **options: Any) -> Corpus:
    """The clips of one split, "train", "validation" or "test", still encoded, and the names of the classes.

    Args:
        kind: A key of `CORPORA`, whose function says what the corpus must look like, and what its options are.
        location: A folder, a table or a name on the Hub, as the kind needs it.
    """
    if kind not in CORPORA:
        raise ValueError(f"There is no kind of corpus {kind!r}; {nearest(kind, CORPORA)}")
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; {nearest(split, SPLITS)}")
    known = [name for name, one in inspect.signature(CORPORA[kind]).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ValueError(f"The corpus {kind} has no option {name!r}; {nearest(name, known)}")
    try:
        return CORPORA[kind](location, split, **options)
    except ValueError as error:
        if os.fspath(location) in str(error):
            raise
        # Some sentences are about clips, and do not know which corpus has them.
        raise ValueError(f"{os.fspath(location)}: {error}") from error


def corpus_options(texts: Sequence[str], split: str | None = None) -> dict[str, Any]:
    """`["fold=2", "streaming=true", "train.parts=weak"]` as keyword arguments; the last one for one split alone."""
    options = {}
    for text in texts:
        name, is_option, value = text.partition("=")
        if not is_option:
            raise ValueError(f"The corpus option {text!r} is not of the form name=value, for example fold=2.")
        of_split, is_for_one, plain_name = name.strip().rpartition(".")
        if is_for_one and (split is None or of_split not in SPLITS):
            known = ", ".join(SPLITS) if split else "none, as all splits are treated alike here"
            raise ValueError(f"The corpus option {text!r} is for the split {of_split!r}; known are {known}.")
        if not is_for_one or of_split == split:
            options[plain_name] = _plain_value(text, value)
    return options


def _plain_value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"The corpus option {text!r} is no plain value ({said}); put quotes around it.") from error


__all__ = ["CORPORA", "corpus_options", "load_corpus"]
