"""Soundscapes that anyone can make: synthetic events over noise, with a label and a beginning and end for each.

`make_soundscape(seed, index, settings)` is a pure function, so that a data set is its settings and its seed:

    draw a background  ->  draw sounds  ->  place them  ->  mix them at a signal-to-noise ratio  ->  set the level

`sounds` holds the textures, `scene` makes one clip of them, `data_set` writes many.
"""

from .data_set import write_soundscapes
from .scene import Recording, Soundscape, SoundscapeSettings, find_background, find_foreground, make_soundscape
from .sounds import soundscape_labels

__all__ = [
    "Recording",
    "Soundscape",
    "SoundscapeSettings",
    "find_background",
    "find_foreground",
    "make_soundscape",
    "soundscape_labels",
    "write_soundscapes",
]
