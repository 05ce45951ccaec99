"""Averages of weights, over checkpoints and over the steps of a run, are what one would reckon by hand."""

import argparse
import json
import shutil

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from modeling_htsat import HTSATFeatureExtractor, HTSATForAudioClassification
from modeling_htsat.training import averaging
from modeling_htsat.training.averaging import EMACallback, average_best, average_checkpoints, best_checkpoints

WEIGHTS, SEVERAL = "model.safetensors", "multi_label_classification"


@pytest.fixture
def make_checkpoint(make_model, small_extractor, tmp_path):
    """`make_checkpoint("one", 3, ...)`: a model folder; another number makes other weights of the same model."""

    def make(name: str, number: int = 0, extractor: HTSATFeatureExtractor = small_extractor, **values):
        model = make_model(HTSATForAudioClassification, **values)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        model.htsat.mel_norm.running_var += number
        model.htsat.mel_norm.num_batches_tracked += 10 * number
        model.save_pretrained(tmp_path / name)
        extractor.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ── the mean of checkpoints ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_average_is_the_mean_of_every_weight_and_statistic(make_checkpoint, tmp_path, make_features):
    folders = [make_checkpoint(name, number) for number, name in enumerate(("one", "two", "three"))]
    average_checkpoints(folders, tmp_path / "mean")
    states, mean = [load_file(folder / WEIGHTS) for folder in folders], load_file(tmp_path / "mean" / WEIGHTS)
    assert mean.keys() == states[0].keys()
    for name, values in mean.items():
        if values.is_floating_point():
            expected = torch.stack([state[name].double() for state in states]).mean(0).float()
            assert torch.equal(values, expected), name
    assert mean["htsat.mel_norm.num_batches_tracked"] == 20
    model = HTSATForAudioClassification.from_pretrained(tmp_path / "mean")
    assert HTSATFeatureExtractor.from_pretrained(tmp_path / "mean").clip_frames == 256
    assert model(make_features(1, 256)).logits.isfinite().all()


def test_the_average_of_one_checkpoint_is_that_checkpoint(make_checkpoint, tmp_path):
    folder = make_checkpoint("one", 4)
    average_checkpoints([folder], tmp_path / "mean")
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "mean" / WEIGHTS)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads((tmp_path / "mean" / name).read_text()) == json.loads((folder / name).read_text())


def test_checkpoints_in_several_files_and_half_precision_are_averaged_too(make_checkpoint, tmp_path):
    folders = [make_checkpoint(name, number) for number, name in enumerate(("one", "two"))]
    states = []
    for folder in folders:
        states.append({name: values.bfloat16() for name, values in load_file(folder / WEIGHTS).items()})
    save_torch_state_dict(states[0], folders[0], max_shard_size="20KB")  # removes the whole file
    save_file(states[1], folders[1] / WEIGHTS)
    assert len(list(folders[0].glob("model-*.safetensors"))) > 1
    average_checkpoints(folders, tmp_path / "mean")
    for name, values in load_file(tmp_path / "mean" / WEIGHTS).items():
        expected = ((states[0][name].double() + states[1][name].double()) / 2).bfloat16()
        assert torch.equal(values, expected)


def test_thresholds_stay_where_all_checkpoints_have_the_same(make_checkpoint, tmp_path):
    folders = [make_checkpoint(name, number) for number, name in enumerate(("one", "two"))]
    for folder, threshold in zip(folders, (0.3, 0.4), strict=True):
        change_json(folder / "config.json", event_decoding={"threshold": threshold})
    average_checkpoints(folders, tmp_path / "different")
    assert json.loads((tmp_path / "different" / "config.json").read_text())["event_decoding"] is None
    change_json(folders[1] / "config.json", event_decoding={"threshold": 0.3}, transformers_version="another")
    average_checkpoints(folders, tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text())["event_decoding"] == {"threshold": 0.3}


def test_what_is_not_the_same_model_is_refused_and_nothing_is_left(make_checkpoint, small_extractor, tmp_path):
    one = make_checkpoint("one")

    def refused(other, sentence):
        with pytest.raises(ValueError, match=sentence):
            average_checkpoints([one, other], tmp_path / "mean")
        assert not [path for path in tmp_path.iterdir() if "mean" in path.name]

    refused(make_checkpoint("labels", num_labels=4), "`id2label` differs")
    other_ears = HTSATFeatureExtractor(clip_frames=256, short_clips="pad")
    refused(make_checkpoint("ears", extractor=other_ears), "differs from")
    shape = make_checkpoint("shape")
    state = load_file(shape / WEIGHTS)
    first = sorted(state)[0]
    save_file({**state, first: state[first][..., None].clone()}, shape / WEIGHTS)
    refused(shape, f"{first} is F32 of shape")
    save_file({name: values for name, values in state.items() if name != first}, shape / WEIGHTS)
    refused(shape, f"has weights {first}")
    (shape / WEIGHTS).write_bytes((one / WEIGHTS).read_bytes()[:1000])
    refused(shape, "no whole safetensors file")
    (shape / WEIGHTS).unlink()
    refused(shape, "saved with safetensors")
    (shape / "preprocessor_config.json").unlink()
    refused(shape, "no preprocessor_config.json; Trainer saves it")
    refused(tmp_path / "nowhere", "no config.json")
    with pytest.raises(ValueError, match="at least one"):
        average_checkpoints([], tmp_path / "mean")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        average_checkpoints([one], one)


# ── the best checkpoints of a run ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run_folder(make_checkpoint, tmp_path):
    """Four checkpoints with an mAP, a loss, and a validation loss that is never best where the mAP is."""
    folder = tmp_path / "run"
    scores = {10: 0.3, 20: 0.7, 30: 0.5, 100: 0.7}
    history = []
    for step, score in scores.items():
        history += [{"loss": 9.0, "step": step}, {"eval_mAP": score, "eval_loss": score + 1, "step": step}]
        checkpoint = make_checkpoint(f"run/checkpoint-{step}", step)
        best_step = 20 if step >= 20 else 10
        notes = {"log_history": history, "global_step": step, "best_metric": scores[best_step]}
        (checkpoint / "trainer_state.json").write_text(json.dumps({**notes, "best_global_step": best_step}))
    (folder / "checkpoint-110").mkdir()  # killed while it was written
    return folder


def test_the_best_checkpoints_are_found_by_what_trainer_noted(run_folder):
    best = best_checkpoints(run_folder, 3)
    assert [checkpoint.step for checkpoint in best] == [100, 20, 30]
    assert [checkpoint.value for checkpoint in best] == [0.7, 0.7, 0.5]
    assert {checkpoint.metric for checkpoint in best} == {"eval_mAP"}
    assert [checkpoint.step for checkpoint in best_checkpoints(run_folder, 2, "loss")] == [10, 30]
    lowest = best_checkpoints(run_folder, 2, "eval_mAP", greater_is_better=False)
    assert [checkpoint.step for checkpoint in lowest] == [10, 30]


def test_the_best_are_averaged_in_the_order_of_training(run_folder, tmp_path):
    best = average_best(run_folder, 3, tmp_path / "mean")
    assert [checkpoint.folder.name for checkpoint in best] == ["checkpoint-100", "checkpoint-20", "checkpoint-30"]
    average_checkpoints([run_folder / f"checkpoint-{step}" for step in (20, 30, 100)], tmp_path / "same")
    assert (tmp_path / "mean" / WEIGHTS).read_bytes() == (tmp_path / "same" / WEIGHTS).read_bytes()


def test_a_run_that_did_not_keep_enough_is_told_how_to(run_folder, tmp_path):
    with pytest.raises(ValueError, match="has 4 checkpoints with eval_mAP, and the best 5.*save_total_limit=None"):
        average_best(run_folder, 5, tmp_path / "mean")
    with pytest.raises(ValueError, match="0 checkpoints with eval_F1"):
        average_best(run_folder, 1, tmp_path / "mean", metric="F1")
    with pytest.raises(ValueError, match="no checkpoint of a Trainer"):
        best_checkpoints(tmp_path, 1)
    with pytest.raises(ValueError, match="at least one is needed"):
        best_checkpoints(run_folder, 0)
    for step in (10, 20, 30, 100):
        change_json(run_folder / f"checkpoint-{step}" / "trainer_state.json", best_metric=None)
    with pytest.raises(ValueError, match="name one of eval_loss, eval_mAP"):
        best_checkpoints(run_folder, 1)


@pytest.fixture
def command():
    """`command("one", "--output", "mean")`: what `htsat average` does."""

    def call(*arguments) -> int:
        parser = argparse.ArgumentParser()
        averaging.add_arguments(parser)
        return averaging.run(parser.parse_args([str(argument) for argument in arguments]))

    return call


def test_the_command_averages_what_is_named_or_the_best_of_a_run_and_says_so(run_folder, command, tmp_path, capsys):
    named = [run_folder / f"checkpoint-{step}" for step in (20, 100)]
    assert command(*named, "--output", tmp_path / "named") == 0
    assert capsys.readouterr().out.endswith(f"checkpoint-100\n{tmp_path / 'named'}: the mean of 2 checkpoints\n")
    assert command(run_folder, "--best", 2, "--output", tmp_path / "best") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{named[1]}\teval_mAP\t0.7"
    assert lines[1] == f"{named[0]}\teval_mAP\t0.7"
    assert (tmp_path / "named" / WEIGHTS).read_bytes() == (tmp_path / "best" / WEIGHTS).read_bytes()
    options = ("--best", 1, "--metric", "mAP", "--no-greater-is-better")
    assert command(run_folder, *options, "--output", tmp_path / "worst") == 0
    assert capsys.readouterr().out.startswith(f"{run_folder / 'checkpoint-10'}\teval_mAP\t0.3\n")
    with pytest.raises(ValueError, match="one run, and 2 came"):
        command(*named, "--best", 1, "--output", tmp_path / "other")
    with pytest.raises(ValueError, match="add --best"):
        command(*named, "--metric", "mAP", "--output", tmp_path / "other")


# ── a moving average during training ──────────────────────────────────────────────────────────────────────────────────


class Watch(TrainerCallback):
    """Keeps the weights after every step, and fails at one of them, as a process that is killed."""

    def __init__(self, killed_at: int | None = None):
        self.weights, self.killed_at = [], killed_at

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append({name: values.clone() for name, values in model.state_dict().items()})
        if state.global_step == self.killed_at:
            raise InterruptedError("killed")


@pytest.fixture
def make_trainer(make_model, make_features, small_extractor, tmp_path):
    """`make_trainer([ema], output="run", ...)`: a Trainer of a fresh small model, with stochastic depth."""

    def make(callbacks, output: str = "run", **values) -> Trainer:
        features, generator = make_features(12, 256), torch.Generator().manual_seed(5)
        labels = torch.rand(12, 5, generator=generator).round()
        examples = [{"input_features": one, "labels": label} for one, label in zip(features, labels, strict=True)]
        usual = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3, "learning_rate": 1e-2}
        usual |= {"max_steps": 5, "save_steps": 2, "per_device_train_batch_size": 4, "dataloader_pin_memory": False}
        return Trainer(
            make_model(HTSATForAudioClassification, problem_type=SEVERAL, drop_path_rate=0.2),
            TrainingArguments(str(tmp_path / output), **{**usual, **values}),
            train_dataset=examples,
            processing_class=small_extractor,
            callbacks=callbacks,
        )

    return make


def differing(one, other) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_average_is_that_of_a_loop_by_hand(make_trainer, warm_up):
    ema, watch = EMACallback(decay=0.8, warm_up=warm_up), Watch()
    trainer = make_trainer([watch, ema], save_strategy="no")
    expected = {name: values.double() for name, values in trainer.model.state_dict().items()}
    trainer.train()
    for step, weights in enumerate(watch.weights, start=1):
        decay = min(0.8, (1 + step) / (10 + step)) if warm_up else 0.8
        for name, values in weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * values.double()
    assert ema.num_updates == 5
    tracked = ema.average.pop("htsat.mel_norm.num_batches_tracked")
    assert tracked == trainer.model.htsat.mel_norm.num_batches_tracked == 5
    for name, values in ema.average.items():
        torch.testing.assert_close(values, expected[name].float(), rtol=1e-5, atol=1e-5)
    assert differing(ema.average, {name: watch.weights[-1][name] for name in ema.average})


def test_a_run_that_was_killed_ends_with_the_same_average_to_the_last_bit(make_trainer, tmp_path):
    whole = EMACallback(decay=0.8, warm_up=True)
    make_trainer([whole], "whole").train()
    with pytest.raises(InterruptedError):
        make_trainer([EMACallback(decay=0.8, warm_up=True), Watch(killed_at=3)], "killed").train()
    resumed = EMACallback(decay=0.8, warm_up=True)
    make_trainer([resumed], "killed").train(resume_from_checkpoint=True)
    assert resumed.num_updates == 5
    assert differing(whole.average, resumed.average) == []
    # From a place that Trainer does not tell callbacks of.
    shutil.copytree(tmp_path / "killed" / "checkpoint-2", tmp_path / "moved")
    moved = str(tmp_path / "moved")
    for ema, values in (
        (EMACallback(0.8, warm_up=True, resume_from=moved), {}),
        (EMACallback(0.8, warm_up=True), {"resume_from_checkpoint": moved}),
    ):
        make_trainer([ema], "elsewhere", save_strategy="no", **values).train(moved)
        assert differing(whole.average, ema.average) == []
    with pytest.raises(ValueError, match="no checkpoint of that step is in .*resume_from"):
        make_trainer([EMACallback()], "elsewhere", save_strategy="no").train(moved)


def test_no_checkpoint_looks_complete_without_its_average(make_trainer, tmp_path, monkeypatch):
    def killed(self, path):
        raise InterruptedError("killed")

    monkeypatch.setattr(TrainerState, "save_to_json", killed)
    with pytest.raises(InterruptedError):
        make_trainer([EMACallback()]).train()
    files = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert "ema.safetensors" in files
    assert "trainer_state.json" not in files
    assert not [name for name in files if name.endswith(".tmp")]


def test_a_checkpoint_without_an_average_is_noticed_on_resuming(make_trainer, tmp_path):
    make_trainer([], max_steps=2).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    weights = load_file(checkpoint / WEIGHTS)
    with pytest.raises(ValueError, match="no ema.safetensors.*start_anew=True"):
        make_trainer([EMACallback()]).train(resume_from_checkpoint=True)
    ema = EMACallback(decay=0.5, start_anew=True)
    trainer = make_trainer([ema], max_steps=3)  # and saves a checkpoint at its end
    trainer.train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "checkpoint-3" / "ema.safetensors").is_file()
    name = "classifier.convolution.weight"
    expected = (weights[name] + trainer.model.state_dict()[name]) / 2
    torch.testing.assert_close(ema.average[name], expected)
    (checkpoint / "ema.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no moving average, or was cut"):
        make_trainer([EMACallback()]).train(resume_from_checkpoint=str(checkpoint))


def test_a_model_has_the_average_for_a_while_and_then_its_own_weights_again(make_trainer, make_features, tmp_path):
    ema = EMACallback(decay=0.5)
    trainer = make_trainer([ema], save_strategy="no", max_steps=2)
    trainer.train()
    model = trainer.model.eval()
    own = {name: values.clone() for name, values in model.state_dict().items()}
    wrapped = torch.nn.DataParallel(model)  # as several processes wrap it
    with pytest.raises(KeyboardInterrupt), ema.applied(wrapped):
        assert differing(ema.average, model.state_dict()) == []
        with torch.no_grad():
            averaged = model(make_features(1, 256)).logits
        raise KeyboardInterrupt
    assert differing(own, model.state_dict()) == []
    ema.save(wrapped, tmp_path / "averaged", trainer.processing_class)
    assert differing(own, model.state_dict()) == []
    loaded = HTSATForAudioClassification.from_pretrained(tmp_path / "averaged").eval()
    with torch.no_grad():
        assert torch.equal(loaded(make_features(1, 256)).logits, averaged)
    assert HTSATFeatureExtractor.from_pretrained(tmp_path / "averaged").clip_frames == 256


def test_training_once_more_begins_the_average_anew(make_trainer):
    ema = EMACallback(decay=0.5)
    trainer = make_trainer([ema], save_strategy="no", max_steps=2)
    trainer.train()
    trainer.train()
    assert ema.num_updates == 2


def test_a_half_precision_models_average_moves_by_less_than_it_could_say(make_model):
    model = make_model(HTSATForAudioClassification).bfloat16()
    ema = EMACallback(decay=0.999)
    ema.begin(model)
    before = ema.average["classifier.convolution.weight"].clone()
    with torch.no_grad():
        model.classifier.convolution.weight += 0.5
    ema.update(model)
    moved = ema.average["classifier.convolution.weight"] - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.0005), atol=1e-4, rtol=0)
    with ema.applied(model):
        assert model.classifier.convolution.weight.dtype == torch.bfloat16


def test_what_cannot_be_averaged_is_said(make_model, make_trainer, tmp_path):
    model = make_model(HTSATForAudioClassification)
    with pytest.raises(ValueError, match="`decay` is 1"):
        EMACallback(decay=1)
    with pytest.raises(RuntimeError, match="seen no weights"):
        EMACallback().update(model)
    with pytest.raises(ValueError, match="restore_callback_states_from_checkpoint"):
        make_trainer([EMACallback()], restore_callback_states_from_checkpoint=True).train()
    ema = EMACallback()
    ema.begin(model)
    ema.write(tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match="of another model"):
        EMACallback().read(tmp_path / "ema.safetensors", make_model(HTSATForAudioClassification, num_labels=4))
