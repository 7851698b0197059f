"""Pages are made in one process beside the run, so that neither a verdict nor the next date waits for them."""

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from batch_platform.core.data.files import Location
from batch_platform.core.monitoring.evidently_report import RenderRequest, render


class Renderer:
    """A process that makes pages in the order of their requests; started at the first one."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, request: RenderRequest) -> "Future[Location]":
        """Ask for a page; the future gives its path, or raises what went wrong."""
        try:
            return self._running().submit(render, request)
        except BrokenProcessPool:
            # Killed, for its memory say: the pages it was at have failed, the later ones need not.
            self.close()
            return self._running().submit(render, request)

    def close(self) -> None:
        """End the process; requests that have not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned: a fork of a process with threads of torch and Dagster may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_quiet)
        return self._pool


def _quiet() -> None:
    """Let the pages yield to the scoring, and leave out the warnings of statistics on small samples."""
    import os
    import warnings

    os.nice(10)
    warnings.simplefilter("ignore")
