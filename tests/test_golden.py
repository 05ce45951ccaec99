"""A published checkpoint gives, through conversion and feature extractor, the numbers that it gave its authors."""

import zlib

import golden_recipe
import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
)

from modeling_htsat import HTSATFeatureExtractor, cli
from modeling_htsat.conversion import convert_checkpoint

PRESETS = golden_recipe.GOLDEN.parents[1] / "configuration" / "models"
PRESET_OF = {
    "audioset_527": "htsat-tiny-audioset",
    "audioset_no_tscam": "htsat-tiny-audioset",
    "esc50_50": "htsat-tiny-esc50",
    "scv2_35": "htsat-tiny-speech-commands-v2",
}
REFERENCES = golden_recipe.references()
every_reference = pytest.mark.parametrize("row", REFERENCES, ids=lambda row: f"{row['case']}-{row['input']}")


def learned_tensors(case: str) -> dict[str, torch.Tensor]:
    seed = next(row["weight_seed"] for row in REFERENCES if row["case"] == case)
    return {key: torch.from_numpy(weight) for key, weight in golden_recipe.make_weights(case, seed).items()}


def derived_tensors(case: str) -> dict[str, torch.Tensor]:
    """What the authors' constructor puts beside the weights: right where the conversion looks, else only in shape."""
    entries = golden_recipe.checkpoint_entries(case).items()
    shapes = {key: entry["shape"] for key, entry in entries if entry["derived"]}
    row = next(row for row in REFERENCES if row["case"] == case)
    front_end = HTSATFeatureExtractor(sampling_rate=row["config"]["sample_rate"], hop_length=row["config"]["hop_size"])
    return {
        **{key: torch.zeros(shape) for key, shape in shapes.items()},
        "logmel_extractor.melW": front_end.mel_filters.T,
        "bn0.num_batches_tracked": torch.tensor(1234),
    }


def write_checkpoint(case: str, path) -> None:
    """As the authors' Lightning run writes it; two cases in other ways that checkpoints are passed on."""
    state = learned_tensors(case)
    if case == "scv2_35":  # bare, and without the prefix
        torch.save(state, path)
        return
    if case == "audioset_527":  # complete
        state |= derived_tensors(case)
    state = {f"sed_model.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 9, "global_step": 1234, "state_dict": state, "optimizer_states": [{}]}, path)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """`converted(case)`: the folder that the command `htsat convert` makes of the case's checkpoint, made once."""
    folders = {}

    def convert(case: str):
        if case not in folders:
            workplace = tmp_path_factory.mktemp(case)
            write_checkpoint(case, workplace / "authors.ckpt")
            arguments = ["convert", str(workplace / "authors.ckpt"), str(workplace / "model")]
            if case in PRESET_OF:
                arguments += ["--preset", str(PRESETS / PRESET_OF[case])]
            else:
                (workplace / "labels.txt").write_text("".join(f"sound {index}\n" for index in range(10)))
                arguments += ["--labels", str(workplace / "labels.txt")]
            assert cli.main(arguments) == 0
            (workplace / "authors.ckpt").unlink()
            folders[case] = workplace / "model"
        return folders[case]

    return convert


def golden(row: dict, name: str) -> np.ndarray:
    with np.load(golden_recipe.GOLDEN / f"{row['case']}.npz") as values:
        key = f"{row['input']}.{name}"
        return values[key]


def features_of(row: dict, folder):
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    sound = golden_recipe.make_sound(row["samples"], row["sample_rate"], row["audio_seed"])
    return extractor(sound, sampling_rate=row["sample_rate"], return_tensors="pt")


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@every_reference
def test_the_spectrogram_is_the_authors(row, converted):
    features = features_of(row, converted(row["case"]))["input_features"][0].numpy()
    num_frames = int(golden(row, "log_mel_frames"))
    # A short clip's spectrogram is repeated: the authors' is its first copy.
    assert len(features) == num_frames * (max(1024 // num_frames, 1) if row["infer_mode"] else 1)
    assert relative_error(features[:num_frames:50], golden(row, "log_mel")) < 1e-4


@every_reference
@torch.no_grad()
def test_the_scores_of_the_clip_are_the_authors(row, converted):
    folder = converted(row["case"])
    model = AutoModelForAudioClassification.from_pretrained(folder)
    logits = model(**features_of(row, folder)).logits[0]
    scores = logits if row["config"]["loss_type"] == "clip_ce" else logits.sigmoid()
    np.testing.assert_allclose(scores.numpy(), golden(row, "clipwise").squeeze(), rtol=0, atol=2e-5)


@every_reference
@torch.no_grad()
def test_the_scores_of_the_frames_are_the_authors(row, converted):
    folder = converted(row["case"])
    model = AutoModelForAudioFrameClassification.from_pretrained(folder)
    outputs = model(**features_of(row, folder))
    np.testing.assert_allclose(
        outputs.logits[0].sigmoid().numpy(), golden(row, "framewise").squeeze(), rtol=0, atol=2e-5
    )
    clip_scores = (
        outputs.clip_logits[0] if row["config"]["loss_type"] == "clip_ce" else outputs.clip_logits[0].sigmoid()
    )
    np.testing.assert_allclose(clip_scores.numpy(), golden(row, "clipwise").squeeze(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "row",
    [row for row in REFERENCES if row["config"]["enable_tscam"]],
    ids=lambda row: f"{row['case']}-{row['input']}",
)
@torch.no_grad()
def test_the_embedding_is_the_authors(row, converted):
    folder = converted(row["case"])
    embedding = AutoModel.from_pretrained(folder)(**features_of(row, folder)).pooler_output[0].numpy()
    assert relative_error(embedding, golden(row, "latent").squeeze()) < 1e-4


@torch.no_grad()
def test_a_clip_scores_as_the_authors_had_it_in_a_batch_of_unequal_lengths(converted):
    rows = [row for row in REFERENCES if row["case"] == "small_10"]
    assert len({row["samples"] for row in rows}) == 3
    folder = converted("small_10")
    sounds = [golden_recipe.make_sound(row["samples"], row["sample_rate"], row["audio_seed"]) for row in rows]
    features = AutoFeatureExtractor.from_pretrained(folder)(sounds, sampling_rate=32000, return_tensors="pt")
    logits = AutoModelForAudioClassification.from_pretrained(folder)(**features).logits
    theirs = np.stack([golden(row, "clipwise").squeeze() for row in rows])
    np.testing.assert_allclose(logits.sigmoid().numpy(), theirs, rtol=0, atol=2e-5)


def test_wrapper_prefix_and_derived_buffers_make_no_difference(converted, tmp_path):
    """`small_10` came as a Lightning file without derived buffers; here the same weights come bare and with them."""
    torch.save(learned_tensors("small_10") | derived_tensors("small_10"), tmp_path / "bare.ckpt")
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"sound {index}\n" for index in range(10)))
    model = convert_checkpoint(tmp_path / "bare.ckpt", tmp_path / "model", labels=labels)
    other = AutoModelForAudioClassification.from_pretrained(converted("small_10"))
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", sorted({row["case"] for row in REFERENCES}))
def test_the_architecture_is_read_off_the_tensors(case, converted):
    config = AutoModelForAudioClassification.from_pretrained(converted(case)).config
    authors = next(row["config"] for row in REFERENCES if row["case"] == case)
    assert config.embed_dim == authors["htsat_dim"]
    assert list(config.depths) == authors["htsat_depth"]
    assert list(config.num_heads) == authors["htsat_num_head"]
    assert config.token_semantic_head == authors["enable_tscam"]
    assert (config.sampling_rate, config.hop_length) == (authors["sample_rate"], authors["hop_size"])
    assert len(config.id2label) == authors["classes_num"]


def test_a_converted_model_knows_its_labels_by_name(converted):
    names = {case: AutoModel.from_pretrained(converted(case)).config.id2label for case in PRESET_OF}
    assert names["audioset_527"][0] == "Speech"
    assert names["esc50_50"][0] == "dog"
    assert (names["scv2_35"][1], names["scv2_35"][34]) == ("wow", "backward")  # the authors' order


def test_the_recipe_still_makes_the_same_bits():
    weights = b"".join(weight.tobytes() for weight in golden_recipe.make_weights("small_10", seed=4).values())
    assert zlib.crc32(weights) == 295806973  # of the recipe that the golden values were made with
