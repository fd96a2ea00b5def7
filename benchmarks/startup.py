"""How long the command line takes to start, as a ratio to `import click`, which is its floor.

Interleaved rounds in one run, medians; each round starts every program once.
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 40
FLOOR = [sys.executable, "-c", "import click"]
# what is started -> the largest ratio we want
WANTED = {
    ("--help",): 1.2,
    ("--version",): 1.2,
    ("enqueue", "--help"): 1.25,
}


def seconds(argv: list[str]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> int:
    """Print a line a program; 1 when one is slower than wanted."""
    times: dict[tuple[str, ...], list[float]] = {words: [] for words in WANTED}
    floor: list[float] = []
    for _ in range(ROUNDS):
        floor.append(seconds(FLOOR))
        for words, found in times.items():
            found.append(seconds([sys.executable, "-m", "genctl", *words]))
    base = statistics.median(floor)
    print(f"{'import click':<24} {base * 1000:6.1f} ms")
    slow = 0
    for words, most in WANTED.items():
        middle = statistics.median(times[words])
        ratio = middle / base
        slow += ratio > most
        print(f"genctl {' '.join(words):<17} {middle * 1000:6.1f} ms   {ratio:.2f} of at most {most}")
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
