"""Which build of PyTorch this machine needs: the one for NVIDIA GPUs, or one for CPUs, which is gigabytes smaller."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def gpu_here(root: Path = Path("/")) -> str | None:
    """What says that an NVIDIA GPU will be used from this folder, or None if nothing does.

    A card is also found without its driver, and a cluster's from its login node: what is not certain counts as a GPU.
    """
    if list((root / "dev").glob("nvidia[0-9]*")) or (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        return "there is an NVIDIA GPU"
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii") for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return "there is an NVIDIA GPU"
    if shutil.which("nvidia-smi"):
        return "NVIDIA's driver is installed"
    return "SLURM has nodes with GPUs" if _gpus_of_slurm() else None


def _gpus_of_slurm() -> bool:
    try:
        said = subprocess.run(
            ["sinfo", "--noheader", "--format=%G"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "gpu" in said.stdout


def choose(
    before: Mapping[str, object], asked: str, cuda_installed: bool, gpu: Callable[[], str | None]
) -> tuple[str, str]:
    """``cuda`` or ``cpu``, and why; "" if it is as it was.

    Args:
        before: what the last set-up wrote down: ``torch``, and whether somebody ``asked`` for it.
        asked: the setting ``DD_TORCH``, or "".
        cuda_installed: the libraries are in .venv already, so that nothing is gained without a wish.
        gpu: `gpu_here`.

    Raises:
        SystemExit: for a setting that is neither.
    """
    if asked not in ("", "cpu", "cuda"):
        sys.exit(f"Error: DD_TORCH={asked}: it must be cpu or cuda")
    if asked:
        return asked, f"DD_TORCH={asked}"
    if before.get("asked"):
        return str(before["torch"]), ""
    if cuda_installed:
        return "cuda", ""
    if found := gpu():
        return "cuda", found
    return "cpu", "no NVIDIA GPU was found"
