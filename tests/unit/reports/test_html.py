"""The HTML report from a real snapshot: whole, self-contained, escaped, and right about its numbers."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sparse_probing.errors import ArtifactError, InputError
from sparse_probing.reports import charts
from sparse_probing.reports.html import TEMPLATES, write_report
from sparse_probing.store.filesystem import Location
from sparse_probing.warehouse.checks import run_checks
from sparse_probing.warehouse.loading import load_results, publish
from tests.sql.rows import write_fragment, write_run

HOSTILE = '<script>alert("x")</script>&\'feature'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "input", "wbr"}


class Page(HTMLParser):
    """Collects tags and texts, and fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and css_class in ["", *(a.get("class") or "").split()]]


def make_snapshot(folder: Path, *, with_runs: bool = True) -> Path:
    root = Location.open(folder)
    working = folder / "working.duckdb"
    if with_runs:
        write_run(root, "a", features=(HOSTILE, "digit"), test_mcc=0.75)
        write_run(root, "b")
        write_fragment(root, "runs", "b", [{"revision": "step2", "model": "tiny<b>"}])
        write_fragment(root, "features", "b", [{"n_shared_groups": 1}])
        base: dict[str, Any] = {"feature": "digit", "layer": 1, "validation_mcc": 0.5, "train_mcc": 0.5}
        fits = [
            {
                **base,
                "fit_id": f"k{k}",
                "k": k,
                "test_mcc": mcc,
                "test_mcc_low": mcc - 0.125,
                "test_mcc_high": mcc + 0.125,
            }
            for k, mcc in ((1, 0.25), (2, 0.5), (4, 0.75))
        ]
        fits.append({**base, "fit_id": "dense", "k": 9, "test_mcc": 0.875, "variant": "dense"})
        fits.append({**base, "fit_id": "null", "k": 1, "test_mcc": -0.125, "variant": "shuffled_labels"})
        write_fragment(root, "probe_fits", "b", fits)
    load_results(working, root)
    if with_runs:
        run_checks(working, ["a", "b"], root)
    publish(working, folder / "results.duckdb")
    return folder / "results.duckdb"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(make_snapshot(folder), folder / "deep" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_from_elsewhere(text: str, page: Page) -> None:
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<img|<iframe|src=", text.replace("// ", ""))
    assert all((a.get("href") or "#").startswith("#") for _, a in page.tags)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_link_has_its_target(page: Page) -> None:
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= ids


def test_what_users_named_is_escaped(text: str, page: Page) -> None:
    assert "<script>alert" not in text
    assert "tiny<b>" not in text
    assert len(page.all("script")) == 1
    assert HOSTILE in "".join(page.texts)
    assert any(HOSTILE in (a.get("title") or "") for a in page.all("td", "best"))


def test_the_summary_and_the_heat_map_hold_the_snapshots_numbers(page: Page) -> None:
    assert page.texts.count("0.750") == 2
    titles = [a["title"] for a in page.all("td", "h5")]
    assert (
        "digit, layer 0, neuron 0 (rises): validation MCC 0.500, test MCC 0.750 [0.000, 1.000] on 200 rows (40 positive) of "
        "20 groups (15 with positives)"
    ) in titles
    # three features in two layers, one best layer each
    assert len(titles) == 6
    assert len(page.all("td", "best")) == 3


def test_curves_show_points_interval_dense_probe_and_baseline(text: str, page: Page) -> None:
    assert len(page.all("circle", "c0")) == 2 + 3
    assert len(page.all("polygon", "band")) == 1
    assert len(page.all("circle", "b0")) == 1
    assert "dense probe: test 0.875" in page.texts
    assert "heuristic_sparsity_sweep, k = 4, layer 1: test 0.750 [0.625, 0.875], validation 0.500" in text


def test_failed_checks_are_told_with_their_first_violation(page: Page) -> None:
    assert "digit: found 1 groups in more than one split; expected 0" in page.texts
    assert "check_shared_groups" in page.texts


def test_an_empty_snapshot_still_gives_a_page(tmp_path: Path) -> None:
    path = write_report(make_snapshot(tmp_path, with_runs=False), tmp_path / "report.html")
    assert "No neurons have been scored yet." in Page(path.read_text(encoding="utf-8")).texts


def test_a_report_is_replaced_and_leaves_no_scraps(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, with_runs=False)
    target = tmp_path / "out" / "report.html"
    write_report(snapshot, target)
    write_report(snapshot, target)
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Cannot write"):
        write_report(snapshot, tmp_path / "file" / "report.html")


def test_no_snapshot_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No published results"):
        write_report(tmp_path / "none.duckdb", tmp_path / "report.html")


def test_geometry_keeps_to_its_box() -> None:
    rows = [
        {
            "k": k,
            "variant": "real",
            "method": "m",
            "ranking": None,
            "metric": "r2",
            "layer": None,
            "dense_test_r2": 0.5,
        }
        | {"feature": "f", "test_r2": s, "validation_r2": s, "test_r2_low": None, "test_r2_high": None}
        for k, s in ((1, -7.0), (4, 0.0), (256, 1.0))
    ]
    (chart,) = charts.sparsity_charts(pd.DataFrame(rows), ["f", "absent"], {"m": "c0"}, {"f": "9 rows of 3 groups"})
    assert chart.tested == "9 rows of 3 groups"
    points = chart.curves[0].points
    assert [(p.x, p.y) for p in points] == [(30.0, 130.0), (83.0, 69.0), (242.0, 8.0)]
    assert chart.y_ticks[0].text == "-1"
    assert [tick.text for tick in chart.x_ticks] == ["1", "4", "256"]
    assert chart.dense_y == 38.5


N_LAYERS = 30
LONG = "no_leading_space_and_loweralpha_in_a_name_that_goes_on"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 30 layers, long names, all baselines, a falling neuron and a series of checkpoints."""
    folder = tmp_path_factory.mktemp("wide")
    root = Location.open(folder)
    for run_id, revision in (("a", "step1000"), ("b", "step2000")):
        model = {"model": "a/rather/long/path/to/final", "revision": revision, "layers": list(range(N_LAYERS))}
        write_run(root, run_id)
        write_fragment(root, "runs", run_id, [{**model, "collection": "programming_lang_id"}])
        features = ["digit", LONG, "x" * 60]
        write_fragment(root, "features", run_id, [{"feature": feature} for feature in features])
        scores = [
            {"feature": feature, "layer": layer, "neuron": 16000, "shortlisted": True, "validation_mcc": -layer / 64}
            | {"coef": -1.0, "intercept": 0.000123456, "test_mcc": -0.25, "test_mcc_low": -0.5, "test_mcc_high": -0.125}
            for feature in features
            for layer in range(N_LAYERS)
        ]
        write_fragment(root, "neuron_scores", run_id, scores)
        variants = ("real", "dense", "random_rotation", "token_identity", "shuffled_labels", "prevalence")
        fits = [
            {"feature": feature, "fit_id": f"{feature}-{variant}-{k}", "variant": variant, "layer": 0, "k": k}
            | {"validation_mcc": -0.5, "test_mcc": -0.25, "test_mcc_low": -0.5, "test_mcc_high": -0.125}
            for feature in features
            for variant in variants
            for k in (1, 256)
        ]
        write_fragment(root, "probe_fits", run_id, fits)
    load_results(folder / "working.duckdb", root)
    run_checks(folder / "working.duckdb", ["a", "b"], root)
    publish(folder / "working.duckdb", folder / "results.duckdb")
    return write_report(folder / "results.duckdb", folder / "report.html")


def test_every_score_stands_with_its_direction_and_what_it_rests_on(wide: Path) -> None:
    page = Page(wide.read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    for heading in ("direction", "threshold", "test rows, positive", "test groups, positive"):
        assert heading in page.texts
    assert page.texts.count("falls") == 2 * 3 + 2 * 3  # summary and checkpoints
    assert "0.000123" in page.texts
    assert page.texts.count("200, 40") == page.texts.count("20, 15") == 12
    rests = "200 rows (40 positive) of 20 groups (15 with positives)"
    assert text.count(rests) == 2 * 3 * 2 + 3  # charts and baselines, and charts of the series
    cells = [attributes["title"] or "" for attributes in page.all("td") if "title" in attributes]
    assert len(cells) == 2 * 3 * N_LAYERS
    assert all("(falls)" in title and rests in title for title in cells)
    assert page.texts.count("↓") == 2 * 3 * N_LAYERS


def test_a_series_has_a_chart_for_each_feature(wide: Path, text: str) -> None:
    section = wide.read_text(encoding="utf-8").split('<section id="checkpoints">')[1].split("</section>")[0]
    assert re.findall(r'aria-label="Test MCC over training steps for (\w+)"', section) == ["digit", LONG, "x" * 60]
    assert section.count('class="line last"') == 3 + 1  # the legend has one
    assert section.count("step2000, layer 0, neuron 16000 (falls): test MCC -0.250 [-0.500, -0.125]") == 3
    assert "2 checkpoints, step1000 to step2000" in section
    assert "<summary>6 rows:" in section
    # Two runs of one revision each, of two models: no series.
    assert 'id="checkpoints"' not in text


def test_layers_that_do_not_fit_side_by_side_go_below_one_another() -> None:
    rows = [{"feature": "f", "layer": layer, "validation_mcc": None} for layer in range(80)]
    maps = charts.heat_maps(pd.DataFrame(rows), ["f"], {})
    assert [len(one.layers) for one in maps] == [27, 27, 26]
    assert [layer for one in maps for layer in one.layers] == list(range(80))
    assert charts.heat_maps(pd.DataFrame(rows)[:0], [], {}) == ()


MEASURE = """<script>
const wide = [...document.querySelectorAll("table")].filter((table) => {
  const box = table.parentElement;
  const right = Math.max(...[...table.querySelectorAll("th, td")].map((cell) => cell.getBoundingClientRect().right));
  const edge = box.getBoundingClientRect().right;
  return box.scrollWidth > box.clientWidth || right > edge + 1 || right > innerWidth;
});
const n = document.querySelectorAll("table").length;
document.title = `measured ${n} tables at ${innerWidth}: ${wide.length} too wide, page ${document.documentElement.scrollWidth}`;
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_no_table_is_wider_than_its_page(wide: Path, tmp_path: Path) -> None:
    measured = tmp_path / "measured.html"
    measured.write_text(wide.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,3000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", measured.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True).stdout
    title = re.findall(r"<title>(.*?)</title>", dom)[0]
    assert re.fullmatch(r"measured 8 tables at 1400: 0 too wide, page 1\d+", title), title
    assert int(title.split()[-1]) <= 1400


def test_the_style_lets_names_break_and_layers_share_the_page() -> None:
    """What holds the widths, where there is no browser to measure them."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    assert re.search(r"\nth, td \{[^}]*overflow-wrap: anywhere", style)
    assert re.search(r"\.heat \{[^}]*table-layout: fixed; width: 100%", style)
    assert re.findall(r"([^\n{}]+) \{[^}]*white-space: nowrap", style) == ["td.n", ".heat th, .heat td"]
