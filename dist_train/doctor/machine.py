"""Checks of one machine: software, GPUs, data, disks and W&B."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from platform import python_version
from typing import Any

from dist_train import nvidia
from dist_train.config import DataConfig, WandbMode
from dist_train.data import catalog
from dist_train.data.download import MIRROR_VARIABLE, SOURCES
from dist_train.data.prepare import find_prepared
from dist_train.doctor import probe
from dist_train.doctor.finding import Finding, failed, ok, skipped
from dist_train.errors import UserError
from dist_train.tracking.wandb_setup import api_key, choose_mode, server

PACKAGES = ("torch", "torchvision", "ffcv", "accelerate", "wandb")
OLDEST_PYTHON = (3, 11)  # pyproject.toml
IMPORT_SECONDS = 120  # a cold environment on a network file system takes a minute
NETWORK_SECONDS = 5
FREE_BYTES = 1 << 30  # room for checkpoints, or for a small data set
WRITTEN_BYTES = 64 << 20


def python() -> Finding:
    """The interpreter's version."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return failed("python", f"{python_version()}", f"use {oldest} or later: launch/setup.sh")
    return ok("python", f"{python_version()} ({sys.executable})")


def probed() -> Mapping[str, dict[str, Any]]:
    """What `probe.py` tells of each package, and of `gpus`; nothing of what it did not live to."""
    command = [sys.executable, "-P", probe.__file__, *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS)
        lines = done.stdout
    except subprocess.TimeoutExpired as expired:
        lines = (expired.stdout or b"").decode() if isinstance(expired.stdout, bytes) else ""
    values = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return {value.pop("package"): value for value in values}


def packages(
    found: Mapping[str, dict[str, Any]], *, optional: Mapping[str, str]
) -> Iterator[Finding]:
    """A line a package; `optional` are those that may be missing, and what then happens."""
    for name in PACKAGES:
        if name not in found:
            why = f"importing it crashed, or took more than {IMPORT_SECONDS} s"
            yield failed(name, why, f"see `python -c 'import {name}'`, and run launch/setup.sh")
            return
        version, error = found[name]["version"], found[name]["error"]
        if error:
            line = error.strip().splitlines()[0]
            yield failed(name, f"{version} cannot be imported: {line}", "run launch/setup.sh")
        elif version:
            yield ok(name, version)
        elif name in optional:
            yield skipped(name, f"not installed: {optional[name]}")
        else:
            yield failed(name, "not installed", "run launch/setup.sh")


def gpus(found: Mapping[str, Any] | None, *, device: str) -> Finding:
    """GPUs, driver, CUDA and NCCL versions."""
    if found is None:
        return skipped("gpu", "torch cannot be imported")
    names = found["names"]
    if found["error"]:
        line = found["error"].strip().splitlines()[0]
        return failed(
            "gpu", f"{', '.join(names)}: {line}", "see nvidia-smi; is the driver new enough?"
        )
    if names:
        kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        driver, *_ = nvidia.ask("driver_version") or ["unknown"]
        versions = f"driver {driver}, CUDA {found['cuda']}, NCCL {found['nccl']}"
        return ok("gpu", f"{kinds}; {versions}")
    if device == "cuda":
        return failed("gpu", "torch sees none", "see nvidia-smi, or use --runtime.device cpu")
    if Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        build = f"torch is built for CUDA {found['cuda']}"
        return failed("gpu", f"there is one, but torch sees none ({build})", "see nvidia-smi")
    return skipped("gpu", "torch sees none: training is on the CPU")


def data(settings: DataConfig) -> Finding:
    """The data set, prepared or not, and its checksums; nothing is downloaded or converted."""
    name = settings.dataset
    try:
        prepared, fault = find_prepared(settings)
        if prepared:
            counts = f"{prepared.manifest.train.samples} + {prepared.manifest.test.samples} images"
            return ok("data", f"{name}, {counts}, prepared in {prepared.folder}; checksums match")
        fault = f" (in {settings.cache} {fault}: it will be made again)" if fault else ""
        if name == "shapes":
            return ok("data", f"shapes are drawn when training begins{fault}")
        folder = catalog.find(name, root=settings.root)
        if folder is None:
            return download(name)
        if name == "folder":
            return skipped("data", f"{folder}: `dist-train prepare` reads every image{fault}")
        loaded = catalog.load(name, root=str(folder))
    except UserError as error:
        return Finding("FAIL", "data", str(error))
    counts = f"{len(loaded.train.labels)} + {len(loaded.test.labels)} images"
    return ok("data", f"{name}, {counts}, in {folder}; checksums match{fault}")


def download(name: str) -> Finding:
    """Whether a set that is not here can be had."""
    source = SOURCES[name]
    url = os.environ.get(MIRROR_VARIABLE) or source.url
    try:
        for archive in source.archives:
            request = urllib.request.Request(f"{url.rstrip('/')}/{archive}", method="HEAD")
            urllib.request.urlopen(request, timeout=NETWORK_SECONDS).close()
    except (OSError, ValueError) as error:
        return failed(
            "data",
            f"{name} is not here, and cannot be downloaded from {url} ({error})",
            "run `dist-train prepare` where there is a network, set --data.root, or use "
            "--data.dataset shapes",
        )
    return ok("data", f"{name} is not here; it will be downloaded from {url}")


def disk(name: str, folder: Path, *, flag: str) -> Iterator[Finding]:
    """How fast a file is safe on the disk where a folder is or will be, and the space there."""
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        content = os.urandom(WRITTEN_BYTES)
        with tempfile.TemporaryFile(dir=place) as file:  # gone with the process, whatever ends it
            start = time.perf_counter()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
        free = shutil.disk_usage(place).free
    except OSError as error:
        found = f"cannot write {WRITTEN_BYTES >> 20} MiB in {folder} ({error.strerror})"
        yield failed(f"{name} write", found, f"free some space, or choose another {flag}")
        return
    speed = f"{WRITTEN_BYTES / seconds / 1e6:,.0f} MB/s"
    yield ok(f"{name} write", f"{WRITTEN_BYTES >> 20} MiB in {seconds:.2f} s, {speed}")
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free < FREE_BYTES:
        remedy = f"expected {FREE_BYTES / 1e9:.1f} or more: choose another {flag}"
        yield failed(f"{name} space", found, remedy)
    else:
        yield ok(f"{name} space", found)


def wandb(mode: WandbMode) -> Finding:
    """Whether W&B is to be reached, and takes the login."""
    try:
        chosen = choose_mode(mode)
    except UserError as error:
        return Finding("FAIL", "W&B", str(error))
    if chosen == "off":
        return skipped("W&B", "off")
    if chosen == "offline":
        why = "as asked for" if mode == "offline" else "no login, see `wandb login`"
        return skipped("W&B", f"runs are logged offline: {why}")
    url, key = server(), api_key()
    if key is None:
        return failed("W&B", f"no login for {url}", "`wandb login`, or --tracking.wandb offline")
    headers = {
        "Authorization": "Basic " + b64encode(f"api:{key}".encode()).decode(),
        "Content-Type": "application/json",
    }
    question = json.dumps({"query": "{viewer{username}}"}).encode()
    request = urllib.request.Request(f"{url}/graphql", question, headers)
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_SECONDS) as reply:
            viewer = (json.load(reply).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        viewer = None
        if error.code not in (401, 403):
            return failed("W&B", f"{url} says {error}", "try again, or --tracking.wandb offline")
    except (OSError, ValueError) as error:
        return failed(
            "W&B",
            f"cannot reach {url} ({error})",
            "set $HTTPS_PROXY, or use --tracking.wandb offline and `wandb sync` later",
        )
    if not viewer:
        return failed("W&B", f"{url} does not take the login", "`wandb login --relogin`")
    return ok("W&B", f"logged in as {viewer['username']} at {url}")
