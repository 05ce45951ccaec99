"""A model folder on the Hub: checked by loading it, gathered without what nobody should load, sent in one commit."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration_htsat import HTSATConfig
from ..ensemble import MEMBERS_FILE
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..hub_htsat import CARD_FILE, EXTRACTOR_FILE, HubRepository
from ..modeling_htsat import HTSATForAudioClassification, HTSATForSoundEventDetection, HTSATModel, HTSATPreTrainedModel
from ..whole_htsat import finish_files
from .card import RECIPE_FILE, RESULTS_FILE
from .facts import FACTS_FILE

MODEL_CLASSES = {kind.__name__: kind for kind in (HTSATForAudioClassification, HTSATForSoundEventDetection, HTSATModel)}
# What is published beside weights, configuration, extractor and code, which are written anew. Nothing else is: pickles
# run code when they are loaded, and optimizer states, logs and checkpoints are of no use to others.
COMPANIONS = (CARD_FILE, RESULTS_FILE, RECIPE_FILE, FACTS_FILE, "LICENSE", "LICENSE.txt", "NOTICE")
PICTURES = (".png", ".svg")


class PublishError(ValueError):
    """A model that is not published; the message says why, and what to do."""


class Publication(NamedTuple):
    """What goes to the Hub."""

    sizes: dict[str, int]  # bytes of every file
    left_out: list[str]  # what the folder holds besides
    commit: CommitInfo | None  # None: nothing was sent


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Upload the model in a folder, in one commit, with its code and a card, which the Hub's is kept for.

    Args:
        folder: as `save_pretrained` of a model and its extractor fills it. A README.md there replaces the Hub's.
        repo_id: `name` or `organisation/name`; made if there is none, and left empty if the upload fails.
        private: whether a new repository is.
        revision: a branch, made if there is none.
        create_pr: propose the commit as a pull request.
        message: of the commit.
        dry_run: ask nothing of the Hub.

    Raises:
        PublishError: what is wrong, and what to do; nothing has been published by halves then.
    """
    check_repo_id(repo_id)
    model, extractor = load_whole(folder)
    with tempfile.TemporaryDirectory() as temporary:
        gathered, commit = Path(temporary), None
        left_out = gather(folder, gathered, model, extractor)
        has_card = (gathered / CARD_FILE).is_file()
        if not has_card:
            type(model).card_writer(gathered, model, repo_id)
        if not dry_run:
            with hub_errors(repo_id):
                repository = HubRepository(repo_id, None, private, revision, create_pr)
                if not has_card:
                    repository.fetch(CARD_FILE, gathered)
                commit = repository.commit(gathered, message or f"Upload {type(model).__name__}")
        return Publication({path.name: path.stat().st_size for path in sorted(gathered.iterdir())}, left_out, commit)


def check_repo_id(repo_id: str):
    try:
        validate_repo_id(repo_id)
        repo_id.encode("ascii")  # early releases of huggingface_hub take the letters of every alphabet
    except ValueError as error:
        raise PublishError(
            f"{repo_id!r} is no name for a repository; letters, digits, `-`, `_` and `.` are, as in `me/htsat-birds`."
        ) from error


# ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_whole(folder: Path) -> tuple[HTSATPreTrainedModel, HTSATFeatureExtractor]:
    """The model and the extractor of a folder in which nothing is missing and nothing contradicts the rest."""
    check_files(folder)
    values = read_json(folder / CONFIG_NAME)
    kind = next((MODEL_CLASSES.get(name) for name in values.get("architectures") or ()), None)
    if values.get("model_type") != HTSATConfig.model_type or kind is None:
        raise PublishError(
            f"{folder / CONFIG_NAME} describes {values.get('architectures')} of the type {values.get('model_type')!r}; "
            f"an HTS-AT is needed: {', '.join(MODEL_CLASSES)}."
        )
    try:
        # Sizes that differ are reported like missing weights, by their names.
        model, report = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
        extractor = HTSATFeatureExtractor.from_pretrained(folder)
    except Exception as error:  # what torch and safetensors raise for damaged files is anybody's guess
        reason = first_line(error.__cause__ or error)  # the library's checks say first which of them failed
        raise PublishError(f"{folder} cannot be loaded ({reason}); save the model anew.") from error
    check_weights(folder, model, report)
    check_extractor(folder, model.config, extractor)
    return model, extractor


def check_files(folder: Path):
    if not folder.is_dir():
        raise PublishError(f"{folder} is no folder; give the one that `save_pretrained` wrote the model to.")
    finish_files(folder)
    if (folder / MEMBERS_FILE).is_file():
        raise PublishError(f"{folder} holds an ensemble; publish its members one by one.")
    missing = [name for name in (CONFIG_NAME, EXTRACTOR_FILE) if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        missing.append(SAFE_WEIGHTS_NAME)
    if missing:
        raise PublishError(f"The folder {folder} lacks {' and '.join(missing)}; save model and extractor in it.")


def check_weights(folder: Path, model: HTSATPreTrainedModel, report: dict[str, Any]):
    troubles = {"missing_keys": "is missing", "unexpected_keys": "is unknown", "mismatched_keys": "has another size"}
    for name, trouble in troubles.items():
        if keys := sorted(key if isinstance(key, str) else key[0] for key in report[name]):
            raise PublishError(
                f"The weights in {folder} are not those of its {CONFIG_NAME}: `{keys[0]}` {trouble}; save the model "
                "anew, both together."
            )
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise PublishError(f"The weights in {folder} hold NaN or infinite numbers (`{name}`); train it again.")


def check_extractor(folder: Path, config: HTSATConfig, extractor: HTSATFeatureExtractor):
    for name, value in config.front_end.items():
        if getattr(extractor, name) != value:
            raise PublishError(
                f"{folder} contradicts itself: `{name}` is {value} by {CONFIG_NAME} and {getattr(extractor, name)} by "
                f"{EXTRACTOR_FILE}; save the extractor that the model was trained with."
            )


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{path} is not JSON ({first_line(error)}); write it anew.") from error
    if not isinstance(values, dict):
        raise PublishError(f"{path} holds no table of values by name; write it anew.")
    return values


def gather(folder: Path, gathered: Path, model: HTSATPreTrainedModel, extractor: HTSATFeatureExtractor) -> list[str]:
    """Put together what is published, and name what is left out."""
    model.save_pretrained(gathered)
    extractor.save_pretrained(gathered)
    for path in folder.iterdir():
        if (path.name in COMPANIONS or path.suffix in PICTURES) and path.is_file() and lies_within(path, folder):
            shutil.copyfile(path, gathered / path.name)
    kept = {path.name for path in gathered.iterdir()}
    strangers = sorted(path for path in folder.iterdir() if path.name not in kept)
    return [f"{path.name}/" if path.is_dir() else path.name for path in strangers]


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file lies where its folder does: a link may lead to what nobody meant to publish."""
    places = (folder, folder.resolve().parent.parent / "blobs")  # as the cache of the Hub keeps its snapshots
    return any(path.resolve().is_relative_to(place.resolve()) for place in places)


# ── the Hub ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Say in a sentence what the Hub does not do."""
    try:
        yield
    except Exception as error:  # what a network raises is anybody's guess
        raise PublishError(
            f"{repo_id} was not published: {_reason(error, repo_id)}. The Hub takes all or nothing; a repository that "
            "was made for it is empty."
        ) from error


def _reason(error: Exception, repo_id: str) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub does not know the token; run `hf auth login`, or set HF_TOKEN to one that may write"
    if status == 403:
        return f"the token may not write to {repo_id}; use one that may, a name of your own, or --create-pr"
    if status == 404:
        return f"{repo_id} or the branch is not there, or hidden from the token; check both names"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
    if status is not None or isinstance(error, ValueError):  # such as a card whose head is not YAML
        said = getattr(error, "server_message", None) or " ".join(str(error).split())
        return f"the Hub refuses it ({said}); correct that"
    return f"the Hub cannot be reached, or the upload broke off ({first_line(error)}); try again"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


__all__ = ["Publication", "PublishError", "publish"]
