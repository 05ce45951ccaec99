"""What is fuzzed, and which errors are the promised ones for each kind."""

from functools import partial

from fuzz_data import make_corpora, make_csv, make_packs, make_recipes, make_shards, make_sounds, make_tables
from fuzz_models import (
    CANARY,
    make_checkpoints,
    make_configurations,
    make_model_folders,
    make_presets,
    make_safetensors,
    make_weights,
)
from fuzz_seeds import Kind
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from modeling_htsat.audio_htsat import AudioError
from modeling_htsat.conversion import ConversionError
from modeling_htsat.tables import TableError
from modeling_htsat.training.packs import PackError
from modeling_htsat.training.recipes import RecipeError
from modeling_htsat.training.shards import ShardError

LIBRARY = (OSError, ValueError, StrictDataclassError)
KINDS: dict[str, Kind] = {
    "wav": Kind(partial(make_sounds, container="WAV"), (AudioError,)),
    "flac": Kind(partial(make_sounds, container="FLAC"), (AudioError,)),
    "ogg": Kind(partial(make_sounds, container="OGG"), (AudioError,)),
    "mp3": Kind(partial(make_sounds, container="MP3"), (AudioError,)),
    "sounds": Kind(make_sounds, (AudioError,)),
    "tables": Kind(make_tables, (TableError, ValueError)),
    "csv": Kind(make_csv, (ValueError,)),
    "corpora": Kind(make_corpora, (ValueError,)),
    "configurations": Kind(make_configurations, LIBRARY, is_ours=False),
    "presets": Kind(make_presets, (ConversionError,)),
    "model_folders": Kind(make_model_folders, (ValueError,)),
    "weights": Kind(make_weights, (*LIBRARY, RuntimeError, SafetensorError), is_ours=False),
    "safetensors": Kind(make_safetensors, (ConversionError,)),
    "checkpoints": Kind(make_checkpoints, (ConversionError,)),
    "recipes": Kind(make_recipes, (RecipeError,)),
    "packs": Kind(make_packs, (PackError,)),
    "shards": Kind(make_shards, (ShardError,)),
}

__all__ = ["CANARY", "KINDS"]
