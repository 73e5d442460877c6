"""The pages of the leaderboard in a real browser without a window: what a reader clicks, types and sees."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from site_runs import HOSTILE, STRANGE, write_runs
from typer.testing import CliRunner
from typing_help import present

from harness.cli.commands import app
from harness.report.boards import BoardRow, collect_boards
from harness.results.store import ResultStore

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"no Chromium here: none of {', '.join(NAMES)} is on the path")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TINY = '[id="board.demo.tiny"]'
DARK, LIGHT = "rgb(22, 24, 28)", "rgb(255, 255, 255)"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "results"
    write_runs(folder)
    return folder


@pytest.fixture(scope="module")
def site(results: Path) -> Path:
    out = results.parent / "site"
    done = CliRunner().invoke(app, ["site", str(results), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own; at the end nothing may have been complained of, nor asked of a server."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light") as context:
        opened = context.new_page()
        opened.set_default_timeout(60_000)
        complaints: list[str] = []
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url)
        )
        yield opened
        assert not complaints
        assert opened.title() != "pwned"


@pytest.fixture
def index(page: Page, site: Path) -> Page:
    page.goto((site / "index.html").as_uri())
    return page


def rows(page: Page) -> list[str]:
    """Names of the rows that the table of the second board shows, from the top."""
    return [text.strip() for text in page.locator(f"{TINY} tbody tr th > a").all_inner_texts()]


def heads(page: Page) -> list[str]:
    return [text.split("\n")[0] for text in page.locator(f"{TINY} thead tr:last-child th").all_inner_texts()]


def chart(page: Page, script: str) -> Any:
    """What the scatter plot of the second board shows."""
    return page.evaluate(f"(() => {{ const c = Chart.getChart(document.querySelector('{TINY} canvas')); {script} }})()")


def becomes(page: Page, look: Callable[[], object], expected: object) -> None:
    """The page shows `expected` after a moment: a click is answered behind it, on a busy machine long behind it."""
    end = time.monotonic() + 60
    while look() != expected and time.monotonic() < end:
        page.wait_for_timeout(20)
    assert look() == expected


def test_a_column_sorts_by_number_by_click_and_by_key(index: Page) -> None:
    head = index.locator(f"{TINY} thead tr:last-child th", has_text="params")
    head.click()
    sync_api.expect(head).to_have_attribute("aria-sort", "descending")
    becomes(index, lambda: rows(index)[:3], ["finetune", "lora", "ept"])
    assert rows(index)[-1] == "bitfit", "a row without a number comes last"
    head.get_by_role("button").press("Enter")
    sync_api.expect(head).to_have_attribute("aria-sort", "ascending")
    known = lambda: [name for name in rows(index) if name != "bitfit"][:3]  # noqa: E731
    becomes(index, known, ["majority", STRANGE, "accept"])
    index.locator(f"{TINY} thead tr:last-child th", has_text="boolq").click()
    becomes(index, lambda: rows(index)[:3], ["finetune", "lora", "accept"])


def test_typing_leaves_the_rows_that_match(index: Page) -> None:
    index.locator(TINY).get_by_label("Filter rows").fill("a")
    index.locator(TINY).get_by_label("Filter rows").fill("lora")
    becomes(index, lambda: rows(index), ["lora"])
    index.locator(TINY).get_by_label("Filter rows").fill("")
    becomes(index, lambda: len(rows(index)), 8)


def test_a_benchmark_leaves_its_columns_and_moves_the_plot(index: Page) -> None:
    index.locator(TINY).get_by_label("Benchmark").select_option("GLUE")
    left = ["method", "params", "grid runs", "average14", "cola (Acc.)1, 2", "rte (Acc.)3, 4", "ms/step", "peak MiB"]
    becomes(index, lambda: heads(index), left)
    becomes(index, lambda: chart(index, "return c.options.scales.y.title.text"), "GLUE: average over 2 tasks")
    index.locator(TINY).get_by_label("Benchmark").select_option("all")
    becomes(index, lambda: len(heads(index)), 13)


def test_a_column_can_be_left_out(index: Page) -> None:
    index.locator(f"{TINY} summary").click()
    index.locator(TINY).get_by_role("checkbox", name="peak MiB").uncheck()
    becomes(index, lambda: "peak MiB" in heads(index), False)
    index.locator(TINY).get_by_role("checkbox", name="peak MiB").check()
    becomes(index, lambda: "peak MiB" in heads(index), True)


def test_the_plot_shows_the_numbers_of_the_table_and_its_front(index: Page, results: Path) -> None:
    board = collect_boards(result for _, result in ResultStore(results).scan())[1]
    index.locator(TINY).locator("select.y").select_option("rte (Acc.)")
    axes: tuple[tuple[str, Callable[[BoardRow], Any]], ...] = (
        ("trainable parameters", lambda row: row.params("num_trained")[0]),
        ("milliseconds per step", lambda row: present(row.step_seconds()) * 1_000),
        ("peak memory in MiB", lambda row: present(row.peak_memory()) / 2**20),
    )
    for label, cost in axes:
        index.locator(TINY).locator("select.x").select_option(label)
        axis = "return c.options.scales.x.title.text.startsWith(" + repr(label) + ")"
        becomes(index, functools.partial(chart, index, axis), True)
        scored = [row for row in board.rows if row.entries.get("rte") and row.label != "majority"]
        points = {row.name: (cost(row), present(row.entries["rte"].mean)) for row in scored}
        shown = chart(index, "return c.data.datasets[0].data.map((p) => [p.name, p.x, p.y])")
        assert {name: (x, y) for name, x, y in shown} == {name: pytest.approx(place) for name, place in points.items()}
        points = {name: (cost(row), present(row.entries["rte"].mean)) for row in scored for name in [row.name]}
        best = {
            name
            for name, (x, y) in points.items()
            if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())
        }
        front = chart(index, "return c.data.datasets[1].data.map((p) => p.name)")
        assert set(front) == best
        assert f": {', '.join(front)}." in index.locator(f"{TINY} .front").inner_text()


def test_arrow_keys_go_through_the_points_and_enter_opens_the_method(index: Page) -> None:
    index.locator(TINY).locator("select.y").select_option("rte (Acc.)")
    canvas = index.locator(f"{TINY} canvas")
    canvas.press("ArrowRight")
    point = index.locator(f"{TINY} .point")
    becomes(index, lambda: STRANGE in point.inner_text(), True)
    canvas.press("ArrowRight")
    becomes(index, lambda: point.inner_text().startswith("accept: 86.5 ["), True)
    canvas.press("Enter")
    index.wait_for_url("**/methods/accept.html")


def test_a_score_leads_to_its_runs_and_a_run_to_its_curve(index: Page) -> None:
    index.locator(f"{TINY} tbody tr", has_text="finetune").get_by_role("link", name="91.5").click()
    index.wait_for_url("**/tasks/cb.html#board.demo.tiny.row.finetune")
    index.locator("tr:target").get_by_role("link", name="seed 2: 91.0").click()
    index.wait_for_url("**/cells/**")
    assert index.get_by_role("heading", level=1).inner_text() == "finetune on cb, seed 2"
    assert index.evaluate("Chart.getChart(document.querySelector('.curve canvas')).data.datasets[0].data[0].y") == 50
    index.get_by_text("The numbers of the curve").click()
    sync_api.expect(index.get_by_role("row", name="10 (selected) 50.00")).to_be_visible()
    index.get_by_role("link", name="Leaderboards").click()
    index.wait_for_url("**/index.html")
    assert index.get_by_role("heading", level=1).inner_text() == "Leaderboards"


def test_dark_follows_the_system_and_the_switch_and_is_remembered(page: Page, site: Path) -> None:
    def back() -> object:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    becomes(page, back, DARK)
    becomes(page, lambda: chart(page, "return c.options.scales.x.ticks.color"), "rgb(232, 233, 236)")
    page.get_by_label("Colours").select_option("light")
    becomes(page, back, LIGHT)
    becomes(page, lambda: chart(page, "return c.options.scales.x.ticks.color"), "rgb(27, 29, 33)")
    page.goto((site / "methods" / "lora.html").as_uri())
    assert back() == LIGHT


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page: Page, site: Path, scheme: Literal["light", "dark"]) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) for every text of the pages."""
    page.emulate_media(color_scheme=scheme)
    for address in ("index.html", "methods/lora.html", "tasks/cb.html"):
        page.goto((site / address).as_uri())
        poor = page.evaluate(CONTRAST)
        assert not poor, poor


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll("p, a, th, td, dt, dd, li, label, h1, h2, span, summary, select, footer")) {
    if (!e.innerText?.trim()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(back(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([e.tagName, e.className, ratio]);
  }
  return found;
}"""


def test_a_phone_never_scrolls_the_page_sideways(page: Page, site: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    some_cell = next(site.glob("cells/**/*.html"))
    for path in [site / "index.html", some_cell, *site.glob("methods/*.html"), *site.glob("tasks/*.html")]:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_a_phone_shows_the_average_first_and_says_that_there_is_more(page: Page, site: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto((site / "index.html").as_uri())
    board = page.locator(TINY)
    box = board.locator("thead tr:last-child th", has_text="average").first.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 360
    scroll, hint = board.locator(".scroll"), board.locator(".hint")
    becomes(page, lambda: hint.is_visible() and "more" in str(scroll.get_attribute("class")), True)
    scroll.evaluate("(e) => { e.scrollLeft = e.scrollWidth; }")
    becomes(page, lambda: "more" in str(scroll.get_attribute("class")).split(), False)
    page.goto(next(site.glob("cells/**/*.html")).as_uri())
    becomes(page, lambda: page.locator("[aria-labelledby=scores]").count(), 1)
    assert not page.locator(".hint").first.is_visible(), "the scores of a cell fit"


def test_every_page_opens_without_complaint_and_says_what_it_is(page: Page, site: Path) -> None:
    for path in [*site.glob("*.html"), *site.glob("methods/*.html"), *site.glob("tasks/*.html")]:
        page.goto(path.as_uri())
        assert page.get_by_role("main").count() == 1
        assert page.get_by_role("heading", level=1).count() == 1
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        unnamed = page.evaluate(
            "[...document.querySelectorAll('table')].filter((t) => !t.caption?.innerText.trim()).length"
            " + [...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
            " + [...document.querySelectorAll('th')].filter((e) => !e.scope).length"
        )
        assert unnamed == 0


def test_texts_of_others_are_shown_as_text(index: Page) -> None:
    index.get_by_role("link", name=STRANGE, exact=True).first.click()
    index.wait_for_url("**/methods/**")
    index.locator("a[href*='cell']").first.click()
    index.wait_for_url("**/cells/**")
    assert HOSTILE in index.locator("body").inner_text()
    assert index.locator("img").count() == 0
