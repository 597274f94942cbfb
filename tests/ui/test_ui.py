"""The UI as a user sees it: `make ui`, a real browser, the asset graph, figures, and curves that grow."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parent.parent.parent
STUDY = """
description: A minute's worth of digits for the UI test.
data: {dataset: digits, num_train: 100}
variants:
  small:
    architecture: preact_resnet10
    label_noise: 0.2
    batch_size: 50
    optimizer: {name: adam, learning_rate: 2.0e-3}
widths: [1, 2, 3]
trials: 2
epochs: 2
checkpoints: [0, 2]
"""

FIGURE = "/lab/figures/double_descent_curve"
# To be watched for as long as it takes, and then killed.
LONG = STUDY.replace("epochs: 2", "epochs: 9000").replace("[0, 2]", "[0, 9000]").replace("[1, 2, 3]", "[1]")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not os.environ.get("CI") and not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver (.ci/run installs them)",
    ),
]


def wait_for(condition, seconds, what):
    """Poll until the condition holds; a bound on patience, not a measurement."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.2)
    raise AssertionError(f"no {what} within {seconds} s")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A data root of its own with a small trained study and one figure of it, made by the commands a user types."""
    folder = tmp_path_factory.mktemp("ui")
    studies = folder / "studies"
    studies.mkdir()
    (studies / "tiny.yaml").write_text(STUDY, encoding="utf-8")
    (studies / "long.yaml").write_text(LONG, encoding="utf-8")
    (studies / "broken.yaml").write_text(STUDY.replace("epochs: 2", "epochs: 1"), encoding="utf-8")
    home = folder / "dagster"
    environment = {**os.environ, "DD_ROOT": str(folder / "data"), "DAGSTER_HOME": str(home), "DD_STUDIES": str(studies)}
    commands = (
        "source ./env.sh && dagster asset materialize --select 'tiny/checkpoints' "
        "--partition-range 'small.k001|0000...small.k003|0002' && "
        "dagster asset materialize --select double_descent_curve"
    )
    subprocess.run(["bash", "-c", commands], cwd=ROOT, env=environment, check=True, capture_output=True)
    return environment


@pytest.fixture(scope="module")
def address(environment):
    """The address of a running `make ui`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Path(environment["DAGSTER_HOME"], "ui.log").open("wb") as log:
        server = subprocess.Popen(
            ["make", "ENVIRONMENT=:", "ui"],  # nothing is installed while tests run
            cwd=ROOT,
            env={**environment, "DD_PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def answers():
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_for(answers, 90, "answer from the UI")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a new profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1600,1100",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def shows(browser, text):
    """Wait until the page shows a text."""
    WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(
        lambda driver: text in driver.find_element(By.TAG_NAME, "body").text
    )


def keep_screenshot(browser, name):
    """Keep a picture of the page where DD_SCREENSHOTS says, for people to look at."""
    folder = os.environ.get("DD_SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder, f"{name}.png")))


def test_asset_graph_shows_the_quickstart_assets(address, browser):
    browser.get(f"{address}/asset-groups/?open-nodes%5B0%5D=double_descent_lab%3Aquickstart")
    shows(browser, "quickstart")

    def unfold(driver):
        for button in driver.find_elements(By.CSS_SELECTOR, 'foreignObject [aria-label="unfold_more"]'):
            try:
                button.click()
                return "per_image_curvature" in driver.find_element(By.TAG_NAME, "body").text
            except (StaleElementReferenceException, WebDriverException):
                return False
        return "per_image_curvature" in driver.find_element(By.TAG_NAME, "body").text

    browser.get(f"{address}/locations/double_descent_lab/asset-groups/quickstart/lineage")
    WebDriverWait(browser, 60).until(unfold)
    shows(browser, "checkpoints")
    shows(browser, "per_image_curvature")
    keep_screenshot(browser, "asset_graph")


def test_figure_preview_renders_and_leads_to_the_interactive_page(address, browser):
    browser.get(f"{address}/assets/double_descent_curve?view=overview")
    picture = f'img[src="{FIGURE}.svg"]'
    image = WebDriverWait(browser, 60).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, picture))[0]
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script("return arguments[0].complete", image))
    assert browser.execute_script("return arguments[0].naturalWidth", image) > 300, "it shows without a click"
    browser.get(f"{address}/assets/double_descent_curve?view=events")
    shows(browser, "tiny")
    link = WebDriverWait(browser, 60).until(
        lambda driver: driver.find_elements(By.XPATH, "//*[contains(text(), 'Show Markdown')]")
    )[0]
    browser.execute_script("arguments[0].click()", link)
    image = WebDriverWait(browser, 60).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, 'img[src^="data:image"]')
    )[0]
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script("return arguments[0].complete", image))
    natural, shown = browser.execute_script("return [arguments[0].naturalWidth, arguments[0].clientWidth]", image)
    assert natural == shown > 300, "as wide as it is"
    keep_screenshot(browser, "figure_preview")
    browser.execute_script("arguments[0].click()", browser.find_element(By.LINK_TEXT, "Open interactive"))
    WebDriverWait(browser, 60).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, ".vega-embed canvas, .vega-embed svg")
    )
    assert browser.current_url == f"{address}{FIGURE}/tiny.html", "of the same origin"


def test_the_first_page_leads_to_studies_figures_and_what_is_broken(address, browser):
    browser.get(address)
    shows(browser, "broken.yaml is broken")
    assert browser.current_url == f"{address}/lab/"
    assert browser.find_elements(By.CSS_SELECTOR, f'a[href="{FIGURE.removeprefix("/lab/")}/tiny.html"]')
    keep_screenshot(browser, "studies")
    browser.get(f"{address}/assets/broken_studies/broken_yaml?view=checks")
    shows(browser, "Failed")
    shows(browser, "epoch 2 is beyond the last epoch, 1")


def test_curves_grow_by_themselves_while_an_arm_trains(environment, browser):
    """`make watch` and a training, both as a user types them; the page is loaded once, before anything is there."""
    commands = {
        "watch": "exec python -m dd_assets.watch --port 0",
        "train": "dagster asset materialize --select long/checkpoints --partition 'small.k001|9000'",
    }
    started = {}

    def start(name):
        command = ["bash", "-c", f"source ./env.sh && {commands[name]}"]
        output = subprocess.PIPE if name == "watch" else subprocess.DEVNULL
        options = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        started[name] = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)
        return started[name]

    def epoch():
        """Where the arm is, whatever the page calls it: a slow machine falls silent, a fast one gets to the end."""
        return browser.execute_script("""
            const row = document.querySelector('tr[data-arm="small.k001"]');
            return row && document.getElementById("title").textContent === "long" ? Number(row.dataset.epoch) : 0;
        """)

    def end_of_line():
        """The last epoch of the drawn curves; the number of their points grows no more after a while."""
        return browser.execute_script("""
            const marks = group => (group.items || []).flatMap(item =>
                item.items ? item.items.flatMap(mark => mark.marktype === "line" ? mark.items : marks(mark)) : []);
            return charts ? Math.max(0, ...marks(charts[0].scenegraph().root).map(item => item.datum.epoch)) : 0;
        """)

    try:
        said = []
        for line in start("watch").stdout:
            said.append(line)
            if "http://" in line:
                break
        assert "http://" in "".join(said), said
        url = said[-1].split(" at ")[1].split()[0]
        browser.get(f"{url}?study=long")
        browser.execute_script("window.loaded = 'once'")
        start("train")
        browser.get_log("browser")
        first = wait_for(epoch, 90, "arm in training on the page")
        drawn = wait_for(end_of_line, 30, "curve")
        wait_for(lambda: epoch() > first, 60, "growth of the table")
        wait_for(lambda: end_of_line() > drawn, 60, "growth of the curve")
        assert browser.execute_script("return window.loaded") == "once"
        keep_screenshot(browser, "live")
    finally:
        for process in started.values():
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate()
