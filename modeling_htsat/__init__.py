"""HTS-AT for Hugging Face Transformers: which sounds are in a recording, and when.

Importing this package makes the model known to transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
)

from .configuration_htsat import HTSATConfig
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

AutoConfig.register("htsat", HTSATConfig, exist_ok=True)
AutoFeatureExtractor.register(HTSATConfig, HTSATFeatureExtractor, exist_ok=True)
AutoModel.register(HTSATConfig, HTSATModel, exist_ok=True)
AutoModelForAudioClassification.register(HTSATConfig, HTSATForAudioClassification, exist_ok=True)
AutoModelForAudioFrameClassification.register(HTSATConfig, HTSATForSoundEventDetection, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "HTSATAudioClassifierOutput",
    "HTSATConfig",
    "HTSATFeatureExtractor",
    "HTSATForAudioClassification",
    "HTSATForSoundEventDetection",
    "HTSATModel",
    "HTSATModelOutput",
    "HTSATPreTrainedModel",
    "HTSATSoundEventOutput",
    "__version__",
]
