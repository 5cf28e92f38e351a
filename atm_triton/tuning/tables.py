"""Tables of launch configurations by shape: the user's cache, else the table shipped for this GPU, else the kernel's default.

A table is one JSON file per GPU: its ``"gpu"``, the versions of ``"triton"`` and ``"torch"`` that measured, and ``"configs"``,
``{"<kernel>/<H>x<W>/C<C>/G<G>/<dtype>": {"BLOCK_...": int, "num_warps": int, ...}}``, of sequences ``<W>``, of videos ``<T>x<H>x<W>``.
What another Triton has measured is kept under ``"older"``, and used. Looking up never benchmarks, and never guards on the axes: under
dynamic shapes the first shape seen decides, as the default does for all. How many images a batch has is not in a key: what is measured
holds for every batch, and is the fastest for the one that was tuned with.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .._triton import NAMESPACE, triton
from ..files import write_atomically
from ..strict_json import loads

PACKAGE = Path(__file__).parents[1]
SHIPPED = Path(__file__).parent / "configs"


def _user_cache() -> Path:
    """Folder for the user's tables; without a home, one that nobody else can have put there, or one that holds nothing."""
    cache = Path(os.path.expanduser("~/.cache/atm_triton"))
    if cache.is_absolute():
        return cache
    user = os.getuid() if hasattr(os, "getuid") else 0
    cache = Path(tempfile.gettempdir(), f"atm_triton-{user}")
    with contextlib.suppress(OSError):
        cache.mkdir(mode=0o700, exist_ok=True)
        about = cache.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == user and not about.st_mode & 0o022:
            return cache
    return Path(os.devnull)


USER_CACHE = _user_cache()

Config = dict[str, int]
# What is worth trying for a kernel, tokens x [B, *axes, C] and G offset channels per axis; the first, its default, always works.
Candidates = Callable[[str, Tensor, int], Iterator[Config]]


def distinct(candidates: Candidates) -> Candidates:
    """Drop what small channel counts make the same; as lazy as it was."""

    @functools.wraps(candidates)
    def once(kernel: str, x: Tensor, groups: int) -> Iterator[Config]:
        tried: list[Config] = []
        for config in candidates(kernel, x, groups):
            if config not in tried:
                tried.append(config)
                yield dict(config)

    return once


def gpu_slug(device: torch.device) -> str | None:
    """The name of a GPU's tables; other devices have none."""
    if device.type != "cuda":
        return None
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def table_files(device: torch.device) -> list[Path]:
    """Places where a table for this device is looked for, the one that decides first."""
    slug = gpu_slug(device)
    return [folder / f"{slug}.json" for folder in (USER_CACHE, SHIPPED)] if slug else []


def _content(file: Path) -> bytes:
    """Content of a regular file: a pipe would never answer."""
    with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError("no regular file")
        return stream.read()


def read_table(file: Path) -> dict:
    """The content of ``file``, empty where there is none that can be read."""
    try:
        text = _content(file)
    except (FileNotFoundError, NotADirectoryError):
        return {"configs": {}}
    except OSError as error:
        warnings.warn(f"cannot read launch configurations from {file} ({error}): going on without them", stacklevel=2)
        return {"configs": {}}
    try:
        content = loads(text)
        for name, config in [*content["configs"].items(), *content.get("older", {}).items()]:
            if not all(isinstance(value, int) for value in config.values()):
                raise ValueError(f"{name} is {config}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a table of launch configurations ({error}); remove it or tune again") from error
    return content


def write_table(file: Path, gpu: str, configs: dict[str, Config]) -> None:
    """Merge ``configs``, measured now, into ``file``, which is at every moment the old or the new one."""
    try:
        old = read_table(file)
    except ValueError:
        old = {"configs": {}}
    if old.get("triton") == triton.__version__:
        configs, older = old["configs"] | configs, old.get("older", {})
    else:
        older = old.get("older", {}) | old["configs"]
    content = {"gpu": gpu, "triton": triton.__version__, "torch": torch.__version__, "configs": dict(sorted(configs.items()))}
    if older := {key: config for key, config in sorted(older.items()) if key not in configs}:
        content["older"] = older
    write_atomically(file, lambda opened: opened.write(json.dumps(content, indent=1).encode() + b"\n"), shared=True)


_tables: dict[torch.device, dict[str, Config]] = {}
_given: dict[torch.device, dict[str, Config]] = {}  # those that no file decided


def table(device: torch.device) -> dict[str, Config]:
    """Return the table that holds in this process."""
    if device not in _tables:
        merged: dict[str, Config] = {}
        for file in reversed(table_files(device)):
            content = read_table(file)
            merged |= content.get("older", {}) | content["configs"]
        _tables[device] = merged
    return _tables[device]


def set_table(device: torch.device, configs: dict[str, Config]) -> None:
    """Let ``configs`` hold in this process from now on."""
    _tables[device] = _given[device] = dict(configs)
    _checked.clear()
    stamp()


def forget_tables() -> None:
    """The next look-up reads the files again."""
    _tables.clear()
    _given.clear()
    _checked.clear()
    stamp()


def stamp() -> None:
    """Let torch.compile find its code on disk only for the same launch configurations and the same source of this library: it knows an
    operator by its name alone."""
    digest = hashlib.sha256(json.dumps([*_given.values()], sort_keys=True).encode())
    files = *sorted(PACKAGE.rglob("*.py")), *sorted(SHIPPED.glob("*.json")), *sorted(USER_CACHE.glob("[!.]*.json"))  # none half written
    for file in files:
        with contextlib.suppress(OSError):
            digest.update(_content(file))
    users = re.sub(rf"{NAMESPACE} [0-9a-f]{{64}}", "", torch.compiler.config.cache_key_tag)
    torch.compiler.config.cache_key_tag = f"{users}{NAMESPACE} {digest.hexdigest()}"


stamp()


def _hint(size: int | torch.SymInt) -> int:
    return cast(int, size.node.hint) if isinstance(size, torch.SymInt) else size


def key(kernel: str, x: Tensor, groups: int) -> str:
    _, *axes, C = x.shape
    return f"{kernel}/{'x'.join(str(_hint(size)) for size in axes)}/C{int(C)}/G{groups}/{str(x.dtype).removeprefix('torch.')}"


def sizes(device: torch.device, kernel: str, dtype: torch.dtype, config: Config) -> tuple[tuple[int, ...], ...]:
    """The axes, C and G of every key of ``kernel`` and ``dtype`` that has this configuration."""
    pattern = rf"{kernel}/(\d+(?:x\d+)*)/C(\d+)/G(\d+)/{str(dtype).removeprefix('torch.')}"
    found = [re.fullmatch(pattern, name) for name, chosen in table(device).items() if chosen == config]
    return tuple((*map(int, match[1].split("x")), int(match[2]), int(match[3])) for match in found if match)


_lookups: list[dict[str, list[Config]]] = []  # a plain global: the backward of a GPU runs in a thread of its own


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, list[Config]]]:
    """Collects by key the candidates of what is looked up meanwhile, for tuning."""
    found: dict[str, list[Config]] = {}
    _lookups.append(found)
    try:
        yield found
    finally:
        _lookups.pop()


_checked: set[tuple[torch.device, str]] = set()  # whose configuration in the table is a candidate


def config(kernel: str, x: Tensor, groups: int, candidates: Candidates) -> Config:
    """The configuration of ``kernel`` for tokens ``x [B, *axes, C]`` with ``groups`` offset channels per axis.

    A table's counts only where it is a candidate: another may be stale or hostile, and leave a part of the result unwritten.
    """
    name, known = key(kernel, x, groups), table(x.device)
    for found in _lookups:
        found[name] = list(candidates(kernel, x, groups))
    if name in known and (x.device, name) not in _checked:
        if known[name] in candidates(kernel, x, groups):
            _checked.add((x.device, name))
        else:
            wrong = known.pop(name)
            warnings.warn(
                f"{_source(x.device, name)}: {name} is {wrong}, no candidate of this version: taking the default; tune again", stacklevel=2
            )
    return known.get(name) or next(candidates(kernel, x, groups))


def _source(device: torch.device, name: str) -> str:
    """The file whose configuration of that name holds."""
    contents = ((file, read_table(file)) for file in table_files(device))
    return next((str(file) for file, found in contents if name in found["configs"] | found.get("older", {})), "the given table")
