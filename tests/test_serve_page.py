"""The page of `tsm-triton serve` in a headless Chromium: a file, a camera, what goes wrong, and who cannot see it."""

import re
import signal
import time

import pytest
from playwright.sync_api import expect

from tsm_triton.commands.demo.motion_clips import CLASSES
from tsm_triton.video import read_frames

from .browsers import headless_chromium
from .serving import serving, streamed, write_motion, write_weights
from .video_files import write_sound

PATIENCE = 20_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def weights(folder):
    return write_weights(folder / "causal.pt")


@pytest.fixture(scope="module")
def browser():
    with headless_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(weights, folder, browser):
    (folder / "temporary").mkdir()
    with serving(weights, folder / "temporary", "--max-upload", 1) as (address, process):
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not list((folder / "temporary").iterdir())


@pytest.fixture
def page(address, browser):
    """Opened; no script of it may fail, and none may ask another server."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page, faults, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: faults.append(error))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    expect(page.locator("#about")).to_contain_text("test_resnet: 8 classes, 48", timeout=PATIENCE)
    yield page
    context.close()
    assert not faults
    assert all(re.match(rf"{address}/|data:|blob:", url) for url in asked)


def show_file(page, path):
    page.set_input_files("#file", path)
    return expect(page.locator("#status"))


def drawn(page, canvas):
    """How many colours a canvas shows."""
    script = """canvas => new Set(new Uint32Array(canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    return page.locator(canvas).evaluate(script)


def test_an_uploaded_video_gets_its_labels(page, weights, folder):
    path = write_motion(folder / "clip.mp4", 12)
    show_file(page, path).to_have_text("clip.mp4: done, 12 frames seen", timeout=PATIENCE)
    top = streamed(weights, read_frames(path, range(12)))[-1]
    expect(page.locator("#label")).to_have_text(re.compile(rf"^{top[0][0]} \d+ %$"))
    assert page.locator("#top span").all_inner_texts() == [label for label, _ in top]
    shares = [float(text.removesuffix(" %")) for text in page.locator("#top b").all_inner_texts()]
    assert shares == pytest.approx([100 * share for _, share in top], abs=0.6)
    assert drawn(page, "#picture") > 100
    assert drawn(page, "#timeline") > 5
    assert set(page.locator("#legend li").all_inner_texts()) <= set(CLASSES)
    assert page.locator("#legend li").count() == 5
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#stop")).to_be_disabled()


def test_a_camera_is_seen_until_it_is_stopped_and_two_tabs_are_two_streams(page, address):
    other = page.context.new_page()
    other.goto(address)
    for tab in (page, other):
        tab.click("#camera")
        expect(tab.locator("#status")).to_contain_text(
            re.compile(r"camera: frame \d+, .* a second"), timeout=PATIENCE
        )
        expect(tab.locator("#label")).to_have_text(re.compile(rf"^({'|'.join(CLASSES)}) \d"))
    assert page.locator("#picture").evaluate("canvas => [canvas.width, canvas.height]") == [640, 480]
    page.click("#stop")
    expect(page.locator("#status")).to_have_text("Stopped.")
    before = other.inner_text("#status")
    expect(other.locator("#status")).not_to_have_text(before, timeout=PATIENCE)
    other.click("#camera")  # anew
    expect(other.locator("#status")).to_contain_text("camera: frame", timeout=PATIENCE)
    expect(other.locator("#error")).to_be_hidden()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text.mp4", "expected a video file, got 'text.mp4', which FFmpeg cannot read"),
        ("empty.mp4", "expected a video, got 'empty.mp4', which is empty"),
        ("large.mp4", "large.mp4 has 1.1 MB, the server takes at most 1.0 MB"),
        ("sound.mp3", "expected a file with a video stream, got 'sound.mp3' with audio only"),
    ],
)
def test_a_file_that_is_no_video_is_said_to_be_none_and_the_next_one_is_seen(name, words, page, folder):
    path = folder / name
    if name == "sound.mp3":
        write_sound(path)
    else:
        path.write_bytes(
            {"text.mp4": b"no video" * 99, "empty.mp4": b"", "large.mp4": bytes(1_100_000)}[name]
        )
    page.set_input_files("#file", path)
    expect(page.locator("#error")).to_contain_text(words, timeout=PATIENCE)
    assert page.locator("#error").get_attribute("role") == "alert"
    show_file(page, write_motion(folder / "next.mp4", 3)).to_contain_text("done, 3 frames", timeout=PATIENCE)
    expect(page.locator("#error")).to_be_hidden()


def test_a_camera_that_is_refused_is_said_to_be(page):
    page.evaluate("""() => { navigator.mediaDevices.getUserMedia =
        () => Promise.reject(Object.assign(new Error("no"), { name: "NotReadableError" })) }""")
    page.click("#camera")
    expect(page.locator("#error")).to_contain_text("The camera is in use, perhaps by another tab")
    page.evaluate("() => { Object.defineProperty(navigator, 'mediaDevices', { value: undefined }) }")
    page.click("#camera")
    expect(page.locator("#error")).to_contain_text("https:// or of localhost")
    expect(page.locator("#stop")).to_be_disabled()


def test_a_phone_shows_all_of_it_and_a_keyboard_reaches_it(page, folder):
    page.set_viewport_size({"width": 360, "height": 740})
    show_file(page, write_motion(folder / "phone.mp4", 3)).to_contain_text("done", timeout=PATIENCE)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    for control in page.locator("button, .file").all():
        assert control.bounding_box()["height"] >= 44
    focused = []
    for _ in range(2):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("() => document.activeElement.id"))
    assert focused == ["camera", "file"]
    tree = page.locator("body").aria_snapshot()
    for part in (
        'button "Use the camera"',
        "Show a video file",
        "status",
        "The likeliest labels",
        "Lines over time",
    ):
        assert part in tree


def test_a_connection_that_is_lost_is_said_to_be(weights, folder, browser):
    (folder / "lost").mkdir()
    page = browser.new_page()
    with serving(weights, folder / "lost") as (address, process):
        page.goto(address)
        page.click("#camera")
        expect(page.locator("#status")).to_contain_text("camera: frame", timeout=PATIENCE)
        began = time.monotonic()
        process.kill()
        expect(page.locator("#error")).to_contain_text(
            "The connection to the server was lost", timeout=PATIENCE
        )
        assert time.monotonic() - began < 20
    page.close()
