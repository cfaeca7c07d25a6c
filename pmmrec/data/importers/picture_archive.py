"""Unpack the pictures of zip and tar files, once every member is known to be harmless."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from pmmrec.data.importers.picture_folder import SUFFIXES
from pmmrec.data.importers.unpacking import BLOCK_BYTES, GROWTH_FROM_BYTES
from pmmrec.errors import DataError

ZIP, TAR = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 1_000_000
MAX_GROWTH = 20  # pictures are compressed already


@dataclass(frozen=True)
class _Member:
    name: str
    num_bytes: int
    is_file: bool
    is_folder: bool


class _TwoMembersError(Exception):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


def is_archive(path: Path) -> bool:
    """Whether a file is named as an archive that is read."""
    return path.is_file() and path.name.lower().endswith((*ZIP, *TAR))


def unpack_pictures(archive: Path, target: Path) -> None:
    """Write the pictures of an archive below `target`, under the names that they have in it.

    Raises DataError, before anything is written, for members that lead out of the folder, links, devices, more than
    `MAX_MEMBERS` members, and content that is far larger than the archive.
    """
    try:
        unpack = _unpack_zip if archive.name.lower().endswith(ZIP) else _unpack_tar
        unpack(archive, target)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists how each compression failed
        raise DataError(f"{archive}: cannot be unpacked: {reason}") from error
    except (NotImplementedError, RuntimeError, ValueError) as error:  # of zipfile: encrypted, or packed in another way
        raise DataError(f"{archive}: cannot be unpacked: {error}; unpack it yourself and name the folder") from error
    except _TwoMembersError as error:
        name = os.path.relpath(error.path, target)
        raise DataError(f"{archive}: two members are called {name!r} and differ; keep one of them") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        name = os.path.relpath(error.filename, target)
        raise DataError(f"{archive}: two members have names that exclude each other: {name!r}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{archive}: cannot be unpacked: {error.strerror or error}") from error


def _unpack_zip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
        links = {info.filename for info in infos if stat.S_ISLNK(info.external_attr >> 16)}
        _check(archive, (_Member(i.filename, i.file_size, i.filename not in links, i.is_dir()) for i in infos))
        for info in infos:
            if _is_picture(info.filename):
                with file.open(info) as content:
                    _write(content, target / info.filename)


def _unpack_tar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as file:
        _check(archive, (_Member(one.name, one.size, one.isreg(), one.isdir()) for one in file))
        for member in file.getmembers():
            content = file.extractfile(member) if member.isreg() and _is_picture(member.name) else None
            if content is not None:
                _write(content, target / member.name)


def _check(archive: Path, members: Iterator[_Member]) -> None:
    num_bytes, limit = 0, max(GROWTH_FROM_BYTES, MAX_GROWTH * archive.stat().st_size)
    for number, member in enumerate(members, start=1):
        num_bytes += member.num_bytes
        parts = PurePosixPath(member.name).parts
        is_absolute = member.name.startswith("/") or bool(PureWindowsPath(member.name).drive)
        if is_absolute or ".." in parts or "\\" in member.name or "\0" in member.name:
            raise DataError(f"{archive}: member {member.name[:100]!r} leads out of the folder; nothing was unpacked")
        if not (member.is_file or member.is_folder):
            raise DataError(f"{archive}: member {member.name[:100]!r} is a link or device; nothing was unpacked")
        if number > MAX_MEMBERS:
            raise DataError(f"{archive}: more than {MAX_MEMBERS:,} members; unpack it yourself and name the folder")
        if num_bytes > limit:
            raise DataError(f"{archive}: grows to more than {limit:,} bytes; unpack it yourself if that is right")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _write(content: IO[bytes], path: Path) -> None:
    """Write a member. One that comes again, as `tar -r` adds it, must have the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        if not _is_same(content, path):
            raise _TwoMembersError(path)
        return
    with path.open("xb") as out:
        shutil.copyfileobj(content, out)


def _is_same(content: IO[bytes], path: Path) -> bool:
    with path.open("rb") as other:
        while block := other.read(BLOCK_BYTES):
            if content.read(len(block)) != block:
                return False
    return not content.read(1)
