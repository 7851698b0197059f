"""Which files a model folder may hold, and copying them without being led outside the folder.

It decides what is refused at the registry's door: anything that runs code when loaded, anything that is
not a plain file, anything cut short. It does not know flavors' own rules.
"""

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

from batch_platform.core.data.files import fsync_file, fsync_folder, sha256_of
from batch_platform.errors import ModelError

PICKLE_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt", ".dill", ".npy", ".npz", ".h5", ".keras"}
)
# They make a loader fetch or import something else than this folder.
_REFUSED_NAMES = {
    "adapter_config.json": "an adapter names another model as its base: merge it into the base and save that"
}


def copy_folder(source: Path, target: Path, max_bytes: int) -> None:
    """Copy a model folder, durable on return; symbolic links are refused, never followed.

    Args:
        source: the folder that a person names.
        target: a folder that does not exist yet.
        max_bytes: most bytes of all files together.

    Raises:
        ModelError: names the file that is no plain file, or that the folder is empty or too large.
    """
    if source.is_symlink() or not source.is_dir():
        raise ModelError(f"{source}: is not a folder; give the folder with the model's files")
    plan = _entries(source)
    size = sum(path.stat(follow_symlinks=False).st_size for path in plan)
    if not plan:
        raise ModelError(f"{source}: is empty; give the folder with the model's files")
    if size > max_bytes:
        raise ModelError(f"{source}: holds {size} bytes, more than the {max_bytes} that a model may have")
    for path in plan:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy_plain(path, copy)
    for folder in {target, *(path for path in target.rglob("*") if path.is_dir())}:
        fsync_folder(folder)


def _entries(source: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(source):
        for name in (*folders, *names):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise ModelError(
                    f"{path}: is a symbolic link; copy the folder with `cp -rL` and give the copy"
                )
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ModelError(f"{path}: is neither a file nor a folder; remove it")
            if not name.isprintable():
                raise ModelError(f"{path!r}: has a name that cannot be written down; rename it")
        found += [Path(folder) / name for name in names]
    return sorted(found)


def _copy_plain(path: Path, copy: Path) -> None:
    # O_NOFOLLOW: the file may have become a link since it was looked at.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as read, copy.open("xb") as write:
        shutil.copyfileobj(read, write, 2**20)
    fsync_file(copy)


def inspect(folder: Path) -> None:
    """Refuse files that could run code, and weights that are cut short or NaN.

    Args:
        folder: our own copy, plain files only.

    Raises:
        ModelError: names the first such file and what to do.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _inspect_file(path, str(path.relative_to(folder)))


def _inspect_file(path: Path, name: str) -> None:
    suffix = path.suffix.lower()
    # The length that a safetensors file begins with may look like a pickle's first bytes; its own reader takes no pickle.
    if suffix in PICKLE_SUFFIXES or (suffix != ".safetensors" and _is_pickle(path)):
        raise ModelError(
            f"{name}: may be a pickle, which runs code when loaded: save the model as safetensors"
        )
    if path.name in _REFUSED_NAMES:
        raise ModelError(f"{name}: {_REFUSED_NAMES[path.name]}")
    if suffix == ".json":
        _inspect_json(path, name)
    if suffix == ".safetensors":
        _inspect_safetensors(path, name)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(4)
    if len(start) >= 2 and start[0] == 0x80 and start[1] in range(2, 6):
        return True
    if start != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _inspect_json(path: Path, name: str) -> None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: cannot be read as JSON: {error}") from None
    if isinstance(value, dict) and "auto_map" in value:
        raise ModelError(f"{name}: auto_map asks for code from the folder or the network: it is never run")
    if isinstance(value, dict) and "weight_map" in value:
        _check_weight_map(value["weight_map"], path.parent, name)


def _check_weight_map(weight_map: Any, folder: Path, name: str) -> None:
    """The files of weights that an index names are opened as they stand there, so they must stand in the folder."""
    beside = {path.name for path in folder.iterdir() if path.is_file()}
    for file in weight_map.values() if isinstance(weight_map, dict) else [weight_map]:
        if not isinstance(file, str) or file not in beside or not file.endswith(".safetensors"):
            raise ModelError(f"{name}: weight_map names {file!r}, which is no safetensors file beside it")


def _inspect_safetensors(path: Path, name: str) -> None:
    """Header and size agree, and no weight is NaN; one tensor is held at a time."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            for tensor in tensors.keys():  # noqa: SIM118 -- no mapping
                value = tensors.get_tensor(tensor)
                if value.is_floating_point() and value.float().isnan().any():
                    raise ModelError(f"{name}: {tensor} holds NaN, so no row would be scored: train it again")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name}: is cut short or no safetensors file ({error}): copy it again") from None


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by path relative to it, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    return "a symbolic link" if path.is_symlink() else sha256_of(path)
