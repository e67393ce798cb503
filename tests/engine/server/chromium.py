"""A headless Chromium, spoken to by its DevTools protocol over two pipes."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")
TIMEOUT = 60


class Page:
    """One tab."""

    def __init__(self, send, receive, url):
        self._send, self._receive, self._id = send, receive, 0
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self.problems = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", {"url": url})

    def call(self, method, parameters=None):
        """The result of a method; what the page complains of meanwhile is kept."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters or {}}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            found = self._message()
            if found.get("id") == self._id:
                assert "error" not in found, found["error"]
                return found["result"]
            if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(found["params"])

    def _message(self):
        text = bytearray()
        while (one := self._receive.read(1)) != b"\0":
            assert one, "the browser has ended"
            text += one
        return json.loads(text)

    def run(self, script):
        """What a script returns."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", given)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script):
        """Waits until a script is true."""
        end = time.monotonic() + TIMEOUT
        while not self.run(script):
            assert time.monotonic() < end, (script, self.run("document.body.innerText"))
            time.sleep(0.05)

    def resize(self, width, height, *, dark=False):
        """The window, as of a phone or a dark desktop."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [feature]})

    def press(self, key):
        """A key, as a keyboard sends it."""
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            named = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", {**named, **text})

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]))


@contextmanager
def opened(url):
    """A page in a browser of its own."""
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()

    def at_3_and_4():
        read, write = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (to_browser, from_browser))  # neither is 3 or 4
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        command = [EXECUTABLE, *options, "--remote-debugging-pipe"]
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, preexec_fn=at_3_and_4, close_fds=False, stdout=null, stderr=null)
        os.close(to_browser)
        os.close(from_browser)
        try:
            with os.fdopen(from_us, "wb") as send, os.fdopen(to_us, "rb") as receive:
                yield Page(send, receive, url)
        finally:
            process.kill()
            process.wait()
