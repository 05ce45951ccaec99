"""Sounds, tables, corpora, recipes, packs and shards to be fuzzed: a small valid file of each, and how it is read."""

import contextlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet
import soundfile
from fuzz_mutations import (
    mutate_bytes,
    mutate_json,
    mutate_table,
    mutate_text,
    mutate_yaml,
)
from fuzz_seeds import Mutate, Seed, check, touch, write

from modeling_htsat.audio_htsat import load_audio, open_audio, stream_audio
from modeling_htsat.conversion.convert import read_labels
from modeling_htsat.labels import load_label_groups
from modeling_htsat.tables import evaluate_event_tables, read_durations, read_events
from modeling_htsat.training import shards
from modeling_htsat.training.arguments import DataArguments, FinalArguments, ModelArguments
from modeling_htsat.training.clips import CLIP_FEATURES
from modeling_htsat.training.corpora import load_corpus
from modeling_htsat.training.packs import PackRows
from modeling_htsat.training.recipes import RecipeError, parse_recipe, recipe_values
from modeling_htsat.training.runs import PARTS
from modeling_htsat.training.shards import ShardRows

# ── sounds ────────────────────────────────────────────────────────────────────────────────────────────────────────────

FORMATS = [
    *[
        ("WAV", subtype)
        for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM")
    ],
    *[
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AIFF", "FLOAT"),
        ("AU", "PCM_16"),
    ],
    *[("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
]


OF_THEIR_OWN = ("WAV", "FLAC", "OGG", "MP3")  # what people have: a kind each, so that each gets its thousands


def make_sounds(folder: Path, container: str = "") -> Iterable[Seed]:
    """Of one container, or of all that have no kind of their own; what is spliced into them is of any."""
    for number, (name, subtype) in enumerate(FORMATS):
        noise = 0.1 * np.random.default_rng(number).standard_normal((1999, 1 + number % 2))
        soundfile.write(folder / f"{name}_{subtype}.sound", noise, 16_000, format=name, subtype=subtype)
    tag = b"ID3\4\0\0\0\0\0\x0aTIT2\0\0\0\0\0\0"
    (folder / "MP3_tagged.sound").write_bytes(tag + (folder / "MP3_None.sound").read_bytes())
    paths = sorted(folder.iterdir())
    everything = [path.read_bytes() for path in paths]
    for path in paths:
        name = path.name.partition("_")[0]
        if name == container or not container and name not in OF_THEIR_OWN:
            yield Seed(path, read_sound, lambda rng, content, others: mutate_bytes(rng, content, everything))


def read_sound(path: Path, rng: Random) -> None:
    source: Any = rng.choice(
        (path, str(path), {"bytes": path.read_bytes(), "path": path.name}, io.BytesIO(path.read_bytes()))
    )
    if isinstance(source, io.BytesIO):
        source.name = path.name
    rate, allow = rng.choice((16_000, 32_000, 8_000)), rng.random() < 0.5
    if rng.random() < 0.5:
        blocks = list(stream_audio(source, rate, rng.choice((0.01, 1.0, 1e9)), allow_truncated=allow))
        check(all(block.ndim == 1 for block in blocks), "blocks of more than one channel")
        waveform = np.concatenate(blocks)
    else:
        waveform = load_audio(source, rate, allow_truncated=allow)
    check(waveform.dtype == np.float32 and waveform.ndim == 1 and waveform.size > 0, "no mono float32 samples")
    check(bool(np.isfinite(waveform).all()), "samples that are not finite")
    with open_audio(path, allow_truncated=allow) as sound:
        seconds = sound.duration_seconds
        check(seconds is None or 0 < seconds < math.inf, f"a duration of {seconds}")
        check(
            allow or seconds is None or abs(seconds - len(waveform) / rate) < 1, f"{seconds} s, {len(waveform)} samples"
        )


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────

EVENTS = (
    "filename\tonset\toffset\tevent_label\n"
    "a.wav\t0.5\t1.25\tdog\na.wav\t2\t3\tcat, purring\nb.wav\t\t\t\nc.wav\t0\t9.5\tdog\n"
)
GROUPS = "dog: {classes: '1, 5-9', threshold: 0.3}\ncat: {classes: 2}\n"
DURATIONS = "filename\tduration\na.wav\t10\nb.wav\t10.0\nc.wav\t9.75\n"


def make_tables(folder: Path) -> Iterable[Seed]:
    events, durations = write(folder / "events.tsv", EVENTS), write(folder / "durations.tsv", DURATIONS)
    found = write(folder / "found.tsv", EVENTS.replace("0.5\t", "0.25\t"))
    groups, labels = write(folder / "groups.yaml", GROUPS), write(folder / "labels.txt", "dog\ncat, purring\nrain\n")
    for mutate in (mutate_table, mutate_table, mutate_text):
        yield Seed(events, read_event_table, mutate)
        yield Seed(durations, read_duration_table, mutate)
        yield Seed(found, lambda path, rng: score(events, durations, path), mutate)
        yield Seed(durations, lambda path, rng: score(events, path, found), mutate)
        yield Seed(groups, read_groups, mutate_yaml)
        yield Seed(labels, read_label_names, mutate_text)


def read_event_table(path: Path, rng: Random) -> None:
    for filename, events in read_events(path).items():
        check(bool(filename), "a file without a name")
        check_events(events)


def check_events(events: Iterable[tuple[float, float, str]]) -> None:
    for onset, offset, label in events:
        check(0 <= onset <= offset < math.inf and bool(label), f"the event {onset} to {offset}, {label!r:.80}")


def read_duration_table(path: Path, rng: Random) -> None:
    check(all(0 < seconds < math.inf for seconds in read_durations(path).values()), "a duration that is none")


def score(events: Path, durations: Path, found: Path) -> None:
    scores = evaluate_event_tables(events, durations, found, merge_overlaps=True)
    for name in ("intersection_f1", "collar_f1", "segment_f1"):
        check(0 <= scores[name]["macro"] <= 1, f"{name} is {scores[name]['macro']}")


def read_groups(path: Path, rng: Random) -> None:
    groups, decoding = load_label_groups(path)
    check(all(classes and min(classes) >= 0 for classes in groups.values()), "a group of no classes")
    check(set(decoding.threshold) == set(groups), "thresholds of other groups")


def read_label_names(path: Path, rng: Random) -> None:
    names = read_labels(path)
    check(len(set(names)) == len(names) > 0 and all(names), f"the names {names!r:.80}")


# ── corpora ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_corpora(folder: Path) -> Iterable[Seed]:
    for make in (make_audioset_strong, make_desed, make_esc50, make_own_tables, make_speech_commands, make_soundscapes):
        yield from make(folder / make.__name__)


def make_csv(folder: Path) -> Iterable[Seed]:
    return (seed for seed in make_corpora(folder) if seed.path.suffix == ".csv")


def corpus(kind: str, location: Path, path: Path, mutate: Mutate, split: str = "train", **options: Any) -> Seed:
    return Seed(path, partial(read_corpus, kind, location, split, options), mutate)


def read_corpus(kind: str, location: Path, split: str, options: dict[str, Any], path: Path, rng: Random) -> None:
    loaded = (
        load_corpus(kind, location, split, skip_missing=True, **options)
        if options
        else load_corpus(kind, location, split)
    )
    check(
        len(loaded.rows) > 0 and len(set(loaded.label_names)) == len(loaded.label_names) > 0, "no clips, or no classes"
    )
    for clip in (loaded.rows[index] for index in range(len(loaded.rows))):
        check_events((event["onset"], event["offset"], event["event_label"]) for event in clip["events"] or ())
        named = {*(clip["human_labels"] or ()), *(event["event_label"] for event in clip["events"] or ())}
        check(named <= set(loaded.label_names), "labels that are no classes")


def make_audioset_strong(folder: Path) -> Iterable[Seed]:
    touch(folder / "audio", "a_b_0.flac", "Yc.wav")
    names = write(folder / "mid_to_display_name.tsv", "/m/1\tDog\n/m/2\tCat\n/m/3\tDog\n")
    header = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    rows = "a_b_0\t0.5\t1.5\t/m/1\na_b_0\t2\t3\t/m/2\nc_30000\t0\t10\t/m/3\n"
    train = write(folder / "audioset_train_strong.tsv", header + rows)
    write(folder / "audioset_eval_strong.tsv", header)
    for options in ({}, {"validation_share": 0.1}):
        yield corpus("audioset_strong", folder, train, mutate_table, **options)
        yield corpus("audioset_strong", folder, names, mutate_table, **options)


def make_desed(folder: Path) -> Iterable[Seed]:
    touch(folder / "audio", "train/weak/a.wav", "train/weak/b.wav", "validation/validation/c.wav")
    weak = write(folder / "metadata/train/weak.tsv", "filename\tevent_labels\na.wav\tDog,Cat\nb.wav\tSpeech\n")
    real = write(
        folder / "metadata/validation/validation.tsv", EVENTS.replace("dog", "Dog").replace("cat, purring", "Cat")
    )
    yield corpus("desed", folder, weak, mutate_table, parts="weak")
    yield corpus("desed", folder, real, mutate_table, "validation", parts="real")


def make_esc50(folder: Path) -> Iterable[Seed]:
    names = [f"{fold}-{number}-A-{number}.wav" for fold in (1, 2, 3) for number in (0, 1)]
    touch(folder / "audio", *names)
    rows = [f"{name},{name[0]},{name[2]},{'dog' if name[2] == '0' else 'cat'},False,{name[0]},A" for name in names]
    table = write(
        folder / "meta/esc50.csv", "\n".join(["filename,fold,target,category,esc10,src_file,take", *rows]) + "\n"
    )
    yield corpus("esc50", folder, table, mutate_table)
    yield corpus("esc50", folder, table, mutate_table, fold=2, validation_share=0.2)


def make_own_tables(folder: Path) -> Iterable[Seed]:
    touch(folder, *(f"{name}.wav" for name in "abcdef"))
    text = "filename,label,split,place\na.wav,dog,train,x\nb.wav,cat,test,y\nc.wav,dog,val,z\nd.wav,cat,,x\n"
    table, many = (
        write(folder / "table.csv", text),
        text.replace("label", "labels").replace("dog", "dog;cat").replace(",", "\t"),
    )
    yield corpus("table", table, table, mutate_table)
    yield corpus("table", table, table, mutate_table, group_column="place")
    labels = write(folder / "table.tsv", many)
    yield corpus("table", labels, labels, mutate_table, label_names="cat,dog")
    events = write(folder / "events.tsv", EVENTS)
    yield corpus("events", events, events, mutate_table, validation_share=0.2)


def make_speech_commands(folder: Path) -> Iterable[Seed]:
    touch(folder, *(f"{word}/{name}.wav" for word in ("yes", "no") for name in "abc"))
    lists = [write(folder / name, "yes/a.wav\nno/b.wav\n") for name in ("validation_list.txt", "testing_list.txt")]
    yield corpus("speech_commands", folder, lists[0], mutate_text)


def make_soundscapes(folder: Path) -> Iterable[Seed]:
    touch(folder / "audio", "a.wav", "b.wav", "c.wav")
    events, info = write(folder / "events.tsv", EVENTS), folder / "dataset_info.json"
    write(info, json.dumps({"format": "flac", "labels": ["dog", "cat, purring"], "split_name": "train", "seed": 0}))
    yield corpus("soundscapes", folder, info, mutate_json)
    yield corpus("soundscapes", folder, events, mutate_table)


# ── recipes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

OWN = (ModelArguments, DataArguments, FinalArguments)
RECIPE = """model: htsat-audioset
corpus: desed
data: DESED
data_options: [skip_missing=true, labels=strong]
learn_events: true
crop_seconds: 2.5
folds: [1, 2]
final_weights: ema
ema_decay: 0.999
test_split: none
"""
TRAINING = """learning_rate: 1e-4
lr_scheduler_type: cosine
lr_scheduler_kwargs: {num_cycles: 0.5}
warmup_steps: 300
per_device_train_batch_size: 32
num_train_epochs: 20
label_names: [labels]
output_dir: runs/desed
"""


def make_recipes(folder: Path) -> Iterable[Seed]:
    own, whole = write(folder / "own.yaml", RECIPE), write(folder / "whole.yaml", RECIPE + TRAINING)
    for mutate in (mutate_yaml, mutate_yaml, mutate_yaml, mutate_text):
        yield Seed(own, lambda path, rng: recipe_values(path), mutate)
        yield Seed(own, lambda path, rng: recipe_values(path, OWN), mutate)
        yield Seed(own, lambda path, rng: parse(path, OWN), mutate)
    yield Seed(whole, lambda path, rng: parse(path, PARTS), mutate_yaml)


def parse(path: Path, parts: Sequence[type]) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parse_recipe(parts, ["--recipe", str(path)])
    except SystemExit as end:
        check(end.code == 2, f"status {end.code}")
        raise RecipeError(f"{path.name}: {said.getvalue().strip()}") from end  # some sentences are about flags alone


# ── packs and shards ──────────────────────────────────────────────────────────────────────────────────────────────────


def make_packs(folder: Path) -> Iterable[Seed]:
    values = {
        "audio_name": np.array(["a.wav", "b.wav", ""], "S20"),
        "waveform": np.arange(300, dtype=np.int16).reshape(3, 100),
        "target": np.eye(3, dtype=bool),
    }
    for name, changes in (
        ("pack", {}),
        ("float", {"waveform": np.zeros((3, 100), np.float32)}),
        ("index", {"hdf5_path": np.array([str(folder / "pack.h5")] * 3, "S200"), "index_in_hdf5": np.array([0, 1, 2])}),
    ):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for key, value in {**values, **changes}.items():
                if key != "waveform" or name != "index":
                    file.create_dataset(key, data=value, compression="gzip" if name == "float" else None)
            file.attrs["sample_rate"] = 8000
        yield Seed(folder / f"{name}.h5", read_pack, mutate_bytes)


def read_pack(path: Path, rng: Random) -> None:
    rows = PackRows([path], ("a", "b", "c"))
    for index in range(len(rows)):
        clip = rows[index]
        check(set(clip["labels"]) <= {"a", "b", "c"}, "labels that are no classes")
        check(clip["audio"]["bytes"][:4] == b"RIFF", "no WAV file")
    check(len(rows.without_audio()) == len(rows), "another number of rows")


def make_shards(folder: Path) -> Iterable[Seed]:
    rows = [
        {
            "video_id": f"clip {index}",
            "audio": {"bytes": bytes([index]) * 50, "path": f"{index}.flac"},
            "labels": ["a", "b"],
            "human_labels": ["A", "B"],
            "events": [{"onset": 0.5, "offset": 1.0, "event_label": "A"}],
        }
        for index in range(9)
    ]
    shards.RETRY_PAUSES_SECONDS = (600.0,)  # to wait for a damaged file to mend itself is to hang
    table = pyarrow.Table.from_pylist(rows, schema=CLIP_FEATURES.arrow_schema)
    for compression in ("snappy", "zstd", "none"):
        path = folder / f"{compression}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=4, compression=compression)
        yield Seed(path, read_shard, mutate_bytes)


def read_shard(path: Path, rng: Random) -> None:
    rows = ShardRows([str(path)])
    check(len(rows.without_audio()) == len(rows), "another number of rows")
    for index in range(len(rows)):
        check(set(rows[index]) == set(CLIP_FEATURES), "other columns")
