"""What a run has come to so far, in a few numbers.

Nothing here grows with the fields, except for the failures: an id and a reason each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cellseg_cli.engine.tasks import Outcome, worker_name
from cellseg_cli.pipeline.events import Beat, Failure


class Tally:
    """Sums over the fields that have ended.

    Attributes
    ----------
    done
        Fields without failure.
    failed
        The others, without their tracebacks.
    pixels, instances
        Of the fields that are done; instances is None where the stage makes none.
    seconds
        By part of the work (read, network, cluster, write), summed over fields, so that it can
        exceed the time that has passed.
    bytes_read, bytes_written
        As the work on each field counts them.
    device_busy_s
        Seconds of all devices together.
    peak_rss_bytes
        By worker, the largest that it told; empty where nobody but this process works.
    counts
        Sums of what else the stage counts, such as tiles.
    """

    def __init__(self, failed: Iterable[Failure] = ()) -> None:
        self.done = self.pixels = self.bytes_read = self.bytes_written = 0
        self.instances: int | None = None
        self.failed = [Failure(one.field_id, one.reason) for one in failed]
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.device_busy_s = 0.0
        self.peak_rss_bytes: dict[str, int] = {}
        self._beats = 0
        self._fill = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one field."""
        self.device_busy_s += outcome.device_busy_s
        worker, peak = outcome.worker, outcome.peak_rss_bytes
        if worker is not None and peak is not None and worker != worker_name():
            self.peak_rss_bytes[worker] = max(self.peak_rss_bytes.get(worker, 0), peak)
        if outcome.failure:
            self.failed.append(Failure(outcome.failure.field_id, outcome.failure.reason))
            return
        self.done += 1
        if made := outcome.produced:
            self.pixels += made.pixels
            self.bytes_read += made.bytes_read
            self.bytes_written += made.bytes_written
            _add(self.seconds, made.seconds)
            self.counts.update(made.counts)
            if made.instances is not None:
                self.instances = (self.instances or 0) + made.instances

    def beat(self, beat: Beat) -> None:
        """Count how full the queue is; a beat without a queue does not count."""
        if beat.capacity:
            self._beats += 1
            self._fill += beat.in_flight / beat.capacity

    @property
    def queue_fill(self) -> float | None:
        """The mean over the beats, in [0, 1]; None before the first."""
        return self._fill / self._beats if self._beats else None


def _add(sums: Counter[str], seconds: Mapping[str, float]) -> None:
    for part, value in seconds.items():
        sums[part] += value  # type: ignore[assignment]  # Counter is typed for whole numbers
