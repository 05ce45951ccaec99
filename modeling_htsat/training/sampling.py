"""Which clips make up which batch: every clip once an epoch, or every class as often, dealt to processes and workers.

The order of an epoch follows from the seed and the epoch alone, so all processes know the whole plan, and a run that
was killed finds its place again. A key is `(index, draw)`: the clip, and a number that decides its crop and its
augmentation, so that these do not depend on the process or worker that happens to read it.

Two deals:
    striped     one global batch after the other, cut into a piece for each process. Two processes of 16 clips a batch
                learn from the very batches of one process of 32.
    in lanes    every worker of every process has a stretch of the epoch to itself, so that each group of rows that
                is cheap to read together (a row group of a parquet file) is read by one worker, once. For streams.

Both see every clip exactly once; batches differ by one clip where the numbers do not divide.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # index of the clip, draw


class EpochBatches(Sampler[list[Key]]):
    """The batches of one process, epoch after epoch: a `batch_sampler` for a DataLoader.

    Args:
        num_clips: clips in the data set.
        batch_size: clips in a batch of one process, at most; one more where a process would else have no clip left.
        rank, num_processes: which of the processes this is.
        seed: another one gives other orders, crops and augmentations.
        class_indices: the classes of each clip; then every class is drawn as often as every other, as in the paper,
            and an epoch has as many clips as the data set, of which some come twice and some not at all.
        group_sizes: rows that are cheap to read together; then the deal is in lanes.
        groups_at_once: so many groups are shuffled together, and held in memory by each worker.
        num_workers: of the DataLoader; counts for lanes alone.
    """

    def __init__(
        self,
        num_clips: int,
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        class_indices: Sequence[Sequence[int]] | None = None,
        group_sizes: Sequence[int] | None = None,
        groups_at_once: int = 4,
        num_workers: int = 0,
    ):
        if batch_size < 1 or groups_at_once < 1:
            raise ValueError(f"A batch of {batch_size} and {groups_at_once} groups at once: both must be at least 1.")
        if not 0 <= rank < num_processes:
            raise ValueError(f"The rank is {rank}; of {num_processes} processes it must be 0 to {num_processes - 1}.")
        if class_indices is not None and len(class_indices) != num_clips:
            raise ValueError(f"{num_clips} clips came with the classes of {len(class_indices)}; give one row for each.")
        if group_sizes is not None and sum(group_sizes) != num_clips:
            raise ValueError(f"The groups hold {sum(group_sizes)} clips, and there are {num_clips}.")
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.rank, self.num_processes = rank, num_processes
        self.clips_of_class = None if class_indices is None else _invert(class_indices)
        self.group_ends = None if group_sizes is None else np.cumsum(group_sizes)
        self.groups_at_once = groups_at_once
        self.lanes_per_process = 1 if group_sizes is None else max(num_workers, 1)
        self.epoch = 0
        if self.num_clips < self._batch_readers:
            raise ValueError(
                f"{num_clips} clips are too few for {num_processes} processes with {self.lanes_per_process} workers: "
                "each needs at least one; start fewer."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next walk gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches * self.lanes_per_process

    def __iter__(self) -> Iterator[list[Key]]:
        random = np.random.default_rng((self.seed, self.epoch))
        clips = np.arange(self.num_clips)
        if self.clips_of_class is not None:
            clips = _draw_evenly(self.clips_of_class, self.num_clips, random)
        keys = np.stack([clips, random.integers(2**63, size=self.num_clips)], axis=1)  # (clips, 2)
        if self.group_ends is None:
            batches = self._striped(keys, random)
        else:
            batches = self._in_lanes(keys, self.group_ends, random)
        return ([(index, draw) for index, draw in batch.tolist()] for batch in batches)

    @property
    def _batch_readers(self) -> int:
        """Processes that share a global batch, or lanes that walk side by side."""
        return self.num_processes * self.lanes_per_process

    @property
    def _num_batches(self) -> int:
        """Batches of a process, or of each of its lanes."""
        longest_share = -(-self.num_clips // self._batch_readers)
        return min(-(-longest_share // self.batch_size), self.num_clips // self._batch_readers)

    def _striped(self, keys: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
        for global_batch in np.array_split(random.permutation(keys), self._num_batches):
            yield np.array_split(global_batch, self.num_processes)[self.rank]

    def _in_lanes(self, keys: np.ndarray, group_ends: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
        rank_of_group = random.permutation(len(group_ends))
        rank = rank_of_group[np.searchsorted(group_ends, keys[:, 0], side="right")]
        order = np.lexsort((random.random(len(keys)), rank))
        lanes = np.array_split(order, self._batch_readers)
        first = self.rank * self.lanes_per_process
        batches_of_lanes = []
        for lane in range(first, first + self.lanes_per_process):
            pool = (rank[lanes[lane]] - rank[lanes[lane][0]]) // self.groups_at_once
            of_lane = np.random.default_rng((self.seed, self.epoch, lane))
            shuffled = lanes[lane][np.lexsort((of_lane.random(len(pool)), pool))]
            batches_of_lanes.append(np.array_split(keys[shuffled], self._num_batches))
        for side_by_side in zip(*batches_of_lanes, strict=True):  # a DataLoader serves its workers in turn
            yield from side_by_side


def _invert(class_indices: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The clips of each class that has any."""
    counts = [len(classes) for classes in class_indices]
    clips = np.repeat(np.arange(len(counts)), counts)
    classes = np.fromiter((index for row in class_indices for index in row), dtype=np.int64, count=sum(counts))
    if not len(classes):
        raise ValueError("No clip has a class, so that none can be drawn; switch balanced sampling off.")
    order = np.argsort(classes, kind="stable")
    return np.split(clips[order], np.flatnonzero(np.diff(classes[order])) + 1)


def _draw_evenly(clips_of_class: Sequence[np.ndarray], num_draws: int, random: np.random.Generator) -> np.ndarray:
    """`num_draws` clips, as many from each class within one, and within a class none again before all were drawn."""
    num_classes = len(clips_of_class)
    rounds = -(-num_draws // num_classes)
    turns = np.concatenate([random.permutation(num_classes) for _ in range(rounds)])[:num_draws]
    places_of_class = np.split(np.argsort(turns, kind="stable"), np.cumsum(np.bincount(turns, minlength=num_classes)))
    drawn = np.empty(num_draws, dtype=np.int64)
    for clips, places in zip(clips_of_class, places_of_class, strict=False):  # the last piece is empty
        walks = -(-len(places) // len(clips))
        drawn[places] = np.concatenate([random.permutation(clips) for _ in range(max(walks, 1))])[: len(places)]
    return drawn


__all__ = ["EpochBatches", "Key"]
