"""A headless Chromium, driven through its own protocol over a pipe: no driver, no further package.

with Chromium(tmp_path) as browser:
    page = browser.open("http://127.0.0.1:8501/")
    page.run("document.title")
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Chromium:
    """The browser; everything it keeps is in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._buffer = b""
        self._number = 0

    def __enter__(self) -> Chromium:
        (self.folder / "profile").mkdir(parents=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Above 9, so that moving them to 3 and 4 overwrites none of them.
        moved = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        command = [str(PROGRAM), *FLAGS, f"--user-data-dir={self.folder / 'profile'}"]
        script = f'exec "$@" 3<&{moved[0]} 4>&{moved[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=moved,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in moved:
            os.close(end)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.ask("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns what the browser answers."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while self._number not in self._answers:
            self._read(end)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, answer["error"]
        return dict(answer["result"])

    def _read(self, end: float) -> None:
        ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
        assert ready, "the browser does not answer"
        found = os.read(self._in, 2**20)
        assert found, "the browser has ended"
        self._buffer += found
        *messages, self._buffer = self._buffer.split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def open(self, url: str) -> Page:
        """Opens a page and waits until it is loaded."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            page.ask(f"{domain}.enable")
        page.ask("Page.navigate", url=url)
        page.until("document.readyState === 'complete'")
        return page


class Page:
    """A page that was opened."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command for this page."""
        return self._browser.ask(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """Returns the value of an expression."""
        found = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"not so in time: {script}"
            time.sleep(0.05)

    def choose(self, selector: str, files: list[Path]) -> None:
        """Chooses files, as a user does in the dialogue."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in files])

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Presses a key: Tab, Enter; 2 is Ctrl."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        common["modifiers"] = modifiers  # type: ignore[assignment]
        text = {"text": "\r"} if key == "Enter" and not modifiers else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def named(self, role: str) -> list[str]:
        """Returns the names by which assistive technology knows the elements of a role."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in nodes
            if not node.get("ignored") and node.get("role", {}).get("value") == role
        ]

    def complaints(self) -> list[str]:
        """Returns what the console says: exceptions, and what a policy forbids."""
        found = []
        for event in self._events():
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                entry = parameters["entry"]
                if entry["level"] in ("error", "warning") and entry["source"] != "network":
                    found.append(entry["text"])
        return found

    def addresses(self) -> set[str]:
        """Returns all that was asked for."""
        return {
            event["params"]["request"]["url"]
            for event in self._events()
            if event["method"] == "Network.requestWillBeSent"
        }

    def _events(self) -> list[dict[str, Any]]:
        return [row for row in self._browser.events if row.get("sessionId") == self._session]
