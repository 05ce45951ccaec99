r"""Train HTS-AT to say when sounds are heard, from strong labels, weak ones or both, by a recipe.

    python training_scripts/run_sound_event_detection.py \
        --recipe configuration/recipes/soundscapes.yaml --data soundscapes
    accelerate launch --config_file configuration/accelerate/many_gpus.yaml \
        training_scripts/run_sound_event_detection.py --recipe ...
    torchrun --nproc_per_node 4 training_scripts/run_sound_event_detection.py --recipe ...

Flags override the recipe. The same command again goes on where a run stopped.
"""

from modeling_htsat import HTSATForSoundEventDetection
from modeling_htsat.training.runs import launch

if __name__ == "__main__":
    launch(HTSATForSoundEventDetection, __doc__)
