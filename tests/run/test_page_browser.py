"""A run's page in a real browser, opened from its file: no error, no request, and everything answers."""

import csv
import shutil

import pytest
from runs import train

from gpt.config import DataConfig, GPTConfig, TrainConfig
from gpt.run.page import write_page
from gpt.text.prepare import prepare_data
from gpt.text.sources import open_corpus

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is a development dependency")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

HOSTILE = '</script><script>alert(1)</script><img src="https://example.org/x.png" onerror="alert(2)">'

# The lowest contrast between a text and what is behind it, WCAG 2.1, and where it is.
LOWEST_CONTRAST = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    return text.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (top, under) => under.map((c, i) => i < 3 ? top[i] * top[3] + c * (1 - top[3]) : 1);
  const behind = (at) => at ? over(parse(getComputedStyle(at).backgroundColor),
    behind(at.parentElement)) : [255, 255, 255, 1];
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  let lowest = [21, ""];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const at = texts.currentNode.parentElement, isShown = texts.currentNode.data.trim() && at.checkVisibility();
    if (!isShown || at.closest("script, svg, .u-off, :disabled, .skip")) continue;
    const under = behind(at), text = over(parse(getComputedStyle(at).color), under);
    const [dark, light] = [luminance(under), luminance(text)].sort((x, y) => x - y);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, at.outerHTML.slice(0, 100)];
  }
  return lowest;
}"""
SMALL_TARGETS = "[...document.querySelectorAll('button, summary')].filter((b) => b.offsetHeight && b.offsetHeight < 24)"
SHADES = (
    "[...document.querySelectorAll('#surprise-text [role=option]')].map((t) => +t.style.getPropertyValue('--shade'))"
)
MAP_ROW = (
    "document.getElementById('head-map').getContext('2d').getImageData(0, 5, data.attention.tokens.length, 1).data"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The page of a short run on tales beside another run, with hostile samples."""
    folder = tmp_path_factory.mktemp("page")
    prepare_data(open_corpus("tales:80"), "bpe:300", folder / "data", 0.1)
    config = TrainConfig(
        seed=1, max_steps=8, batch_size=2, log_every=1, eval_every=2, save_every=0, sample_every=4, device="cpu",
        model=GPTConfig(0, 420, 16, 2, 2, 0.0), data=DataConfig(str(folder / "data"), "document"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt.run.callbacks.Plot.draw", lambda self, trainer: None)
        patch.setattr("gpt.run.callbacks.Page.write", lambda self, trainer: None)
        runs = [train(config, folder / name).run for name in ("one", "two")]
    with runs[0].samples.open("a", encoding="utf-8") as samples:
        samples.write(f"--- step 9 ---\n{HOSTILE}\n\n")
    return write_page(runs[0].path), write_page(runs[0].path, [str(runs[1].path)], out=folder / "compared.html")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file; in the end no page may have logged, asked or loaded anything."""
    trouble, contexts = [], []

    def open_file(path, width=1440, scheme="light", touch=False):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=touch)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: request.url == path.as_uri() or trouble.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not trouble


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_is_legible(file, open_page, width, scheme, which):
    page = open_page(file[which], width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    contrast, where = page.evaluate(LOWEST_CONTRAST)
    assert contrast >= 4.5, where
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128")
    assert is_dark == (scheme == "dark")
    assert page.locator("canvas").count() > 8
    small = page.evaluate(SMALL_TARGETS)
    assert not small  # targets of WCAG 2.2


def test_curves_show_values_zoom_and_change_their_axes(file, open_page):
    with (file[0].parent / "metrics.csv").open(newline="") as metrics:
        rows = list(csv.DictReader(metrics))
    page = open_page(file[0])
    chart, legend = page.locator("#charts .u-over").first, page.locator("#charts .u-legend").first
    x_range = "[charts[0].scales.x.min, charts[0].scales.x.max]"
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 5 / 8, box["y"] + 50)
    values = legend.locator(".u-value").all_inner_texts()
    assert values[:2] == ["5", f"{float(rows[5]['train_loss']):.4g}"]
    near = [f"{float(rows[i]['val_loss']):.4g} ± {float(rows[i]['val_loss_se']):.4g}" for i in (4, 6)]
    assert values[2] in near  # the nearest evaluations
    assert page.evaluate(x_range) == [0, 8]
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 7 / 8, box["y"] + 60)
    page.mouse.up()
    assert page.evaluate(x_range) == pytest.approx([5, 7], abs=0.05)
    assert page.evaluate("[charts[3].scales.x.min, charts[3].scales.x.max]") == page.evaluate(x_range)
    page.mouse.dblclick(box["x"] + 80, box["y"] + 50)
    assert page.evaluate(x_range) == [0, 8]
    page.get_by_role("button", name="Zoom in").click()
    low, high = page.evaluate(x_range)
    assert 0 < low < high < 8
    page.get_by_role("button", name="All", exact=True).click()
    place = page.get_by_role("group", name="Chart of loss", exact=True)
    place.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#spoken").inner_text().startswith("step 2; training ")
    page.keyboard.press("+")
    assert page.evaluate(x_range) != [0, 8]
    page.keyboard.press("0")
    assert page.evaluate(x_range) == [0, 8]
    page.get_by_label("tokens", exact=True).check()
    assert page.evaluate(x_range) == [0, float(rows[-1]["tokens_seen"])]
    log = page.get_by_role("button", name="logarithmic scale of loss", exact=True)
    log.click()
    assert log.get_attribute("aria-pressed") == "true"
    assert page.evaluate("charts[0].scales.y.distr") == 3
    top = page.evaluate("charts[0].scales.y.max")
    page.get_by_label("baselines").uncheck()
    assert page.evaluate("charts[0].scales.y.max") <= top
    legend.locator("th").last.press("Enter")
    assert not page.evaluate("charts[0].series.at(-1).show")


def test_runs_compared_differ_in_more_than_colour(file, open_page):
    page = open_page(file[1])
    labels = page.locator("#charts .u-legend").first.locator(".u-label").all_inner_texts()
    assert labels == ["step", "one, training", "● one, validation", "two, training", "● two, validation"]
    dashes = page.evaluate("charts[0].series.slice(1).map((series) => String(series.dash))")
    assert dashes[0] == dashes[1] != dashes[2] == dashes[3]


def test_samples_and_settings_answer(file, open_page):
    page = open_page(file[0])
    text = page.locator("#sample-text")
    assert text.inner_text() == HOSTILE
    page.locator("#sample").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#sample-step").inner_text() == "step 8"
    assert page.locator("#verdict").inner_text().startswith(("✗ The grammar rejects it", "✓ The grammar accepts it"))
    page.get_by_role("button", name="Earlier sample").click()
    page.get_by_role("button", name="Earlier sample").click()
    assert page.locator("#sample-step").inner_text() == "step 0"
    assert page.get_by_role("button", name="Earlier sample").is_disabled()
    page.get_by_label("Find a setting").fill("warm-up")
    names = page.locator(".settings tbody tr:visible th").all_inner_texts()
    assert names == ["optim.lr", "optim.warmup_steps", "optim.schedule"]  # their meanings name it


@pytest.mark.parametrize("touch", [False, True])
def test_tokens_tell_what_was_expected(file, open_page, touch):
    page = open_page(file[0], 390 if touch else 1440, touch=touch)
    tokens, tip = page.locator("#surprise-text [role=option]"), page.get_by_role("tooltip")
    found = page.evaluate("data.surprises")
    assert tokens.count() == len(found["texts"])
    for number in (7, 21):
        token = tokens.nth(number)
        token.scroll_into_view_if_needed()
        token.tap() if touch else token.hover()
        assert tip.is_visible()
        assert f"{found['bits'][number]:.2f} bits" in tip.inner_text()
        assert tip.locator("tr").count() == 5
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]
    tokens.nth(7).focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == tokens.nth(8).get_attribute(
        "aria-label"
    )
    assert f"{found['bits'][8]:.2f} bits" in tip.inner_text()
    page.keyboard.press("ArrowDown")
    lower = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert lower > tokens.nth(8).bounding_box()["y"]
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    shades = page.evaluate(SHADES)
    order = sorted(range(1, len(shades)), key=lambda i: found["bits"][i])
    assert shades[order[0]] < shades[order[-1]] <= 1


def test_attention_is_enlarged_by_head_and_read_by_token(file, open_page):
    page = open_page(file[0])
    heads = page.locator("#heads button")
    assert heads.count() == 4
    heads.nth(3).click()
    assert page.locator("#head-name").inner_text() == "Layer 2, head 2"
    assert [heads.nth(i).get_attribute("aria-pressed") for i in range(4)] == ["false"] * 3 + ["true"]
    page.locator("#sentence [role=option]").nth(5).click()
    found = page.evaluate("data.attention")
    weights = page.evaluate("[...decodeBytes(data.attention.weights)]")
    n = len(found["tokens"])
    row = weights[3 * n * n + 5 * n :][:n]
    assert f"{100 * max(row) / 255:.0f}%" in page.locator("#looks").inner_text()
    drawn = page.evaluate(MAP_ROW)
    opacity = [drawn[4 * i + 3] for i in range(n)]
    assert opacity == pytest.approx([(255 * weight) ** 0.5 for weight in row], abs=1)
    page.locator("#head-map").hover(position={"x": 3, "y": 3})
    assert "looks at" in page.get_by_role("tooltip").inner_text()


def test_print_is_light_and_whole(file, open_page):
    page = open_page(file[0], scheme="dark")
    widths = page.evaluate("charts.map((u) => u.width)")
    marker = "getComputedStyle(document.querySelectorAll('#charts .u-marker')[1]).borderTopColor"
    dark = page.evaluate(marker)
    page.evaluate("addEventListener('beforeprint', () => setTimeout(() => (globalThis.printed = " + marker + ")))")
    assert page.pdf(print_background=False).startswith(b"%PDF")
    assert page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("globalThis.printed")
    assert page.evaluate("globalThis.printed") != dark
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(marker) == dark
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()") == "#1b1f24"
    assert not page.locator("nav").is_visible()
    assert page.locator("#surprise-text").is_visible()
    page.emulate_media(media="screen", color_scheme="dark")
    # the charts are resized in a later frame
    page.wait_for_function("widths => charts.every((chart, i) => chart.width === widths[i])", arg=widths)
