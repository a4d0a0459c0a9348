"""Reading data sets with the `datasets` library: from the Hugging Face hub, or from files of the same columns."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_plugins.errors import DataError, HostError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["KINDS", "Loader", "data_files", "loaded", "need_datasets", "require", "sha256_of"]

# Suffix → builder of the datasets library.
KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_DOWNLOAD_SECONDS = 60


class Loader:
    """Reads a source's tables, and keeps what the card says about them.

    Args:
        place: A file or folder to read in place of the hub; None for the hub.
        revision: Branch, tag or commit of the hub's repository; None for its newest.
        note: Called with a sentence about whatever is worth knowing, such as questions that are left out.
    """

    def __init__(
        self, place: Path | None = None, revision: str | None = None, note: Callable[[str], None] | None = None
    ) -> None:
        need_datasets()
        self.place = place
        self.revision = revision
        self.commit: str | None = None
        self.notes: list[str] = []
        self.say = note or (lambda text: None)

    def note(self, text: str) -> None:
        """Keep a sentence for the card, and say it."""
        self.notes.append(text)
        self.say(text)

    def table(self, hub: str, split: str, columns: Sequence[str], config: str | None = None) -> Dataset:
        """Return one split.

        Args:
            hub: Repository on the hub.
            split: The split's name there; in a folder, also the file's.
            columns: Those that are needed.
            config: Configuration of the hub's data set.

        Raises:
            DataError: It cannot be read, or lacks columns.
        """
        place = self.place
        found = self._from_hub(hub, split, config) if place is None else self._from_disk(place, split, config)
        require(columns, found.column_names, f"{place or hub} ({split})")
        return found

    def downloaded(self, url: str, split: str, columns: Sequence[str]) -> Dataset:
        """Return a JSON-lines file from an address that is not the hub's; `place` is a folder with files of that name.

        Raises:
            DataError: It cannot be read, or lacks columns.
        """
        if self.place is not None:
            found = self._from_disk(self.place, split, None)
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{split}.jsonl"
                file.write_bytes(_fetched(url))
                found = loaded(f"the download of {url}", "json", data_files=str(file), keep_in_memory=True)
        require(columns, found.column_names, f"{self.place or url} ({split})")
        return found

    def _from_disk(self, place: Path, split: str, config: str | None) -> Dataset:
        if place.is_file():
            return loaded(str(place), _kind(place), data_files=str(place))
        files = data_files(place, split)
        if files:
            return loaded(str(files[0]), _kind(files[0]), data_files=str(files[0]))
        # A copy of the hub's repository: its own README says which files make up a split.
        try:
            return loaded(str(place), str(place), config, split=split)
        except DataError as error:
            raise DataError(
                f"{place} has no file {split}.jsonl, {split}.json or {split}.parquet, and is no copy of the hub's "
                f"repository either: {error}"
            ) from error

    def _from_hub(self, hub: str, split: str, config: str | None) -> Dataset:
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE and self.commit is None:
            with _refused(f"{hub} cannot be found on the Hugging Face hub", _HUB_HELP):
                self.commit = HfApi().dataset_info(hub, revision=self.revision).sha
        return loaded(hub, hub, config, help=_HUB_HELP, split=split, revision=self.commit or self.revision)


_HUB_HELP = (
    "Is there a network, and is HF_HUB_OFFLINE unset? A private or gated data set needs HF_TOKEN, a mirror "
    "HF_ENDPOINT; with HF_HUB_OFFLINE=1 the local cache is read alone. Without the hub, give a file or folder with the "
    "same columns by --from."
)


def need_datasets() -> None:
    """Make sure that the `datasets` library is there.

    Raises:
        HostError: It is not.
    """
    if importlib.util.find_spec("datasets") is None:
        raise HostError("Reading data sets needs the library `datasets`: pip install 'sdpo-plugins[data]'")


def data_files(folder: Path, split: str) -> list[Path]:
    """Return a folder's file for a split, as a list of at most one.

    Raises:
        DataError: There are several.
    """
    found = [path for suffix in KINDS if (path := folder / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has {' and '.join(path.name for path in found)}: leave one of them.")
    return found


def sha256_of(place: Path) -> str:
    """Return the SHA-256 of a file, or of all of a folder's files with their names, hidden ones aside."""
    total = hashlib.sha256()
    files = [place] if place.is_file() else sorted(_visible(place))
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if place.is_file():
            return digest
        total.update(f"{path.relative_to(place).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _kind(file: Path) -> str:
    if file.suffix not in KINDS:
        raise DataError(f"{file} must be one of {', '.join(KINDS)}, by its name.")
    return KINDS[file.suffix]


def loaded(what: str, *names: str | None, help: str = "", split: str = "train", **options: Any) -> Dataset:
    """Call `datasets.load_dataset`.

    Args:
        what: What is read, for the message if it cannot be.
        *names: Of `load_dataset`.
        help: What to do then.
        split: Of `load_dataset`.
        **options: Of `load_dataset`.

    Raises:
        DataError: It cannot be read.
    """
    from datasets import load_dataset

    with _refused(f"{what} cannot be read", help):
        return load_dataset(*names, split=split, **options)


@contextmanager
def _refused(problem: str, help: str) -> Iterator[None]:
    """Turn what the libraries raise for a missing network, a wrong name or a broken file into one message."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except Exception as error:
        # The hub's client is built on httpx or its successor, by release.
        if not isinstance(error, (OSError, ValueError, RuntimeError, DatasetsError)) and not _is_http(error):
            raise
        reason = " ".join(str(error.__cause__ or error).split())
        if len(reason) > 300:
            reason = f"{reason[:300]}…"
        raise DataError(f"{problem}: {type(error).__name__}: {reason.rstrip('.')}. {help}".strip()) from error


def _is_http(error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] in ("httpx", "httpx2", "requests") for kind in type(error).__mro__)


def _fetched(url: str) -> bytes:
    help = "Or download the files elsewhere and give their folder by --from."
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError(f"{url} is not read, because HF_HUB_OFFLINE forbids the network: unset it. {help}")
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_SECONDS) as answer:  # noqa: S310  https alone
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise DataError(f"{url} cannot be read: {error}. Is there a network? {help}") from error
    return content


def require(
    columns: Iterable[str],
    found: Iterable[str],
    place: str,
    help: str = "The columns have to be those of the original data set.",
) -> None:
    """Make sure that a table has its columns.

    Raises:
        DataError: Some are missing.

    Example:
        >>> require(["question"], ["question", "answer"], "gsm8k")
    """
    found = list(found)
    missing = [name for name in columns if name not in found]
    if missing:
        raise DataError(
            f"{place} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, found)) or 'none'}. {help}"
        )
