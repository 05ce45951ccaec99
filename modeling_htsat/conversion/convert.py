"""From a checkpoint file, or another model's folder, to a folder that every Auto class loads."""

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import ClapAudioModel, ClapFeatureExtractor, ClapModel, SwinModel

from ..configuration_htsat import HTSATConfig
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..labels import audioset_labels
from ..modeling_htsat import HTSATPreTrainedModel
from ..tables import in_one_line
from .architecture import make_config
from .authors import authors_model
from .clap import htsat_from_clap
from .clap_files import Publisher, htsat_from_clap_file, publisher_of
from .reading import ConversionError, read_checkpoint
from .swin import htsat_from_swin

Converted = tuple[HTSATPreTrainedModel, HTSATFeatureExtractor]


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, preset: str | Path | None = None, labels: str | Path | None = None
) -> HTSATPreTrainedModel:
    """Convert an authors' checkpoint, a Swin image checkpoint, a CLAP checkpoint or a transformers CLAP or Swin folder.

    Args:
        checkpoint: the file, or the folder of a `ClapModel`, `ClapAudioModel` or `SwinModel`.
        output_dir: made whole or not at all; must not exist yet, or be empty.
        preset: a folder with `config.json` and `preprocessor_config.json`, for the front end and the label names.
            Without it: AudioSet's, at 32 kHz; of a CLAP, its publisher's front end.
        labels: a text file with one label on each line, in place of the preset's.

    Raises:
        ConversionError: what is wrong, in one sentence; nothing has been written then.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir).resolve()
    _check_output(output_dir)
    convert = _convert_folder if checkpoint.is_dir() else _convert_file
    model, extractor = convert(checkpoint, preset, labels)
    extractor.frames_per_step = cast(HTSATConfig, model.config).frames_per_step  # a checkpoint may have other depths
    save_whole(output_dir, model, extractor)
    return model


def _convert_file(checkpoint: Path, preset: str | Path | None, labels: str | Path | None) -> Converted:
    config, extractor = load_preset(preset, labels)
    state = read_checkpoint(checkpoint)
    publisher = publisher_of(state)
    if publisher is not None:
        return _convert_clap_file(checkpoint, state, publisher, None if preset is None else config, labels)
    if _is_image_swin(state):
        return htsat_from_swin(state, config), extractor
    return authors_model(state, config, extractor, str(checkpoint)), extractor


def _convert_clap_file(
    checkpoint: Path,
    state: Mapping[str, torch.Tensor],
    publisher: Publisher,
    config: HTSATConfig | None,
    labels: str | Path | None,
) -> Converted:
    if labels is not None:
        raise ConversionError(f"{checkpoint} is a CLAP, which gives embeddings and no labels: leave --labels out.")
    model = htsat_from_clap_file(state, publisher, config, str(checkpoint))
    return model, HTSATFeatureExtractor(**cast(HTSATConfig, model.config).front_end)


def _is_image_swin(state: Mapping[str, torch.Tensor]) -> bool:
    kernel = state.get("patch_embed.proj.weight")
    return kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 3


def _convert_folder(folder: Path, preset: str | Path | None, labels: str | Path | None) -> Converted:
    model_type = _read_json(folder / "config.json").get("model_type")
    if model_type == "swin":
        config, extractor = load_preset(preset, labels)
        return htsat_from_swin(_load_whole(SwinModel, folder), config), extractor
    if model_type not in ("clap", "clap_audio_model"):
        raise ConversionError(
            f"{folder} holds a model of type {model_type!r}; clap, clap_audio_model or swin is needed."
        )
    if preset is not None or labels is not None:
        raise ConversionError("A CLAP model brings its own front end, and no labels: leave --preset and --labels out.")
    clap = _load_whole(ClapModel if model_type == "clap" else ClapAudioModel, folder)
    model = htsat_from_clap(clap, _clap_extractor(folder))
    return model, HTSATFeatureExtractor(**cast(HTSATConfig, model.config).front_end)


def _load_whole(model_class: Any, folder: Path) -> Any:
    try:
        model, report = model_class.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # what torch and safetensors raise, for pickles that would run code too
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConversionError(f"{folder} could not be loaded as a {model_class.__name__}: {reason}") from error
    # from_pretrained would leave them at random values, with no more than a warning.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("relative_position_index"))
    if missing:
        raise ConversionError(
            f"{folder} lacks {len(missing)} of the tensors of a {model_class.__name__}: {missing[0]}."
        )
    return model


def _clap_extractor(folder: Path) -> ClapFeatureExtractor | None:
    if any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        return ClapFeatureExtractor.from_pretrained(folder)
    return None


# ── presets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_preset(
    preset: str | Path | None = None, labels: str | Path | None = None
) -> tuple[HTSATConfig, HTSATFeatureExtractor]:
    """The configuration and feature extractor of a preset folder; by default AudioSet's at 32 kHz."""
    if preset is None:
        names = audioset_labels() if labels is None else read_labels(labels)
        return HTSATConfig(problem_type="multi_label_classification", **_label_values(names)), HTSATFeatureExtractor()
    folder = Path(preset)
    values = _read_json(folder / "config.json")
    model_type = in_one_line(values.get("model_type"), 80)
    if model_type != "htsat":
        raise ConversionError(f"{folder} is no preset of HTS-AT: its `model_type` is {model_type!r}.")
    if labels is not None:
        values |= _label_values(read_labels(labels))
    config = make_config(values, f"{folder / 'config.json'} is no valid configuration")
    extractor = _make_extractor(folder / "preprocessor_config.json")
    for name, value in config.front_end.items():
        if getattr(extractor, name) != value:
            raise ConversionError(
                f"{folder} contradicts itself: `{name}` is {value} by config.json and {getattr(extractor, name)} by "
                "preprocessor_config.json."
            )
    return config, extractor


def _make_extractor(path: Path) -> HTSATFeatureExtractor:
    try:
        return HTSATFeatureExtractor(**_read_json(path))
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{path} is no valid front end: {in_one_line(error)}") from error


def _label_values(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def read_labels(path: str | Path) -> list[str]:
    """Label names from a text file: one on each line, in the order of their indices."""
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} is not a readable text file of labels ({error}).") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        problem = f"names {in_one_line(twice[0])!r} twice" if twice else "is empty"
        raise ConversionError(f"{path} {problem}; one label is needed on each line, each with a name of its own.")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is needed and could not be read as JSON ({in_one_line(error)}).") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds no table of values by name.")
    return content


# ── output ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_output(output_dir: Path):
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ConversionError(f"{output_dir} exists already and is not an empty folder. Choose another, or remove it.")


def save_whole(output_dir: Path, model: HTSATPreTrainedModel, extractor: HTSATFeatureExtractor):
    """Write the model folder under a temporary name beside its place, and rename it once it is complete."""
    unfinished = output_dir.with_name(f".{output_dir.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
        _check_output(output_dir)  # another conversion may have been faster
        unfinished.replace(output_dir)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{output_dir} could not be written, and nothing of it was left: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


__all__ = ["convert_checkpoint", "load_preset"]
