"""From a key press on chapter 1's mask slider to the new picture on the page, in a real Chromium.

    python benchmarks/slider_latency.py [PRESSES]

The median should stay under 120 ms: beyond that a slider feels as if it lagged behind the hand.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from lab_page import course_copy, find_browser, open_chapter

GOAL = 120  # milliseconds


def measure(presses: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder, open_chapter(course_copy(Path(folder)), "01") as chapter:
        chapter.run_all()
        slider = chapter.slider("mask prob")
        slider.press("End")
        slider.press("Home")
        keys = ["ArrowRight"] * 18 + ["ArrowLeft"] * 18  # up and down again, never beyond an end
        return [slider.press(keys[number % len(keys)]) for number in range(presses)]


def main() -> int:
    if find_browser() is None:
        print("no Chromium on this machine: nothing measured")
        return 0
    presses = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    milliseconds = sorted(measure(presses))
    median = statistics.median(milliseconds)
    print(f"{'key press to new picture':<28} {'median':>9} {'95 % under':>11} {'slowest':>9}")
    print(
        f"{f'mask slider, {presses} presses':<28} {median:>6.0f} ms {milliseconds[int(0.95 * presses)]:>8.0f} ms "
        f"{milliseconds[-1]:>6.0f} ms"
    )
    print(f"median / goal of {GOAL} ms: {median / GOAL:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
