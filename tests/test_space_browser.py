"""The page in a real browser: opened, moved, clicked and read, on a machine that reaches nothing but itself."""

import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from space_runs import fine_tune

from hf_flowft.space import build_page, launch, write_space

pytest.importorskip("gradio", reason="Gradio is not installed: `make test` installs it")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make test` installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "disable-dev-shm-usage"]
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium with a profile of its own."""
    with sync_api.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": [f"--{flag}" for flag in FLAGS]}
        chromium = playwright.chromium.launch(headless=True, **options)
        yield chromium
        chromium.close()


class Reader:
    """A tab, and everything that went wrong in it."""

    def __init__(self, browser, address):
        self.tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.tab.set_default_timeout(PATIENCE)
        self.errors, self.requests = [], []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(address)

    def wait(self, part, *texts):
        """Until a part of the page shows all texts."""
        for text in texts:
            self.tab.locator(f"#{part}", has_text=text).wait_for()

    def picture(self, part):
        """The bytes of a picture the page shows; the same picture has the same address."""
        address = self.tab.locator(f"#{part} img").get_attribute("src")
        answer = self.tab.request.get(address)
        assert answer.headers["content-type"] == "image/png"
        return answer.body()

    def steps(self, number):
        """Move the slider there by keys: to its start, then up."""
        slider = self.tab.locator("#steps input[type=range]")
        slider.focus()
        slider.press("Home")
        for _ in range(number - 1):
            slider.press("ArrowRight")

    def solver(self, name):
        """Choose a solver."""
        self.tab.locator("#solver input").click()
        self.tab.get_by_role("option", name=name, exact=True).click()

    def close(self, *hosts):
        """Nothing went wrong, and nothing was asked of another machine."""
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("data:", "blob:", *hosts))] == []
        self.tab.close()


@pytest.fixture
def app(tmp_path):
    """The app of a fine-tune of digits, started as its README says, from another folder; its address."""
    folder = tmp_path / "space"
    write_space(fine_tune(tmp_path, "digits"), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "pictures")}
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        command = [sys.executable, str(folder / "app.py")]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=output, stderr=output)
    try:
        _wait_for(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(process, port, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"the app does not answer: {log.read_text()}")


def test_the_page_of_a_conditional_model(browser, app):
    """First pictures without a click; the slider, the solver, the labels, the seed and the button change what is drawn, and the evaluations are
    steps times stages; what cannot be drawn is a sentence and the pictures stay.
    """
    page = Reader(browser, app)
    page.wait("base-cost", "8 evaluations")
    page.wait("result-cost", "8 evaluations", "40 samples")
    first = {part: page.picture(part) for part in ("base-samples", "result-samples")}
    assert first["base-samples"] != first["result-samples"]
    page.wait("results", "target/energy@1", "lower is better")
    page.wait("verdict", "best model")

    page.steps(3)
    page.solver("rk4")
    page.tab.locator("#draw").click()
    page.wait("base-cost", "12 evaluations")
    page.wait("result-cost", "12 evaluations")
    changed = {part: page.picture(part) for part in first}
    assert all(changed[part] != first[part] for part in first)

    page.tab.locator("#labels label", has_text="4").click()
    page.wait("result-cost", "36 samples")
    page.tab.locator("#again").click()
    page.tab.wait_for_function("document.querySelector('#seed input').value == '1'")

    for _ in range(9):
        page.tab.locator("#labels label:has(input:checked)").first.click()
    page.wait("message", "Choose at least one label")
    kept = page.picture("result-samples")
    page.tab.locator("#draw").click()
    page.wait("message", "Choose at least one label")
    assert page.picture("result-samples") == kept
    page.close(app)


def test_the_page_of_a_model_of_the_plane(browser, tmp_path, monkeypatch):
    """Ways from the noise of base and result over the points of data.npy; an adaptive solver counts its own evaluations, the same for any
    number of steps; an empty seed is a sentence.
    """
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "pictures"))
    folder = tmp_path / "space"
    write_space(fine_tune(tmp_path, "toy"), folder)
    assert np.load(folder / "data.npy").shape == (24, 2)
    opened = build_page(folder, base=folder / "base")
    _, address, _ = launch(opened, prevent_thread_lock=True, quiet=True)
    try:
        page = Reader(browser, address)
        page.wait("result-cost", "8 evaluations", "600 samples")
        parts = ("base-samples", "result-samples", "base-lines", "result-lines")
        first = [page.picture(part) for part in parts]
        assert len(set(first)) == 4
        page.solver("dopri5")
        page.tab.wait_for_function("!document.querySelector('#result-cost').innerText.includes('8 evaluations')")
        assert page.tab.locator("#steps input[type=range]").is_disabled()
        assert not set(first) & {page.picture(part) for part in parts}
        page.tab.locator("#seed input").fill("")
        page.tab.locator("#draw").click()
        page.wait("message", "The seed must be a whole number")
        page.close(address)
    finally:
        opened.close()
