"""A chapter open in a real Chromium, on the JupyterLab that `make lab` starts. The browser tests and the latency
benchmark drive it; everything it does a reader could do by hand."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page, sync_playwright

from course_lib.lab import CourseFolder, RunningLab, jupyterlab, prepare_copies

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
LOOPBACK = re.compile(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:")

PATIENCE = 120_000  # milliseconds that a busy machine gets for anything but Run All

CURRENT = "const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;"
KERNEL_IDLE = f"""() => {{ {CURRENT}
    const kernel = panel?.sessionContext?.session?.kernel;
    const isThere = !!kernel && panel.context.isReady && kernel.connectionStatus === 'connected';
    return isThere && kernel.status === 'idle'; }}"""
RUN_ALL = """() => { window.isDone = false;
    window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { window.isDone = true; }); }"""
ASK = f"""async (code) => {{ {CURRENT}
    const request = panel.sessionContext.session.kernel.requestExecute({{code, store_history: false}});
    let said = '';
    request.onIOPub = message => {{ if (message.content.name === 'stdout') said += message.content.text; }};
    const reply = await request.done;
    if (reply.content.status !== 'ok') throw new Error(reply.content.evalue);
    return said.trim(); }}"""
OUTPUT_ERRORS = f"""() => {{ {CURRENT}
    return panel.content.widgets.flatMap(cell => (cell.model.outputs?.toJSON() ?? [])
        .filter(output => output.output_type === 'error')
        .map(output => cell.model.id + ': ' + output.ename + ': ' + output.evalue)); }}"""
MARKDOWN = f"""() => {{ {CURRENT}
    return panel.content.widgets.flatMap(cell => (cell.model.outputs?.toJSON() ?? [])
        .map(output => [output.data?.['text/markdown'] ?? ''].flat().join(''))); }}"""
RESTART = f"""async () => {{ {CURRENT} await panel.sessionContext.restartKernel(); }}"""
# Resolves with the milliseconds until the image shows another picture, and that picture is decoded.
REDRAWN = """([image, before]) => new Promise((done, fail) => { const began = performance.now();
    const look = () => { const passed = performance.now() - began;
        if (image.src !== before && image.complete && image.naturalWidth) done(passed);
        else if (passed > 30000) fail(new Error('no new picture in 30 s'));
        else requestAnimationFrame(look); }; look(); })"""


def find_browser() -> str | None:
    """Where a Chromium is, None if nowhere."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Faults:
    """What a page should not do: errors in its scripts, requests to another machine."""

    script_errors: list[str] = field(default_factory=list)
    requests_off_loopback: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, page: Page) -> "Faults":
        """The faults of `page` from now on."""
        faults = cls()
        page.on("pageerror", lambda error: faults.script_errors.append(str(error)))
        page.on("console", lambda said: faults.script_errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: faults._note(request.url))
        page.on("websocket", lambda socket: faults._note(socket.url))
        return faults

    def _note(self, url: str) -> None:
        if not LOOPBACK.match(url):
            self.requests_off_loopback.append(url)


@dataclass(frozen=True)
class ChapterPage:
    """One chapter's notebook in a browser's page, and what went wrong on it."""

    page: Page
    lab: RunningLab
    faults: Faults

    def run_all(self, timeout: float = 1800) -> None:
        """Run All, and wait until the last cell is done or the first has failed, `timeout` seconds at most."""
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function("() => window.isDone", timeout=1000 * timeout)
        self.wait_until_idle()

    def wait_until_idle(self, timeout: float = PATIENCE / 1000) -> None:
        self.page.wait_for_function(KERNEL_IDLE, timeout=1000 * timeout)

    def ask(self, code: str) -> object:
        """What the kernel prints as JSON when it runs `code`."""
        return json.loads(self.page.evaluate(ASK, code))

    def output_errors(self) -> list[str]:
        """The errors that stand in the notebook's outputs."""
        return self.page.evaluate(OUTPUT_ERRORS)

    def markdown_of(self, words: str) -> list[str]:
        """The outputs that are Markdown and hold `words`."""
        return [text for text in self.page.evaluate(MARKDOWN) if words in text]

    def restart(self) -> None:
        """Restart the kernel, and wait until the new one is there."""
        self.page.evaluate(RESTART)
        self.wait_until_idle()

    def banners(self) -> list[str]:
        """What the explorers' error banners say."""
        return self.page.locator(".jp-Notebook [role=alert]").all_inner_texts()

    def slider(self, description: str) -> "Slider":
        """The first slider whose description holds `description`, as a reader finds it."""
        control = self.page.locator(".widget-slider", has=self.page.get_by_text(description)).first
        control.scroll_into_view_if_needed()
        control.wait_for(state="visible")
        return Slider(control, self.page)


@dataclass(frozen=True)
class Slider:
    """A slider, and the picture of the explorer that it belongs to."""

    control: Locator
    page: Page

    @property
    def handle(self) -> Locator:
        return self.control.locator("[role=slider]")

    @property
    def picture(self) -> Locator:
        nearest = "xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea-output ')][1]"
        return self.control.locator(nearest).locator("img").first

    def readout(self) -> str:
        return self.control.locator(".widget-readout").text_content() or ""

    def name(self) -> str:
        """What a screen reader says of it: its own name, or the description and tooltip beside it."""
        label = self.control.locator(".widget-label")  # its text stands there before a long notebook has drawn it
        return self.handle.get_attribute("aria-label") or label.text_content() or ""

    def press(self, key: str) -> float:
        """Press a key on it and wait for the new picture; the milliseconds that this took."""
        image = self.picture.element_handle()
        before = self.page.evaluate("image => image.src", image)
        self.handle.focus()
        self.page.keyboard.press(key)
        return self.page.evaluate(REDRAWN, [image, before])


@contextlib.contextmanager
def open_chapter(folder: CourseFolder, number: str) -> Iterator[ChapterPage]:
    """The working copy of a chapter, opened in a browser; browser, server and kernel end with the block."""
    notebook = folder.chapters([number])[0].name
    prepare_copies(folder=folder)
    with (
        jupyterlab(folder, notebook=notebook, options=["--LabApp.expose_app_in_browser=True"]) as lab,
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)) as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        opened = ChapterPage(page, lab, Faults.of(page))
        page.goto(lab.page(notebook) + "&reset")  # not the tabs of an earlier visit
        page.wait_for_selector(".jp-Notebook")
        opened.wait_until_idle()
        yield opened


def small_course(folder: Path, cells: list[str]) -> CourseFolder:
    """A course folder in `folder` with one chapter, 98, of these code cells."""
    (folder / "notebooks").mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # or the page asks for one
    written = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook = nbformat.v4.new_notebook(cells=written, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "notebooks" / "98_small.ipynb")
    return CourseFolder(folder)


def course_copy(folder: Path) -> CourseFolder:
    """A course folder in `folder` with this repository's chapters, and a work/ of its own."""
    here = CourseFolder.here()
    shutil.copytree(here.notebooks, folder / "notebooks", ignore=shutil.ignore_patterns("src", ".ipynb_checkpoints"))
    return CourseFolder(folder)
