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

import altair
import numpy as np
import pytest

from analysis import frame, report, statistics
from analysis.report import data
from bench.records.store import Stored
from tests.test_store import made

HERE, THERE = "test-2c", "other-8c"
EVIL = "<script>alert(1)</script>"
GOLD = np.arange(200) % 2


def answers(score):
    """Logits that are right for the first examples."""
    right = np.arange(200) < 2 * score
    return np.stack([(GOLD == 0) == right, (GOLD == 1) == right], 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Fake(Stored):
    """A record whose arrays lie in no file: as many right answers as its score says."""

    def arrays(self):
        dense, pruned = (answers(self.record[model]["score"]) for model in ("dense", "pruned"))
        units = np.full((2, 3), 1.0 + self.record["seed"])
        return {"gold": GOLD, "logits_dense": dense, "logits_pruned": pruned, "heads": units, "neurons": units}


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


RUNS = 10  # that were timed while nothing else ran


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


def board(page):
    """The leaderboard's rows by their headings."""
    part = section(page, "leaderboard")
    headings = [Reader(text).text.strip() for text in re.findall(r'<th scope="col".*?</th>', part, re.DOTALL)]
    return [dict(zip(headings, row, strict=True)) for row in cells(part)]


def test_rows_tell_seeds_from_examples_and_leave_out_what_does_not_compare(page):
    rows = board(page)
    kprune = next(row for row in rows if row["method"] == "kprune" and row["ratio"] == "0.5")
    expected = {"task": "mrpc", "model": "minilm", "tokens": "100\N{NO-BREAK SPACE}000", "score": "74.00 best", "rank": "1"}
    expected |= {"± seeds": "6.35", "dense": "80.00", "runs": "2", "speedup": "1.50 [1.40, 1.60]"}
    assert expected.items() <= kprune.items(), "t with one degree of freedom, standard error 0.5"
    assert 5 < float(kprune["± examples"]) < 7
    assert re.fullmatch(r"6\.00 \[-?\d+\.\d\d, \d+\.\d\d\]", kprune["points lost"])
    magnitude = next(row for row in rows if row["method"] == "magnitude")
    hidden = {"± seeds": "1 run", "passes": "–", "seconds": "–"}
    assert hidden.items() <= magnitude.items(), "seconds and passes need a machine for themselves"
    assert {row["model"] for row in rows} == {"minilm"}
    reason = "random weights: the score means nothing"
    assert ["magnitude", "mrpc", "bert-base", reason, "0.5", "0", "33.33", "1.50", HERE] in list(cells(section(page, "others")))


def test_what_has_collapsed_has_no_rank_and_is_tagged(page):
    magnitude = next(row for row in board(page) if row["method"] == "magnitude")
    assert (magnitude["rank"], magnitude["AUC rank"]) == ("collapsed", "–")
    (row,) = re.findall(r'<th scope="row">magnitude</th>(.*?)</tr>', section(page, "matrix"), re.DOTALL)
    assert '<small class="tag">collapsed</small>' in row
    assert 'href="#cell-' in row
    assert {cost["method"] for cost in data_of(page)["costs"] if cost["front_speedup"] or cost["front_passes"]} <= {"kprune", "kwon"}


def test_measures_without_a_threshold_stand_beside_the_score(page):
    kprune = next(row for row in board(page) if row["method"] == "kprune" and row["ratio"] == "0.5")
    for name in ("AUC (dense)", "Matthews (dense)"):
        assert re.fullmatch(r"\d+\.\d \(\d+\.\d\)", kprune[name])
    assert kprune["AUC rank"] == "1"


def test_nothing_on_a_front_is_beaten(tmp_path):
    costs = {"slow": (78.0, 9.0), "level": (78.0, 10.0), "quick": (77.0, 3.0), "beaten": (76.0, 5.0)}
    page = page_of(tmp_path, *(entry(name, score=score, seconds=seconds) for name, (score, seconds) in costs.items()))
    assert {cost["method"] for cost in data_of(page)["costs"] if cost["front_passes"]} == {"slow", "quick"}


def test_a_variant_of_a_method_is_an_ablation():
    methods = {"kprune", "kprune-one-shot", "tp-lamp", "magnitude", "magnitude + 5 epochs", "kprune remeasure=9", "kcm-r2"}
    assert {name for name in methods if data.is_ablation(name, methods)} == {"kprune-one-shot", "kprune remeasure=9"}


def test_timings_are_those_of_one_machine_and_the_others_can_be_reached(page):
    kwon = next(row for row in board(page) if row["method"] == "kwon" and row["ratio"] == "0.5")
    assert kwon["runs"] == "3", "its score counts"
    assert "4321" not in kwon["seconds"]
    assert f"<option>{THERE}</option>" in page
    (found,) = (cost for cost in data_of(page)["costs"] if cost["machine"] == THERE)
    assert (found["method"], found["seconds"]) == ("kwon", 4321.0)
    timings = json.loads(re.search(r"^const timings = (.*);$", page, re.MULTILINE)[1])
    assert timings[THERE][found["row"]]["seconds"] == ["4321.0", 4321.0]


def test_published_numbers_stand_beside_ours(page):
    rows = list(cells(section(page, "published")))
    assert {row[1] for row in rows} == {"kwon", "kprune"}
    assert all("other model" in row[-1] for row in rows)
    assert "kprune at 0.5 loses -1.1 (K-prune (Park, Choi, Kang))" in Reader(section(page, "plots")).text


def test_a_newer_run_of_a_seed_counts_and_the_older_is_shown(tmp_path):
    page = page_of(tmp_path, entry(score=60.0), entry(score=70.0, machine=THERE, created="2026-02-01T00:00:00Z"))
    (row,) = board(page)
    assert (row["score"], row["passes"]) == ("70.00", "2.00"), "its timings are still those of the machine"
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
    assert [len(found[name]) for name in ("runs", "cells", "costs")] == [RUNS, 5, 6]
    for point in found["runs"] + found["cells"] + found["costs"]:
        assert page.count(f'id="{point["row"]}"') == 1
    run = page[page.index('id="run-0"') :].split("</article>")[0]
    for part in ("python -m bench method=kwon", "&#34;mu&#34;: 64.0", "transformers", "1.50 [1.40, 1.60] at batch 32, 128 tokens"):
        assert part in run


def test_plots_are_valid_vega_lite(page):
    specs = json.loads(re.search(r"^const plots = (.*);$", page, re.MULTILINE)[1])
    for spec in (spec for modes in specs.values() for spec in modes.values()):
        altair.LayerChart.from_dict(spec)  # raises where the schema has something else


def test_plots_have_words_and_a_description_beside_them(page):
    for name in ("by-speedup", "by-passes", "by-ratio", "by-published", "by-bound"):
        assert f'id="{name}"' in page
        assert f'id="{name}-caption"' in page
    text = Reader(section(page, "plots")).text
    assert "kprune at 0.5: 74.00; kprune at 0.75: 71.50; kwon at 0.5" in text
    assert f"bert-base, random weights, {HERE}: magnitude at 0.5: 1.50 [1.40, 1.60] of 2.00" in text


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "No run has a score that compares (0 in all)."),
        ([entry(status="failed", reason=None)], "No run has a score that compares (1 in all: 1 failed)."),
        ([entry(status="failed", reason=None), entry(seed=1, status="skipped")], "(2 in all: 1 failed, 1 skipped)"),
        ([entry(source="random:bert")], "No run has a score that compares (1 in all: 1 with random weights)."),
        ([entry(machine=THERE)], "at 0.5 only kwon was run (70.00)"),
        ([entry(score=50.0)], "at 0.5 only kwon was run (50.00, collapsed)"),
        ([entry(score=50.0), entry("kcm", score=50.0)], "at 0.5 all 2 methods have collapsed or are suspect"),
        ([entry(score=70.0), entry("kcm", score=70.5)], "none is ahead beyond noise; the highest are kcm (70.50) and kwon (70.00)"),
    ],
)
def test_few_records_make_a_page_that_says_what_is_missing(tmp_path, records, words):
    reader = Reader(page_of(tmp_path, *records))
    assert words in reader.text
    assert not reader.open


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

    page_of(tmp_path, *varied(), entry("kprune-one-shot", ratio=0.75, score=66.0))
    browser.get((tmp_path / "report.html").as_uri())
    wait = WebDriverWait(browser, 30)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "html[data-ready]"))

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def column(heading):
        names = [one.text.replace("\n", " ").rstrip(" ▲▼") for one in browser.find_elements(By.CSS_SELECTOR, "#leaderboard thead th")]
        place = names.index(heading) + 1
        found = browser.find_elements(By.CSS_SELECTOR, f"#leaderboard tbody > tr:first-child > :nth-child({place})")
        return [cell.text for cell in found if cell.is_displayed()]

    def matrix():
        return [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".matrix tbody th") if one.is_displayed()]

    assert matrix() == ["kprune", "kwon", "magnitude"], "the least losing first"
    find("#choose [value='0.75'] + span").click()
    assert matrix() == ["kprune", "kwon"]
    find("#choose [name=hide] + span").click()
    assert matrix() == ["kprune", "kprune-one-shot", "kwon"]

    heading = find("#leaderboard thead th:nth-child(9)")
    for order in ("descending", "ascending"):
        heading.find_element(By.TAG_NAME, "button").click()
        assert heading.get_attribute("aria-sort") == order
        assert column("passes")[-1] == "–", "what is not known comes last"
        passes = [float(text) for text in column("passes") if text != "–"]
        assert passes == sorted(passes, reverse=order == "descending")

    Select(find("#filter [name=method]")).select_by_visible_text("kprune")
    assert column("method") == ["kprune", "kprune"]
    find("#filter [name=text]").send_keys("0.75")
    assert column("ratio") == ["0.75"]
    assert find("#count").text == "1 of 6 rows"
    find("#filter [type=reset]").click()

    Select(find("#machine")).select_by_visible_text(THERE)
    assert sorted(set(column("seconds"))) == ["4321.0", "–"]
    Select(find("#machine")).select_by_visible_text(HERE)

    def faint():
        marks = browser.find_elements(By.CSS_SELECTOR, "#by-ratio :is(.mark-symbol, .mark-line).role-mark path")
        return {mark.get_attribute("opacity") == "0.08" for mark in marks}

    wait.until(lambda _: faint() == {False})
    find(".legend [data-method=kwon]").click()
    wait.until(lambda _: faint() == {False, True})
    assert find(".legend [data-method=kwon]").get_attribute("aria-pressed") == "true"
    find(".legend [data-method=kwon]").click()
    wait.until(lambda _: faint() == {False})

    mark = browser.find_elements(By.CSS_SELECTOR, "#by-passes .mark-symbol.role-mark path")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    tooltip = wait.until(lambda _: find("#vg-tooltip-element.visible"))
    for fact in ("method", "dense", "speedup", "points lost"):
        assert fact in tooltip.text
    ActionChains(browser).click(mark).perform()
    run = wait.until(lambda _: find("article.found"))
    assert run.is_displayed()
    assert "python -m bench method=" in run.text
    assert browser.switch_to.active_element == find("tbody:has(.found)")
    below = "return arguments[0].getBoundingClientRect().top - document.querySelector('#leaderboard thead').getBoundingClientRect().bottom"
    wait.until(lambda _: browser.execute_script(below, find("tbody:has(.found)")) >= -1)
    title = "return document.elementFromPoint(arguments[0].getBoundingClientRect().left + 2, arguments[0].getBoundingClientRect().top + 4)"
    assert browser.execute_script(title, find("article.found h4")) == find("article.found h4")
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []


def test_on_a_phone_the_page_is_as_wide_as_the_screen_and_names_wrap(tmp_path, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    page_of(tmp_path, *varied(), entry("magnitude + 15 epochs distilled in 3 rounds"))
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((tmp_path / "report.html").as_uri())
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script("return 'ready' in document.documentElement.dataset"))
    assert browser.execute_script("return document.documentElement.scrollWidth") == 400
    for table in ("#leaderboard", "#matrix"):
        assert browser.execute_script(f"return document.querySelector('{table} tbody th').offsetWidth") <= 9 * 16
