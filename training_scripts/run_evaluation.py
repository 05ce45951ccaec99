r"""Score a trained model, or an ensemble, on a split of a corpus, and write `results.json`.

    python training_scripts/run_evaluation.py --models htsat-audioset --corpus audioset --data agkphysics/AudioSet \
        --data_options config=balanced --test_shifts 10 --output_dir audioset_scores
    python training_scripts/run_evaluation.py --models runs/a runs/b runs/c --corpus desed --data DESED \
        --output_dir desed_scores
    torchrun --nproc_per_node 4 training_scripts/run_evaluation.py ...

Several models are an ensemble: the mean of their probabilities.
"""

from modeling_htsat.training.evaluation import launch

if __name__ == "__main__":
    launch(__doc__)
