"""Packs of PANNs: the sounds and classes that were put in come out, wherever the packs have moved, or one sentence."""

import pickle
import sys

import numpy as np
import pytest

from modeling_htsat import load_audio
from modeling_htsat.labels import audioset_labels
from modeling_htsat.training.packs import PackError, PackRows

h5py = pytest.importorskip("h5py")

RATE, SAMPLES = 8_000, 37
NAMES = ["Ya.wav", "Yb.wav", "", "Yd.wav", "Ye.wav"]
CLASSES = [(0, 2), (1,), (), (), (2,)]


def waveforms(seed):
    samples = np.random.default_rng(seed).integers(-(2**15), 2**15, (5, SAMPLES)).astype(np.int16)
    samples[2] = 0
    samples[0, :2] = -(2**15), 2**15 - 1
    return samples


def targets(num_classes=3):
    target = np.zeros((5, num_classes), dtype=bool)
    for row, classes in enumerate(CLASSES):
        target[row, list(classes)] = True
    return target


def write_pack(path, seed=0, without=(), rate=RATE, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets = {"audio_name": np.array(NAMES, "S20"), "waveform": waveforms(seed), "target": targets(), **changes}
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            if name not in without:
                file.create_dataset(name, data=values)
        if rate:
            file.attrs.create("sample_rate", data=rate, dtype=np.int32)
    return path


def write_index(path, packs, rows, said=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["audio_name"] = np.array([NAMES[row] for row in rows], "S20")
        file["target"] = targets()[rows]
        file["hdf5_path"] = np.array([str(pack).encode() for pack in said or packs], "S200")
        file["index_in_hdf5"] = np.array(rows, np.int32)
    return path


ABC = ("a", "b", "c")


def test_sounds_and_classes_come_out_as_they_were_put_in(tmp_path):
    rows = PackRows([write_pack(tmp_path / "a.h5")], ABC)
    assert len(rows) == 4 and rows.group_sizes is None
    for index, row in enumerate([0, 1, 3, 4]):
        clip = rows[index]
        assert clip["video_id"] == clip["audio"]["path"] == NAMES[row]
        assert clip["labels"] == clip["human_labels"] == [ABC[number] for number in CLASSES[row]]
        assert clip["events"] is None
        assert np.array_equal(load_audio(clip["audio"], RATE) * 2**15, waveforms(0)[row])
    with pytest.raises(IndexError, match="there are 4"):
        rows[4]


def test_rows_that_could_not_be_downloaded_are_left_out(tmp_path):
    names = [row["video_id"] for row in PackRows([write_pack(tmp_path / "a.h5")], ABC).without_audio()]
    assert names == [name for name in NAMES if name]


def test_without_audio_says_the_same_as_the_rows(tmp_path):
    rows = PackRows([write_pack(tmp_path / "a.h5"), write_pack(tmp_path / "b.h5", seed=1)], ABC)
    clips = [rows[index] for index in range(8)]
    assert [{name: value for name, value in clip.items() if name != "audio"} for clip in clips] == rows.without_audio()
    assert clips[0]["audio"] != clips[4]["audio"]
    assert list(clips[0]) == ["video_id", "audio", "labels", "human_labels", "events"]


def test_527_classes_are_those_of_audioset(tmp_path):
    rows = PackRows([write_pack(tmp_path / "a.h5", target=targets(527).astype(np.float32))])
    assert rows[0]["labels"] == ["/m/09x0r", "/m/02zsn"]
    assert rows[0]["human_labels"] == ["Speech", "Female speech, woman speaking"]
    assert list(rows.label_names) == audioset_labels()


def test_floats_of_old_packs_stay_what_they_are(tmp_path):
    sounds = waveforms(0).astype(np.float32) / 2**15
    rows = PackRows([write_pack(tmp_path / "a.h5", waveform=sounds)], ABC)
    assert np.array_equal(load_audio(rows[3]["audio"], RATE), sounds[4])


def test_copies_for_other_processes_open_the_files_anew(tmp_path):
    rows = PackRows([write_pack(tmp_path / "a.h5")], ABC)
    rows[0]
    copy = pickle.loads(pickle.dumps(rows))
    assert [copy[index] for index in range(4)] == [rows[index] for index in range(4)]


@pytest.mark.parametrize("pack_folder", ["", "waveforms", "hdf5s/waveforms"])
def test_an_index_finds_packs_that_have_moved_even_by_its_own_name(tmp_path, pack_folder):
    first = write_pack(tmp_path / "new" / pack_folder / "eval.h5")
    second = write_pack(tmp_path / "new" / pack_folder / "part1" / "b.h5", seed=1)
    folder = "../workspace/hdf5s/waveforms"
    said = [f"{folder}/part1/b.h5", f"{folder}/eval.h5", f"{folder}/part1/b.h5"]
    index = write_index(tmp_path / "new" / "indexes" / "eval.h5", [second, first, second], [3, 0, 1], said)
    rows = PackRows([index], ABC)
    expected = [waveforms(1)[3], waveforms(0)[0], waveforms(1)[1]]
    for row, samples in enumerate(expected):
        assert np.array_equal(load_audio(rows[row]["audio"], RATE) * 2**15, samples)
    assert [rows[row]["labels"] for row in range(3)] == [[], ["a", "c"], ["b"]]


def test_an_index_whose_packs_are_gone_says_so(tmp_path):
    index = write_index(tmp_path / "eval.h5", None, [0], said=["gone/eval.h5"])
    with pytest.raises(PackError, match=r"names the pack gone/eval\.h5, which is not there"):
        PackRows([index], ABC)
    pack = write_pack(tmp_path / "pack.h5")
    with h5py.File(write_index(tmp_path / "index.h5", [pack], [0]), "r+") as file:
        file["index_in_hdf5"][0] = 5
    with pytest.raises(PackError, match=r"pack\.h5 has 5 clips, and its index asks for row 5"):
        PackRows([tmp_path / "index.h5"], ABC)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"without": ("target",)}, r"a\.h5 lacks target; it holds audio_name, waveform\."),
        ({"without": ("waveform", "audio_name")}, r"lacks audio_name and waveform; it holds target\."),
        ({"waveform": np.zeros(5, np.int16)}, r"has the shapes audio_name \(5,\), target \(5, 3\), waveform \(5,\)"),
        ({"waveform": np.zeros((4, 9), np.int16)}, r"waveform \(4, 9\)"),
        ({"waveform": np.zeros((5, 9), np.int64)}, r"has waveforms of int64; int16 is needed"),
        ({"target": targets(7)}, r"has 7 classes, and label_names are 3"),
        ({"rate": None}, r"has no attribute sample_rate"),
    ],
)
def test_what_is_no_whole_pack_is_refused_by_what_it_lacks(tmp_path, changes, sentence):
    with pytest.raises(PackError, match=sentence):
        PackRows([write_pack(tmp_path / "a.h5", **changes)], ABC)


def test_a_rate_that_the_pack_lacks_can_be_said(tmp_path):
    rows = PackRows([write_pack(tmp_path / "a.h5", rate=None)], ABC, sampling_rate=RATE)
    assert len(load_audio(rows[0]["audio"], RATE)) == SAMPLES


def test_classes_without_names_are_refused(tmp_path):
    with pytest.raises(PackError, match="has 3 classes, and AudioSet has 527; give label_names"):
        PackRows([write_pack(tmp_path / "a.h5")])
    with pytest.raises(PackError, match=r"b\.h5 has 7 classes, and .*a\.h5 has 3"):
        PackRows([write_pack(tmp_path / "a.h5"), write_pack(tmp_path / "b.h5", target=targets(7))], ABC)


def test_files_of_another_kind_and_files_cut_short_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(PackError, match=r"text\.h5 is not an HDF5 file that can be read"):
        PackRows([tmp_path / "text.h5"])
    with pytest.raises(PackError, match=r"absent\.h5 does not exist"):
        PackRows([tmp_path / "absent.h5"])
    with open(write_pack(tmp_path / "cut.h5"), "r+b") as file:
        file.truncate(2000)
    with pytest.raises(PackError, match=r"cut\.h5 is not an HDF5 file"):
        PackRows([tmp_path / "cut.h5"])
    with pytest.raises(ValueError, match="No pack was given"):
        PackRows([])


def test_without_h5py_one_is_told_how_to_install_it(tmp_path, monkeypatch):
    path = write_pack(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(PackError, match="need the package h5py; install it with `pip install h5py`"):
        PackRows([path], ABC)


@pytest.mark.parametrize("rate", [-1, 0, 10**9, [1, 2]])
def test_a_pack_of_a_rate_that_is_none_is_refused(rate, tmp_path):
    with h5py.File(write_pack(tmp_path / "a.h5", rate=None), "r+") as file:
        file.attrs["sample_rate"] = rate
    with pytest.raises(PackError, match=r"a\.h5 has the attribute sample_rate"):
        PackRows([tmp_path / "a.h5"], ABC)


def test_a_pack_that_claims_more_than_any_memory_is_refused(tmp_path):
    pack = write_pack(tmp_path / "a.h5", without=("waveform",))
    with h5py.File(pack, "r+") as file:  # nothing is written, and nothing takes space
        file.create_dataset("waveform", shape=(5, 2**40), dtype=np.int16, chunks=(1, 2**10))
    with pytest.raises(PackError, match=r"a\.h5 claims the shape \(5, 1099511627776\) for waveform"):
        PackRows([pack], ABC)


def test_every_damage_of_a_pack_is_a_pack_error(tmp_path):
    pack = write_pack(tmp_path / "a.h5")
    content = pack.read_bytes()
    for start in range(0, len(content), max(len(content) // 400, 1)):
        pack.write_bytes(content[:start] + b"\xff" * 4 + content[start + 4 :])
        try:
            rows = PackRows([pack], ABC)
            assert all(rows[index]["audio"]["bytes"] for index in range(len(rows)))
        except PackError as error:
            assert "a.h5" in str(error)
