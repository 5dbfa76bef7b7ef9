"""Batches of a snapshot as a PyTorch dataset. Imported only on request."""

from __future__ import annotations

from collections.abc import Iterator

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError:
    from etl.errors import SettingsError

    raise SettingsError(
        "`torch` needs PyTorch: pip install 'bpr-etl[consumers]'. `batches` gives numpy arrays."
    ) from None

from etl.snapshots.reading.batches import Batches


class TorchBatches(IterableDataset[dict[str, torch.Tensor]]):  # type: ignore[misc]
    """The batches of one rank in tensors. The workers of a `DataLoader` share them."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see what it becomes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has, also in workers that were started before."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self._batches.set_epoch(int(self._epoch))
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in self._batches.share(number, workers):
            yield {name: torch.from_numpy(values) for name, values in batch.items()}
