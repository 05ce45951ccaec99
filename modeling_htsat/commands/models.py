"""Models as commands take them: by folder or name on the Hub, several as an ensemble."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from transformers import pipeline

from ..ensemble import MEMBERS_FILE, load_ensemble, load_ensemble_extractor
from ..events_htsat import EventDecoding
from ..labels import load_label_groups
from ..modeling_htsat import HTSATPreTrainedModel
from ..pipeline_htsat import HTSATSoundEventDetectionPipeline
from ..tables import in_one_line
from .recordings import positive

HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
MODEL_FILES = ("config.json", "preprocessor_config.json")


def add_models(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="MODEL",
        help="a model folder or a name on the Hub; given several times, the mean of what these models say",
    )


def add_detection_options(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("--threshold", type=float, help="score from which a sound counts (default: the model's own)")
    add("--groups", metavar="YAML", help="report groups of classes: `desed`, or a file like it")
    add("--time-refinement", type=positive, default=1, metavar="N", help="N shifted passes for N times finer steps")


def load_detector(options: argparse.Namespace) -> tuple[HTSATSoundEventDetectionPipeline, dict[str, Any]]:
    """The pipeline that the command line describes, and what to tell it in the call."""
    decoding, groups = None, None
    if options.groups:
        groups, decoding = load_label_groups(options.groups)
    if options.threshold is not None:
        decoding = EventDecoding(threshold=options.threshold)
    detector = load_pipeline(
        "sound-event-detection", options.model, pipeline_class=HTSATSoundEventDetectionPipeline, return_scores=True
    )
    num_labels = detector.model.config.num_labels
    for name, classes in (groups or {}).items():
        if max(classes) >= num_labels:
            known = f"{' with '.join(options.model)} has 0 to {num_labels - 1}"
            raise ValueError(f"The group {name!r} of {options.groups} has class {max(classes)}; {known}.")
    return detector, {
        "decoding": decoding,
        "groups": groups,
        "time_refinement": options.time_refinement,
        "allow_truncated": options.allow_truncated,
    }


def load_pipeline(task: str, names: Sequence[str], **settings: Any) -> Any:
    """The pipeline of one model or of several; what cannot be had is refused in one sentence."""
    for name in names:
        check_name(name)
    if len(names) > 1 or (Path(names[0]) / MEMBERS_FILE).is_file():
        model, extractor = load_ensemble(names, task), load_ensemble_extractor(names)
        return pipeline(task, model=model, feature_extractor=extractor, **settings)
    return load_one(task, names[0], **settings)


def check_name(name: str):
    """Whether this is a model folder, or can be a name on the Hub, and one that there is an answer for."""
    folder = Path(name)
    if folder.is_dir():
        if missing := [file for file in MODEL_FILES if not (folder / file).is_file()]:
            raise ValueError(f"The folder {name} lacks {' and '.join(missing)}; save model and extractor in it.")
    elif not re.fullmatch(HUB_NAME, name) or folder.exists():
        raise ValueError(f"The model {name} is no folder, and no name on the Hub; check the path.")
    elif not isinstance(try_to_load_from_cache(name, MODEL_FILES[0]), str):
        check_hub_answers(name)


def check_hub_answers(name: str):
    """Ask once, where transformers would ask for half a minute and log every attempt."""
    try:
        get_hf_file_metadata(hf_hub_url(name, MODEL_FILES[0]))
    except HfHubHTTPError:
        pass  # an answer; transformers knows best what it means
    except Exception as error:  # what a network raises is anybody's guess
        raise ValueError(
            f"The model {name} cannot be loaded: it is no folder here, and the Hub cannot be asked for it ({error})."
        ) from error


def load_one(task: str, name: str, **settings: Any) -> Any:
    try:
        loaded = pipeline(task, model=name, trust_remote_code=False, **settings)
    except Exception as error:  # what the Hub, torch and safetensors raise is anybody's guess
        # The library's own checks say first which of them failed, and only then what is wrong.
        lines = str(error.__cause__ or error).splitlines()
        reason = in_one_line(next(iter(lines), type(error).__name__))
        raise ValueError(f"The model {name} cannot be loaded: {reason}") from error
    if not isinstance(loaded.model, HTSATPreTrainedModel):
        raise ValueError(f"The model {name} is of the class {type(loaded.model).__name__}; an HTS-AT is needed.")
    if loaded.model.config.architectures == ["HTSATModel"]:
        raise ValueError(f"The model {name} is an encoder that knows no labels; train it first.")
    return loaded
