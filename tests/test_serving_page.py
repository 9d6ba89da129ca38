"""The page at `/`: what it is made of, and what a browser makes of it."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from serving_models import (
    COLOURS,
    Numbers,
    Running,
    SeveralLabels,
    Texts,
    ask,
    facts_of,
    picture,
    running,
    save,
    write_pictures,
    write_toys,
    write_words,
)

from kerastune_ft.serving.service import Bounds

needs_browser = pytest.mark.skipif(not PROGRAM.exists(), reason=f"there is no {PROGRAM}")
NASTY = "</script><img src=x onerror=alert(1)>"


def write(folder: Path, kind: str) -> Path:
    """Writes an export of a kind."""
    base = folder / kind
    if kind == "pictures":
        return write_pictures(base)
    if kind == "toys":
        return write_toys(base)
    if kind == "nasty":
        return write_pictures(base, classes=("blue", NASTY, "red"))
    module: Any
    if kind == "texts":
        module = Texts()
        facts = facts_of(
            "text_pair_classification",
            "text",
            ("first", "second"),
            text_inputs=["text", "pair"],
            tokenizer_inside=True,
        )
    elif kind == "labels":
        module = SeveralLabels()
        facts = facts_of("image_multilabel", "image", COLOURS, thresholds=[0.5, 0.25, 0.75])
    else:
        module = Numbers()
        facts = facts_of("image_regression", "image", ("redness", "greenness", "blueness"))
    save(module, base / "1", {"serving_default": module.serve}, facts=facts)
    return base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def colours(folder: Path) -> Iterator[Running]:
    with running(write(folder, "pictures")) as found:
        yield found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "browser") as opened:
        yield opened


class Reader(html.parser.HTMLParser):
    """Collects the elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def page_of(found: Running) -> tuple[str, dict[str, str], list[tuple[str, dict[str, str | None]]]]:
    answer = ask(found.url, "/")
    assert answer.status == 200
    reader = Reader()
    reader.feed(answer.body.decode())
    return answer.body.decode(), answer.headers, reader.elements


def facts(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_the_page_stands_alone_and_forbids_everything_else(colours: Running) -> None:
    text, headers, elements = page_of(colours)
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    nonce = re.fullmatch(r"'nonce-([\w-]{20,})'", policy["script-src"])
    assert nonce
    assert policy["style-src"] == policy["script-src"]
    assert set(policy) == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
        "connect-src",
        "base-uri",
        "form-action",
        "frame-ancestors",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert not (attributes.get("src") or "").startswith(("http", "//"))
        assert tag != "link" or attributes["href"] == "data:,"
        if tag in ("script", "style"):
            assert attributes["nonce"] == nonce[1]
    assert "http://" not in text.replace(colours.url, "")
    assert "https://" not in text
    again = ask(colours.url, "/").headers["content-security-policy"]
    assert again != headers["content-security-policy"], "a nonce is used once"


def test_everything_that_is_entered_has_a_label(folder: Path, colours: Running) -> None:
    with running(write(folder, "texts")) as texts:
        for found, wanted in ((colours, {"input"}), (texts, {"textarea"})):
            _, _, elements = page_of(found)
            labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
            fields = [row for row in elements if row[0] in ("input", "textarea", "select")]
            assert {tag for tag, _ in fields} == wanted
            assert all(attributes["id"] in labelled for _, attributes in fields)
            assert ("html", {"lang": "en"}) in elements


@pytest.mark.parametrize(
    ("kind", "form"), [("pictures", "pictures"), ("texts", "texts"), ("toys", "none")]
)
def test_the_page_asks_for_what_the_model_takes(folder: Path, kind: str, form: str) -> None:
    base = folder / kind
    with running(base if base.exists() else write(folder, kind)) as found:
        text, _, elements = page_of(found)
        told = facts(text)
        assert told["form"] == form
        assert told["name"] == found.addresses.model
        assert told["version"] == 1
        assert (form == "none") == ("What it can be asked" in text)
        assert [tag for tag, _ in elements].count("textarea") == (2 if kind == "texts" else 0)


def test_names_of_classes_cannot_become_markup(folder: Path) -> None:
    with running(write(folder, "nasty")) as found:
        text, _, elements = page_of(found)
    assert facts(text)["classes"][1] == NASTY
    assert not [row for row in elements if row[0] == "img"]
    assert NASTY not in text


def same_as_rest(found: Running, instance: Any) -> Any:
    return found.ask(":predict", {"instances": [instance]}).json["predictions"][0]


def cards(page: Any) -> list[dict[str, Any]]:
    """Returns what the answers on a page say, the first one that was asked first."""
    script = """[...document.querySelectorAll("#answers article")].reverse().map((card) => ({
        title: card.querySelector("h2")?.textContent,
        said: card.querySelector(".said")?.textContent,
        error: card.querySelector("[role=alert]")?.textContent,
        rows: [...card.querySelectorAll("tbody tr")].map((row) => [
            row.querySelector("th").textContent, row.querySelector("td.number").textContent,
            row.querySelector(".part")?.style.width, row.querySelector(".mark")?.style.left]),
        curl: card.querySelector("pre code")?.textContent}))"""
    return list(page.run(script))


def answered(page: Any, count: int) -> list[dict[str, Any]]:
    page.until(f"document.getElementById('status').textContent === '{count} of {count} answered'")
    return cards(page)


def clean(page: Any, found: Running) -> None:
    """Nothing was forbidden, nothing failed, and nobody else was asked."""
    assert page.complaints() == []
    for address in page.addresses():
        assert address.startswith((found.url + "/", "data:", "blob:", "about:")), address


@needs_browser
@pytest.mark.slow
def test_a_browser_asks_about_pictures_that_are_chosen(
    tmp_path: Path, colours: Running, browser: Chromium
) -> None:
    names = {"it's red.png": "red", "green.png": "green", "blue.png": "blue"}
    for name, colour in names.items():
        (tmp_path / name).write_bytes(picture(colour))
    page = browser.open(colours.url + "/")
    assert page.run("document.title") == "colours: try the model"
    page.choose("#files", [tmp_path / name for name in names])
    found = {card["title"]: card for card in answered(page, 3)}
    assert set(found) == set(names)
    for name, colour in names.items():
        card = found[name]
        row = {"b64": base64.b64encode(picture(colour)).decode()}
        expected = same_as_rest(colours, row)
        assert card["said"].startswith(f"{colour} (")
        assert [line[0] for line in card["rows"]] == expected["top_labels"]
        shares = expected["top_probabilities"]
        assert [line[1] for line in card["rows"]] == [f"{100 * share:.1f} %" for share in shares]
        widths = [float(line[2].rstrip("%")) for line in card["rows"]]
        np.testing.assert_allclose(widths, [100 * share for share in shares], atol=0.01)
        assert run_in_a_shell(card["curl"], tmp_path) == {"predictions": [expected]}
    assert page.run("[...document.images].every((image) => image.naturalWidth > 0)")
    clean(page, colours)


def run_in_a_shell(command: str, folder: Path) -> Any:
    """Runs the command that the page shows, as a user pastes it."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_browser
@pytest.mark.slow
def test_a_browser_asks_about_pictures_that_are_dropped_and_shows_errors(
    colours: Running, browser: Chromium
) -> None:
    page = browser.open(colours.url + "/")
    pixels = list(picture("green"))
    page.run(
        f"""(() => {{
        const transfer = new DataTransfer();
        const bytes = new Uint8Array({pixels});
        transfer.items.add(new File([bytes], "green.png", {{type: "image/png"}}));
        transfer.items.add(new File(["no picture"], "notes.txt", {{type: "text/plain"}}));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {{dataTransfer: transfer, bubbles: true, cancelable: true}}));
        }})()"""
    )
    found = {card["title"]: card for card in answered(page, 2)}
    assert found["green.png"]["said"].startswith("green (")
    assert "image file format" in found["notes.txt"]["error"]
    assert "curl" in found["notes.txt"]["curl"]
    clean(page, colours)


@needs_browser
@pytest.mark.slow
def test_a_file_that_is_too_large_is_not_even_sent(folder: Path, browser: Chromium) -> None:
    with running(folder / "pictures", bounds=Bounds(request_bytes=2000)) as found:
        page = browser.open(found.url + "/")
        page.run(
            """(() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(5000)], "large.png"));
            document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer}));
            })()"""
        )
        (card,) = answered(page, 1)
        assert "too large for this server" in card["error"]
        assert not [address for address in page.addresses() if address.endswith(":predict")]


@needs_browser
@pytest.mark.slow
def test_texts_are_typed_and_asked_about_without_a_mouse(folder: Path, browser: Chromium) -> None:
    base = folder / "texts"
    with running(base if base.exists() else write(folder, "texts")) as found:
        page = browser.open(found.url + "/")
        first, second = 'It\'s a "test" \\ $HOME', "längerer Text als der erste, mit Umlauten"
        page.press("Tab")
        assert page.run("document.activeElement.dataset.name") == "text"
        page.type(first)
        page.press("Tab")
        assert page.run("document.activeElement.dataset.name") == "pair"
        page.type(second)
        page.press("Enter", modifiers=2)
        (card,) = answered(page, 1)
        expected = same_as_rest(found, {"text": first, "pair": second})
        assert expected["label"] == "second"
        assert card["said"] == f"second ({100 * expected['probability']:.1f} %)"
        assert card["title"] == f"{first}\n{second}"
        assert run_in_a_shell(card["curl"], folder) == {"predictions": [expected]}
        page.press("Tab")
        assert page.run("document.activeElement.textContent") == "Ask the model"
        page.press("Enter")
        answered(page, 2)
        assert page.named("textbox") == ["Text", "Pair"]
        assert "Ask the model" in page.named("button")
        clean(page, found)


@needs_browser
def test_tags_are_shown_with_their_words_and_written_texts_as_they_are(
    tmp_path: Path, browser: Chromium
) -> None:
    text = "Anna saw  Bob at <b>noon</b>"
    write_words(tmp_path / "tags", "tags")
    with running(tmp_path / "tags") as found:
        page = browser.open(found.url + "/")
        page.press("Tab")
        page.type(text)
        page.press("Enter", modifiers=2)
        (card,) = answered(page, 1)
        expected = same_as_rest(found, {"text": text})
        assert "error" not in card
        assert card["said"] == expected["tags"]
        assert [line[:2] for line in card["rows"]] == [
            [word, f"{tag} (75.0 %)"]
            for word, tag in zip(text.split(), expected["word_tags"], strict=True)
        ]
        clean(page, found)
    write_words(tmp_path / "write", "write")
    with running(tmp_path / "write") as found:
        page = browser.open(found.url + "/")
        page.press("Tab")
        page.type(text)
        page.press("Enter", modifiers=2)
        (card,) = answered(page, 1)
        assert "error" not in card
        assert (card["title"], card["said"], card["rows"]) == (text, text.upper(), [])
        clean(page, found)


@needs_browser
@pytest.mark.slow
def test_several_labels_and_numbers_are_shown_as_what_they_are(
    folder: Path, tmp_path: Path, browser: Chromium
) -> None:
    (tmp_path / "red.png").write_bytes(picture("red"))
    with running(write(folder, "labels")) as found:
        page = browser.open(found.url + "/")
        page.choose("#files", [tmp_path / "red.png"])
        (card,) = answered(page, 1)
        assert card["said"] == "red"
        assert card["rows"][0][0] == "red"
        assert card["rows"][0][3] == "75%"
        clean(page, found)
    with running(write(folder, "numbers")) as found:
        page = browser.open(found.url + "/")
        assert "3 targets" in page.run("document.body.textContent")
        page.choose("#files", [tmp_path / "red.png"])
        (card,) = answered(page, 1)
        assert card["said"] == "redness: 220.00; greenness: 30.000; blueness: 20.000"
        assert card["rows"][0][:2] == ["redness", "220"]
        clean(page, found)


@needs_browser
@pytest.mark.slow
def test_nasty_names_are_shown_as_text(folder: Path, tmp_path: Path, browser: Chromium) -> None:
    (tmp_path / "green.png").write_bytes(picture("green"))
    base = folder / "nasty"
    with running(base if base.exists() else write(folder, "nasty")) as found:
        page = browser.open(found.url + "/")
        page.choose("#files", [tmp_path / "green.png"])
        (card,) = answered(page, 1)
        assert card["said"].startswith(NASTY)
        assert page.run("document.querySelectorAll('img').length") == 1, "the picture itself"
        clean(page, found)


@needs_browser
@pytest.mark.slow
def test_what_the_page_is_made_of_has_names(colours: Running, browser: Chromium) -> None:
    page = browser.open(colours.url + "/")
    assert page.named("heading")[0] == "colours"
    buttons = page.named("button")
    assert any("Drop pictures here" in name for name in buttons), buttons
    page.press("Tab")
    assert page.run("document.activeElement.id") == "files"
    assert len(page.named("status")) == 1
    clean(page, colours)
