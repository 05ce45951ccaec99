r"""The peer on the soundscape benchmark: transformers' ASTForAudioClassification of like size, on the same weak labels.

    python benchmarks/ast_on_soundscapes.py --data soundscapes --recipe configuration/recipes/soundscapes.yaml \
        --output_dir ast_soundscapes

It learns with the recipe's optimizer, schedule, batches, epochs and moving average from the same clips as
`run_sound_event_detection.py` with that recipe, hears them as far as its own front end lets it, and has its
spectrograms rolled, made louder or softer and cut by the same rules. Only its clip scores can be compared: it has no
time steps.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, Trainer, set_seed

from modeling_htsat import load_audio
from modeling_htsat.metrics import clip_metrics_for_trainer
from modeling_htsat.training.averaging import EMACallback
from modeling_htsat.training.corpora import load_corpus
from modeling_htsat.training.muon import make_muon
from modeling_htsat.training.reporting import format_results_table, report_progress, write_results
from modeling_htsat.training.runs import parse_run

# As many parameters as htsat-nano has with thirteen classes (1.3 M); patches without overlap, to be as quick.
SIZE = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
STRIDES = {"frequency_stride": 16, "time_stride": 16}


class Spectrograms(Dataset):
    """AST's features of a corpus, made once, with its weak labels."""

    def __init__(self, corpus, extractor, augmentation=None, seed=0):
        self.augmentation, self.random = augmentation, np.random.default_rng(seed)
        waveforms = (load_audio(corpus.rows[i]["audio"], extractor.sampling_rate) for i in range(len(corpus.rows)))
        features = [extractor(one, sampling_rate=extractor.sampling_rate)["input_values"][0] for one in waveforms]
        self.features = torch.from_numpy(np.stack(features).astype(np.float32))  # (clips, frames, mels)
        self.labels = torch.zeros(len(features), len(corpus.label_names))
        for clip, row in enumerate(corpus.rows.without_audio()):
            self.labels[clip, [corpus.label_names.index(name) for name in row["human_labels"]]] = 1.0

    def __len__(self):
        return len(self.features)

    def __getitem__(self, index):
        features = self.features[index]
        return {
            "input_values": self.augmented(features) if self.augmentation else features,
            "labels": self.labels[index],
        }

    def augmented(self, features):
        """Rolled, louder or softer, with stripes of the mean cut out; AST's decibels are halved and scaled."""
        rules, (frames, mels) = self.augmentation, features.shape
        if rules.roll_time:
            features = features.roll(int(self.random.integers(frames)), 0)
        features = features + self.random.uniform(-1, 1) * rules.max_gain_db / 10 * np.log(10) / (2 * 4.57)
        stripes = [(0, rules.max_time_mask_frames, frames)] * rules.time_masks
        stripes += [(1, rules.max_frequency_mask_bins * mels // 64, mels)] * rules.frequency_masks
        for axis, longest, size in stripes:
            length = int(self.random.integers(min(longest, size) + 1))
            first = int(self.random.integers(size - length + 1))
            features = features.index_fill(axis, torch.arange(first, first + length), 0.0)
        return features


def main():
    started, arguments = time.time(), parse_run()
    data, training = arguments.data, arguments.training
    corpora = {split: load_corpus(data.corpus, data.data, split) for split in ("train", "validation", "test")}
    extractor = ASTFeatureExtractor()
    augmentations = {"train": arguments.augmentation}
    sets = {split: Spectrograms(corpora[split], extractor, augmentations.get(split)) for split in corpora}
    names = dict(enumerate(corpora["train"].label_names))
    set_seed(training.seed)
    config = ASTConfig(**SIZE, **STRIDES, id2label=names, label2id={name: index for index, name in names.items()})
    config.problem_type = "multi_label_classification"
    model = ASTForAudioClassification(config)
    sys.stdout.write(f"AST with {model.num_parameters():,} parameters\n")
    ema = EMACallback(arguments.final.ema_decay, warm_up=True)
    metrics = clip_metrics_for_trainer(config.problem_type)
    trainer = Trainer(
        model,
        training,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        compute_metrics=metrics,
        callbacks=[ema],
    )
    rates = {"muon_rate": training.muon_learning_rate, "adamw_rate": training.learning_rate}
    trainer.optimizer = make_muon(
        model, trainer.get_decay_parameter_names(model), **rates, weight_decay=training.weight_decay
    )
    report_progress(trainer)
    trainer.train()
    with ema.applied(model):
        scores = trainer.evaluate(sets["test"], metric_key_prefix="test")
    sys.stdout.write(format_results_table(scores))
    facts = {"corpus": data.corpus, "clips": {split: len(clips) for split, clips in sets.items()}}
    write_results(
        Path(training.output_dir) / "results.json",
        scores,
        data=facts,
        arguments=arguments,
        seed=training.seed,
        model=f"ASTForAudioClassification, {model.num_parameters():,} parameters",
        started=started,
    )


if __name__ == "__main__":
    main()
