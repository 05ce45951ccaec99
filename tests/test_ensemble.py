"""An ensemble is one model whose probabilities are the mean of its members', wherever a model goes."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, pipeline

from modeling_htsat import (
    HTSATAudioClassificationPipeline,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
)
from modeling_htsat.ensemble import (
    HTSATEnsembleForAudioClassification,
    HTSATEnsembleForSoundEventDetection,
    load_ensemble,
    load_ensemble_extractor,
    mean_sigmoid_logits,
    mean_softmax_logits,
)
from modeling_htsat.training.distillation import Teacher

TASKS = {
    "audio-classification": (HTSATForAudioClassification, HTSATEnsembleForAudioClassification),
    "sound-event-detection": (HTSATForSoundEventDetection, HTSATEnsembleForSoundEventDetection),
}
SEVERAL, SINGLE = "multi_label_classification", "single_label_classification"
OTHER_SIZE = {"embed_dim": 12, "num_heads": (1, 2, 3, 6), "depths": (1, 1, 2, 1)}


@pytest.fixture
def make_member(make_model):
    """`make_member(model_class, 3, ...)`: a small model; another number makes another model of the same kind."""

    def make(model_class: type, number: int = 0, **values) -> torch.nn.Module:
        model = make_model(model_class, **{"problem_type": SEVERAL, **values})
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture
def make_ensemble(make_member):
    """`make_ensemble("audio-classification", ...)`: one of three members, the last of another size."""

    def make(task: str, **values) -> torch.nn.Module:
        member_class, ensemble_class = TASKS[task]
        members = [make_member(member_class, number, **values) for number in range(2)]
        return ensemble_class([*members, make_member(member_class, 2, **{**values, **OTHER_SIZE})])

    return make


# ── the mean of probabilities, as logits ──────────────────────────────────────────────────────────────────────────────


def test_the_sigmoid_of_the_logits_is_the_mean_of_the_sigmoids():
    members = torch.randn(4, 3, 7, 5) * 4
    torch.testing.assert_close(mean_sigmoid_logits(members).sigmoid(), members.sigmoid().mean(0), atol=1e-6, rtol=0)


def test_the_softmax_of_the_logits_is_the_mean_of_the_softmaxes():
    members = torch.randn(4, 3, 5) * 4
    combined = mean_softmax_logits(members)
    torch.testing.assert_close(combined.softmax(-1), members.softmax(-1).mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(combined.exp().sum(-1), torch.ones(3))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_extreme_logits_are_combined_as_exactly_as_in_twice_the_precision(scale):
    members = torch.tensor([[-1.0, -1.0, 1.0, 1.0, 0.0], [-1.0, 1.0, 1.0, 0.9, 1.0]])[:, None] * scale
    wide = members.double()
    for combine, log_of in (
        (mean_sigmoid_logits, torch.nn.functional.logsigmoid),
        (mean_softmax_logits, lambda logits: logits.log_softmax(-1)),
    ):
        combined = combine(members)
        assert combined.isfinite().all()
        expected = log_of(wide).logsumexp(0) - np.log(2)
        torch.testing.assert_close(log_of(combined.double()), expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_combined_in_single():
    combined = mean_sigmoid_logits([torch.tensor([12.0], dtype=torch.bfloat16)] * 2)
    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined, torch.tensor([12.0]))


# ── the models ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_frames", [256, 700])
def test_probabilities_are_the_mean_of_the_members_of_any_size(make_ensemble, make_features, task, num_frames):
    ensemble = make_ensemble(task)
    features = make_features(3, num_frames)
    mask = torch.ones(3, num_frames, dtype=torch.long)
    mask[1, 190:] = 0
    with torch.no_grad():
        combined = ensemble(features, mask)
        alone = [member(features, mask) for member in ensemble.members]
    for name in ("logits", "clip_logits"):
        if name in combined:
            expected = torch.stack([output[name].sigmoid() for output in alone]).mean(0)
            assert combined[name].shape == alone[0][name].shape
            torch.testing.assert_close(combined[name].sigmoid(), expected, atol=1e-6, rtol=0)
    embeddings = torch.cat([output.pooler_output for output in alone], dim=1)
    assert torch.equal(combined.pooler_output, embeddings)
    if task == "sound-event-detection":
        assert torch.equal(combined.step_mask, alone[0].step_mask)


@pytest.mark.parametrize("task", TASKS)
def test_several_times_the_same_model_is_that_model(make_member, make_features, task):
    member_class, ensemble_class = TASKS[task]
    member = make_member(member_class)
    ensemble = ensemble_class([member, copy.deepcopy(member), copy.deepcopy(member)])
    with torch.no_grad():
        torch.testing.assert_close(ensemble(make_features(2, 256)).logits, member(make_features(2, 256)).logits)


@pytest.mark.parametrize("problem_type", [SINGLE, None])
def test_labels_that_exclude_one_another_share_the_mean_of_softmaxes(make_ensemble, make_features, problem_type):
    ensemble = make_ensemble("audio-classification", problem_type=problem_type)
    features = make_features(2, 256)
    with torch.no_grad():
        probabilities = ensemble(features).logits.softmax(-1)
        expected = torch.stack([member(features).logits.softmax(-1) for member in ensemble.members]).mean(0)
    torch.testing.assert_close(probabilities, expected, atol=1e-6, rtol=0)


def test_outputs_of_regression_are_averaged_as_they_are(make_ensemble, make_features):
    ensemble = make_ensemble("audio-classification", problem_type="regression", num_labels=1)
    features = make_features(2, 256)
    with torch.no_grad():
        expected = torch.stack([member(features).logits for member in ensemble.members]).mean(0)
        torch.testing.assert_close(ensemble(features).logits, expected)


def test_a_detectors_clip_logits_follow_the_problem_type_and_its_frames_never_exclude(make_ensemble, make_features):
    ensemble = make_ensemble("sound-event-detection", problem_type=SINGLE)
    features = make_features(2, 256)
    with torch.no_grad():
        combined, alone = ensemble(features), [member(features) for member in ensemble.members]
    clips = torch.stack([output.clip_logits.softmax(-1) for output in alone]).mean(0)
    torch.testing.assert_close(combined.clip_logits.softmax(-1), clips, atol=1e-6, rtol=0)
    frames = torch.stack([output.logits.sigmoid() for output in alone]).mean(0)
    torch.testing.assert_close(combined.logits.sigmoid(), frames, atol=1e-6, rtol=0)


def test_the_loss_is_that_of_the_combined_probabilities(make_ensemble, make_features):
    labels = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 1]])
    for task in TASKS:
        ensemble = make_ensemble(task)
        with torch.no_grad():
            output = ensemble(make_features(2, 256), labels=labels)
        clips = output.get("clip_logits", output.logits)
        expected = torch.nn.functional.binary_cross_entropy(clips.sigmoid(), labels)
        torch.testing.assert_close(output.loss, expected)


def test_what_takes_a_model_apart_finds_the_parts_of_an_ensemble(make_ensemble, make_features):
    ensemble = make_ensemble("sound-event-detection")
    features = make_features(2, 256)
    with torch.no_grad():
        encoded = ensemble.htsat(features)
        assert torch.equal(ensemble.htsat.encode(features)[0], encoded.last_hidden_state)
        assert torch.equal(ensemble.classifier(encoded)[0], ensemble(features).logits)


def test_on_request_every_members_attentions_and_hidden_states_come_along(make_ensemble, make_features):
    ensemble = make_ensemble("audio-classification")
    with torch.no_grad():
        output = ensemble(make_features(1, 256), output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == sum(sum(member.config.depths) for member in ensemble.members)
    assert len(output.hidden_states) == 5 * len(ensemble.members)


def test_an_ensemble_is_made_ready_to_listen_and_leaves_its_members_weights_alone(make_member):
    members = [make_member(HTSATForAudioClassification, number).train() for number in range(2)]
    before = [copy.deepcopy(member.state_dict()) for member in members]
    ensemble = HTSATEnsembleForAudioClassification(members)
    assert not any(module.training for module in ensemble.modules())
    assert ensemble.num_parameters() == sum(member.num_parameters() for member in members)
    for member, state in zip(ensemble.members, before, strict=True):
        assert all(torch.equal(values, state[name]) for name, values in member.state_dict().items())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_labels": 4}, "knows 4 labels and member 0 knows 5"),
        ({"id2label": dict(enumerate(["LABEL_1", "LABEL_0", "LABEL_2", "LABEL_3", "LABEL_4"]))}, "Label 0 of member 1"),
        ({"sampling_rate": 16000}, "16000 as its `sampling_rate`"),
        ({"max_frequency": 8000.0}, "`max_frequency`"),
        ({"spec_size": 256}, "`clip_frames`"),
        ({"window_overlap": 0.25}, "`overlap_steps`"),
        ({"problem_type": SINGLE}, "`problem_type`"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(make_member, values, sentence):
    members = [make_member(HTSATForAudioClassification), make_member(HTSATForAudioClassification, **values)]
    with pytest.raises(ValueError, match=sentence):
        HTSATEnsembleForAudioClassification(members)


def test_members_for_different_tasks_are_refused_and_so_are_none_at_all(make_member):
    mixed = [make_member(HTSATForSoundEventDetection), make_member(HTSATForAudioClassification)]
    with pytest.raises(ValueError, match="of one class"):
        HTSATEnsembleForSoundEventDetection(mixed)
    with pytest.raises(ValueError, match="at least one model"):
        HTSATEnsembleForSoundEventDetection([])


# ── where models go ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_pipelines_tag_with_the_mean_of_the_members_scores(make_ensemble, small_extractor, make_sound):
    sound = make_sound(80_000)
    for problem_type, function in ((SEVERAL, "sigmoid"), (SINGLE, "softmax")):
        ensemble = make_ensemble("audio-classification", problem_type=problem_type)
        for pipeline_class in (None, HTSATAudioClassificationPipeline):
            options = {"feature_extractor": small_extractor, "pipeline_class": pipeline_class, "top_k": 5}

            def scores(model, options=options, function=function):
                # The stock pipeline knows by itself from transformers 5.23 on, and must be told in the call before.
                tags = pipeline("audio-classification", model=model, **options)(sound, function_to_apply=function)
                return np.array([tag["score"] for tag in sorted(tags, key=lambda tag: tag["label"])])

            expected = np.mean([scores(member) for member in ensemble.members], axis=0)
            np.testing.assert_allclose(scores(ensemble), expected, atol=1e-6)


def test_the_detection_pipeline_takes_an_ensemble(make_ensemble, small_extractor, make_sound):
    ensemble = make_ensemble("sound-event-detection")
    sound = make_sound(200_000)  # longer than one window

    def found(model):
        detector = pipeline("sound-event-detection", model=model, feature_extractor=small_extractor)
        return detector(sound, threshold=0.4, return_scores=True, time_refinement=2, progress_bar=True)

    combined, alone = found(ensemble), [found(member) for member in ensemble.members]
    np.testing.assert_allclose(combined["scores"], np.mean([one["scores"] for one in alone], axis=0), atol=1e-6)
    for label, score in combined["tags"].items():
        assert score == pytest.approx(np.mean([one["tags"][label] for one in alone]), abs=1e-6)


def test_trainer_evaluates_and_predicts_with_an_ensemble(make_ensemble, make_features, tmp_path):
    ensemble = make_ensemble("sound-event-detection")
    features = make_features(5, 256)
    labels = (torch.rand(5, 5) > 0.5).float()
    examples = [{"input_features": one, "labels": label} for one, label in zip(features, labels, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=2
    )
    trainer = Trainer(ensemble, arguments, eval_dataset=examples)
    with torch.no_grad():
        expected = ensemble(features, labels=labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-5)
    frames, clips = trainer.predict(examples).predictions
    np.testing.assert_allclose(frames, expected.logits, atol=1e-4)
    np.testing.assert_allclose(clips, expected.clip_logits, atol=1e-4)


def test_a_teacher_may_be_an_ensemble(make_ensemble, small_extractor, make_sound):
    ensemble = make_ensemble("sound-event-detection")
    sounds = [make_sound(80_000), make_sound(30_000, seed=1)]
    expected = torch.stack([Teacher(member, small_extractor).hear(sounds) for member in ensemble.members]).mean(0)
    probabilities = Teacher(ensemble, small_extractor).hear(sounds)
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities, expected, atol=1e-6, rtol=0)


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folders(make_ensemble, small_extractor, tmp_path):
    """`folders("audio-classification")`: three saved members, with their extractors."""

    def make(task: str) -> list[str]:
        names = []
        for index, member in enumerate(make_ensemble(task).members):
            names.append(str(tmp_path / f"model-{index}"))
            member.save_pretrained(names[-1])
            small_extractor.save_pretrained(names[-1])
        return names

    return make


@pytest.mark.parametrize("task", TASKS)
def test_an_ensemble_is_loaded_by_its_members_names_and_saved_as_one_folder(folders, make_features, tmp_path, task):
    names, features = folders(task), make_features(2, 300)
    ensemble = load_ensemble(names, task)
    ensemble.save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not (tmp_path / "saved").exists()
    assert type(ensemble) is TASKS[task][1]
    ensemble.config.event_decoding = {"threshold": 0.3}
    ensemble.save_pretrained(tmp_path / "saved")
    load_ensemble_extractor(names).save_pretrained(tmp_path / "saved")
    listed = json.loads((tmp_path / "saved" / "ensemble.json").read_text())
    assert listed == {"members": ["member-0", "member-1", "member-2"]}
    for loaded in (TASKS[task][1].from_pretrained(tmp_path / "saved"), load_ensemble([tmp_path / "saved"], task)):
        assert len(loaded.members) == 3
        assert loaded.config.event_decoding == {"threshold": 0.3}
        with torch.no_grad():
            assert torch.equal(loaded(features).logits, ensemble(features).logits)
    assert len(load_ensemble([tmp_path / "saved", names[0]], task).members) == 4
    assert load_ensemble_extractor([tmp_path / "saved"]).clip_frames == 256


def test_a_single_name_gives_the_plain_model(folders):
    (name, *_) = folders("audio-classification")
    model = load_ensemble([name], "audio-classification")
    assert type(model) is HTSATForAudioClassification
    assert not model.training
    assert type(load_ensemble([name], "sound-event-detection")) is HTSATForSoundEventDetection


def test_loading_says_in_a_sentence_what_is_wrong(folders, make_model, tmp_path):
    (name, *_) = folders("audio-classification")
    make_model(HTSATModel).save_pretrained(tmp_path / "encoder")
    HTSATFeatureExtractor().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="lacks weights, classifier"):
        load_ensemble([name, tmp_path / "encoder"], "audio-classification")
    with pytest.raises(ValueError, match="nowhere cannot be loaded"):
        load_ensemble([name, tmp_path / "nowhere"], "audio-classification")
    with pytest.raises(ValueError, match="audio-classification or sound-event-detection"):
        load_ensemble([name], "tagging")
    with pytest.raises(ValueError, match="a list of names"):
        load_ensemble(name, "audio-classification")
    with pytest.raises(ValueError, match="a list of names"):
        load_ensemble_extractor(name)
    with pytest.raises(ValueError, match="is no ensemble"):
        HTSATEnsembleForAudioClassification.from_pretrained(name)
    with pytest.raises(ValueError, match="1024 as its `clip_frames`"):
        load_ensemble_extractor([name, tmp_path / "other"])
    with pytest.raises(ValueError, match="extractor of .*nowhere cannot be loaded"):
        load_ensemble_extractor([tmp_path / "nowhere"])
