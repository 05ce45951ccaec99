"""HTS-AT for Hugging Face Transformers: which sounds are in a recording, and when.

Importing this package makes the model known to transformers' Auto classes.
"""

from . import interruption  # noqa: F401, I001  first: what follows takes seconds

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
