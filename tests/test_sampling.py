"""Every clip comes once an epoch, or every class as often, whatever the number of processes and workers."""

from collections import Counter
from itertools import product

import numpy as np
import pyarrow.parquet
import pytest
from accelerate import skip_first_batches
from made_up_clips import make_row, tone
from torch.utils.data import get_worker_info

from modeling_htsat.training.examples import ClipDataset
from modeling_htsat.training.sampling import EpochBatches
from modeling_htsat.training.shards import ShardRows
from modeling_htsat.training.trainer import ClipLoader

UNEVEN_GROUPS = [1, 17, 4, 9, 1, 30, 2, 11, 6, 13]  # 94 clips
SETUPS = list(product([1, 2, 3], [0, 1, 2, 3], [None, UNEVEN_GROUPS, [94]]))


def batches_of_all(num_processes: int = 1, epoch: int = 0, **options) -> list[list[list[tuple[int, int]]]]:
    """The batches of every process."""
    options = {"num_clips": 94, "batch_size": 5, **options}
    samplers = [EpochBatches(rank=rank, num_processes=num_processes, **options) for rank in range(num_processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def clips_of(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [index for batch in batches for index, _ in batch]


# ── every clip once ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("num_processes", "num_workers", "group_sizes"), SETUPS)
def test_every_clip_comes_exactly_once_an_epoch(num_processes, num_workers, group_sizes):
    for epoch in range(3):
        of_all = batches_of_all(num_processes, epoch, num_workers=num_workers, group_sizes=group_sizes)
        assert sorted(index for batches in of_all for index in clips_of(batches)) == list(range(94))


@pytest.mark.parametrize(("num_processes", "num_workers", "group_sizes"), SETUPS)
def test_all_processes_have_as_many_batches_and_none_is_empty_or_too_large(num_processes, num_workers, group_sizes):
    sampler = EpochBatches(94, 5, num_processes=num_processes, num_workers=num_workers, group_sizes=group_sizes)
    of_all = batches_of_all(num_processes, num_workers=num_workers, group_sizes=group_sizes)
    assert {len(batches) for batches in of_all} == {len(sampler)}
    sizes = Counter(len(batch) for batches in of_all for batch in batches)
    assert max(sizes) <= 5
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_clips", range(2, 30))
@pytest.mark.parametrize("groups", [False, True])
def test_few_clips_come_once_too_with_batches_of_one_and_two_processes(num_clips, groups):
    group_sizes = [1, num_clips - 1] if groups else None
    for batch_size in (1, 2, 3):
        of_all = batches_of_all(2, num_clips=num_clips, batch_size=batch_size, group_sizes=group_sizes)
        assert sorted(clips_of(of_all[0]) + clips_of(of_all[1])) == list(range(num_clips))
        assert len(of_all[0]) == len(of_all[1])
        assert {len(batch) for batches in of_all for batch in batches} <= set(range(1, batch_size + 2))


@pytest.mark.parametrize("num_clips", [94, 96, 90, 61])
def test_two_processes_learn_from_the_global_batches_of_one_with_twice_the_size(num_clips):
    one = batches_of_all(1, epoch=3, num_clips=num_clips, batch_size=12)[0]
    first, second = batches_of_all(2, epoch=3, num_clips=num_clips, batch_size=6)
    assert [a + b for a, b in zip(first, second, strict=True)] == one


def test_three_processes_learn_from_the_global_batches_of_one_with_thrice_the_size():
    one = batches_of_all(1, batch_size=12, class_indices=[[index % 3] for index in range(94)])[0]
    thirds = batches_of_all(3, batch_size=4, class_indices=[[index % 3] for index in range(94)])
    assert [a + b + c for a, b, c in zip(*thirds, strict=True)] == one


# ── chance ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group_sizes", [None, UNEVEN_GROUPS])
def test_order_and_draws_follow_from_seed_and_epoch_alone(group_sizes):
    def walk(epoch: int, seed: int) -> list:
        return batches_of_all(1, epoch, seed=seed, group_sizes=group_sizes)[0]

    assert walk(2, seed=7) == walk(2, seed=7)
    assert clips_of(walk(2, seed=7)) != clips_of(walk(3, seed=7))
    assert clips_of(walk(2, seed=7)) != clips_of(walk(2, seed=8))


@pytest.mark.parametrize("group_sizes", [None, UNEVEN_GROUPS])
def test_a_clip_has_the_same_draw_however_many_processes_read_and_another_in_every_epoch(group_sizes):
    def draws(num_processes: int, epoch: int, num_workers: int = 0) -> dict[int, int]:
        options = {"group_sizes": group_sizes, "num_workers": num_workers}
        of_all = batches_of_all(num_processes, epoch, **options)
        return {index: draw for batches in of_all for batch in batches for index, draw in batch}

    first = draws(1, epoch=0)
    assert first == draws(3, epoch=0, num_workers=2)
    assert len(set(first.values())) == 94
    second = draws(1, epoch=1)
    assert all(first[index] != second[index] for index in range(94))
    assert all(isinstance(draw, int) and 0 <= draw < 2**63 for draw in first.values())


def test_the_walk_can_be_repeated_and_left_early():
    sampler = EpochBatches(94, 5)
    walk = iter(sampler)
    next(walk)
    assert list(sampler) == list(sampler)


def test_every_place_of_an_epoch_is_reached_by_every_clip():
    first_clips = {clips_of(batches_of_all(1, epoch, num_clips=10)[0])[0] for epoch in range(200)}
    assert first_clips == set(range(10))


# ── lanes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("num_processes", "num_workers"), list(product([1, 2, 3], [0, 1, 2, 3])))
def test_groups_are_read_by_one_lane_but_for_those_at_its_ends(num_processes, num_workers):
    group_sizes = [8, 3, 11, 5, 7, 9, 6, 10, 4, 7] * 4  # 280 clips
    group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)
    options = {"num_clips": 280, "group_sizes": group_sizes, "num_workers": num_workers}
    of_all = batches_of_all(num_processes, epoch=1, **options)
    lanes_per_process = max(num_workers, 1)
    lanes = [batches[lane::lanes_per_process] for batches in of_all for lane in range(lanes_per_process)]
    readings = sum(len({group_of[index] for index in clips_of(lane)}) for lane in lanes)
    assert readings <= len(group_sizes) + len(lanes) - 1


def test_a_lane_holds_no_more_groups_than_it_may_and_reads_each_once():
    group_sizes = [7] * 40
    batches = batches_of_all(1, num_clips=280, group_sizes=group_sizes, groups_at_once=4)[0]
    group_of = [index // 7 for index in clips_of(batches)]
    for group in range(40):
        places = [place for place, found in enumerate(group_of) if found == group]
        assert places[-1] - places[0] < 4 * 7
    assert len(set(group_of[:28])) == 4  # shuffled among each other
    assert group_of[:7] != sorted(group_of[:7])


def test_groups_at_once_decides_how_far_clips_are_shuffled():
    def num_groups_in_first_batch(groups_at_once: int) -> int:
        options = {"num_clips": 280, "batch_size": 28, "group_sizes": [7] * 40, "groups_at_once": groups_at_once}
        return len({index // 7 for index in clips_of(batches_of_all(1, **options)[0][:1])})

    assert num_groups_in_first_batch(1) <= 4 < 10 < num_groups_in_first_batch(40)


# ── balance ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group_sizes", [None, UNEVEN_GROUPS])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_class_is_drawn_as_often_as_every_other_within_one(group_sizes, num_processes):
    rarity = [0] * 70 + [1] * 20 + [2] * 3 + [4]  # no clip has class 3
    options = {"class_indices": [[index] for index in rarity], "group_sizes": group_sizes, "num_workers": 2}
    for epoch in range(3):
        of_all = batches_of_all(num_processes, epoch, **options)
        drawn = Counter(rarity[index] for batches in of_all for index in clips_of(batches))
        assert set(drawn) == {0, 1, 2, 4}
        assert sum(drawn.values()) == 94
        assert max(drawn.values()) - min(drawn.values()) <= 1


def test_no_clip_of_a_class_comes_again_before_all_of_it_came():
    classes = [0] * 10 + [1] * 84
    drawn = Counter(clips_of(batches_of_all(1, class_indices=[[index] for index in classes])[0]))
    assert {drawn[index] for index in range(10)} <= {4, 5}  # 47 draws
    assert max(drawn[index] for index in range(10, 94)) == 1


def test_a_clip_with_several_labels_stands_for_each_of_them_and_one_without_for_none():
    class_indices = [[0, 1], [2], [], [2], [2], [2]]
    for epoch in range(20):
        drawn = Counter(clips_of(batches_of_all(1, epoch, num_clips=6, batch_size=4, class_indices=class_indices)[0]))
        assert drawn[2] == 0
        assert drawn[0] == 4  # two draws for each of three classes, and it has two of them
        assert sum(drawn.values()) == 6


def test_the_balance_is_the_same_plan_on_all_processes():
    options = {"class_indices": [[index % 7] for index in range(94)], "group_sizes": UNEVEN_GROUPS}
    one = batches_of_all(1, epoch=2, **options)[0]
    first, second = batches_of_all(2, epoch=2, **options)
    assert Counter(clips_of(one)) == Counter(clips_of(first) + clips_of(second))


def test_a_clip_that_balance_draws_twice_is_cropped_in_two_ways():
    class_indices = [[0]] + [[1]] * 9
    batches = batches_of_all(1, num_clips=10, class_indices=class_indices)[0]
    draws = [draw for batch in batches for index, draw in batch if index == 0]
    assert len(draws) == 5
    assert len(set(draws)) == 5


# ── in a DataLoader ───────────────────────────────────────────────────────────────────────────────────────────────────


class Names(list):
    """A data set that answers with the key that it was asked."""

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize("group_sizes", [None, UNEVEN_GROUPS])
@pytest.mark.parametrize("num_skipped", [0, 1, 7])
def test_skipping_batches_gives_the_rest_of_the_epoch_unchanged(group_sizes, num_skipped):
    batches = EpochBatches(94, 5, seed=3, group_sizes=group_sizes, num_workers=2)
    loader = ClipLoader(Names(range(94)), batch_sampler=batches, collate_fn=list)
    loader.set_epoch(2)
    whole = list(loader)
    rest = skip_first_batches(ClipLoader(Names(range(94)), batch_sampler=batches, collate_fn=list), num_skipped)
    assert list(rest) == whole[num_skipped:]
    loader.set_epoch(0)
    assert list(loader) != whole


def test_workers_serve_lanes_in_turn_so_that_each_keeps_to_its_own_groups():
    group_sizes = [7] * 12
    batches = EpochBatches(84, 6, group_sizes=group_sizes, num_workers=2)
    loader = ClipLoader(WhoReads(range(84)), batch_sampler=batches, collate_fn=list, num_workers=2)
    answers = [answer for batch in loader for answer in batch]
    assert sorted(index for index, _, _ in answers) == list(range(84))
    readers = {group: {worker for _, found, worker in answers if found == group} for group in range(12)}
    assert sum(map(len, readers.values())) <= 12 + 1


class WhoReads(list):
    """Says which worker was asked for a clip of which group."""

    def __getitem__(self, key):
        return key[0], key[0] // 7, get_worker_info().id


def test_two_workers_read_every_clip_of_real_shards_once(tmp_path, small_extractor, make_config):
    files = []
    for number, size in enumerate([11, 3, 8]):
        rows = [make_row(f"{number}-{index}", tone(0.05, 500, index), ["a"]) for index in range(size)]
        files.append(str(tmp_path / f"{number}.parquet"))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1], row_group_size=4)
    shards = ShardRows(files)
    assert list(shards.group_sizes) == [4, 4, 3, 3, 4, 4]
    names = [row["video_id"] for row in shards.without_audio()]
    data_set = ClipDataset(shards, small_extractor, make_config(num_labels=1, id2label={0: "a"}, label2id={"a": 0}))
    of_all = []
    for rank in range(2):
        sampler = EpochBatches(22, 3, rank, 2, group_sizes=shards.group_sizes, num_workers=2)
        loader = ClipLoader(data_set, batch_sampler=sampler, collate_fn=list, num_workers=2)
        of_all.append([example.name for batch in loader for example in batch])
    assert sorted(of_all[0] + of_all[1]) == sorted(names)


def test_each_group_of_real_shards_is_read_once(tmp_path, small_extractor, make_config):
    rows = [make_row(str(index), tone(0.02, 500, index), ["a"]) for index in range(60)]
    file = str(tmp_path / "clips.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=4)
    shards = ShardRows([file], cached_groups=3)
    config = make_config(num_labels=1, id2label={0: "a"}, label2id={"a": 0})
    sampler = EpochBatches(60, 7, group_sizes=shards.group_sizes, groups_at_once=3)
    loader = ClipLoader(ClipDataset(shards, small_extractor, config), batch_sampler=sampler, collate_fn=list)
    assert sum(map(len, loader)) == 60
    assert shards.groups_read == len(shards.group_sizes) == 15


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2, "groups_at_once": 0}, "at least 1"),
        ({"batch_size": 2, "rank": 2, "num_processes": 2}, "must be 0 to 1"),
        ({"batch_size": 2, "class_indices": [[0]]}, "one row for each"),
        ({"batch_size": 2, "class_indices": [[]] * 6}, "No clip has a class"),
        ({"batch_size": 2, "group_sizes": [2, 3]}, "hold 5 clips, and there are 6"),
        ({"batch_size": 2, "num_processes": 7}, "start fewer"),
        ({"batch_size": 2, "num_processes": 2, "num_workers": 4, "group_sizes": [6]}, "2 processes with 4 workers"),
    ],
)
def test_what_cannot_be_dealt_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EpochBatches(6, **options)
