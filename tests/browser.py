"""A page as a browser shows it: headless Chromium, where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")

# The page is shown in a frame, because a browser window has a smallest width, and because the page itself lets no
# script run. Contrast is WCAG's, of text against the nearest background that is painted; the least of the page counts.
MEASURE = r"""
onload = () => {
  const frame = document.querySelector('iframe').contentWindow, page = frame.document, root = page.documentElement;
  root.style.overflowY = 'hidden';
  page.querySelectorAll('details').forEach(it => it.open = true);
  const numbers = colour => colour.match(/[\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3)
    .map(it => it / 255).map(it => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4)
    .reduce((sum, it, at) => sum + it * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    for (let it = element; it; it = it.parentElement) {
      const colour = frame.getComputedStyle(it).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const contrast = element => {
    const style = frame.getComputedStyle(element);
    const both = [light(element.closest('svg') ? style.fill : style.color), light(behind(element))];
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  };
  const own = element => [...element.childNodes].some(it => it.nodeType === 3 && it.data.trim());
  const texts = [...page.body.querySelectorAll('*')].filter(it => own(it) && it.localName !== 'title')
    .filter(it => it.getClientRects().length);
  const pale = texts.map(it => [contrast(it), it.textContent.trim().slice(0, 40)]).sort((a, b) => a[0] - b[0])[0];
  const figures = [...page.querySelectorAll('svg')].map(it => it.getBoundingClientRect());
  document.title = JSON.stringify({
    inner: frame.innerWidth, scroll: root.scrollWidth, height: root.scrollHeight,
    dark: frame.matchMedia('(prefers-color-scheme: dark)').matches,
    figures: figures.length,
    seen: figures.filter(it => it.width > 100 && it.height > 10 && it.left >= 0 && it.right <= frame.innerWidth).length,
    contrast: pale ? pale[0] : 21, palest: pale ? pale[1] : '',
  });
}
"""


@dataclass(frozen=True)
class Shown:
    """A page at a width: its size in pixels, its figures and how many are wholly in sight, and its palest text."""

    inner: int
    scroll: int
    height: int
    dark: bool
    figures: int
    seen: int
    contrast: float
    palest: str
    log: str


def show(page: str, width: int, folder: Path, dark: bool = False) -> Shown:
    """Show a page in a frame of ``width`` pixels with every <details> open."""
    host = folder / "host.html"
    host.write_text(
        f'<title>-</title><iframe style="border:0;width:{width}px;height:800px" srcdoc="{html.escape(page)}"></iframe>'
        f"<script>{MEASURE}</script>",
        encoding="utf-8",
    )
    assert CHROMIUM
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    headless = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shot = [CHROMIUM, *headless, *quiet, scheme, f"--user-data-dir={folder}/user"]
    shot += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", host.as_uri()]
    done = subprocess.run(shot, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stdout[:500]
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return Shown(**found, log=done.stderr)


def check(page: str, width: int, folder: Path, dark: bool) -> Shown:
    """Assert what holds for every page of ours: no console error, no overflow, figures in sight, readable text."""
    found = show(page, width, folder, dark)
    assert "CONSOLE" not in found.log, found.log
    assert (found.inner, found.scroll, found.dark) == (width, width, dark)
    assert found.seen == found.figures
    assert found.contrast >= 4.5, f"{found.palest!r} has a contrast of {found.contrast:.2f}"
    return found
