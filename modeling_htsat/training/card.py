"""The README.md of a trained model: what it is, what it was trained on, what it scored, how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..tables import write_whole
from .reporting import format_results_table

TASKS = {
    "HTSATForAudioClassification": "audio-classification",
    "HTSATForSoundEventDetection": "sound-event-detection",
}
CARD = """---
{metadata}
---

# {name}

HTS-AT ({millions:.1f} million parameters) for {num_labels} classes of sound, trained from `{start}` on the corpus
`{corpus}` ({num_clips} clips) with the package modeling-htsat,
by the recipe in `recipe.yaml`.

```python
import modeling_htsat
from transformers import pipeline

{use}
```

It listens at {sampling_rate} Hz (pipelines resample by themselves), and tells time in steps of {step_ms:.0f} ms.
Its classes: {labels}.

## What it scored

```
{scores}```

On {num_test} test clips; `results.json` has the versions, the hardware, the seed and all arguments.

## Limits

It knows the sounds of its training clips. On recordings of another kind, check scores and thresholds before relying on
them.
"""
USES = {
    "audio-classification": 'tagger = pipeline("audio-classification", "{name}", '
    "pipeline_class=modeling_htsat.HTSATAudioClassificationPipeline)\n"
    'print(tagger("sound.wav"))',
    "sound-event-detection": 'detector = pipeline("sound-event-detection", "{name}")\nprint(detector("sound.wav"))',
}


def write_card(folder: Path, model: Any, results: Mapping[str, Any]) -> None:
    """Describe the model in a folder by its configuration and by what `write_results` wrote."""
    config, task = model.config, TASKS[type(model).__name__]
    data, clips = results["data"], results["data"]["clips"]
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag="audio-classification", tags=["htsat", "audio", task]
    )
    labels = [config.id2label[index] for index in range(config.num_labels)]
    text = CARD.format(
        metadata=metadata.to_yaml(),
        name=folder.name,
        millions=model.num_parameters() / 1e6,
        num_labels=config.num_labels,
        start=results["model"],
        corpus=data["corpus"],
        num_clips=clips["train"],
        num_test=clips.get("test", 0),
        use=USES[task].format(name=folder.name),
        sampling_rate=config.sampling_rate,
        step_ms=1000 * config.seconds_per_step(config.clip_frames),
        labels=", ".join(labels[:30]) + (f" and {len(labels) - 30} more" if len(labels) > 30 else ""),
        scores=format_results_table(results["metrics"]),
    )
    write_whole(folder / "README.md", lambda file: file.write(text))


__all__ = ["write_card"]
