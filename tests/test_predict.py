"""Predictions for image files of any kind, and exported models that say the same."""

import json
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_train import cli
from dist_train.data import catalog
from dist_train.data.images import read_image
from dist_train.data.shapes import SHAPES
from dist_train.errors import UserError
from dist_train.export import FORMATS, export
from dist_train.predict import Prediction, predict_images
from tests.conftest import dist_train

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def shapes(trained_run: Path) -> catalog.Split:
    """The run's test set."""
    return catalog.load("shapes", root=None, train_samples=2000).test


@pytest.fixture
def without_data(trained_run: Path, tmp_path: Path, cache: Path) -> Iterator[Path]:
    """The run's directory, elsewhere, while its data set is gone."""
    hidden = cache.with_name("hidden")
    cache.rename(hidden)
    for name in ("config.json", "manifest.json", "model.safetensors"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        shutil.copy(trained_run / name, tmp_path / "moved")
    yield tmp_path / "moved"
    hidden.rename(cache)


def write_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")


def test_predictions_are_as_good_as_the_run_and_need_no_data(
    without_data: Path, trained_run: Path, shapes: catalog.Split, tmp_path: Path
) -> None:
    # More than a batch, in subfolders, and all of the test set.
    write_images(tmp_path / "images" / "a", shapes.images[:300])
    write_images(tmp_path / "images" / "b", shapes.images[300:])
    predictions = list(predict_images(without_data, [tmp_path / "images"], top=1))
    assert len(predictions) == len(shapes.images) == 400
    right = [
        prediction.classes[0] == SHAPES[label]
        for prediction, label in zip(predictions, shapes.labels, strict=True)
    ]
    summary = json.loads((trained_run / "summary.json").read_text())
    assert np.mean(right) == pytest.approx(summary["test_accuracy"], abs=1e-9)
    assert np.mean(right) > 2 / len(SHAPES)


def test_top_and_test_time_augmentation(
    trained_run: Path, shapes: catalog.Split, tmp_path: Path
) -> None:
    write_images(tmp_path, shapes.images[:20])
    everything = list(predict_images(trained_run, [tmp_path], top=1000))
    for prediction in everything:
        assert sorted(prediction.classes) == sorted(SHAPES)
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    two = list(predict_images(trained_run, [tmp_path], top=2))
    assert [p.classes for p in two] == [p.classes[:2] for p in everything]
    # Mirrored images say the same when all views are looked at, or nearly: shifts differ.
    mirrored = tmp_path / "mirrored"
    write_images(mirrored, shapes.images[:20, :, ::-1])

    def best(folder: Path, tta: bool) -> np.ndarray:
        found = predict_images(trained_run, sorted(folder.glob("*.png")), top=1, tta=tta)
        return np.array([p.probabilities[0] for p in found])

    plain = np.abs(best(tmp_path, False) - best(mirrored, False)).mean()
    averaged = np.abs(best(tmp_path, True) - best(mirrored, True)).mean()
    assert averaged < plain / 2


def test_any_kind_of_image_becomes_what_a_folder_data_set_holds(tmp_path: Path) -> None:
    """Size, mode, orientation: the same function of the file as in training."""
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    picture = picture.resize((140, 90), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    for split in ("train", "val"):
        (tmp_path / split / "class").mkdir(parents=True)
    folder = tmp_path / "train" / "class"
    picture.save(folder / "rgb.png")
    picture.save(folder / "jpeg.jpg")
    picture.save(folder / "turned.jpg", exif=turned)
    picture.convert("L").save(folder / "grey.png")
    picture.convert("P").save(folder / "palette.gif")
    picture.convert("CMYK").save(folder / "cmyk.tif")
    picture.resize((5, 7)).save(folder / "tiny.bmp")
    picture.resize((2000, 1500)).save(folder / "large.jpg")
    picture.save(tmp_path / "val" / "class" / "rgb.png")
    expected = catalog.load("folder", root=str(tmp_path), image_size=32).train.images
    files = sorted(folder.iterdir())
    assert len(files) == len(expected) == 8
    for path, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(read_image(path, (32, 32, 3), (0, 0, 0)), image, path.name)
        grey = read_image(path, (32, 32, 1), (0, 0, 0))
        assert grey.shape == (32, 32, 1)
        np.testing.assert_allclose(grey[..., 0], image @ (0.299, 0.587, 0.114), atol=1)


def test_transparency_and_16_bits(tmp_path: Path) -> None:
    half = Image.new("RGBA", (20, 20), (*RED, 255))
    half.paste((0, 255, 0, 0), (10, 0, 20, 20))
    half.save(tmp_path / "rgba.png")
    half.convert("LA").save(tmp_path / "la.png")
    indexed = Image.new("P", (20, 20))
    indexed.putpalette([*RED, 0, 255, 0])
    indexed.paste(1, (10, 0, 20, 20))
    indexed.save(tmp_path / "p.png", transparency=1)
    for name, left in (("rgba", RED), ("p", RED), ("la", (76, 76, 76))):
        image = read_image(tmp_path / f"{name}.png", (20, 20, 3), BLUE)
        assert (image[:, :10] == left).all(), name
        assert (image[:, 10:] == BLUE).all(), name
    ramp = np.arange(0, 40_000, 100, np.uint16).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "deeper.tif")
    for name in ("deep.png", "deeper.tif"):
        image = read_image(tmp_path / name, (20, 20, 1), BLUE)
        np.testing.assert_array_equal(image[..., 0], ramp >> 8)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match=r"float\.tif.*mode F"):
        read_image(tmp_path / "float.tif", (20, 20, 1), BLUE)


def test_the_command_names_broken_files_and_goes_on(
    trained_run: Path, shapes: catalog.Split, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", shapes.images[:3])
    broken = tmp_path / "images" / "001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    done = dist_train("predict", str(trained_run), "images", "--json", "--top", "2", cwd=tmp_path)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == ["images/000.png", "images/002.png"]
    assert all(len(line["probabilities"]) == 2 for line in lines)
    (warning,) = done.stderr.splitlines()
    assert "images/001.png" in warning
    assert "skipped" in warning


def in_process(*arguments: str) -> int:
    """A command in this process: torch need not be imported again."""
    return cli.main(list(arguments))


def test_what_is_refused(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no image")
    unfinished, nameless = tmp_path / "unfinished", tmp_path / "nameless"
    for folder in (unfinished, nameless):
        shutil.copytree(trained_run, folder)
    (unfinished / "model.safetensors").unlink()
    (nameless / "manifest.json").unlink()
    damaged = shutil.copytree(trained_run, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"1234")
    image = str(tmp_path / "broken.png")
    for arguments, expected in [
        (["predict", str(trained_run), str(tmp_path / "empty")], "no images in"),
        (["predict", str(trained_run), str(tmp_path / "absent.png")], "absent.png does not exist"),
        (["predict", str(trained_run), image], "none of 1 image files"),
        (["predict", str(trained_run), image, "--top", "0"], "--top 0: expected 1"),
        (["predict", str(trained_run), image, "--background", "blurple"], "--background blurple"),
        (["predict", str(unfinished), image], "is not finished"),
        (["predict", str(nameless), image], "manifest.json"),
        (["predict", str(damaged), image], "is damaged"),
        (["export", str(trained_run), "--format", "pickle"], "pickle"),
        (
            ["export", str(trained_run), "--format", "torchscript", "--out", str(tmp_path)],
            "is a folder",
        ),
    ]:
        assert in_process(*arguments) == 2, arguments
        assert expected in capsys.readouterr().err.splitlines()[-1]


def test_tables_for_people_and_for_pipes(
    trained_run: Path,
    shapes: catalog.Split,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_images(tmp_path, shapes.images[:2])
    assert in_process("predict", str(trained_run), str(tmp_path)) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [len(cells) for cells in lines] == [4, 4]
    assert lines[0][0] == str(tmp_path / "000.png")
    assert all(re.fullmatch(r"\w+ [\d.]+%", cell) for cell in lines[0][1:])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    assert in_process("predict", str(trained_run), str(tmp_path)) == 0
    table = capsys.readouterr().out
    assert "image" in table
    assert lines[1][3] in table


def test_the_formats_of_the_command_line_are_all_there_are() -> None:
    assert set(cli.EXPORT_FORMATS) == set(FORMATS)


def needs_packages_of(name: str) -> None:
    for package in FORMATS[name].needs:
        pytest.importorskip(package)


@pytest.mark.parametrize("name", FORMATS)
def test_an_exported_model_does_what_its_card_says(
    name: str,
    trained_run: Path,
    shapes: catalog.Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_packages_of(name)
    path, difference = export(trained_run, name, tmp_path / f"model{FORMATS[name].suffix}")
    assert difference < 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.md"]
    card = (tmp_path / f"{path.name}.md").read_text()
    summary = json.loads((trained_run / "summary.json").read_text())
    for expected in (
        "small",
        "2,000 training and 400 test images",
        f"{summary['test_accuracy']:.2%}",
        f"0 {SHAPES[0]}, 1 {SHAPES[1]}",
        summary["git_commit"],
        f"torch {summary['versions']['torch']}",
        f"{difference:.1e}",
    ):
        assert expected in card
    # The lines of the card, beside the file and an image.
    (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    assert len(code.splitlines()) <= 6
    write_images(tmp_path, shapes.images[7:8])
    (tmp_path / "000.png").rename(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    with warnings.catch_warnings():
        if name == "torchscript":
            warnings.simplefilter("ignore", FutureWarning)
        exec(code, variables)
    (shares,) = variables["probabilities"].tolist()
    (expected_shares,) = predict_images(trained_run, [tmp_path / "image.png"], top=len(SHAPES))
    assert_same_shares(shares, expected_shares)


def assert_same_shares(shares: list[float], prediction: Prediction) -> None:
    found = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    assert shares == pytest.approx([found[name] for name in SHAPES], abs=1e-5)


def test_a_file_that_fails_its_check_gets_no_name(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FORMATS["torch_export"]

    def read_off_by_a_little(content: bytes):
        model = honest.read(content)
        return lambda images: model(images) + 0.001 * (len(images) > 1)

    def read_no_number(content: bytes):
        model = honest.read(content)
        return lambda images: model(images) * (float("nan") if len(images) > 1 else 1)

    for read in (read_off_by_a_little, read_no_number):
        monkeypatch.setitem(FORMATS, "torch_export", replace(honest, read=read))
        with pytest.raises(UserError, match="was not written"):
            export(trained_run, "torch_export", tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["dist_train.export"], "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxruntime.*pip install"):
        export(trained_run, "onnx", tmp_path / "model.onnx")
