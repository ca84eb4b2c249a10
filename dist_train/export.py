"""A finished run's model as one file for use elsewhere, checked before it gets its name."""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dist_train import runs
from dist_train.config import Config, from_values
from dist_train.data import beton
from dist_train.data.prepare import parse_manifest, prepare_dataset
from dist_train.errors import UserError
from dist_train.files import write_atomically
from dist_train.model_card import model_card
from dist_train.optim.losses import probabilities
from dist_train.trained import Trained, assemble, load_trained, wherever

CHECK_IMAGES = 256
TOLERANCE = 1e-4
"""Of probabilities; float32 in another order of sums gives about 1e-6."""

Images = Tensor
"""uint8 (n, H, W, C)"""
Model = Callable[[Images], Tensor]


class Classifier(nn.Module):
    """uint8 (n, H, W, C) to probabilities, float32 (n, classes); normalisation included."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.normalise = trained.augment
        self.model = trained.model
        self.loss = trained.config.train.loss
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.model(self.normalise(images))
        return probabilities(logits, self.loss)


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file."""

    suffix: str
    write: Callable[[Trained, Images], bytes]
    """The file's content, for images like those given: as many as one likes."""
    read: Callable[[bytes], Model]
    usage: tuple[str, str]
    """Python that makes {file} a model, and that applies it to {images}, a NumPy array."""
    imports: str
    needs: Sequence[str] = ()
    """Packages that are not always there."""


def export(
    run: Path,
    format_name: str,
    out: Path | None = None,
    *,
    root: str | None = None,
    cache: str | None = None,
) -> tuple[Path, float]:
    """Writes a finished run's model, and a model card beside it (<out>.md).

    The model is computed in float32 on the CPU, and compared with the file's on test images in
    batches of two sizes before the file gets its name.

    Args:
        format_name: a key of FORMATS.
        out: default `exported` with the format's suffix, in the run's directory.
        root, cache: see trained.wherever.

    Returns:
        The file, and the largest difference of a probability.

    Raises:
        UserError: no such run, its test set or a package is missing, or the check fails.
    """
    chosen = FORMATS[format_name]
    missing = [package for package in chosen.needs if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--format {format_name} needs {', '.join(missing)}: run launch/setup.sh, "
            f"or pip install {' '.join(chosen.needs)}"
        )
    out = out or run / f"exported{chosen.suffix}"
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder, expected a file")
    trained, summary = load_trained(run), runs.read_summary(run)
    if summary is None:
        path = run / "summary.json"
        raise UserError(f"{run} is not finished: expected {path}; run the same command again")
    images = read_test_images(wherever(trained.config, root=root, cache=cache), CHECK_IMAGES)
    content = chosen.write(trained, images[:2])
    difference = largest_difference(Classifier(trained), chosen.read(content), images)
    if not difference <= TOLERANCE:  # nor not a number
        raise UserError(
            f"{out} was not written: its probabilities are off by up to {difference:.2g} on "
            f"{len(images)} test images, expected {TOLERANCE:g} at most; choose another --format"
        )
    write_atomically(out, content)
    card = model_card(
        trained,
        summary,
        file=out.name,
        imports=chosen.imports,
        usage=chosen.usage,
        checked=f"{len(images)} test images, largest difference of a probability {difference:.1e}",
    )
    write_atomically(out.with_name(f"{out.name}.md"), card.encode())
    return out, difference


def read_test_images(config: Config, count: int) -> Images:
    """The first images of the test set, uint8 (n, H, W, C) on the CPU.

    Raises:
        UserError: the data set is not to be had here.
    """
    return torch.from_numpy(beton.read_some(prepare_dataset(config.data).test, slice(count)))


@torch.inference_mode()
def largest_difference(eager: Model, exported: Model, images: Images) -> float:
    """Between two models' probabilities; one image alone comes first, then the others."""
    parts = [part for part in (images[:1], images[1:]) if len(part)]
    differences = torch.cat([(eager(part) - exported(part)).abs() for part in parts])
    return differences.max().item()  # no number if one of them is none


def write_safetensors(trained: Trained, images: Images) -> bytes:
    """Weights, and all that is needed to use them in the header; read by `load_safetensors`."""
    from safetensors.torch import save

    weights = runs.apart(trained.model.state_dict())
    header = {
        "config": json.dumps(trained.config.as_dict()),
        "manifest": json.dumps(asdict(trained.manifest)),
    }
    return save(weights, metadata=header)


def load_safetensors(path: str | Path) -> Classifier:
    """The model in a file that `dist-train export --format safetensors` wrote.

    Raises:
        KeyError: the file was not written by that.
    """
    return read_safetensors(Path(path).read_bytes())


def read_safetensors(content: bytes) -> Classifier:
    """See `write_safetensors`."""
    from safetensors.torch import load

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    config: Config = from_values(Config, json.loads(header["config"]))
    return Classifier(assemble(config, parse_manifest(header["manifest"]), load(content)))


@contextmanager
def _deprecated() -> Iterator[None]:
    """torch.jit warns at each call that torch.export comes after it: the docs say so, once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        yield


def write_torchscript(trained: Trained, images: Images) -> bytes:
    """A trace, for C++ and for older versions of torch."""
    buffer = io.BytesIO()
    with _deprecated(), torch.no_grad():
        # torch's own check sees these two images only.
        traced = torch.jit.trace(Classifier(trained), images, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


def read_torchscript(content: bytes) -> Model:
    """See `write_torchscript`."""
    with _deprecated():
        return cast("Model", torch.jit.load(io.BytesIO(content)))  # type: ignore[no-untyped-call]


def write_torch_export(trained: Trained, images: Images) -> bytes:
    """The graph that torch.export captures."""
    buffer = io.BytesIO()
    torch.export.save(
        torch.export.export(Classifier(trained), (images,), dynamic_shapes=ANY_NUMBER), buffer
    )
    return buffer.getvalue()


def read_torch_export(content: bytes) -> Model:
    """See `write_torch_export`."""
    return cast("Model", torch.export.load(io.BytesIO(content)).module())


def write_onnx(trained: Trained, images: Images) -> bytes:
    """ONNX, for other runtimes and languages."""
    program = torch.onnx.export(
        Classifier(trained),
        (images,),
        dynamic_shapes=ANY_NUMBER,
        input_names=["images"],
        output_names=["probabilities"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return cast("bytes", program.model_proto.SerializeToString())


def read_onnx(content: bytes) -> Model:
    """See `write_onnx`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def model(images: Images) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return model


ANY_NUMBER: dict[str, Any] = {"images": {0: torch.export.Dim("n")}}
APPLY = "model(torch.from_numpy({images}))"

FORMATS = {
    "safetensors": Format(
        ".safetensors",
        write_safetensors,
        read_safetensors,
        ('load_safetensors("{file}")', APPLY),
        "import numpy, torch\nfrom dist_train.export import load_safetensors",
    ),
    "torchscript": Format(
        ".pt",
        write_torchscript,
        read_torchscript,
        ('torch.jit.load("{file}")', APPLY),
        "import numpy, torch",
    ),
    "torch_export": Format(
        ".pt2",
        write_torch_export,
        read_torch_export,
        ('torch.export.load("{file}").module()', APPLY),
        "import numpy, torch",
    ),
    "onnx": Format(
        ".onnx",
        write_onnx,
        read_onnx,
        (
            'onnxruntime.InferenceSession("{file}")',
            'model.run(["probabilities"], {{"images": {images}}})[0]',
        ),
        "import numpy, onnxruntime",
        needs=("onnx", "onnxruntime", "onnxscript"),
    ),
}
