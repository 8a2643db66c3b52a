"""The run folder: everything one training run leaves behind, and ``load``, which makes a model of it again."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from fastseq.data.ids import IdMap
from fastseq.devices import find_device
from fastseq.errors import CheckpointError, DataError

from . import checkpoint, parts
from .distributed import Ranks
from .significance import UserValues

if TYPE_CHECKING:
    from fastseq.models.base import SequentialRecommender
    from fastseq.models.shards import Shards

    from .evaluation import Evaluation


LOCK = ".lock"
SEEN_SECONDS = 60.0  # until which another host sees a new folder: NFS believes for so long what it has read of one
FILES = (
    "checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.jsonl", "evaluation.json", "curve.png",
    "ids.safetensors", "config.yaml", "evaluation_users.safetensors", "trackers.json",
)  # fmt: skip


class RunFolder:
    """A folder with ``config.yaml``, ``metrics.jsonl``, ``curve.png``, ``evaluation.json``,
    ``evaluation_users.safetensors``, ``ids.safetensors`` and ``checkpoints/{last,best}.safetensors``; with trackers
    ``trackers.json``, and ``tensorboard/`` if there is nowhere else for it.

    Args:
        path: the folder; made if absent.
        resume: use what is there. Whether it belongs to the same model and data is checked by ``Trainer``.
        overwrite: delete what an earlier run left there (only the files named above).
        lock: keep other processes from training in the folder until ``unlock`` or the end of this one.

    Attributes:
        last_path: what resuming needs; best_path: the weights of the best epoch.
        metrics_path: one JSON object a line, one line an epoch; curve_path: its picture.
        evaluation_path: the evaluation with its protocol.
        ids_path: the raw ids of users and items.
        config_path: the resolved configuration.
        users_path: the metrics of each user in the latest evaluation.
        trackers_path: which run of a tracker's is this one's.
        tensorboard_path: a folder of TensorBoard's event files.

    Raises:
        CheckpointError: if the folder is not empty and neither option is given, or both are; if another process has
            locked it; or if it cannot be made.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, resume: bool = False, overwrite: bool = False, lock: bool = False
    ) -> None:
        self.path = Path(path)
        # What could be resumed or loaded comes first: a folder half cleared must not pass for the old run.
        self._files = [self.path / name for name in FILES]
        (
            self.last_path, self.best_path, self.metrics_path, self.evaluation_path, self.curve_path, self.ids_path,
            self.config_path, self.users_path, self.trackers_path,
        ) = self._files  # fmt: skip
        self.tensorboard_path = self.path / "tensorboard"
        if resume and overwrite:
            raise CheckpointError(f"{self.path}: resume and overwrite exclude each other; choose one")
        self._lock: FileLock | None = None
        try:
            if not (resume or overwrite):
                self.refuse_used(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            if lock:
                self._lock = self._locked()
            for file in [*self._files, *self.tensorboard_path.glob("events.out.tfevents.*")] if overwrite else ():
                file.unlink(missing_ok=True)
                if file.parent == self.path / "checkpoints":
                    parts.remove(file)
            (self.path / "checkpoints").mkdir(exist_ok=True)
        except (OSError, NotImplementedError) as error:  # the second: a file system without locks
            self.unlock()
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{self.path}: cannot be used as run folder ({reason})") from error

    def _locked(self) -> FileLock:
        """The lock of the folder, held; the system drops it with the process, however it ends."""
        path = self.path / LOCK
        holder = path.read_text(errors="replace").split(" ")[0].strip() if path.is_file() else ""
        lock = FileLock(path, thread_local=False, fallback_to_soft=False)  # a soft lock outlives a killed process
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"{self.path}: process {holder or 'unknown'} is training in this run folder; wait for it, stop it, "
                "or use another folder"
            ) from None
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
            path.write_text(f"{os.getpid()} {secrets.token_hex(8)}")
        return lock

    def unlock(self) -> None:
        """Lets other processes train in the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @staticmethod
    def refuse_used(path: Path) -> None:
        """Raises CheckpointError if a folder at ``path`` holds anything."""
        if path.is_dir() and any(file.is_file() and file.name != LOCK for file in path.rglob("*")):
            raise CheckpointError(
                f"{path}: the run folder exists and is not empty. Use resume (--resume) to continue that run, "
                "overwrite (--overwrite) to delete it, or another folder"
            )

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The run folder at ``path``, to read.

        Raises:
            CheckpointError: if there is none.
        """
        if not (Path(path) / "checkpoints").is_dir():
            raise CheckpointError(f"{path}: not a run folder (it has no folder 'checkpoints')")
        return cls(path, resume=True)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], ranks: Ranks, *, resume: bool = False, overwrite: bool = False
    ) -> RunFolder:
        """The same for processes that train together: the first makes the folder, the others then find it."""
        if not ranks.is_first:
            refused, mark = ranks.sum(torch.zeros(2, dtype=torch.int64)).tolist()
            if refused:
                raise CheckpointError(f"{path}: refused as run folder; the first process says why")
            deadline = time.monotonic() + SEEN_SECONDS
            while not (seen := _mark(Path(path)) == mark) and time.monotonic() < deadline:
                time.sleep(0.2)
            if not seen:
                raise CheckpointError(
                    f"{path}: rank {ranks.rank} does not see the run folder that rank 0 has made; hosts that train "
                    "together need it on a file system that they share"
                )
            return cls.existing(path)
        try:
            folder = cls(path, resume=resume, overwrite=overwrite, lock=True)
        except CheckpointError:
            ranks.sum(torch.tensor([1, 0]))  # or the others would wait for ever
            raise
        ranks.sum(torch.tensor([0, _mark(folder.path)]))
        return folder

    @property
    def model_path(self) -> Path:
        """``best_path``, or ``last_path`` where no best epoch has been saved yet.

        Raises:
            CheckpointError: if there is neither, or the best epoch was saved and is missing.
        """
        if self.best_path.is_file():
            return self.best_path
        if self.last_path.is_file():
            epoch = checkpoint.load(self.last_path, metadata_only=True)[1].get("state", {}).get("best_epoch")
            if epoch is not None:
                raise CheckpointError(
                    f"{self.best_path}: missing, and epoch {epoch} was the best; restore it, or name the last epoch: "
                    f"{self.last_path}"
                )
            return self.last_path
        raise CheckpointError(f"{self.path}: no checkpoint has been saved in this run folder yet")

    def write_config(self, config: str | Mapping[str, Any]) -> None:
        """Writes the resolved configuration: YAML text, or a mapping (written as JSON, which is YAML too)."""
        self._write(self.config_path, config if isinstance(config, str) else json.dumps(config, indent=2) + "\n")

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Writes an evaluation with its protocol, and the metrics of each user if there are any."""
        self._write(self.evaluation_path, evaluation.to_json() + "\n")
        if evaluation.users is not None:
            self.write_users(evaluation.users)

    def write_users(self, values: UserValues) -> None:
        """Writes the metrics of each user, in float32, in place of those of an earlier evaluation."""
        tensors = {"users": torch.from_numpy(values.users), "values": torch.from_numpy(values.values).float()}
        checkpoint.save(self.users_path, tensors, {"names": values.names, "protocol": values.protocol})

    def read_users(self) -> UserValues:
        """The metrics of each user in the latest evaluation.

        Raises:
            CheckpointError: if they are absent or damaged.
        """
        if not self.users_path.is_file():
            raise CheckpointError(
                f"{self.path}: holds no metrics of each user; `fastseq evaluate {self.path}` writes them, in Python "
                "RunFolder.write_users(evaluate(..., per_user=True).users)"
            )
        tensors, metadata = checkpoint.load(self.users_path)
        try:
            users, values, names = tensors["users"].numpy(), tensors["values"].numpy(), tuple(metadata["names"])
            if values.shape != (len(users), len(names)) or not np.isfinite(values).all():
                raise KeyError("values")
            protocol = metadata["protocol"]
            if not {"data_hash", "split_hash"} <= protocol["split"].keys():
                raise KeyError("split")
            return UserValues(users, names, values, protocol)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.users_path}: damaged ({error}); evaluate the run again") from error

    def write_ids(self, users: IdMap, items: IdMap) -> None:
        """Writes the catalogue, so that the model can be asked in raw ids."""
        tensors = {
            f"{kind}.{name}": torch.from_numpy(array.copy())
            for kind, ids in (("users", users), ("items", items))
            for name, array in ids.to_arrays().items()
        }
        checkpoint.save(self.ids_path, tensors, catalogue_digest(users, items))

    def read_ids(self) -> tuple[IdMap, IdMap]:
        """The raw ids of users and items.

        Raises:
            CheckpointError: if they are absent or damaged.
        """
        tensors, metadata = checkpoint.load(self.ids_path)
        try:
            users, items = (
                IdMap.from_arrays(
                    {name.split(".", 1)[1]: tensor.numpy() for name, tensor in tensors.items() if name.startswith(kind)}
                )
                for kind in ("users.", "items.")
            )
        except DataError as error:
            raise CheckpointError(f"{self.ids_path}: {error}") from error
        checkpoint.check_same(self.ids_path, "catalogue", metadata, catalogue_digest(users, items))
        return users, items

    def read_trackers(self) -> dict[str, str]:
        """By the place where a tracker keeps its runs, the id of the one that is this run there.

        Raises:
            CheckpointError: if the file is damaged.
        """
        if not self.trackers_path.is_file():
            return {}
        try:
            ids = json.loads(self.trackers_path.read_bytes())
            return {str(place): str(identity) for place, identity in ids.items()}
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{self.trackers_path}: damaged ({error}); without the file trackers begin runs of their own"
            ) from error

    def write_tracker(self, place: str, identity: str) -> None:
        """Adds one to what ``read_trackers`` returns, or replaces it."""
        ids = self.read_trackers() | {place: identity}
        self._write(self.trackers_path, json.dumps(ids, indent=2) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> int:
        """Appends one line, on the disk when this returns.

        Returns:
            The length of the file in bytes: what ``truncate_metrics`` takes to come back to this state.
        """
        try:
            with open(self.metrics_path, "ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise CheckpointError(f"{self.metrics_path}: cannot be written ({error.strerror or error})") from error

    def truncate_metrics(self, size: int) -> None:
        """Drops the lines beyond ``size`` bytes: those written after the checkpoint that training goes on from."""
        if self.metrics_path.exists() and self.metrics_path.stat().st_size > size:
            os.truncate(self.metrics_path, size)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line cut short by a crash is left out.

        Raises:
            CheckpointError: naming a line that is damaged.
        """
        if not self.metrics_path.exists():
            return []
        records = []
        for line in self.metrics_path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise CheckpointError(
                    f"{self.metrics_path}: line {len(records) + 1} is not JSON ({error}); mend or delete that line"
                ) from error
        return records

    def _write(self, path: Path, text: str) -> None:
        checkpoint.atomic_write(path, lambda file: file.write(text.encode()))


def _mark(path: Path) -> int:
    """What tells the run folder that the first process has locked from a copy of it, as hosts that share none have."""
    try:
        return zlib.crc32((path / LOCK).read_bytes()) + 1
    except OSError:  # Windows lets nobody read a locked file
        return int(path.is_dir())


def catalogue_digest(users: IdMap, items: IdMap) -> dict[str, Any]:
    """What identifies a catalogue in a checkpoint: sizes and digests of the raw ids."""
    sizes = {"n_users": len(users), "n_items": len(items)}
    return sizes | {"user_ids": users.digest(), "item_ids": items.digest()}


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", shards: Shards | None = None
) -> SequentialRecommender:
    """A trained model in evaluation mode.

    Args:
        path: a run folder (its best epoch), a ``.safetensors`` checkpoint of fastseq, or a ``.pth`` of WarpRec.
        device: "cpu", "cuda", "cuda:n", or "auto" (a GPU where there is one), whatever it was trained on.
        shards: the part of the tables that this process is to hold, of a checkpoint that any number of processes wrote;
            None: whole tables. A ``.pth`` is read whole.

    Returns:
        The model. From a run folder it has the catalogue attached, so ``recommend`` takes raw ids.

    Raises:
        ConfigError: if there is no such device.
        CheckpointError: if there is no such checkpoint, it is damaged, or it is none of a fastseq model.
    """
    from fastseq.models import MODELS
    from fastseq.models.recommend import Catalogue

    from .state import catch_up, rows_of

    device = find_device(device)
    source = path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such run folder or checkpoint; fastseq train says where it keeps a run")
    if path.is_dir():
        path = RunFolder.existing(path).model_path
    if path.suffix == ".pth":
        stored = checkpoint.load_warprec(path)
        # fastseq's models inside WarpRec may have names of their own, and a precision, which is of training alone.
        name = stored["name"].removeprefix("Fast")
        params = {key: value for key, value in stored["params"].items() if key != "precision"}
        info, state = stored["info"], stored["state_dict"]
        known: dict[str, Any] = {}
    else:
        metadata = checkpoint.load(path, metadata_only=True)[1]
        try:
            name, params, info = metadata["model"], metadata["params"], metadata["info"]
        except KeyError as error:
            raise CheckpointError(f"{path}: holds no model (its metadata has no {error})") from error
        known = metadata.get("catalogue", {})
    if name not in MODELS:
        raise CheckpointError(f"{path}: a checkpoint of {name!r}, expected one of {', '.join(MODELS)}")
    try:
        model = MODELS[name](params, info, shards=None if path.suffix == ".pth" else shards)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: its hyperparameters make no {name}: {error}") from error
    if path.suffix != ".pth":
        tensors, metadata = parts.load(path, rows_of(model), shards)
        state = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit {name} with its own parameters: {error}") from error
    if path.suffix != ".pth":
        catch_up(model, tensors, metadata)
    ids_path = path.parent.parent / "ids.safetensors"
    if source.is_dir() and known and not ids_path.is_file():
        raise CheckpointError(
            f"{ids_path}: missing, so raw ids are unknown; restore it, or load the checkpoint "
            "file itself and use indices"
        )
    if known and ids_path.is_file():
        users, items = RunFolder.existing(ids_path.parent).read_ids()
        checkpoint.check_same(path, "catalogue", known, catalogue_digest(users, items))
        model.catalogue = Catalogue(items, users)
    return model.to(device).eval()
