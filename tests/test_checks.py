"""`kft data check`: every planted defect is found, and clean data passes."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from pathlib import Path

import messy_data
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from kerastune_ft import checks, cli, starters
from kerastune_ft.checks import classes, figures, texts
from kerastune_ft.data import looks
from kerastune_ft.data.advice import ADVICE
from kerastune_ft.errors import DataError

PACKAGE = Path(checks.__file__).parents[1]
_SUPERSETS = {"mixed_sizes", "near_duplicates", "leaked_near_copies"}
"""Of these kinds more may be found than was planted: other defects look like them too."""


def checked(target, *overrides):
    return checks.check(starters.recipe_of(Path(target), overrides), network=False)


def by_kind(report):
    found = {}
    for one in report.findings:
        found.setdefault(one.kind, set()).update(name.partition("#")[0] for name in one.names)
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """What was planted into a folder of pictures, and the report on it."""
    folder = tmp_path_factory.mktemp("pictures") / "messy"
    planted = messy_data.messy_folder(folder)
    return planted, checked(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What was planted into a table of texts, and the report on it."""
    path = tmp_path_factory.mktemp("texts") / "messy.csv"
    planted = messy_data.messy_table(path)
    return planted, checked(path, "data.group_column=author")


@pytest.mark.parametrize("data", ["pictures", "table"])
def test_every_planted_defect_is_found_and_nothing_else(data, request):
    planted, report = request.getfixturevalue(data)
    found = by_kind(report)
    print(f"\n{data}: {'defect':<24}{'planted':>8}{'found':>8}")
    wrong = {}
    for kind in sorted({*planted, *found}):
        wanted, had = planted.get(kind, set()), found.get(kind, set())
        print(f"{'':<10}{kind:<24}{len(wanted):>8}{len(had):>8}")
        if not (wanted <= had if kind in _SUPERSETS else wanted == had):
            wrong[kind] = (sorted(wanted - had), sorted(had - wanted))
    assert wrong == {}
    assert len(planted) > 20
    assert report.failed


@pytest.mark.parametrize("write", [messy_data.clean_folder, messy_data.clean_table])
def test_clean_data_has_no_finding(write, tmp_path):
    report = checked(write(tmp_path / "clean.csv"))
    assert [one.message for one in report.findings] == []
    assert not report.failed
    assert report.verdict == "nothing found"


def test_findings_say_split_and_label_of_both_sides(pictures):
    _, report = pictures
    leak = next(one for one in report.findings if one.kind == "leaked_copies")
    assert leak.details[0] == "train, dog; the other: test, dog"
    assert leak.partners[0].startswith("test/dog/leak")
    conflict = next(one for one in report.findings if one.kind == "conflicting_labels")
    assert conflict.partners == ("train/cat/20.jpg",)


def test_failures_come_first_and_severities_fit(pictures):
    _, report = pictures
    order = [checks.report.ORDER.index(one.severity) for one in report.findings]
    assert order == sorted(order)
    severities = {(one.kind, one.severity) for one in report.findings}
    assert {
        ("leaked_copies", "fail"),
        ("untrained_class", "fail"),
        ("blurred", "warn"),
    } < severities
    assert {("small_class", "fail"), ("small_class", "warn"), ("turned", "note")} < severities


def _severity_kinds(module):
    """Kinds of findings that a file of source can emit: first arguments, and tables of them."""
    kinds = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in ADVICE:
            kinds.add(node.value)
    return kinds


def _emitted(module):
    """First string arguments of the calls that make findings."""
    kinds = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        severities = {a.value for a in node.args if isinstance(a, ast.Constant)}
        if name in ("finding", "Finding", "_at", "_compared") or (
            name == "add" and severities & {"fail", "warn", "note"}
        ):
            texts_ = [a.value for a in node.args if isinstance(a, ast.Constant)]
            kinds |= {text for text in texts_[:1] if isinstance(text, str)}
    return kinds - {"fail", "warn", "note"}


def test_every_kind_that_is_emitted_has_advice_and_all_advice_is_used():
    modules = [p for p in PACKAGE.rglob("*.py") if p.name != "advice.py"]
    assert len(modules) > 50
    emitted = set().union(*map(_emitted, modules))
    assert emitted and emitted <= set(ADVICE)
    named = set().union(*map(_severity_kinds, modules))
    assert set(ADVICE) - named == set()


def test_advice_says_where_a_key_is_for_one_class_per_example_alone():
    keys = (
        "data.sampling=", "cleaning.fewest_per_class", "cleaning.label_spelling",
        "cleaning.rename_labels",
    )  # fmt: skip
    told = {kind: row.remedy for kind, row in ADVICE.items() if any(k in row.remedy for k in keys)}
    assert set(told) >= {"imbalance", "small_class", "label_spelling", "label_typo"}
    for kind, remedy in told.items():
        first = min(remedy.find(key) for key in keys if key in remedy)
        assert 0 <= remedy.find("for one class per example") < first, kind
    assert "data.group_pattern" in ADVICE["no_group"].remedy
    assert "data.cleaning.duplicates=first" in ADVICE["leaked_copies"].remedy


def test_every_check_is_for_some_data_and_has_words():
    assert checks.CHECKS
    for name, row in checks.CHECKS.items():
        assert row.modality in ("image", "text", "any"), name
        assert row.run.__doc__, name


@pytest.mark.parametrize(
    ("counts", "slips"),
    [
        ({"positive": 100, "postive": 2}, [("postive", "positive")]),
        ({"positive": 100, "negative": 3}, []),
        ({"class 1": 100, "class 2": 2}, []),
        ({"cat": 100, "car": 90}, []),
        ({"dog": 40, "dgo": 1}, [("dgo", "dog")]),
        ({"trousers": 3, "trouser": 3}, []),
        ({"card_arrival": 200, "card_arival": 5, "card_arrivals": 1},
         [("card_arival", "card_arrival"), ("card_arrivals", "card_arrival")]),
    ],
)  # fmt: skip
def test_a_typo_is_a_rare_name_beside_a_common_one(counts, slips):
    assert classes.typos(counts) == slips


def test_corrected_cramer_is_zero_without_dependence_and_one_with():
    chance, effect = figures.chi_square(np.array([[50, 0], [0, 50]]))
    assert chance < 1e-9 and effect == pytest.approx(1, abs=0.02)
    chance, effect = figures.chi_square(np.array([[50, 50], [50, 50]]))
    assert chance == 1 and effect == 0


@pytest.mark.parametrize("what", ["brightness", "number of pixels"])
def test_a_class_that_is_known_by_its_looks_is_named(what, tmp_path):
    rng = np.random.default_rng(0)
    for label in ("bee", "wasp"):
        (tmp_path / label).mkdir()
        for number in range(24):
            small = label == "wasp" and what == "number of pixels"
            picture = messy_data.photo(rng, *((200, 150) if small else (240, 180)))
            if label == "wasp" and what == "brightness":
                picture = picture.point(lambda value: value // 2 + 120)
            picture.save(tmp_path / label / f"{number}.jpg")
    report = checked(tmp_path)
    (found,) = (one for one in report.findings if one.kind == "looks_give_away")
    assert {"bee", "wasp"} <= set(found.names)
    assert any(detail.startswith(what) for detail in found.details)
    assert not report.failed


def test_a_class_that_is_known_by_its_length_is_named(tmp_path):
    made = messy_data.distinct_sentences(np.random.default_rng(0), 80)
    rows = [
        {"text": text if number % 2 else text[: len(text) // 2], "label": "ab"[number % 2]}
        for number, text in enumerate(made)
    ]
    report = checked(messy_data.write_table(tmp_path / "t.csv", rows))
    assert by_kind(report)["length_gives_away"] == {"a", "b"}


def test_grey_that_goes_with_a_class_is_a_warning(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("old", "new", "other"):
        (tmp_path / label).mkdir()
        for number in range(20):
            picture = messy_data.photo(rng)
            picture = picture.convert("L") if label == "old" else picture
            picture.save(tmp_path / label / f"{number}.jpg")
    (found,) = (one for one in checked(tmp_path).findings if one.kind == "grey_among_colour")
    assert found.severity == "warn"
    assert "most 'old'" in found.message


def test_a_number_with_another_unit_is_an_outlier(tmp_path):
    rng = np.random.default_rng(0)
    made = messy_data.distinct_sentences(rng, 200)
    rows = [{"text": text, "price": f"{rng.normal(50, 5):.2f}", "flat": "3"} for text in made]
    rows[7]["price"] = "5012"
    path = messy_data.write_table(tmp_path / "t.csv", rows)
    found = by_kind(
        checked(path, "task.name=text_regression", "data.text_column=text",
                "data.label_column=[price, flat]")
    )  # fmt: skip
    assert found["outlier"] == {"t.csv:8"}
    assert found["constant_number"] == {"flat"}


def test_labels_of_several_classes_are_checked(tmp_path):
    made = messy_data.distinct_sentences(np.random.default_rng(0), 90)
    rows = [{"text": text, "label": "red;all" if n % 3 else "blue;all"} for n, text in
            enumerate(made)]  # fmt: skip
    rows[0]["text"] = rows[1]["text"]
    report = checked(messy_data.write_table(tmp_path / "t.csv", rows), "task.name=text_multilabel")
    found = by_kind(report)
    assert found["class_everywhere"] == {"all"}
    assert found["conflicting_labels"] == {"t.csv:2"}


def _words(number):
    sentence = messy_data.sentence(np.random.default_rng(number)).rstrip(".")
    return sentence.split()


@pytest.mark.parametrize(
    ("task", "columns", "row"),
    [
        ("token_classification", {"label_column": "label"},
         lambda n: {"text": (w := _words(n)), "label": ["B-A", *["O"] * (len(w) - 2), "I-A"]}),
        ("text_pair_classification", {"pair_column": "other"},
         lambda n: {"text": " ".join(_words(n)), "other": " ".join(_words(n + 500)),
                    "label": "ab"[n % 2]}),
        ("text_generation", {"text_column": "null", "label_column": "label"},
         lambda n: {"label": " ".join(_words(n)) + ("\x07" if n == 3 else "")}),
        ("text_to_text", {"label_column": "label"},
         lambda n: {"text": " ".join(_words(n)), "label": " ".join(_words(n + 500))}),
    ],
)  # fmt: skip
def test_texts_of_every_task_are_checked(task, columns, row, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row(n)) for n in range(60)), encoding="utf-8")
    writer = {"text_generation": "gpt2", "text_to_text": "t5"}.get(task)
    stage = "train.stages=[{trainable_blocks: -1, epochs: 1, learning_rate: 1e-3}]"
    family = [f"backbone.name={writer}", "backbone.weights=none", stage] if writer else []
    overrides = [f"data.{key}={value}" for key, value in columns.items()]
    report = checked(path, f"task.name={task}", *overrides, *family)
    report.write(tmp_path / "out")
    assert not report.failed
    controls = by_kind(report).get("control_characters", set())
    assert controls == ({"t.jsonl:4"} if task == "text_generation" else set())


def test_data_of_one_class_fails(tmp_path):
    (tmp_path / "only").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        messy_data.photo(rng).save(tmp_path / "only" / f"{number}.jpg")
    report = checked(tmp_path)
    assert report.failed and by_kind(report)["one_class"] == {"only"}


def test_pixels_in_memory_are_measured_too():
    recipe = starters.recipes.load(
        starters.recipes.packaged()["mobilenet"], ["data.source=sklearn", "data.path=digits"]
    )
    report = checks.check(recipe, network=False)
    assert by_kind(report).keys() >= {"small_pictures"}
    assert not report.failed


def test_sharp_photographs_are_not_called_blurred_and_blurred_ones_are():
    rng = np.random.default_rng(0)
    sharp = [messy_data.photo(rng) for _ in range(40)]
    soft = [p.filter(messy_data.ImageFilter.GaussianBlur(8)) for p in sharp]

    def measured(pictures):
        facts = {"digest": bytes(16), "size": 1, "width": 240, "height": 180, "mode": "RGB"}
        return looks.Looks.joined([looks.look_of(np.asarray(p), **facts) for p in pictures])

    limit = checks.pictures.sharpness_limit(measured(sharp))
    assert (measured(sharp).sharpness > limit).all()
    assert (measured(soft).sharpness < limit).all()


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("a <br/> b", True), ("<div class='x'>", True), ("AT&amp;T", True), ("it #39;s", True),
        ("a < b and c > d", False), ("<3 you", False), ("R&D", False), ("#39 is my number", False),
        ("<user> said", False), ("f(x)<g(x)>", False),
    ],
)  # fmt: skip
def test_html_is_told_from_mathematics_and_hearts(text, marked):
    assert (texts._html(text) is not None) == marked


def test_features_that_cannot_be_had_are_one_note(tmp_path, monkeypatch):
    class Broken:
        @property
        def features(self):
            raise DataError("no weights here.")

        progress = staticmethod(lambda words, done, total: None)

    row = checks.Check(lambda examined: (), "any", network=True)
    found = list(checks._of_network(Broken(), {"labels": row, "drift": row}))
    assert [(one.kind, one.severity, one.count) for one in found] == [("no_features", "note", 2)]
    assert "no weights here)" in found[0].message


# The command.


def run(*arguments):
    result = CliRunner().invoke(cli.main, ["data", "check", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_exits_with_1_writes_all_names_and_shows_remedies(tmp_path):
    folder, output = tmp_path / "messy", tmp_path / "out"
    planted = messy_data.messy_folder(folder)
    result = run(folder, "--quick", "--output", output)
    assert result.exit_code == 1
    assert "data.leakage=drop" in result.output and "findings.html" in result.output
    record = json.loads((output / "findings.json").read_text(encoding="utf-8"))
    assert record["failed"] is True and record["kft"]
    assert record["splits"]["train"]["per_class"]["fox"] == 1
    assert (
        record["examples"]["found"] == record["examples"]["kept"] + record["examples"]["left_out"]
    )
    (blurred,) = (one for one in record["findings"] if one["kind"] == "blurred")
    assert set(blurred["names"]) == planted["blurred"]
    assert len(blurred["details"]) == blurred["count"] == 3
    assert all(one["effect"] and one["remedy"] for one in record["findings"])


def test_the_command_exits_with_0_on_clean_data(tmp_path):
    path = messy_data.clean_table(tmp_path / "clean.csv")
    result = run(path, "--quick", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nothing found" in result.output


def _one_column(folder):
    (folder / "t.csv").write_text("text\nhello there\nmore words\n")
    return folder / "t.csv"


def _mixed_encodings(folder):
    lines = [b"text,label", "a café in Paris,a".encode(), "ein Mädchen,b".encode("latin-1")]
    (folder / "t.csv").write_bytes(b"\n".join(lines))
    return folder / "t.csv"


def _empty(folder):
    (folder / "nothing").mkdir()
    return folder / "nothing"


def _loop(folder):
    (folder / "photos").mkdir()
    (folder / "photos" / "again").symlink_to(folder / "photos", target_is_directory=True)
    return folder / "photos"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "phots", "no such recipe, folder or table"),
        (_one_column, "no column 'label'"),
        (_mixed_encodings, "data.encoding"),
        (_empty, "the folder is empty"),
        (_loop, "no picture that can be used|no class sub-folders"),
    ],
)
def test_what_cannot_be_read_is_said_without_a_traceback(make, said, tmp_path):
    result = run(make(tmp_path), "--quick", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert re.search(said, result.output)
    assert "Traceback" not in result.output


def test_a_cell_of_ten_megabytes_is_found(tmp_path):
    made = messy_data.distinct_sentences(np.random.default_rng(0), 60)
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(made)]
    rows[5]["text"] = "word, and more of it " * 500_000
    path = messy_data.write_table(tmp_path / "t.csv", rows)
    report = checked(path)
    assert by_kind(report)["huge_text"] == {"t.csv:6"}
    report.write(tmp_path / "out")
    assert (tmp_path / "out" / "findings.html").stat().st_size < 100_000


def test_progress_and_a_table_of_many_classes_fit_a_terminal(tmp_path):
    made = messy_data.distinct_sentences(np.random.default_rng(0), 200)
    rows = [{"text": t, "label": f"[red]{n % 40}\x1b[31m"} for n, t in enumerate(made)]
    path = messy_data.write_table(tmp_path / "t.csv", rows)
    console = Console(force_terminal=True, file=io.StringIO(), width=100, color_system=None)
    report = checks.check(starters.recipe_of(path), network=False, console=console)
    assert "reading" in console.file.getvalue()
    console = Console(file=io.StringIO(), width=100, color_system=None)
    report.show(console, tmp_path)
    shown = console.file.getvalue()
    counted = [line for line in shown.splitlines() if line.startswith("[red]")]
    assert 20 <= len(counted) <= 30
    assert "... 12 more" in shown
    assert "\x1b[31m" not in shown


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    path = messy_data.clean_table(tmp_path / "clean.csv")
    result = run(path, "--quick", "--output", path / "out")
    assert result.exit_code == 2
    assert "cannot be written" in result.output


# The page.


def test_the_page_escapes_what_the_data_says(tmp_path):
    evil = "<script>alert(1)</script>"
    made = messy_data.distinct_sentences(np.random.default_rng(0), 60)
    rows = [{"text": text, "label": evil if n % 2 else "b"} for n, text in enumerate(made)]
    rows[3]["text"] = f"{evil} {rows[3]['text']}"
    rows[4]["text"] = "\u202eturned \x1b[31m" + rows[4]["text"]
    report = checked(messy_data.write_table(tmp_path / "t.csv", rows))
    report.write(tmp_path / "out")
    page = (tmp_path / "out" / "findings.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page.lower()
    assert "\u202e" not in page and "\x1b" not in page and "⟨U+202E⟩" in page


def test_the_page_needs_nothing_beside_it_and_shows_the_pictures(pictures, tmp_path):
    planted, report = pictures
    report.write(tmp_path)
    page = (tmp_path / "findings.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert addresses and all(a.startswith("data:image/jpeg;base64,") for a in addresses)
    assert "url(" not in page and "@import" not in page
    for one in report.findings:
        assert ADVICE[one.kind].remedy.replace("'", "&#39;") in page, one.kind
    assert f"{len(planted['blurred'])}</span></summary>" in page


def test_a_picture_that_is_gone_is_shown_by_its_name(tmp_path):
    folder = messy_data.clean_folder(tmp_path / "clean")
    Image.new("RGB", (240, 180), (9, 90, 9)).save(folder / "train/cat/blank.png")
    report = checked(folder)
    (folder / "train/cat/blank.png").unlink()
    report.write(tmp_path / "out")
    page = (tmp_path / "out" / "findings.html").read_text(encoding="utf-8")
    assert "cannot be shown" in page and "train/cat/blank.png" in page


def test_csv_of_pictures_names_columns_with_missing_values(tmp_path):
    folder = messy_data.clean_folder(tmp_path / "clean")
    with (tmp_path / "clean" / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "camera"])
        for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
            camera = "" if number < 4 else "a7"
            writer.writerow([path.relative_to(folder), path.parent.name, camera])
    (found,) = (f for f in checked(folder / "t.csv").findings if f.kind == "missing_values")
    assert (found.names, found.severity) == (("camera",), "note")
    assert found.details == ("4 of 108 empty (3.7%)",)
