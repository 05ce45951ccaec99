"""The plain thing to beat: logistic regression on mean and deviation of each log-mel bin, on the folds of ESC-10.

    python benchmarks/log_mel_regression.py --data ESC-10

It hears with the front end of the presets for 32 kHz, and is trained on the same clips as `recipes/esc10.yaml`.
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modeling_htsat import HTSATFeatureExtractor, load_audio
from modeling_htsat.training.clips import Corpus
from modeling_htsat.training.corpora import load_corpus


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with meta/esc50.csv and audio/")
    options = parser.parse_args()
    scores = [accuracy_of(options.data, fold) for fold in range(1, 6)]
    print(
        "".join(f"fold {fold}: {score:.1%}\n" for fold, score in enumerate(scores, 1)) + f"mean: {np.mean(scores):.1%}"
    )


def accuracy_of(data: str, fold: int) -> float:
    """Trained on four folds, tested on the one left out."""
    splits = ("train", "test")
    train, test = (load_corpus("esc50", data, split, fold=fold, validation_share=0) for split in splits)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return model.fit(statistics_of(train), labels_of(train)).score(statistics_of(test), labels_of(test))


def statistics_of(corpus: Corpus) -> np.ndarray:
    """Mean and deviation over time of each bin, `(clips, 2 * bins)`; no frame of a clip counts twice."""
    extractor = HTSATFeatureExtractor(short_clips="stretch")
    sounds = (load_audio(corpus.rows[index]["audio"], extractor.sampling_rate) for index in range(len(corpus.rows)))
    clips = [extractor(sound, extractor.sampling_rate)["input_features"][0] for sound in sounds]
    return np.stack([np.concatenate([clip.mean(0), clip.std(0)]) for clip in clips])


def labels_of(corpus: Corpus) -> list[str]:
    return [row["human_labels"][0] for row in corpus.rows.without_audio()]


if __name__ == "__main__":
    main()
