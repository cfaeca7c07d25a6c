#!/usr/bin/env bash
# guess: fsspec's pipe_file(path, value, mode="create") creates a file on a disk exactly once, as open(path, "xb") does.
# seen: it looks first and writes then; a file that another process makes in between is overwritten without a word.
# version: fsspec 2026.9.0; AbstractFileSystem.pipe_file in fsspec/spec.py, which the local file system inherits.
# why here: two people who publish to one URL at once would both hear that they did, and one checkpoint would be gone. On
#   a disk the file that names a commit is made by a hard link.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0
cd "$here"
"$here/venv/bin/python" - <<'PYTHON'
import os
import platform
import sys

import fsspec

print(f"fsspec {fsspec.__version__}, Python {platform.python_version()}")
disk = fsspec.filesystem("file")


def pipe(path):
    disk.pipe_file(path, b"second", mode="create")


def write(path):
    with disk.open(path, "xb") as file:
        file.write(b"second")


def of_two(create, path):
    """What becomes of two writers of whom the first writes right after the second has looked."""
    exists = type(disk).exists

    def then_the_first_writes(self, asked, **options):
        found = exists(self, asked, **options)
        with open(path, "wb") as file:
            file.write(b"first")
        return found

    type(disk).exists = then_the_first_writes
    try:
        if create is write:
            disk.exists(path)
        create(path)
        told = "no error"
    except FileExistsError:
        told = "FileExistsError"
    finally:
        type(disk).exists = exists
    with open(path, "rb") as file:
        return f"{told}, the file holds {file.read().decode()!r}"


seen = {
    'open(path, "xb")': of_two(write, os.path.abspath("a")),
    'pipe_file(path, value, mode="create")': of_two(pipe, os.path.abspath("b")),
}
print("guess: FileExistsError for the second of two writers, and the file of the first stays, both ways")
for way, found in seen.items():
    print(f"seen: {way}: {found}")
refused, overwritten = "FileExistsError, the file holds 'first'", "no error, the file holds 'second'"
sys.exit(list(seen.values()) != [refused, overwritten])
PYTHON
