"""The page is self-contained, escapes text of users, and renders in a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Pmmrec
from PIL import Image

from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.report.html import require_report
from pmmrec.report.html.page import ReportPlan, write_report

SCRIPT = "<script>document.title='pwned'</script>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
Write = Callable[..., tuple[Path, list[str]]]
VOID = {"meta", "img", "link", "br", "input"}


class Elements(HTMLParser):
    """Every element of a page with its attributes, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Elements:
    page = Elements()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture
def write(evaluated: Path, hostile: Path, checkpoint: Path, system_name: str, tmp_path: Path) -> Write:
    """Write the page of the evaluation or of another run; returns the file and the warnings."""

    def page(run: Path = evaluated, **values: Any) -> tuple[Path, list[str]]:
        warned: list[str] = []
        given = {"out": tmp_path / "page.html", "domains": (hostile,), "cache": tmp_path / "c", "num_points": 50}
        plan = ReportPlan(**{**given, "checkpoints": (f"{system_name}={checkpoint}",), **values})
        return write_report([str(run)], plan, warned.append)[0], warned

    return page


def test_the_page_has_no_scripts_or_external_resources(write: Write) -> None:
    path, _ = write()
    elements, style = read(path).found, path.read_text(encoding="utf-8").partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert not {"script", "link", "iframe", "object", "form", "b", "i", "u", "base"} & {tag for tag, _ in elements}
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        addresses = [attributes[name] or "" for name in ("src", "href", "action", "srcset") if name in attributes]
        assert all(address.startswith("data:image/") for address in addresses), (tag, attributes)


def test_text_of_users_is_escaped(write: Write, system_name: str) -> None:
    path, _ = write()
    text, said = path.read_text(encoding="utf-8"), "".join(read(path).text)
    assert SCRIPT not in text
    assert SCRIPT in said
    assert f"User <b>u1</b>{SCRIPT}" in said or f"User <b>u2</b>{SCRIPT}" in said
    assert system_name in said
    assert "{{ 7 * 7 }}" in said


def test_pictures_say_what_they_show_and_tables_have_headings(write: Write) -> None:
    elements = read(write()[0]).found
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) > 10
    assert all(attributes.get("alt") for attributes in pictures)
    assert next(attributes for tag, attributes in elements if tag == "html") == {"lang": "en"}
    headings = [attributes for tag, attributes in elements if tag == "th"]
    assert {attributes["scope"] for attributes in headings} == {"col", "row"}


def test_items_without_picture_show_their_text_and_the_next_item_is_marked_in_words(
    write: Write,
) -> None:
    path, _ = write()
    said = "".join(read(path).text)
    assert "no picture" in said
    assert "✓ next" in said
    assert re.search(r"the next item is in the list, at rank\s+\d", said)


def test_a_folder_gets_the_pictures_beside_the_page(write: Write, small_run: Path, tmp_path: Path) -> None:
    page, _ = write(out=tmp_path / "folder")
    assert page == tmp_path / "folder" / "report.html"
    assert {file.name for file in page.parent.iterdir()} == {"report.html", "items.png", "users.png"}


def test_curves_are_of_all_runs_that_were_trained(small_run: Path, tmp_path: Path) -> None:
    run, out = str(small_run / "runs" / "small"), tmp_path / "folder"
    warned: list[str] = []
    write_report([run], ReportPlan(out=out, metric="hr@20", domains=(Path("none"),)), warned.append)
    assert Image.open(out / "curves.png").size == (1050, 540)
    said = "".join(read(out / "report.html").text)
    assert "Validation HR@20 by epoch" in said
    assert not warned


def test_several_domains_share_one_map(small_run: Path, world: Path, tmp_path: Path) -> None:
    domains = (world / "bazaar", world / "gallery")
    plan = ReportPlan(out=tmp_path / "page.html", domains=domains, cache=tmp_path / "c", num_points=60)
    (page,) = write_report([str(small_run / "runs" / "small")], plan, lambda _: None)
    alts = [attributes["alt"] or "" for tag, attributes in read(page).found if tag == "img"]
    assert "Map of 60 items, by domain. bazaar: 30, gallery: 30." in alts
    assert "What 6 users would be shown: small on bazaar" in "".join(read(page).text)


@pytest.fixture
def two_runs(small_run: Path, tmp_path: Path) -> list[str]:
    """Two trainings on the same domains; the second is better on validation and has other lists."""
    runs = [Path(shutil.copytree(small_run / "runs" / "small", tmp_path / name)) for name in ("worse", "better")]
    for place, run in enumerate(runs):
        metrics = json.loads((run / "metrics.json").read_text())
        better = {name: value + place for name, value in metrics["validation"].items()}
        (run / "metrics.json").write_text(json.dumps({**metrics, "name": run.name, "validation": better}))
    return [str(run) for run in runs]


def test_every_system_with_a_checkpoint_has_lists_best_system_first(
    two_runs: list[str], world: Path, tmp_path: Path
) -> None:
    given = {"cache": tmp_path / "c", "num_points": 20, "num_users": 2}
    (page,) = write_report(two_runs, ReportPlan(out=tmp_path / "page.html", **given), lambda _: None)
    said = " ".join("".join(read(page).text).split())
    assert "What 2 users would be shown: better, worse on bazaar" in said
    assert re.findall(r"(\w+) shows, best first:", said) == 2 * ["better", "worse"]
    assert "as better sees them" in said
    assert said.count("Taken next") == 2
    named = ReportPlan(out=tmp_path / "named.html", checkpoints=(f"worse={two_runs[0]}/checkpoint",), **given)
    (page,) = write_report(two_runs, named, lambda _: None)
    assert "What 2 users would be shown: worse on bazaar" in "".join(read(page).text)


def test_at_most_four_systems_have_lists_and_the_others_are_named(
    two_runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmmrec.report.html.page.MOST_LISTS", 1)
    plan = ReportPlan(out=tmp_path / "page.html", cache=tmp_path / "c", num_points=20, num_users=1)
    warned: list[str] = []
    (page,) = write_report(two_runs, plan, warned.append)
    assert "What 1 user would be shown: better on bazaar" in "".join(read(page).text)
    assert "no lists of worse: lists of 1 are shown; name others with --checkpoint NAME=PLACE" in warned


def test_a_system_without_ranks_has_no_lists_but_others_do(two_runs: list[str], tmp_path: Path) -> None:
    (Path(two_runs[1]) / "ranks-bazaar.parquet").unlink()
    plan = ReportPlan(out=tmp_path / "page.html", cache=tmp_path / "c", num_points=20, num_users=1)
    warned: list[str] = []
    (page,) = write_report(two_runs, plan, warned.append)
    assert "What 1 user would be shown: worse on bazaar" in "".join(read(page).text)
    assert any(note.startswith("no lists of better: ") and "measure the run again" in note for note in warned)


def test_items_can_be_told_apart_by_an_attribute(write: Write, tmp_path: Path) -> None:
    page, _ = write(attribute="kind", num_users=0)
    alts = [attributes["alt"] or "" for tag, attributes in read(page).found if tag == "img"]
    assert any("by kind. <u>kind 0</u>: 6, <u>kind 1</u>: 5, <u>kind 2</u>: 5." in alt for alt in alts)
    with pytest.raises(DataError, match="items have no attribute 'colour'; they have: kind"):
        write(attribute="colour", out=tmp_path / "other.html")


def test_gaps_are_noted_on_the_page_and_as_warnings(write: Write, checkpoint: Path) -> None:
    page, warned = write(checkpoints=(str(checkpoint),))
    said = "".join(read(page).text)
    assert len(warned) == 2
    assert "has no events.jsonl" in warned[0]
    assert "is not the checkpoint of a run here" in warned[1]
    assert all(f"Note: {note}" in said for note in warned)


def test_an_existing_output_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "taken.html").write_text("mine")
    with pytest.raises(RecipeError, match=r"taken\.html: exists"):
        write(out=tmp_path / "taken.html")
    assert (tmp_path / "taken.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["page.pdf", "page.md", "page.html.gz"])
def test_the_suffix_of_a_page_must_be_html(write: Write, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        RecipeError, match=r"--out .*: cannot write \.\w+ files; end the name in \.html or \.htm, or name"
    ):
        write(out=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_lists_are_shown_on_the_domain_of_the_run_alone(
    write: Write, world: Path, evaluated: Path, tmp_path: Path
) -> None:
    _, warned = write(domains=(world / "boutique",))
    assert "was measured on regular targets of hostile; they need regular ones, and that domain" in warned[-1]
    other = Path(shutil.copytree(evaluated, tmp_path / "run"))
    metrics = other / "metrics.json"
    metrics.write_text(re.sub(r'"fingerprint": "\w+"', '"fingerprint": "another"', metrics.read_text()))
    with pytest.raises(DataError, match=r"is not the hostile that .* was measured on, its content differs"):
        write(other, out=tmp_path / "other.html")


def test_the_domain_is_found_where_the_run_read_it(write: Write, tmp_path: Path) -> None:
    named, _ = write()
    found, warned = write(domains=(), out=tmp_path / "found.html")
    assert found.read_bytes() == named.read_bytes()
    assert len(warned) == 1


def test_a_missing_and_a_changed_domain_are_refused_with_different_messages(
    write: Write, evaluated: Path, hostile: Path, world: Path, tmp_path: Path
) -> None:
    run, moved = (Path(shutil.copytree(evaluated, tmp_path / "run")), tmp_path / "moved")
    (run / "domains.json").write_text(json.dumps({"hostile": str(moved)}))
    with pytest.raises(DataError, match=r"run: read hostile in .*moved, which cannot be opened .*give --domain FOLDER"):
        write(run, domains=())
    shutil.copytree(world / "boutique", moved)
    with pytest.raises(DataError, match=r"moved, which now holds something else \(boutique\); give --domain FOLDER"):
        write(run, domains=())
    write(run, domains=(hostile,), out=tmp_path / "named.html")


def test_a_checkpoint_whose_save_was_killed_between_its_renames_is_shown(
    small_run: Path, world: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_run / "runs" / "small", tmp_path / "run"))
    (run / "checkpoint").rename(run / "checkpoint.previous")
    plan = ReportPlan(
        out=tmp_path / "page.html", domains=(world / "gallery",), num_users=0, num_points=20, cache=tmp_path / "c"
    )
    warned: list[str] = []
    write_report([str(run)], plan, warned.append)
    assert not warned


def test_a_domain_named_twice_is_refused(write: Write, hostile: Path) -> None:
    with pytest.raises(RecipeError, match=r"--domain: 'hostile' is named twice"):
        write(domains=(hostile, hostile))


def test_a_metric_that_no_epoch_has_is_refused_by_the_run_that_lacks_it(small_run: Path, tmp_path: Path) -> None:
    plan = ReportPlan(out=tmp_path / "page.html", metric="foo", domains=(Path("none"),))
    with pytest.raises(RecipeError, match=r"--metric foo: .*small/events\.jsonl: epoch 0 has no 'foo'; it has hr@10"):
        write_report([str(small_run / "runs" / "small")], plan, lambda _: None)
    assert not (tmp_path / "page.html").exists()


def test_seeds_are_those_that_a_map_can_be_drawn_with() -> None:
    with pytest.raises(ValueError, match="less than 4294967296"):
        ReportPlan(out=Path("page.html"), seed=2**32)


def test_a_page_without_items_can_be_asked_for(write: Write, tmp_path: Path) -> None:
    page, warned = write(domains=(Path("none"),), checkpoints=())
    assert "Items and users" not in page.read_text()
    assert len(warned) == 1
    with pytest.raises(ValueError, match="attribute: has no effect with `--domain none`"):
        write(domains=(Path("none"),), checkpoints=(), attribute="kind", out=tmp_path / "other.html")


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmmrec.report.html.find_spec", lambda name: None if name in ("jinja2", "sklearn") else name)
    with pytest.raises(
        MachineError, match=r"report: jinja2 and scikit-learn are not installed; pip install -e '\.\[report\]'"
    ):
        require_report()


def test_the_command_prints_the_path_of_the_page_and_its_gaps(evaluated: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("report", evaluated, "--out", tmp_path / "page.html")
    assert result.code == 0, result.output
    assert str(tmp_path / "page.html") in result.output
    assert "warning: no maps and no lists of users" in result.output
    again = pmmrec("report", evaluated, "--out", tmp_path / "page.html")
    assert (again.code, "exists" in again.output) == (2, True)
    assert pmmrec("report", tmp_path / "nowhere", "--out", tmp_path / "b.html").code == 3


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome to look at the page with")
def test_a_browser_shows_the_page_without_running_scripts(write: Write, tmp_path: Path) -> None:
    """Every other item has a magenta picture; the title would change if markup in a text took effect."""
    page, _ = write()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shot = tmp_path / "shot.png"
    common = (str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", profile)
    size = ("--window-size=1200,6000", f"--screenshot={shot}")
    subprocess.run([*common, *size, page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")).astype(int)
    is_magenta = (abs(pixels - (255, 0, 255)) < 12).all(axis=-1)
    assert is_magenta.sum() > 20 * 60 * 80  # twenty thumbnails or more are in sight
    dark = (pixels < 60).all(axis=-1)
    assert 0.002 < dark.mean() < 0.2  # text on a light ground
    assert not dark[:, 1180:].any()  # nothing runs out at the right
    seen = subprocess.run([*common, "--dump-dom", page.as_uri()], check=True, capture_output=True, timeout=120)
    dom = seen.stdout.decode("utf-8")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title[1].endswith("on hostile")
    assert "<script" not in dom
