"""Batches on their way to a GPU: the copy runs beside the step before it, and no host thread waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import torch

from .batch import JaggedBatch
from .prefetch import prefetched


def transferred(source: Iterator[JaggedBatch], device: torch.device, depth: int) -> Generator[JaggedBatch, None, None]:
    """The batches of ``source`` on a GPU, each moved by one asynchronous copy on a stream of its own.

    The thread that makes a batch also sends it. Where the batch is used, the current stream waits for its copy.

    Args:
        source: batches on the CPU.
        device: a CUDA device.
        depth: batches made ahead, as of ``prefetched``.
    """
    with contextlib.closing(prefetched(_sent(source, device), depth)) as sent:
        for batch, arrival in sent:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(arrival)
            # Allocated on the other stream: the one buffer behind all tensors is free again when this one is done.
            batch.items.record_stream(stream)
            yield batch


def _sent(source: Iterator[JaggedBatch], device: torch.device) -> Iterator[tuple[JaggedBatch, torch.cuda.Event]]:
    """Each batch with the event of its arrival."""
    stream = torch.cuda.Stream(device)
    for batch in source:
        with torch.cuda.stream(stream):
            moved = batch.to(device, non_blocking=True)
        yield moved, stream.record_event()
