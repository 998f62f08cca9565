"""The report: one page, no network, nothing of a record unescaped, and in a browser what it promises."""

import copy
import json
import re
import shutil
import time
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from analysis import frame, report, statistics
from bench.store import Stored
from tests.test_store import made

HERE, THERE = "test-2c", "other-8c"
EVIL = "<script>alert(1)</script>"
GOLD = np.arange(200) % 2


@dataclass(frozen=True)
class Fake(Stored):
    """A record whose arrays lie in no file: as many right answers as its score says."""

    def arrays(self):
        right = np.arange(200) < 2 * self.record["pruned"]["score"]
        logits = np.stack([(GOLD == 0) == right, (GOLD == 1) == right], 1).astype(np.float32)
        units = np.full((2, 3), 1.0 + self.record["seed"])
        return {"gold": GOLD, "logits_dense": logits, "logits_pruned": logits, "heads": units, "neurons": units}


@cache
def blank():
    return made()


def entry(method="kwon", seed=0, ratio=0.5, score=70.0, machine=HERE, status="ok", source="hub:x", notes=(), seconds=8.0, **changes):
    record = {**copy.deepcopy(blank()), "method": {"name": method, "mu": 64.0}, "seed": seed, "ratio": ratio, "status": status}
    record |= {"task": "mrpc", "model": "minilm", "command": f"python -m bench method={method}", **changes}
    record["machine"] |= {"name": machine, "load": 0.0, "cpu": "Some CPU", "cores": 2}
    record["calibration"] |= {"tokens": 100_020, "examples": 800}
    record["dense"] |= {"score": 80.0, "metrics": {"accuracy": 80.0}, "checkpoint": {"source": source, "sha256": "c" * 64}}
    if status == "ok":
        record["pruned"] |= {"score": score, "metrics": {"accuracy": score}, "flops_kept": 0.5, "params_kept": 0.5}
        record["prune"] |= {"seconds": seconds, "passes": seconds / 4, "peak_bytes": 10**8, "notes": list(notes)}
        record["latency"]["headline"] |= {"speedup": 1.5, "low": 1.4, "high": 1.6}
        record["latency"]["limits"] = {"flops_bound": 2.0, "verdict": "FLOPs"}
    return record


def frame_of(*records, problems=()):
    stored = {f"results/{i}": Fake(record, Path(f"results/{i}")) for i, record in enumerate(records)}
    return frame.Frame(frame.of(stored), stored, list(problems))


def page_of(tmp_path, *records, machine=HERE, missing=(), problems=()):
    target = tmp_path / "report.html"
    report.write(frame_of(*records, problems=problems), machine, target, list(missing))
    return target.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a page would fetch, its text without scripts and styles, and tags that are never closed."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        links = [found.get(name) for name in ("src", "srcset", "data", "poster", "action")]
        links.append(found.get("href") if tag != "a" else None)
        self.fetched += [link for link in links if link]
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("page"), *varied(), missing=["small: qnli 0.5 kwon"], problems=["results/x: broken"])


def varied():
    """Two methods and ratios, two seeds; another machine's timings; random weights; a failed and a skipped run."""
    methods = product((("kwon", 70.0), ("kprune", 78.5)), (0.5, 0.75), (0, 1))
    runs = [entry(name, seed, ratio, score - 10 * ratio + seed, seconds=5 + score * ratio) for (name, score), ratio, seed in methods]
    return [
        *runs,
        entry("kwon", 2, machine=THERE, seconds=4321.0),
        entry("magnitude", score=50.0, seconds=1234.5, notes=["other work on the machine while pruning: 0.4 per core"]),
        entry("magnitude", model="bert-base", source="random:bert", score=33.33),
        entry("flap", status="failed", reason=f'Traceback:\n  File "x"\nValueError: {EVIL}'),
        entry("cofi", status="skipped", reason="needs a teacher"),
    ]


def test_it_is_one_page_of_whole_tags_that_fetches_nothing(page):
    reader = Reader(page)
    assert reader.fetched == []
    assert not reader.open
    assert not re.search(r"@import|url\(", page[: page.index("<body>")])
    assert "default-src 'none'" in page, "and no browser would let it"


def test_what_records_say_is_text_and_never_markup(tmp_path):
    page = page_of(
        tmp_path,
        entry("kwon", command=f"python -m bench {EVIL}", task=EVIL, model=f'"{EVIL}'),
        entry("kprune", task=EVIL, model=f'"{EVIL}'),
        entry("flap", status="failed", reason=EVIL),
        missing=[EVIL],
        problems=[EVIL],
    )
    assert EVIL not in page
    assert "alert(1)" not in "".join(re.findall(r'="([^"]*)"', page)).replace("&lt;script&gt;alert(1)&lt;/script&gt;", "")
    assert EVIL in Reader(page).text
    Reader(page)


def test_the_summary_counts_and_names_the_best(page):
    text = Reader(page).text
    for name, count in {"runs": 13, "tasks": 1, "models": 2, "methods": 5, "machines": 2, "seeds": 3}.items():
        assert f"<dt>{name}</dt><dd>{count}</dd>" in page
    assert "at 0.5 kprune is best (74.00); at 0.75 kprune is best (71.50)." in text


def test_rows_tell_seeds_from_examples_and_leave_out_what_does_not_compare(page):
    board = section(page, "leaderboard")
    kprune = next(row for row in cells(board) if row[0] == "kprune" and row[4] == "0.5")
    assert kprune[:6] == ["kprune", "mrpc", "minilm", "100\N{NO-BREAK SPACE}000", "0.5", "74.00 best"]
    assert kprune[6:8] == ["6.35", kprune[7]], "t with one degree of freedom, standard error 0.5"
    assert 5 < float(kprune[7]) < 7
    assert kprune[8:11] == ["80.00", "6.00", "2"]
    assert kprune[13] == "1.50 [1.40, 1.60]"
    magnitude = next(row for row in cells(board) if row[0] == "magnitude")
    assert (magnitude[6], magnitude[11], magnitude[12]) == ("1 run", "–", "–"), "seconds and passes need a machine for themselves"
    assert "bert-base" not in board
    assert ["magnitude", "mrpc", "bert-base", "random weights", "0.5", "0", "33.33", "1.50"] in list(cells(section(page, "others")))


def test_timings_are_those_of_one_machine(page):
    assert "4321" not in page
    kwon = next(row for row in cells(section(page, "leaderboard")) if row[0] == "kwon" and row[4] == "0.5")
    assert kwon[10] == "3", "its score counts"
    assert {point["row"] for point in data_of(page)["runs"]} == {f"run-{i}" for i in (*range(8), 9, 10)}


def test_a_newer_run_of_a_seed_counts_and_the_older_is_shown(tmp_path):
    page = page_of(tmp_path, entry(score=60.0), entry(score=70.0, machine=THERE, created="2026-02-01T00:00:00Z"))
    (row,) = cells(section(page, "leaderboard"))
    assert (row[5], row[11]) == ("70.00", "2.00"), "its timings are still those of the machine"
    assert "kwon, seed 0, test-2c, 2026-01-01 (not in the score" in page
    assert page.count("(not in the score") == 1


def test_failed_skipped_missing_and_broken_are_told(page):
    failures = list(cells(section(page, "failures")))
    assert ["failed", "flap", "mrpc", "minilm", "0.5", "0", HERE, f"ValueError: {EVIL}"] in failures
    assert ["skipped", "cofi", "mrpc", "minilm", "0.5", "0", HERE, "needs a teacher"] in failures
    missing = Reader(section(page, "missing")).text
    assert "small: qnli 0.5 kwon" in missing
    assert "results/x: broken" in missing


def test_every_point_leads_to_its_run_with_configuration_command_and_versions(page):
    found = data_of(page)
    assert {len(found["runs"]), len(found["cells"])} == {10, 5}
    for point in found["runs"] + found["cells"]:
        assert page.count(f'id="{point["row"]}"') == 1
    run = page[page.index('id="run-0"') :].split("</article>")[0]
    for part in ("python -m bench method=kwon", "&#34;mu&#34;: 64.0", "transformers", "1.50 [1.40, 1.60] at batch 32, 128 tokens"):
        assert part in run


def test_plots_have_words_and_a_description_beside_them(page):
    for name in ("by-passes", "by-seconds", "by-ratio", "by-bound"):
        assert f'id="{name}"' in page
        assert f'id="{name}-caption"' in page
    text = Reader(section(page, "plots")).text
    assert "kprune at 0.5: 74.00; kprune at 0.75: 71.50; kwon at 0.5" in text
    assert "bert-base, random weights: magnitude at 0.5: 1.50 of 2.00" in text


def test_few_records_suffice(tmp_path):
    assert "No run has a score" in page_of(tmp_path)
    page = page_of(tmp_path, entry(status="failed", reason=None))
    assert "no reason recorded" in page
    page = page_of(tmp_path, entry(machine=THERE))
    assert "only kwon was run (70.00)" in page


def test_a_thousand_records_stay_small_and_quick(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    methods = ["kprune", "kprune-no-tuning", "kwon", "kcm", "flap", "wanda-sp", "fisher", "taylor", "magnitude", "tp-lamp"]
    grid = product(methods, ("mrpc", "sst2", "stsb", "qnli", "mnli"), ("minilm", "mpnet-base"), (0.5, 0.75), range(5))
    records = [entry(method, seed, ratio, 50 + seed, task=task, model=model) for method, task, model, ratio, seed in grid]
    assert len(records) == 1000
    for record in records:  # as long as they get
        record["command"] += " calibration.tokens=25000 latency=paper model=mpnet-base task=mrpc ratio=0.75 seed=2"
        record["pruned"] |= {"heads": [12] * 12, "neurons": [3072] * 12}
        record["latency"]["limits"]["verdict"] = "the speedup is what the removed FLOPs allow, " * 3
    start = time.monotonic()
    page = page_of(tmp_path, *records)
    assert len(page.encode()) < 5_000_000
    assert time.monotonic() - start < 60


def section(page, name):
    start = page.index(f'<section id="{name}"')
    return page[start : page.index("</section>", start)]


def cells(part):
    """The rows of a section's table, without what opens below them."""
    for row in re.findall(r'<tbody id="[^"]*" tabindex="-1"><tr>(.*?)</tr>', part, re.DOTALL):
        yield [Reader(cell).text for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)]


def data_of(page):
    return json.loads(re.search(r"^const data = (.*);$", page, re.MULTILINE)[1])


@pytest.fixture
def browser(monkeypatch):
    """Headless Chromium, where there is one."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


def test_in_a_browser_it_sorts_filters_shows_and_leads_to_runs(tmp_path, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    page_of(tmp_path, *varied())
    browser.get((tmp_path / "report.html").as_uri())
    wait = WebDriverWait(browser, 30)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "html[data-ready]"))

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def column(number):
        found = browser.find_elements(By.CSS_SELECTOR, f"#leaderboard tbody > tr:first-child > :nth-child({number})")
        return [cell.text for cell in found if cell.is_displayed()]

    heading = find("#leaderboard thead th:nth-child(12)")
    for order in ("descending", "ascending"):
        heading.find_element(By.TAG_NAME, "button").click()
        assert heading.get_attribute("aria-sort") == order
        assert column(12)[-1] == "–", "what is not known comes last"
        passes = [float(text) for text in column(12)[:-1]]
        assert passes == sorted(passes, reverse=order == "descending")

    Select(find("#filter [name=method]")).select_by_visible_text("kprune")
    assert column(1) == ["kprune", "kprune"]
    find("#filter [name=text]").send_keys("0.75")
    assert column(5) == ["0.75"]
    assert find("#count").text == "1 of 5 rows"

    mark = browser.find_elements(By.CSS_SELECTOR, "#by-passes .mark-symbol.role-mark path")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    tooltip = wait.until(lambda _: find("#vg-tooltip-element.visible"))
    for fact in ("method", "dense score", "speedup", "versions"):
        assert fact in tooltip.text
    ActionChains(browser).click(mark).perform()
    run = wait.until(lambda _: find("article.found"))
    assert run.is_displayed()
    assert "python -m bench method=" in run.text
    assert run == browser.switch_to.active_element
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
