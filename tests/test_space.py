"""The Space: what its function gives for good and bad pictures; and, in a browser, upload, click, the maps appear."""

import ast
import base64
import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image
from support import NAMES, Rows, build, make_batch, make_trainer

from hf_salguide.backbones import data_config
from hf_salguide.data import make_transforms
from hf_salguide.hub.load import load_guided

APP = Path(__file__).parents[1] / "examples" / "space" / "app.py"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def app():
    specification = importlib.util.spec_from_file_location("space_app", APP)
    module = importlib.util.module_from_spec(specification)
    sys.modules["space_app"] = module  # dataclasses look it up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["space_app"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A guided model of three classes, a few steps old."""
    folder = tmp_path_factory.mktemp("space") / "tiny_model"
    options = {"guidance": "cyborg", "max_steps": 3, "per_device_train_batch_size": 5, "learning_rate": 1e-2}
    trainer = make_trainer(build("resnet"), folder, train_dataset=Rows(make_batch()), **options)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_guided(folder)


def photo(width=120, height=90):
    """A picture with a bright disc on a slope of colours."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([255 * rows / height, 255 * columns / width, np.full(rows.shape, 90.0)], axis=2)
    picture[(rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (height / 5) ** 2] = 240
    return Image.fromarray(picture.astype(np.uint8))


def saved(picture, path, **options):
    picture.save(path, **options)
    return str(path)


# -- the function


def test_gradio_is_imported_where_the_page_is_made():
    for node in ast.parse(APP.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "gradio" not in [*names, getattr(node, "module", None)]


def test_the_answer_is_that_of_the_model(app, loaded, tmp_path):
    path = saved(photo(), tmp_path / "photo.png")
    found = app.answer(loaded, path)
    pixels, _ = make_transforms(data_config(loaded.model), train=False)(path, None)
    with torch.no_grad():
        shares = loaded.model(pixel_values=pixels[None]).logits.softmax(dim=1)[0].tolist()
    assert found.probabilities == pytest.approx(dict(zip(NAMES, shares, strict=True)))
    assert list(found.probabilities.values()) == sorted(shares, reverse=True)
    predicted, rival = list(found.probabilities)[:2]
    assert found.titles == (
        "As the model sees it: 96\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}64 pixels",
        f"Predicted class: {predicted}",
        f"Other class, the likeliest: {rival}",
        f"Difference: {predicted} minus {rival}",
    )
    assert [picture.size for picture in found.pictures] == [(448, 299)] * 4
    assert len({picture.tobytes() for picture in found.pictures}) == 4
    small = np.asarray(found.pictures[0].resize((96, 64), Image.Resampling.BOX), dtype=float)
    assert np.abs(small - np.asarray(photo().resize((96, 64)), dtype=float)).mean() < 6  # its colours, undone


def test_the_true_class_may_be_told(app, loaded, tmp_path):
    path = saved(photo(), tmp_path / "photo.png")
    predicted, other = list(app.answer(loaded, path).probabilities)[:2]
    found = app.answer(loaded, path, other)
    assert found.titles[1:3] == (f"True class: {other}", f"False class, the likeliest: {predicted}")
    assert next(iter(found.probabilities)) == predicted


def test_the_colours_are_signed(app):
    white, values = np.ones((8, 8, 3)), np.repeat([[-2.0] * 4 + [2.0] * 4], 8, axis=0)
    left, right = (np.asarray(app.coloured(white, values, 2.0))[224, place].astype(int) for place in (10, 430))
    assert left[2] > left[0] + 60  # blue: against
    assert right[0] > right[2] + 60  # orange: for
    flat = np.asarray(app.coloured(white, np.zeros((8, 8)), 0.0))
    assert flat.min() > 240


PICTURES = {
    "grey": lambda path: saved(photo().convert("L"), path.with_suffix(".png")),
    "transparent": lambda path: saved(photo().convert("RGBA"), path.with_suffix(".png")),
    "palette": lambda path: saved(photo().convert("P"), path.with_suffix(".gif")),
    "CMYK": lambda path: saved(photo().convert("CMYK"), path.with_suffix(".jpg")),
    "16 bits": lambda path: saved(
        Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257), path.with_suffix(".png")
    ),
    "TIFF": lambda path: saved(photo(), path.with_suffix(".tiff")),
    "one pixel": lambda path: saved(photo(1, 1), path.with_suffix(".png")),
    "narrow": lambda path: saved(photo(3, 900), path.with_suffix(".png")),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_every_kind(kind, app, loaded, tmp_path):
    found = app.answer(loaded, PICTURES[kind](tmp_path / "picture"))
    assert sum(found.probabilities.values()) == pytest.approx(1)
    if kind in ("grey", "16 bits"):
        expected = app.answer(loaded, PICTURES["grey"](tmp_path / "grey"))
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-3)


def test_a_turned_photograph_is_turned_back(app, loaded, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photo().transpose(Image.Transpose.ROTATE_90)
    found = app.answer(loaded, saved(turned, tmp_path / "turned.png", exif=exif))
    assert found.probabilities == pytest.approx(app.answer(loaded, saved(photo(), tmp_path / "a.png")).probabilities)


def text_file(path):
    path.write_text("not a picture")
    return str(path)


def cut_file(path):
    saved(photo(), path)
    path.write_bytes(path.read_bytes()[:300])
    return str(path)


def large_file(path):
    path.write_bytes(bytes(20 * 2**20 + 1))
    return str(path)


BAD = {
    "none": (lambda path: None, "There is no picture yet"),
    "a text": (text_file, r"This file is no picture, or a damaged one\. PNG, JPEG"),
    "cut": (cut_file, "This file is no picture, or a damaged one"),
    "too many bytes": (large_file, "larger than 20 MB; make it smaller"),
    "too many pixels": (
        lambda path: saved(Image.new("1", (8000, 6000)), path),
        "has 8000 × 6000 pixels, more than 40",
    ),
    "a bomb": (lambda path: saved(Image.new("1", (20_000, 20_000)), path), "has far too many pixels, more than 40"),
    "negative": (
        lambda path: saved(Image.fromarray(np.full((9, 9), -3.0, np.float32)), path.with_suffix(".tiff")),
        "^This picture cannot be used: the picture has negative values",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_told(kind, app, loaded, tmp_path):
    make, message = BAD[kind]
    with pytest.raises(app.BadPictureError, match=message) as caught:
        app.answer(loaded, make(tmp_path / "upload.png"))
    assert str(tmp_path) not in str(caught.value)


def test_pages_escape_what_they_show(app, loaded, tmp_path):
    found = app.answer(loaded, saved(photo(), tmp_path / "photo.png"))
    evil = '<script>alert("x")</script>'
    found = app.Answer({evil: 0.9, "b": 0.1}, (evil, *found.titles[1:]), found.pictures, 1.234, evil)
    for page in (app.answer_page(found), app.maps_page(found), app.message_page(evil)):
        assert "<script" not in page
        assert "&lt;script" in page
    page = app.maps_page(found)
    assert page.count("<img") == page.count("alt=") == 4
    assert "−1.2<br>against" in page
    assert "+1.2<br>for" in page


def test_the_model_is_described(app, folder, tmp_path):
    assert "guidance of human saliency (cyborg, weight " in app.facts(load_guided(folder), "user/model")
    build("resnet").save_pretrained(tmp_path)
    assert "user/model** was trained plainly" in app.facts(load_guided(tmp_path), "user/model")


def test_examples(app, tmp_path):
    digits = app.example_pictures("decoy_digits", tmp_path)
    assert len(digits) == 6
    (tmp_path / "notes.txt").write_text("none")
    assert app.example_pictures(str(tmp_path), tmp_path / "unused") == digits


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "Name a model: python app.py FOLDER"), (["./nowhere"], '"./nowhere" is no folder')]
)
def test_a_model_that_is_not_there_is_a_line(arguments, message, app, monkeypatch):
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    with pytest.raises(SystemExit, match=message):
        app.main()


def test_the_card_of_the_space_names_what_is_there():
    data = SpaceCard.load(APP.parent / "README.md").data
    assert (data.sdk, data.app_file, data.license, data.models) == ("gradio", APP.name, "apache-2.0", [])
    assert re.fullmatch(r"6\.\d+\.\d+", data.sdk_version)
    assert len(data.short_description) <= 60  # more is refused
    text = (APP.parent / "README.md").read_text()
    assert all(f"`{name}`" in text for name in set(re.findall(r'environ\.get\("(\w+)"', APP.read_text())))


# -- the page


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """The address of the app, in a process of its own, with no way to any other machine."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf_salguide[space]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocked = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    settings = {
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    settings |= {"EXAMPLES": "decoy_digits", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    log = tmp_path_factory.mktemp("log") / "app.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(APP), str(folder)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **settings, **blocked},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail(f"the app did not answer: {log.read_text()}")
            yield url
        finally:
            process.terminate()
            process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian's package chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(served, browser):
    """Opens the app in a window of a size; nothing may be asked of another machine, nor the console complain."""
    complaints, contexts = [], []

    def visit(viewport):
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        context.route(
            lambda url: not url.startswith((served, "data:", "blob:")),
            lambda route: (complaints.append(f"asked {route.request.url}"), route.abort()),
        )
        page.goto(served)
        page.get_by_role("button", name="Explain").wait_for(timeout=60_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def pictures_of(page):
    """The pictures of the answer, decoded."""
    found = page.locator(".maps img")
    found.nth(3).wait_for(timeout=60_000)
    sources = [found.nth(index).get_attribute("src") for index in range(found.count())]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB") for source in sources]


def is_within(page):
    """Whether nothing reaches over the right edge of the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def shoot(page, name):
    """A screenshot for people to look at, where `SPACE_SHOTS` names a folder."""
    if folder := os.environ.get("SPACE_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_upload_click_maps_appear(viewport, open_page, app, loaded, tmp_path):
    page = open_page(viewport)
    name = "desktop" if viewport is DESKTOP else "phone"
    shoot(page, f"{name}_start")
    path = saved(photo(), tmp_path / "photo.png")
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text("photo").first.wait_for()
    page.get_by_role("button", name="Explain").click()
    pictures = pictures_of(page)
    assert [picture.size for picture in pictures] == [(448, 299)] * 4
    arrays = [np.asarray(picture, dtype=float) for picture in [*pictures, photo().resize((448, 299))]]
    for one in range(5):
        for other in range(one):
            if (one, other) != (4, 0):  # the first is the picture itself
                assert np.abs(arrays[one] - arrays[other]).mean() > 1, (one, other)
    expected = app.answer(loaded, path)
    assert page.locator(".answer .row b").inner_text() == next(iter(expected.probabilities))
    assert page.locator(".answer .number").all_inner_texts() == [f"{p:.1%}" for p in expected.probabilities.values()]
    for title in expected.titles:
        assert page.locator("figcaption", has_text=title).is_visible()
    for index in range(4):
        box = page.locator(".maps img").nth(index).bounding_box()
        assert box["width"] > 130
        assert box["height"] > 80
    assert page.locator(".legend").is_visible()
    assert is_within(page)
    shoot(page, name)


@pytest.mark.slow
def test_an_example_is_chosen_and_its_class_told(open_page):
    page = open_page(DESKTOP)
    page.locator(".gallery button, button.gallery-item").nth(1).click()
    before = pictures_of(page)
    page.get_by_label("True class, if known").click()
    page.get_by_role("option", name=NAMES[2]).click()
    page.get_by_role("button", name="Explain").click()
    page.locator("figcaption", has_text=f"True class: {NAMES[2]}").wait_for()
    assert len(before) == len(pictures_of(page)) == 4
    shoot(page, "example")


@pytest.mark.slow
def test_a_bad_upload_shows_what_is_wrong(open_page, tmp_path):
    page = open_page(PHONE)
    page.get_by_role("button", name="Explain").click()
    page.get_by_role("alert").get_by_text("There is no picture yet").wait_for()
    (tmp_path / "bad.png").write_text("not a picture")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "bad.png")
    page.get_by_text("bad").first.wait_for()
    page.get_by_role("button", name="Explain").click()
    page.get_by_role("alert").get_by_text("This file is no picture, or a damaged one.").wait_for()
    assert page.locator(".maps img").count() == 0
    shoot(page, "bad_upload")
