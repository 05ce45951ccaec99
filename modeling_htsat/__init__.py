"""HTS-AT for Hugging Face Transformers: which sounds are in a recording, and when.

Importing this package makes the model known to transformers' Auto classes.
"""

from . import interruption  # noqa: F401, I001  first: what follows takes seconds

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .audio_htsat import AudioError, AudioSource, list_audio_files, load_audio, open_audio, stream_audio
from .configuration_htsat import HTSATConfig
from .events_htsat import EventDecoding, decode_events, events_to_frames
from .feature_extraction_htsat import HTSATFeatureExtractor
from .hub_htsat import write_short_card
from .modeling_htsat import (
    HTSATAudioClassifierOutput,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
    HTSATModelOutput,
    HTSATPreTrainedModel,
    HTSATSoundEventOutput,
)
from .pipeline_htsat import HTSATAudioClassificationPipeline, HTSATSoundEventDetectionPipeline
from .version import VERSION

AutoConfig.register("htsat", HTSATConfig, exist_ok=True)
AutoFeatureExtractor.register(HTSATConfig, HTSATFeatureExtractor, exist_ok=True)
AutoModel.register(HTSATConfig, HTSATModel, exist_ok=True)
AutoModelForAudioClassification.register(HTSATConfig, HTSATForAudioClassification, exist_ok=True)
AutoModelForAudioFrameClassification.register(HTSATConfig, HTSATForSoundEventDetection, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "sound-event-detection",
    pipeline_class=HTSATSoundEventDetectionPipeline,
    pt_model=AutoModelForAudioFrameClassification,
    type="audio",
)


def write_whole_card(folder: Path, model: HTSATPreTrainedModel, name: str):
    """What `push_to_hub` says of a model, imported when it is needed: it draws on all of the package."""
    try:
        from .hub.card import write_card
    except ImportError:  # of a package for training
        return write_short_card(folder, model, name)
    return write_card(folder, model, name=name)


HTSATForAudioClassification.card_writer = staticmethod(write_whole_card)
HTSATForSoundEventDetection.card_writer = staticmethod(write_whole_card)

__version__ = VERSION

__all__ = [
    "AudioError",
    "AudioSource",
    "EventDecoding",
    "HTSATAudioClassificationPipeline",
    "HTSATAudioClassifierOutput",
    "HTSATConfig",
    "HTSATFeatureExtractor",
    "HTSATForAudioClassification",
    "HTSATForSoundEventDetection",
    "HTSATModel",
    "HTSATModelOutput",
    "HTSATPreTrainedModel",
    "HTSATSoundEventDetectionPipeline",
    "HTSATSoundEventOutput",
    "decode_events",
    "events_to_frames",
    "list_audio_files",
    "load_audio",
    "open_audio",
    "stream_audio",
    "__version__",
]
