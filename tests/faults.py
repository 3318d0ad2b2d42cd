"""Real faults: a disk that is full, and a process that dies in the middle of a write."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.pico import Pico, started

MEASURED = ("profile", "baseline")  # whose figures no second run repeats


def killed_while_writing(pattern: str, nth: int, *arguments: object) -> None:
    """Run the command line until it is killed at its nth write of files of that name."""
    process = started(*arguments, prepare=functools.partial(_die_at, pattern, nth))
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def _die_at(pattern: str, nth: int) -> None:
    """End by SIGKILL where this process would bring the nth file of some name to the disk.

    What it wrote of that file is there, and not yet under its name.
    """
    left, sync = nth, os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= bool(re.search(pattern, str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync


def with_nan(pico: Pico, folder: Path, tensor: str) -> Pico:
    """A copy of the parent with a weight that is not a number."""
    shutil.copytree(pico.parent, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Pico(parent=folder, corpus=pico.corpus, space_file=pico.space_file)


class SmallDisk:
    """A file system of its own, of few pages of 4 KiB, mounted on a folder.

    Raises:
        PermissionError: this process may not mount one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            raise PermissionError("may not mount a small file system")

    def resize(self, *, kib: int) -> None:
        """Give it another size, not below what is used."""
        self.remount(f"size={kib}k")

    def remount(self, option: str) -> None:
        """Change an option of the mount."""
        command = ["mount", "-o", f"remount,{option}", str(self.folder)]
        subprocess.run(command, check=True)

    def close(self) -> None:
        """Unmount it, once no file of it is open."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def begun_like(unbroken: Path, run: Path) -> Path:
    """A run directory in which only the measurements are done, with the same figures."""
    for stage in MEASURED:
        shutil.copytree(unbroken / stage, run / stage)
    (run / "journal.jsonl").write_text("")
    return run


def artefacts(run: Path) -> dict[str, list[bytes]]:
    """Lines of all that does not depend on how fast the machine is, without how long it took."""
    files = [
        *run.glob("library/*/*.safetensors"),
        run / "library" / "library.json",
        *run.glob("score/scores.*"),
        *run.glob("*/child/*"),
        run / "solve" / "architecture.yaml",
        run / "evaluate" / "quality.json",
        run / "generate" / "samples.json",
    ]
    return {
        str(file.relative_to(run)): [
            line for line in file.read_bytes().split(b"\n") if b" seconds: " not in line
        ]
        for file in files
    }
