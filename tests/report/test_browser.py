"""The page in headless Chromium: no error, no request, figures that can be seen, toggled, sorted and read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
def browser(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(page)
        yield driver
    finally:
        driver.quit()


def find(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def test_no_error_and_no_request(browser: Any, page: str) -> None:
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page in asked
    assert {url for url in asked if url != page and not url.startswith(("data:", "chrome"))} == set()


def test_verdicts_stand_on_top_and_figures_can_be_seen(browser: Any) -> None:
    assert find(browser, "main h2")[0].text == "Verdicts"
    assert len(find(browser, "[data-claim]")) == 6
    charts = find(browser, ".chart svg")
    assert len(charts) >= 12
    for chart in charts:
        box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", chart)
        assert box["width"] > 200
        assert box["height"] > 150
        assert browser.execute_script("return arguments[0].querySelectorAll('.curve').length", chart) > 0
    assert "NaN" not in browser.page_source


def test_an_arm_can_be_taken_out_and_put_back(browser: Any) -> None:
    def curves() -> int:
        return len(find(browser, "#figure-2 .chart .curve"))

    before, button = curves(), find(browser, "#figure-2 .legend button")[0]
    browser.execute_script("arguments[0].click()", button)
    assert (curves(), button.get_attribute("aria-pressed")) == (before - 1, "false")
    browser.execute_script("arguments[0].click()", button)
    assert (curves(), button.get_attribute("aria-pressed")) == (before, "true")


def test_hovering_tells_values(browser: Any) -> None:
    browser.execute_script("""
        const svg = document.querySelector("#figure-2 .chart svg");
        const box = svg.getBoundingClientRect();
        const at = {clientX: box.left + box.width / 2, clientY: box.top + 60};
        svg.dispatchEvent(new PointerEvent("pointermove", at));
    """)
    (tip,) = find(browser, "#figure-2 .tip")
    text = tip.get_property("textContent")
    assert "tokens" in text
    assert "max LR 1e-3" in text


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
        assert _contrast(browser, ".card p") > 4.5
        assert _contrast(browser, ".soft") > 4.5
        fonts = browser.execute_script(
            "return [...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize))"
        )
        assert min(fonts) >= 11
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
