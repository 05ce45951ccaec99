"""The demo page (`htsat demo`): a recording in; its waveform, spectrogram, presence map, tags and events out."""
