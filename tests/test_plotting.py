"""Pictures: what is drawn and where, which files come out, and what is refused."""

import inspect
import os

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.collections import PolyCollection

from modeling_htsat import HTSATFeatureExtractor, plotting

LABELS = ["Speech", "Dog", "Cat", "Rain", "Bell"]
STEP_EDGES = np.arange(8) * 0.5  # seven steps, 3.5 s
EVENTS = [
    {"label": "Cat", "onset": 0.5, "offset": 1.5, "score": 0.62},
    {"label": "Dog", "onset": 1.0, "offset": 1.05, "score": 0.31},
    {"label": "Cat", "onset": 2.0, "offset": 3.0, "score": 0.9},
]
TRUTH = [(0.6, 1.7, "Cat"), (2.25, 3.0, "Bell"), (0.0, 0.5, "Train")]


def some_scores():
    """Peaks: Speech 0.5, Dog 0.3, Cat 0.9, Rain 0.7, Bell 0.2."""
    scores = np.zeros((7, 5))
    scores[3] = [0.5, 0.3, 0.9, 0.7, 0.2]
    scores[4] = [0.4, 0.0, 0.1, 0.0, 0.1]
    return scores


def some_log_mel(num_frames=36, num_mels=11):
    return np.random.default_rng(0).uniform(-70, 5, (num_frames, num_mels)).astype(np.float32)


def arguments(**changes):
    settings = {
        "log_mel": some_log_mel(),
        "frame_scores": some_scores(),
        "step_edges_seconds": STEP_EDGES,
        "labels": LABELS,
        "events": EVENTS,
        "seconds_per_frame": 0.1,
        "duration_seconds": 3.5,
    }
    return settings | changes


def draw(**changes):
    return plotting.draw_events(**arguments(**changes))


def panels(figure):
    return figure.axes[:3]


def row_names(panel):
    """From top to bottom."""
    assert panel.yaxis_inverted()
    return [text.get_text() for text in panel.get_yticklabels()]


def bars(panel):
    """(row, left, right, top, bottom, is it truth) of every bar, by row and time."""
    found = []
    for collection in (child for child in panel.collections if isinstance(child, PolyCollection)):
        for path in collection.get_paths():
            (left, top), (right, bottom) = path.vertices.min(axis=0), path.vertices.max(axis=0)
            found.append((round((top + bottom) / 2), left, right, top, bottom, collection.get_hatch() is not None))
    return sorted(found)


def numbers(panel):
    return {text.get_text() for text in panel.texts}


def left_title(panel):
    return panel.get_title(loc="left")


# ── what is drawn ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bars_begin_and_end_where_events_do_in_the_row_of_their_class():
    events_panel = panels(draw())[2]
    assert row_names(events_panel) == ["Cat", "Dog"]
    positions = [(row, left, right) for row, left, right, *_ in bars(events_panel)]
    np.testing.assert_allclose(positions, [(0, 0.5, 1.5), (0, 2.0, 3.0), (1, 1.0, 1.05)])
    assert not any(is_truth for *_, is_truth in bars(events_panel))


def test_truth_is_hatched_and_lies_below_detections_without_touching_them_or_the_next_row():
    events_panel = panels(draw(truth=TRUTH))[2]
    assert row_names(events_panel) == ["Cat", "Dog", "Bell", "Train"]
    true = [bar for bar in bars(events_panel) if bar[-1]]
    np.testing.assert_allclose([bar[:3] for bar in true], [(0, 0.6, 1.7), (2, 2.25, 3.0), (3, 0.0, 0.5)])
    for row in range(4):
        lowest_detection = max((bar[4] for bar in bars(events_panel) if bar[0] == row and not bar[-1]), default=-1)
        assert all(bar[3] > lowest_detection and bar[4] < row + 0.5 for bar in true if bar[0] == row)


def test_the_map_shows_classes_with_events_first_then_with_truth_then_the_strongest():
    assert row_names(panels(draw())[1]) == ["Cat", "Dog", "Rain", "Speech", "Bell"]
    assert row_names(panels(draw(truth=TRUTH))[1]) == ["Cat", "Dog", "Bell", "Rain", "Speech"]
    assert row_names(panels(draw(events=[]))[1]) == ["Cat", "Rain", "Speech", "Dog", "Bell"]


def test_the_map_holds_the_scores_at_their_own_step_edges():
    edges = np.array([0.0, 0.2, 0.7, 1.5, 2.0, 2.1, 3.0, 3.5])
    (mesh,) = panels(draw(step_edges_seconds=edges, max_classes=3))[1].collections
    np.testing.assert_array_equal(mesh.get_array(), some_scores()[:, [2, 1, 3]].T)
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], edges)
    assert mesh.get_clim() == (0, 1)


def test_spectrogram_frames_are_centred_on_their_times():
    log_mel = some_log_mel()
    (mesh,) = panels(draw(log_mel=log_mel))[0].collections
    np.testing.assert_array_equal(mesh.get_array(), log_mel.T)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :3, 0], [-0.05, 0.05, 0.15])


def test_all_panels_share_one_time_axis_from_zero_to_the_end():
    figure = draw(truth=[(3.0, 4.5, "Cat")])
    assert [panel.get_xlim() for panel in panels(figure)] == [(0, 3.5)] * 3
    figure.canvas.draw()
    spans = {(panel.get_window_extent().x0, panel.get_window_extent().x1) for panel in panels(figure)}
    assert len(spans) == 1


def test_a_legend_appears_only_when_truth_is_given():
    assert panels(draw())[2].get_legend() is None
    for truth in (TRUTH, []):
        legend = panels(draw(truth=truth))[2].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["detected, with its score", "truth"]


def test_scores_stand_in_wide_bars_behind_lone_short_ones_and_nowhere_in_a_crowd():
    assert numbers(panels(draw())[2]) == {"0.62", "0.31", "0.90"}
    onsets = np.arange(0, 3.5, 0.1)
    crowd = [{"label": "Dog", "onset": onset, "offset": onset + 0.05, "score": 0.5} for onset in onsets]
    assert numbers(panels(draw(events=crowd))[2]) == set()


def test_bar_colours_are_those_of_the_map():
    cat_bars = next(child for child in panels(draw())[2].collections if isinstance(child, PolyCollection))
    np.testing.assert_allclose(cat_bars.get_facecolor(), plotting.SCORE_COLORS([0.62, 0.9]))


def test_higher_scores_are_darker_to_every_eye():
    lightness = plotting.SCORE_COLORS(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < 0).all()


def test_no_events_are_said_in_words():
    events_panel = panels(draw(events=[]))[2]
    assert numbers(events_panel) == {"no events"}
    assert bars(events_panel) == []
    assert left_title(panels(draw(events=[], truth=TRUTH))[2]) == "Events: none detected"
    assert left_title(panels(draw(truth=[]))[2]) == "Events: no true ones"


def test_what_is_not_shown_is_counted():
    assert left_title(panels(draw(truth=TRUTH, max_classes=1))[2]) == "Events: 3 more classes not shown"
    assert left_title(panels(draw(truth=[(4.0, 5.0, "Cat")]))[2]) == "Events: 1 after the end not shown"
    assert left_title(panels(draw(max_classes=2))[1]) == "Event presence: 2 of 5 classes"
    assert left_title(panels(draw())[1]) == "Event presence"


def test_events_of_a_class_without_scores_have_a_row_below_and_none_in_the_map():
    figure = draw(events=[*EVENTS, {"label": "Horn", "onset": 0, "offset": 1, "score": 0.8}])
    assert row_names(panels(figure)[1]) == ["Cat", "Dog", "Rain", "Speech", "Bell"]
    assert row_names(panels(figure)[2]) == ["Cat", "Horn", "Dog"]


def test_frequencies_stand_at_their_mel_bands():
    centers = np.array([80, 100, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000])
    top = panels(draw(mel_frequencies_hz=centers))[0]
    places = {text.get_text(): place for text, place in zip(top.get_yticklabels(), top.get_yticks(), strict=True)}
    assert places == {"0.1": 1.5, "0.2": 2.0, "0.5": 3.5, "1": 5.5, "2": 7.5, "5": 9.5}
    assert panels(draw())[0].get_ylabel() == "mel band"


@pytest.mark.parametrize(("num_mels", "low", "high"), [(64, 50, 14000), (40, 20, 8000)])
def test_mel_centers_are_where_the_extractor_s_filters_peak(num_mels, low, high):
    extractor = HTSATFeatureExtractor(num_mel_bins=num_mels, min_frequency=low, max_frequency=high)
    peaks = extractor.mel_filters.numpy().argmax(axis=1) * 32000 / 1024
    centers = plotting.mel_centers_hz(num_mels, low, high)
    assert np.abs(centers - peaks).max() <= 32000 / 1024


def test_long_names_are_cut_at_a_word_and_dollar_signs_are_kept():
    long = "Vehicle horn, car horn, honking and all that"
    figure = draw(labels=[long, "a $5 b $6", "Cat\nand dog", "X" * 80, "Bell"], events=[])
    assert set(row_names(panels(figure)[1])) == {
        "Vehicle horn, car horn…",
        "a $5 b $6",
        "Cat and dog",
        "X" * 29 + "…",
        "Bell",
    }
    assert not any(text.get_parse_math() for text in panels(figure)[1].get_yticklabels())


@pytest.mark.parametrize(
    ("seconds", "unit", "second_tick"),
    [
        (0.3, "seconds", "0.05"),
        (10, "seconds", "1"),
        (300, "minutes:seconds", "0:30"),
        (3600, "minutes:seconds", "5:00"),
        (4 * 3600, "hours:minutes:seconds", "0:30:00"),
    ],
)
def test_time_is_written_as_its_length_asks(seconds, unit, second_tick):
    figure = draw(duration_seconds=seconds, events=[])
    figure.canvas.draw()
    bottom = panels(figure)[2]
    assert bottom.get_xlabel() == f"time ({unit})"
    names = zip(bottom.get_xticks(), bottom.get_xticklabels(), strict=True)
    assert [text.get_text() for place, text in names if 0 <= place <= seconds][1] == second_tick


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_picture_grows_with_its_rows():
    heights = [draw(max_classes=most, truth=TRUTH).get_size_inches()[1] for most in (1, 3, 5)]
    assert heights == sorted(set(heights))


def test_an_hour_is_drawn_with_few_columns_and_keeps_every_maximum():
    log_mel = np.full((360_000, 11), -60, dtype=np.float32)
    log_mel[123_456, 4] = 0.0
    scores = np.zeros((11_520, 527), dtype=np.float32)
    scores[7_000, 300] = 0.8
    labels = [f"class {number}" for number in range(527)]
    click = {"label": "class 300", "onset": 2187.5, "offset": 2187.8, "score": 0.8}
    figure = draw(
        log_mel=log_mel,
        frame_scores=scores,
        step_edges_seconds=np.arange(11_521) * 0.3125,
        labels=labels,
        events=[click],
        seconds_per_frame=0.01,
        duration_seconds=3600,
    )
    meshes = [panel.collections[0] for panel in panels(figure)[:2]]
    assert all(mesh.get_array().shape[1] <= plotting.MAX_COLUMNS for mesh in meshes)
    for mesh, row, peak, seconds in ((meshes[0], 4, 0.0, 1234.56), (meshes[1], 0, np.float32(0.8), 2187.6)):
        column = mesh.get_array()[row].argmax()
        assert mesh.get_array()[row, column] == peak
        begin, end = mesh.get_coordinates()[0, column : column + 2, 0]
        assert begin <= seconds < end
    (bar,) = bars(panels(figure)[2])
    np.testing.assert_allclose(bar[1:3], (2187.5, 2187.8))
    assert panels(figure)[2].collections[0].get_linewidth() >= 1  # points: visible though narrower than a dot


def test_repeated_frames_and_steps_after_the_end_are_left_out():
    loud_copy = np.concatenate([some_log_mel(4), np.full((50, 11), 90)])
    strong_copy = np.concatenate([some_scores()[:1], np.full((6, 5), 1.0)])
    figure = draw(log_mel=loud_copy, frame_scores=strong_copy, duration_seconds=0.3, events=[])
    spectrogram, presence = (panel.collections[0] for panel in panels(figure)[:2])
    assert spectrogram.get_array().shape == (11, 4)
    assert spectrogram.get_clim()[1] < 90
    assert presence.get_array().shape == (5, 1)
    assert presence.get_array().max() == 0


def test_silence_and_single_cells_can_be_drawn():
    figure = draw(
        log_mel=np.full((1, 1), -100.0),
        frame_scores=[[0.2]],
        step_edges_seconds=[0, 0.3],
        labels=["Dog"],
        events=[{"label": "Dog", "onset": 0.1, "offset": 0.1, "score": 0.0}],
        duration_seconds=0.3,
    )
    figure.canvas.draw()
    low, high = panels(figure)[0].collections[0].get_clim()
    assert high - low == 10


def test_nothing_drawn_below_overlaps():
    figure = draw(truth=TRUTH, title="word " * 60, labels=["Engine, motor and the like of it " * 2, *LABELS[1:]])
    figure.canvas.draw()
    whole = figure.bbox
    top, middle, bottom = (panel.get_tightbbox() for panel in panels(figure))
    assert top.y0 > middle.y1 and middle.y0 > bottom.y1
    for box in (top, middle, bottom, figure._suptitle.get_window_extent()):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.b.pdf", b"%PDF")])
def test_each_format_is_written_alike_twice_and_alone(tmp_path, name, start):
    plotting.plot_events(tmp_path / name, **arguments(truth=TRUTH, title="one"))
    first = (tmp_path / name).read_bytes()
    plotting.plot_events(str(tmp_path / name), **arguments(truth=TRUTH, title="one"))
    assert first.startswith(start)
    assert (tmp_path / name).read_bytes() == first
    assert os.listdir(tmp_path) == [name]


def test_the_user_s_style_neither_changes_the_picture_nor_is_changed(tmp_path):
    plotting.plot_events(tmp_path / "plain.svg", **arguments())
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "svg.hashsalt": "salt"}):
        before = dict(matplotlib.rcParams)
        plotting.plot_events(tmp_path / "dark.svg", **arguments())
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "dark.svg").read_bytes()


def test_a_failure_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plotting.os, "replace", full_disk)
    with pytest.raises(OSError, match=r"The picture .*a\.png cannot be written: No space left on device\."):
        plotting.plot_events(path, **arguments())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.bmp", ValueError, "No picture format for 'a.bmp'; name it .png, .svg or .pdf."),
        ("a", ValueError, "No picture format for 'a'"),
        ("missing/a.png", FileNotFoundError, "does not exist; create it first"),
        ("folder.png", IsADirectoryError, "is a folder"),
    ],
)
def test_an_impossible_path_is_refused_in_a_sentence_before_anything_is_drawn(tmp_path, name, error, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error, match=message):
        plotting.plot_events(tmp_path / name, **arguments(log_mel=None))
    assert os.listdir(tmp_path) == ["folder.png"]


def test_no_window_and_no_global_state_of_pyplot_is_touched():
    assert "pyplot" not in inspect.getsource(plotting)


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_mel": np.zeros((1, 36, 11))}, r"shape \(1, 36, 11\)"),
        ({"log_mel": np.zeros((0, 11))}, "must be"),
        ({"log_mel": np.full((36, 11), -np.inf)}, "NaN or infinite"),
        ({"frame_scores": np.zeros((5, 7))}, r"8 step edges and 5 labels need \(7, 5\)"),
        ({"frame_scores": np.full((7, 5), 3.0)}, "sigmoid"),
        ({"frame_scores": np.full((7, 5), np.nan)}, "between nan and nan"),
        ({"step_edges_seconds": STEP_EDGES[::-1]}, "must rise"),
        ({"duration_seconds": 0.0}, "duration_seconds is 0.0"),
        ({"seconds_per_frame": np.nan}, "seconds_per_frame is nan"),
        ({"max_classes": 0}, "max_classes is 0"),
        ({"mel_frequencies_hz": [100, 200]}, "11 rising frequencies"),
        ({"events": [{"label": "Dog", "onset": 1}]}, "lacks offset, score; it has label, onset"),
        ({"events": [{"label": "Dog", "onset": 2, "offset": 1, "score": 1}]}, "'Dog' lasts from 2 s to 1 s"),
        ({"truth": [(-1, 1, "Dog")]}, "'Dog' lasts from -1 s to 1 s"),
        ({"truth": [(0, np.nan, "Dog")]}, "nan s"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        draw(**changes)
