"""report.html in headless Chromium: no error, no request, tables sort, anchors work, it fits a phone and a page, AA."""

import base64
import json
import shutil

import pytest

from vitreous.reports.report import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver on PATH")

# text nodes whose contrast with the nearest background is below 4.5 to 1 (3 to 1 for large text); cells of heat
# maps choose black or white by themselves, which has a test of its own
LOW_CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = node => {
  for (let part = node; part; part = part.parentElement) {
    const colour = rgb(getComputedStyle(part).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE", "TITLE", "DESC", "title", "desc"].includes(parent.tagName))
    continue;
  const style = getComputedStyle(parent);
  const ink = luminance(rgb(parent.namespaceURI.endsWith("svg") ? style.fill : style.color));
  const ground = luminance(behind(parent));
  const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if (parent.closest("#generalisation svg")) continue;
  if (ratio < (large ? 3 : 4.5)) found.push([walker.currentNode.data.trim(), ratio]);
}
return found;
"""


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(full_report_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    render_report(full_report_data, path)
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    """The report as opened anew, on a wide screen."""
    set_width(browser, 1280)
    still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": still})
    browser.get(address)
    return browser


def set_width(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def test_it_opens_without_a_complaint_and_asks_for_nothing_else(browser, address):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(address)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {address}
    assert browser.execute_script("return document.querySelectorAll('thead button').length") > 10


def test_a_table_sorts_by_click_and_by_keyboard_and_back(page):
    from selenium.webdriver.common.keys import Keys

    read = """
      const table = document.querySelector("#leaderboard table.board");
      const n = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.startsWith("AUROC"));
      return [n, [...table.tBodies[0].rows].map(row => row.cells[n].dataset.sort),
              table.tHead.rows[0].cells[n].getAttribute("aria-sort")];
    """
    place, before, _ = page.execute_script(read)
    button = page.find_elements("css selector", "#leaderboard table.board thead th")[place].find_element(
        "tag name", "button"
    )
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    _, falling, said = page.execute_script(read)
    numbers = [float(value) for value in falling if value]
    assert said == "descending"
    assert numbers == sorted(numbers, reverse=True)
    button.send_keys(Keys.ENTER)
    _, rising, said = page.execute_script(read)
    assert said == "ascending"
    assert [float(value) for value in rising if value] == sorted(numbers)
    button.send_keys(Keys.SPACE)
    assert page.execute_script(read) == [place, before, None]


def test_every_anchor_leads_to_something_that_is_there_and_is_shown(page):
    missing = page.execute_script(
        """return [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute("href"))
           .filter(href => !document.getElementById(href.slice(1)))"""
    )
    assert missing == []
    page.execute_script("document.querySelector('nav a[href=\"#provenance\"]').click()")
    top = page.execute_script("return document.getElementById('provenance').getBoundingClientRect().top")
    assert -2 < top < 900
    page.execute_script("document.querySelector('#leaderboard a.from').click()")
    assert page.execute_script("return document.querySelector(':target').id.startsWith('from-')")


@pytest.mark.parametrize("width", [320, 390, 820])
def test_no_page_is_wider_than_its_screen(page, width):
    page.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    set_width(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    smallest = page.execute_script(
        """return Math.min(...[...document.querySelectorAll("figure svg[role=img]")]
           .map(svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"""
    )
    assert smallest > (0.4 if width < 500 else 0.8)


def test_contrast_is_at_least_double_a(page):
    page.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.execute_script(LOW_CONTRAST) == []
    page.execute_script("document.querySelector('h2').style.color = '#aaa'")
    assert len(page.execute_script(LOW_CONTRAST)) == 1, "the check above can fail"


def test_landmarks_names_captions_and_headings(page):
    told = page.execute_script(
        """
        const all = selector => [...document.querySelectorAll(selector)];
        const named = one => (one.getAttribute("aria-label") || one.textContent || one.title).trim();
        return {
          landmarks: ["header", "nav", "main", "footer"].map(tag => all(tag).length),
          unnamed: all("a, button, summary, nav, [role=region]").filter(one => !named(one)).length,
          figures: all("svg").filter(svg => svg.getAttribute("role") !== "img" || !svg.getAttribute("aria-labelledby")
            .split(" ").every(id => document.getElementById(id)?.textContent)).length,
          captions: all("table").filter(table => !table.caption?.textContent.trim()).length,
          scopes: all("th").filter(th => !["row", "col"].includes(th.scope)).length,
          heads: all("tbody tr").filter(row => !row.querySelector("th[scope=row]")).length,
          levels: all("h1, h2, h3, h4").map(one => Number(one.tagName[1])),
          doubled: all("[id]").map(one => one.id).filter((id, n, ids) => ids.indexOf(id) !== n),
          lang: document.documentElement.lang, title: document.title,
        };
        """
    )
    assert told["landmarks"] == [1, 1, 1, 1]
    for kind in ("unnamed", "figures", "captions", "scopes", "heads"):
        assert told[kind] == 0, kind
    assert told["levels"][0] == 1
    assert all(later - earlier <= 1 for earlier, later in zip(told["levels"], told["levels"][1:], strict=False))
    assert told["doubled"] == []
    assert (told["lang"], told["title"]) == ("en", "oct <diabetes> – Vitreous report")


def test_what_has_the_focus_is_seen(page):
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    seen = set()
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        tag, outline = page.execute_script(
            """const style = getComputedStyle(document.activeElement);
               return [document.activeElement.tagName, style.outlineStyle + " " + style.outlineWidth]"""
        )
        seen.add(tag)
        assert outline in ("solid 2px", "auto 1px"), tag
    assert {"A", "BUTTON"} <= seen


def test_it_prints_with_every_drawer_open(page):
    printed = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF-")
    assert page.execute_script("return [...document.querySelectorAll('details:not(.bulk)')].every(one => one.open)")


def test_every_table_fits_a_printed_page(page):
    page.execute_script("for (const one of document.querySelectorAll('details:not(.bulk)')) one.open = true")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        set_width(page, 720)  # A4 between margins
        cut = page.execute_script(
            """const right = one => one.getBoundingClientRect().right;
               return [...document.querySelectorAll("table, svg")].filter(one => right(one) > 721)
                 .map(one => one.textContent.trim().slice(0, 60))"""
        )
        assert cut == []
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_it_is_whole_without_scripts(browser, address):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        rows = browser.find_elements("css selector", "#leaderboard table.board tbody tr")
        assert len(rows) >= 5
        assert browser.find_elements("css selector", "thead button") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
