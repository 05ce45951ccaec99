"""Tags and events of a 16-bit WAV file, by a model of `htsat export`: `python predict_onnx.py MODEL.onnx FILE.wav`."""

import json
import sys
import wave

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
rate, size, step, labels = (facts[name] for name in ("sampling_rate", "clip_samples", "seconds_per_step", "labels"))
with wave.open(sys.argv[2]) as file:
    assert file.getframerate() == rate and file.getsampwidth() == 2, f"16-bit sound at {rate} Hz is needed"
    sound = np.frombuffer(file.readframes(-1), "<i2").reshape(-1, file.getnchannels()).mean(1, np.float32) / 32768
firsts = np.r_[0 : len(sound) - size : size, max(len(sound) - size, 0)]  # the last clip ends with the sound
answers = [session.run(None, {"input_values": np.resize(sound[first:][:size], (1, size))}) for first in firsts]
odds = np.exp(logits := np.mean([answer[-2][0] for answer in answers], axis=0))
tags = {"softmax": odds / odds.sum(), "sigmoid": 1 / (1 + 1 / odds), "none": logits}[facts["clip_function"]]
print("".join(f"{tags[index]:.4f}\t{labels[index]}\n" for index in tags.argsort()[:-6:-1]))
starts = firsts[:, None] / rate + np.arange(0, size / rate - 1e-9, step)  # seconds: (clips, steps)
is_new = (starts > np.r_[0, firsts[:-1] + size][:, None] / rate - 1e-9) & (starts < len(sound) / rate - 1e-9)
edges = np.append(starts[is_new], len(sound) / rate)
frames = np.stack([answer[0][0] for answer in answers])  # (clips, steps, labels); a classifier's are of clips alone
for index, label in enumerate(labels if frames.ndim == 3 else []):
    above, stay, length, gap, least = (values[index] for values in facts["event_decoding"].values())
    padded = np.pad(frames[:, : starts.shape[1], index][is_new], length // 2, "edge")
    smooth = 1 / (1 + np.exp(-np.median(np.lib.stride_tricks.sliding_window_view(padded, length), axis=1)))
    runs = np.flatnonzero(np.diff(smooth > stay, prepend=False, append=False)).reshape(-1, 2)
    runs = runs[[smooth[begin:end].max() > above for begin, end in runs]]
    near = np.flatnonzero(edges[runs[1:, 0]] - edges[runs[:-1, 1]] <= gap + 1e-9)
    for begin, end in zip(np.delete(runs[:, 0], near + 1), np.delete(runs[:, 1], near), strict=True):
        if edges[end] - edges[begin] >= least - 1e-9:
            print(f"{edges[begin]:.3f}\t{edges[end]:.3f}\t{smooth[begin:end].max():.4f}\t{label}")
