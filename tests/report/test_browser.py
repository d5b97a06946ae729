"""The page in headless Chromium: no error, no request, figures that can be seen, toggled, sorted and read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm.report.arms import arms_of, load
from rewarm.report.claims import Test as Difference

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'rewarm[browser]'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def page(reported: Path) -> str:
    return f"file://{reported / 'report' / 'index.html'}"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Any, page: str) -> Any:
    """Return the browser with the page as its first visitor sees it: each test has a tab of its own."""
    old = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    new = chromium.current_window_handle
    chromium.switch_to.window(old)
    chromium.close()
    chromium.switch_to.window(new)
    for log in ("browser", "performance"):
        chromium.get_log(log)
    chromium.get(page)
    wait(chromium)
    return chromium


def find(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def test_no_error_and_no_request(browser: Any, page: str) -> None:
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page in asked
    assert {url for url in asked if url != page and not url.startswith(("data:", "chrome"))} == set()


def wait(browser: Any) -> None:
    """Wait until what has changed is drawn."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def press(browser: Any, text: str) -> None:
    browser.execute_script(
        "[...document.querySelectorAll('button')].find(b => b.textContent === arguments[0]).click()", text
    )
    wait(browser)


def choose(browser: Any, label: str, option: str) -> None:
    browser.execute_script(
        """const labels = [...document.querySelectorAll('label')];
        const select = labels.find(l => l.firstChild.textContent === arguments[0]).lastChild;
        select.value = [...select.options].find(o => o.text === arguments[1]).value;
        select.dispatchEvent(new Event('change'))""",
        label,
        option,
    )
    wait(browser)


def legend(browser: Any) -> dict[str, list[str]]:
    """Return the values at the cursor by arm: downstream, upstream, LR."""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('.legend tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    return {name.split()[0]: values for name, *values in rows}


def test_the_answer_stands_on_top_and_figures_can_be_seen(browser: Any) -> None:
    assert find(browser, "main h2")[0].text == "Answer"
    assert find(browser, ".answer .first")[0].text.startswith("cosine_0.5 (max LR 5e-4) has the least sum")
    assert len(find(browser, "[data-claim]")) == 6
    press(browser, "All arms")
    assert len(legend(browser)) == 16
    press(browser, "Max LR")
    charts = find(browser, ".figure canvas")
    assert len(charts) == 4
    for chart in charts:
        assert chart.size["width"] > 200
        assert chart.size["height"] > 150
        assert browser.execute_script("return arguments[0].toDataURL().length", chart) > 5000
    assert "NaN" not in find(browser, "main")[0].text


def test_the_legend_tells_what_python_read_and_takes_arms_out(browser: Any, reported: Path) -> None:
    (arm,) = [a for a in arms_of(load([reported])) if a.name == "cosine_1"]
    ends = [f"{arm.grid(side)[1][:, -1].mean():.4f}" for side in ("downstream", "upstream")]
    assert legend(browser)["cosine_1"][:2] == ends
    count = "return explorers[0].plots.downstream.series.length"
    before, button = browser.execute_script(count), find(browser, ".legend button")[1]
    browser.execute_script("arguments[0].click()", button)
    assert find(browser, ".legend button")[1].get_attribute("aria-pressed") == "false"
    assert browser.execute_script(count) < before
    browser.execute_script("arguments[0].click()", find(browser, ".legend button")[1])
    assert browser.execute_script(count) == before


def test_figures_share_cursor_and_zoom_with_mouse_and_keys(browser: Any) -> None:
    browser.execute_script("""
        const over = document.querySelector('[data-figure=upstream] .u-over'), box = over.getBoundingClientRect();
        over.dispatchEvent(new MouseEvent('mousemove', {clientX: box.left + box.width / 2, clientY: box.top + 60}));
    """)
    wait(browser)
    assert "tokens" in find(browser, ".legend caption")[0].text
    plots = "const {downstream, upstream, lr} = explorers[0].plots; return [downstream, upstream, lr]"
    cursors = f"{plots}.map(u => u.posToVal(u.cursor.left, 'x'))"
    assert len({round(x / 1e5) for x in browser.execute_script(cursors)}) == 1
    browser.execute_script("""
        const host = document.querySelector('[data-figure=lr]');
        for (const key of ['Home', 'ArrowRight', '+', '+']) host.dispatchEvent(new KeyboardEvent('keydown', {key}));
    """)
    wait(browser)
    said = find(browser, "[aria-live]")[0].get_property("textContent")
    assert said.startswith("at ")
    assert "cosine_2 downstream" in said
    ends = f"{plots}.map(u => u.scales.x.max)"
    (end,) = set(browser.execute_script(ends))
    assert end < 2_000_000
    press(browser, "whole")
    assert min(browser.execute_script(ends)) > 4_000_000


def test_the_difference_of_two_arms_has_its_interval(browser: Any, reported: Path) -> None:
    arms = {arm.name: arm for arm in arms_of(load([reported]))}
    losses = [arms[name].grid("downstream")[1][:, -1] for name in ("cosine_2", "cosine_0.5")]
    test = Difference("", tuple((losses[0] - losses[1]).tolist()), 0.0)
    press(browser, "Max LR")
    choose(browser, "minus", "cosine_0.5")
    drawn = browser.execute_script(
        "const u = explorers[0].plots.downstream, k = 1 + 3 * 2; return [k, k + 1, k + 2].map(i => u.data[i].at(-1))"
    )
    choose(browser, "minus", "nothing")
    assert drawn == pytest.approx([test.mean, *test.interval], abs=2e-5)


def test_axes_change_and_all_of_it_outlives_a_reload(browser: Any) -> None:
    for text in ("log x", "log LR"):
        press(browser, text)
    choose(browser, "x", "steps")
    choose(browser, "loss", "perplexity")
    run = find(browser, ".runs > summary")[0]
    browser.execute_script("arguments[0].click()", run)
    browser.refresh()
    wait(browser)
    state = browser.execute_script("return explorers[0].state")
    assert (state["x"], state["xlog"], state["lrlog"], state["unit"]) == ("steps", "1", "1", "ppl")
    assert browser.execute_script("return document.querySelector('.runs').open")
    assert browser.execute_script("const u = explorers[0].plots.lr; return [u.scales.x.distr, u.scales.y.distr]") == [
        3,
        3,
    ]
    assert browser.get_log("browser") == []


def test_the_table_is_sorted_by_a_click(browser: Any) -> None:
    def column(i: int) -> list[str]:
        return [cell.get_property("textContent") for cell in find(browser, f".sortable tbody td:nth-child({i})")]

    heads = [head.get_property("textContent") for head in find(browser, ".sortable th button")]
    i = heads.index("upstream final")
    button = find(browser, ".sortable th button")[i]
    for reverse in (False, True):
        browser.execute_script("arguments[0].click()", button)
        values = [float(text.split()[0]) for text in column(i + 1)]
        assert values == sorted(values, reverse=reverse)
    assert find(browser, ".sortable th")[i].get_attribute("aria-sort") == "descending"


def test_a_runs_config_is_one_click_away(browser: Any) -> None:
    run = find(browser, "details.card")[0]
    browser.execute_script("document.querySelector('.runs').open = true")
    browser.execute_script("arguments[0].querySelector('summary').click()", run)
    assert "max_lr:" in run.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_can_show_it(browser: Any, scheme: str) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.refresh()
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        assert _contrast(browser, ".answer p") > 4.5
        assert _contrast(browser, ".soft") > 4.5
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.refresh()


def _contrast(browser: Any, selector: str) -> float:
    """Return the contrast of an element's text on the page's background, by WCAG's formula."""
    colors = browser.execute_script(
        "const text = getComputedStyle(document.querySelector(arguments[0])).color;"
        "return [text, getComputedStyle(document.body).backgroundColor]",
        selector,
    )

    def luminance(color: str) -> float:
        values = [int(v) / 255 for v in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


def test_a_proxy_of_old_data_is_called_one_on_the_whole_page(browser: Any, reported: Path, tmp_path: Path) -> None:
    content = (reported / "report" / "index.html").read_text()
    assert content.count('"proxy":false') == 1
    path = tmp_path / "index.html"
    path.write_text(content.replace('"proxy":false', '"proxy":true'))
    browser.get(f"file://{path}")
    wait(browser)
    heads = [th.text for th in browser.find_elements("css selector", "table.legend th")]
    assert heads[:3] == ["arm", "downstream", "upstream (proxy)"]
    texts = browser.find_element("tag name", "body").text
    assert "Upstream (proxy)" in texts or "upstream (proxy)" in texts
    words = re.findall(r"(?<![\w./=@'\"-])upstream(?! \(proxy\)|[\w./=:-])", texts)
    assert words == []
    label = browser.find_element("css selector", "[data-figure=both]").get_attribute("aria-label")
    assert label.startswith("Upstream (proxy) against downstream perplexity")


def test_a_sweep_from_random_weights_alone_is_drawn(browser: Any, reported: Path, tmp_path: Path) -> None:
    """The axes need not hold such an arm beside others; where there are no others, they do."""
    path = tmp_path / "index.html"
    path.write_text((reported / "report" / "index.html").read_text().replace('"far":false', '"far":true'))
    browser.get(f"file://{path}")
    wait(browser)
    scale = "return ['downstream', 'upstream', 'lr'].map((what) => explorers[0].plots[what].scales.y.min)"
    assert None not in browser.execute_script(scale)
