"""`dist-train eval`: the run's own figures again, corrupted images, calibration."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dist_train.calibration import calibrate
from dist_train.cli import main
from dist_train.data.shapes import draw_shapes
from dist_train.robustness import CORRUPTIONS, CorruptedLoader, add_noise, blur, reduce_contrast
from tests.conftest import summary, torchrun


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(draw_shapes(1, 64, 32)[0])


def test_the_command_finds_the_runs_figures_and_more(
    trained_run: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    # Trained elsewhere.
    settings["runtime"] |= {"device": "cuda", "compile": True, "cuda_graphs": True}
    settings["data"] |= {"cache": "/dev/null/local", "threads": 1000}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    here = ["--data.cache", str(cache)]
    command = ["eval", str(tmp_path / "run"), "--corruptions", "--calibration", *here]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    before = summary(trained_run)
    assert result["test_accuracy"] == before["test_accuracy"]
    assert result["test_loss"] == pytest.approx(before["test_loss"], rel=1e-6)
    assert set(result["corruptions"]) == set(CORRUPTIONS)
    for accuracies in result["corruptions"].values():
        assert len(accuracies) == 5
        assert accuracies[-1] <= accuracies[0] + 0.02
    assert result["corruptions"]["noise"][-1] < result["test_accuracy"] - 0.05
    assert 0 < result["calibration_error"] < 1
    with Image.open(tmp_path / "run" / "reliability.png") as picture:
        assert picture.format == "PNG"

    # The same again, as a table, on two ranks.
    done = torchrun(2, *command, cwd=tmp_path)
    assert done.returncode == 0
    first, calibration, header, *rows = done.stdout.splitlines()
    assert "400 test images" in first
    assert f"{result['calibration_error']:.2%} (15 bins)" in calibration
    assert header.split() == ["strength", "1", "2", "3", "4", "5", "mean"]
    for row, (name, accuracies) in zip(rows, result["corruptions"].items(), strict=True):
        assert row.split()[:-1] == [name, *(f"{accuracy:.1%}" for accuracy in accuracies)]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_depend_on_image_and_id_alone_and_grow(name: str, images: torch.Tensor) -> None:
    corrupt, strengths = CORRUPTIONS[name]
    ids = np.arange(100, 164)
    before = images.clone()
    distances = []
    for strength in strengths:
        corrupted = corrupt(images, ids, strength)
        assert corrupted.dtype == torch.uint8
        assert corrupted.shape == images.shape
        distances.append((corrupted.float() - images.float()).abs().mean().item())
        parts = [corrupt(images[i : i + 1], ids[i : i + 1], strength) for i in (63, 5)]
        assert torch.equal(torch.cat(parts), corrupted[[63, 5]])
    assert torch.equal(images, before)
    assert distances == sorted(distances)
    assert distances[0] > 0.5


def test_noise_is_normal_of_the_stated_size_and_differs_between_images() -> None:
    grey = torch.full((200, 32, 32, 3), 128, dtype=torch.uint8)
    noise = add_noise(grey, np.arange(200), 0.1).double() - 128
    assert noise.mean().item() == pytest.approx(0, abs=0.15)
    assert noise.std().item() == pytest.approx(25.5, rel=0.005)
    within = (noise.abs() < 25.5).double().mean().item()
    assert within == pytest.approx(0.6827, abs=0.01)
    correlation = torch.corrcoef(noise.view(200, -1))
    correlation.fill_diagonal_(0)
    assert correlation.abs().max().item() < 0.12  # 6.6 sigma
    assert not torch.equal(noise[0], noise[1])


def test_blur_and_contrast_do_what_they_say(images: torch.Tensor) -> None:
    ids = np.arange(64)
    spot = torch.zeros(1, 32, 32, 1, dtype=torch.uint8)
    spot[0, 16, 16] = 255
    row = blur(spot, ids[:1], 1.0)[0, 16, 14:19, 0].double()
    expected = torch.exp(-(torch.arange(-2, 3).double() ** 2) / 2) / (2 * torch.pi) * 255
    torch.testing.assert_close(row, expected, atol=1, rtol=0)
    # Sigma follows the size of the image.
    large = torch.zeros(1, 64, 64, 1, dtype=torch.uint8)
    large[0, 32:34, 32:34] = 255
    shrunk = F.avg_pool2d(blur(large, ids[:1], 1.0)[..., 0].float(), 2)[0, 16, 14:19]
    torch.testing.assert_close(shrunk.double(), row, atol=6, rtol=0)

    flat = reduce_contrast(images, ids, 0.3).double()
    before = images.double()
    torch.testing.assert_close(flat.mean((1, 2)), before.mean((1, 2)), atol=0.5, rtol=0)
    torch.testing.assert_close(flat.std((1, 2)), before.std((1, 2)) * 0.3, atol=0.5, rtol=0)
    assert torch.equal(reduce_contrast(images, ids, 1.0), images)


def test_a_corrupted_loader_tells_each_image_its_own_id(images: torch.Tensor) -> None:
    class Batches:
        def epoch(self, ids):
            yield from torch.split(images[torch.from_numpy(ids)], 10)

        def close(self) -> None: ...

    ids = np.arange(63, -1, -1)
    found = torch.cat(list(CorruptedLoader(Batches(), add_noise, 0.1).epoch(ids)))
    assert torch.equal(found, add_noise(images, np.arange(64), 0.1)[ids.copy()])


def test_calibration_error_by_hand() -> None:
    """Four answers at 0.8 of which three are right, and one at 0.6 that is wrong."""
    confidence = torch.tensor([0.8, 0.8, 0.8, 0.8, 0.6], dtype=torch.float64)
    shares = torch.stack([confidence, 1 - confidence], 1)
    result = calibrate(shares, torch.tensor([0, 0, 0, 1, 1]))
    assert result.error == pytest.approx(0.8 * abs(0.75 - 0.8) + 0.2 * 0.6)
    assert result.share.sum().item() == pytest.approx(1)
    assert result.share[11].item() == pytest.approx(0.8)  # (11/15, 12/15]
    assert result.accuracy[11].item() == pytest.approx(0.75)


def test_calibration_error_of_honest_and_of_boastful_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50_000, 10, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert calibrate(logits.softmax(1), labels).error < 0.01
    assert calibrate((logits * 3).softmax(1), labels).error > 0.2
    certain = F.one_hot(labels, 10).double()
    assert calibrate(certain, labels).error == pytest.approx(0)
