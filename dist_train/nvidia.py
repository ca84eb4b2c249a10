"""What nvidia-smi says of this machine's GPUs; needs no torch."""

import subprocess


def ask(fields: str) -> list[str]:
    """The values of some fields (`nvidia-smi --help-query-gpu`), a line for each GPU.

    There are no lines where there is no GPU, no driver or no nvidia-smi.
    """
    command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return said.splitlines()
