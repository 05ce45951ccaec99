r"""Train HTS-AT to tag clips, by a recipe.

    python training_scripts/run_audio_classification.py --recipe configuration/recipes/esc50.yaml --data ESC-50
    accelerate launch --config_file configuration/accelerate/many_gpus.yaml \
        training_scripts/run_audio_classification.py --recipe ...
    torchrun --nproc_per_node 4 training_scripts/run_audio_classification.py --recipe ...

Flags override the recipe. The same command again goes on where a run stopped.
"""

from modeling_htsat import HTSATForAudioClassification
from modeling_htsat.training.runs import launch

if __name__ == "__main__":
    launch(HTSATForAudioClassification, __doc__)
