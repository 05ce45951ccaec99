"""What a run is told, beside TrainingArguments and the augmentation: the keys of recipes and the flags of scripts."""

from dataclasses import dataclass, field

FINAL_WEIGHTS = ("last", "best", "ema", "average")


@dataclass
class ModelArguments:
    """The model that learns."""

    model: str = field(
        metadata={
            "help": "What to start from: a model folder or a name on the Hub; or a preset, that is a folder with "
            "config.json and preprocessor_config.json alone, to train from scratch."
        }
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification or multi_label_classification; by default what the labels of the "
            "training clips say: single if each has exactly one."
        },
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth, if not the model's own."})
    teacher: list[str] = field(
        default_factory=list,
        metadata={"help": "Models to learn from beside the labels (folders or Hub names); several are an ensemble."},
    )
    teacher_cache: str | None = field(
        default=None, metadata={"help": "Folder for the teacher's answers: made once, read in every epoch."}
    )

    def __post_init__(self) -> None:
        if self.problem_type not in (None, "single_label_classification", "multi_label_classification"):
            raise ValueError(
                f"problem_type is {self.problem_type!r}; a corpus names classes, so it must be "
                "single_label_classification or multi_label_classification."
            )


@dataclass
class DataArguments:
    """The clips that it learns from."""

    corpus: str = field(metadata={"help": "Kind of the data: audioset, esc50, speech_commands, desed, folders, ..."})
    data: str = field(metadata={"help": "Where it is: a folder, a file, or a name on the Hub."})
    data_options: list[str] = field(
        default_factory=list, metadata={"help": "Options of the corpus as name=value, for example labels=strong."}
    )
    train_split: str = field(default="train", metadata={"help": "The split to learn from."})
    validation_split: str | None = field(
        default="validation", metadata={"help": "The split to watch while training; `none` for none."}
    )
    test_split: str | None = field(default="test", metadata={"help": "The split to report on; `none` for none."})
    validation_data: str | None = field(default=None, metadata={"help": "Where it is, if not with the training data."})
    test_data: str | None = field(default=None, metadata={"help": "Where it is, if not with the training data."})
    learn_events: bool = field(
        default=True,
        metadata={"help": "Learn when sounds are heard, where the corpus says it; false: from clip labels alone."},
    )
    crop_seconds: float | None = field(
        default=None, metadata={"help": "Longest training clip (default: the model's window); more is several windows."}
    )
    cache_gib: float = field(
        default=0.0, metadata={"help": "Keep decoded sounds in memory up to here; for small data without workers."}
    )
    folds: list[int] = field(
        default_factory=list, metadata={"help": "Test folds, one run each (corpus esc50): 1 2 3 4 5."}
    )
    seeds: list[int] = field(default_factory=list, metadata={"help": "Seeds, one run each (default: --seed alone)."})

    def __post_init__(self) -> None:
        for name in ("validation_split", "test_split"):
            if getattr(self, name) in ("none", ""):
                setattr(self, name, None)


@dataclass
class FinalArguments:
    """What becomes of the weights after the last step, and how they are scored."""

    ema_decay: float = field(
        default=0.0, metadata={"help": "Keep a moving average of the weights, for example 0.999; 0 for none."}
    )
    final_weights: str = field(
        default="last",
        metadata={
            "help": "What the run ends with: last; best (the checkpoint with the best metric); ema; or average (of the "
            "--average_best best checkpoints, as in the paper)."
        },
    )
    average_best: int = field(default=5, metadata={"help": "How many checkpoints `final_weights: average` averages."})
    test_shifts: int = field(
        default=1, metadata={"help": "Average the test scores over so many small circular time shifts; paper: 10."}
    )
    shift_samples: int = field(default=100, metadata={"help": "How far one of these shifts is from the next."})
    tune_decoding: bool = field(
        default=True,
        metadata={"help": "Events: find thresholds and filters on the validation set, and keep them with the model."},
    )
    tune_metric: str = field(default="intersection_f1", metadata={"help": "The score that they are found for."})

    def __post_init__(self) -> None:
        if self.final_weights not in FINAL_WEIGHTS:
            raise ValueError(f"final_weights is {self.final_weights!r}; choose one of {', '.join(FINAL_WEIGHTS)}.")
        if self.final_weights == "ema" and not self.ema_decay:
            raise ValueError("final_weights is ema, which needs a moving average: set ema_decay, for example to 0.999.")
        if self.test_shifts < 1 or self.average_best < 1:
            raise ValueError("test_shifts and average_best must be at least 1.")


__all__ = ["DataArguments", "FinalArguments", "ModelArguments"]
