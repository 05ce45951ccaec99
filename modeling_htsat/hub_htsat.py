"""To the Hub in one commit: all that others need to load a model, with the code that runs it and a card.

transformers' own `push_to_hub` would replace the card by a template that no pipeline can be found by.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData

from .whole_htsat import finish_files, whole_files

CARD_FILE, CONFIG_NAME, EXTRACTOR_FILE = "README.md", "config.json", "preprocessor_config.json"
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
# Loaders choose among weights by name, so old ones beside new ones could be what is loaded.
WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
TASKS = {
    "HTSATForAudioClassification": "audio-classification",
    "HTSATForSoundEventDetection": "sound-event-detection",
}
SHORT_CARD = """---
{metadata}
---

# {name}

HTS-AT, a Swin transformer over log-mel spectrograms, for {num_labels} classes of sound at {sampling_rate} Hz.

```python
from transformers import AutoFeatureExtractor, {auto_class}

extractor = AutoFeatureExtractor.from_pretrained("{name}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)
```
"""


def class_names(model: Any) -> list[str]:
    """Of its class and those it inherits: code that came from the Hub has classes of its own, by the same names."""
    return [kind.__name__ for kind in type(model).__mro__]


class HubRepository:
    """A repository of a model on the Hub, made if there is none, with the files of the branch that is to change."""

    def __init__(
        self,
        repo_id: str,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ):
        self.api, self.revision, self.create_pr = HfApi(token=token), revision, create_pr
        self.repo_id = self.api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/") and not create_pr:
            self.api.create_branch(self.repo_id, branch=revision, exist_ok=True)
        self.files = set(self.api.list_repo_files(self.repo_id, revision=revision))

    def fetch(self, name: str, folder: Path):
        """Copy a file from the repository into the folder, if it is there."""
        if name in self.files:
            shutil.copyfile(self.api.hf_hub_download(self.repo_id, name, revision=self.revision), folder / name)

    def commit(self, folder: Path, message: str, description: str | None = None) -> CommitInfo:
        """The files of a folder in one commit: the Hub has all of them or none. Weights replace all older weights."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        outdated = sorted(self.files - set(names)) if any(map(WEIGHTS.fullmatch, names)) else []
        return self.api.create_commit(
            self.repo_id,
            [
                *(CommitOperationAdd(name, folder / name) for name in names),
                *(CommitOperationDelete(name) for name in outdated if WEIGHTS.fullmatch(name)),
            ],
            commit_message=message,
            commit_description=description,
            revision=self.revision,
            create_pr=self.create_pr,
        )


def write_short_card(folder: Path, model: Any, name: str):
    """What a pushed model says of itself where the package is missing, which has more to say."""
    kind = type(model).__name__
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-classification" if kind in TASKS else None,
        tags=["htsat", "audio", *([TASKS[kind]] if kind in TASKS else [])],
    )
    text = SHORT_CARD.format(
        metadata=metadata.to_yaml(),
        name=name,
        num_labels=model.config.num_labels,
        sampling_rate=model.config.sampling_rate,
        auto_class=model._auto_class,
    )
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


class HTSATHubMixin:
    """`push_to_hub` as everywhere in transformers, for models, configurations, extractors and pipelines of HTS-AT."""

    card_writer: ClassVar[Callable[[Path, Any, str], None]] = staticmethod(write_short_card)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers; with `push_to_hub=True` followed by `push_to_hub`."""
        is_pushed = kwargs.pop("push_to_hub", False)
        pushing = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        saved = self._save_files(save_directory, *args, **kwargs)
        if is_pushed:
            self.push_to_hub(pushing.pop("repo_id", Path(save_directory).name), **pushing, **kwargs)
        return saved

    def _save_files(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: str | Iterable[str] | None = None,
        **saving: Any,
    ) -> CommitInfo:
        """Upload in one commit what `save_pretrained` writes, and of a model a card, where the Hub has none yet.

        Args:
            repo_id: `name` or `organisation/name`; made if there is none, and left empty if the upload fails.
            commit_message, commit_description, private, token, revision, create_pr, tags: as everywhere; `revision` is
                a branch, made if there is none.
            saving: for `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as temporary:
            repository = HubRepository(repo_id, token, private, revision, create_pr)
            folder = Path(temporary)
            for name in (EXTRACTOR_FILE, CARD_FILE):
                repository.fetch(name, folder)
            self.save_pretrained(folder, **saving)
            self._add_card(folder, repository.repo_id, [tags] if isinstance(tags, str) else list(tags or []))
            return repository.commit(folder, commit_message or f"Upload {type(self).__name__}", commit_description)

    def _add_card(self, folder: Path, name: str, tags: list[str]):
        """For models; others leave the card as it is."""


class HTSATFilesMixin(HTSATHubMixin):
    """What is saved over something older takes its place whole, even from a saver or a trainer who is killed."""

    files_key: ClassVar[str] = CONFIG_NAME

    def _save_files(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        with whole_files(save_directory, self.files_key, WEIGHTS.fullmatch) as folder:
            saved = self._write_files(folder, Path(save_directory), *args, **kwargs)
        if isinstance(saved, list):  # extractors name their files
            saved = [os.path.join(save_directory, os.path.basename(path)) for path in saved]
        return saved

    def _write_files(self, folder: Path, older: Path, *args: Any, **kwargs: Any) -> Any:
        """To the hidden folder; `older` is the one that its files go to."""
        return super()._save_files(folder, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers; what a saver who was killed left to be done is done first."""
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        finish_files(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]


def add_tags(card_file: Path, tags: Iterable[str]):
    """Name further tags in the head of a card."""
    card = ModelCard.load(card_file)
    known = card.data.tags or []
    card.data.tags = [*known, *dict.fromkeys(tag for tag in tags if tag not in known)]
    card.save(card_file)


__all__ = ["HTSATFilesMixin", "HTSATHubMixin", "HubRepository", "add_tags", "class_names", "write_short_card"]
