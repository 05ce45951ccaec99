"""Speech Commands: single spoken words of a second, 35 of them in version 2."""

import os

from ..clips import Corpus, make_clip
from .listing import check_missing, class_folders, existing, make_corpus, read_lines

SPLIT_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


def load_speech_commands(location: str | os.PathLike[str], split: str) -> Corpus:
    """Speech Commands as Google publishes it: a folder for each word, and two lists of what is not for training.

    `_background_noise_` is no word, and left out.
    """
    folder = existing(location, *SPLIT_LISTS.values())
    words = {
        path.relative_to(folder).as_posix(): (path, word)
        for word, paths in class_folders(folder).items()
        for path in paths
    }
    split_of: dict[str, str] = {}
    for name, list_name in SPLIT_LISTS.items():
        listed = [line.strip() for line in read_lines(folder / list_name)]
        check_missing([file for file in listed if file not in words], len(listed), folder, folder / list_name, False)
        split_of |= dict.fromkeys(listed, name)
    clips = [make_clip(name, path, [word]) for name, (path, word) in words.items()]
    return make_corpus(clips, split, [split_of.get(name, "train") for name in words], validation_share=0.0)


__all__ = ["load_speech_commands"]
