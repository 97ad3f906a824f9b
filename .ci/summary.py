"""One line that counts the tests of several runs of pytest: summary.py JUNIT_XML..., 1 if any failed or is missing."""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def count(report: Path) -> Counter[str]:
    """How many tests passed, failed, were skipped or could not run, by one report."""
    found: Counter[str] = Counter()
    for suite in ElementTree.parse(report).iter("testsuite"):
        numbers = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        found["failed"] += numbers["failures"]
        found["errors"] += numbers["errors"]
        found["skipped"] += numbers["skipped"]
        found["passed"] += numbers["tests"] - numbers["failures"] - numbers["errors"] - numbers["skipped"]
    return found


def main(reports: list[Path]) -> int:
    total: Counter[str] = Counter(dict.fromkeys(("passed", "failed", "skipped", "errors"), 0))
    missing = [report for report in reports if not report.exists()]
    for report in reports:
        if report not in missing:
            total.update(count(report))
    total["errors"] += len(missing)  # pytest itself did not come to its end
    shown = [f"{number} {name}" for name, number in total.items() if number or name != "errors"]
    print(", ".join(shown))
    return int(bool(total["failed"] or total["errors"]))


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]]))
