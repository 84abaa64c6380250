"""Prints results of `just test`: the failures of a run, its slowest tests, or one line for the run.

Reads nextest's JUnit report and the waiting times that the tests record (`ci/tests/e2e/harness.rs`).
"""

import argparse
import collections
import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

TARGET = pathlib.Path(__file__).parent.parent / "target"
REPORT = TARGET / "nextest/default/junit.xml"
WAITS = TARGET / "tmp/waits"
KINDS = ["engine", "compiler", "provisioning", "lock", "sleep"]
LAST_LINES = 50


def report():
    if not REPORT.exists():
        sys.exit(f"cannot find {REPORT}: run `just test` first")
    return ElementTree.parse(REPORT).getroot()


def cases(root):
    """Yields the name, seconds, element, and failure (or None) of each test."""
    for suite in root.iter("testsuite"):
        for case in suite.iter("testcase"):
            failure = case.find("failure")
            failure = case.find("error") if failure is None else failure
            yield f"{suite.get('name')} {case.get('name')}", float(case.get("time")), case, failure


def flaky(case):
    return case.find("flakyFailure") is not None or case.find("flakyError") is not None


def failures(_):
    """Print the name and the last lines of output of each failed test."""
    for name, _, case, failure in cases(report()):
        if failure is None:
            continue
        output = [case.findtext("system-out") or "", case.findtext("system-err") or ""]
        lines = "\n".join(output).strip().splitlines() or (failure.text or "").splitlines()
        print(f"\n──── {name}: the last {min(len(lines), LAST_LINES)} lines", *lines[-LAST_LINES:], sep="\n")
    print()


def times(arguments):
    """Print the slowest tests, with the time that each waited for what."""
    root = report()
    waits = collections.defaultdict(collections.Counter)
    path = WAITS / f"{root.get('uuid')}.jsonl"
    provisioned = collections.Counter()
    for line in path.read_text().splitlines() if path.exists() else []:
        wait = json.loads(line)
        if wait["what"] in KINDS:
            waits[wait["test"]][wait["what"]] += wait["seconds"]
        else:
            provisioned[wait["what"]] += wait["seconds"]
    every = sorted(((seconds, name) for name, seconds, _, _ in cases(root)), reverse=True)
    print(f"{'seconds':>8} " + " ".join(f"{kind:>12}" for kind in [*KINDS, "other"]) + "  test")
    totals = collections.Counter()
    for number, (seconds, name) in enumerate(every):
        waited = waits[name.split(" ", 1)[1]]
        parts = [waited[kind] for kind in KINDS]
        parts.append(max(0, seconds - sum(parts)))
        totals.update(dict(zip([*KINDS, "other"], parts)))
        if number < arguments.count:
            print(f"{seconds:8.1f} " + " ".join(f"{part:12.1f}" for part in parts) + f"  {name}")
    print(f"{sum(totals.values()):8.1f} " + " ".join(f"{totals[kind]:12.1f}" for kind in [*KINDS, "other"]) + "  all tests")
    print("engine: remaining time of `ci` processes, including their waits; other: time limits, servers, and other programs")
    print("\nProvisioned, including tests that start with an empty cache directory:")
    for what, seconds in provisioned.most_common(20):
        print(f"{seconds:8.1f} {what}")
    compiled = TARGET / "tmp/compile-seconds"
    if compiled.exists():
        print(f"\n{float(compiled.read_text()):8.1f} compiling the tests")
    print(f"{float(root.get('time')):8.1f} running the tests in parallel")


def line(arguments):
    """Print one line for the run."""
    root = report()
    every = list(cases(root))
    failed = [name for name, _, _, failure in every if failure is not None]
    second = [name for name, _, case, _ in every if flaky(case)]
    print(
        f"run {arguments.number}: {len(every) - len(failed)} passed, {len(failed)} failed, {len(second)} flaky, "
        f"{float(root.get('time')):.0f} s" + "".join(f"\n    {name}" for name in failed + second)
    )
    sys.exit(1 if failed or second else 0)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
commands = parser.add_subparsers(required=True)
commands.add_parser("failures", help=failures.__doc__).set_defaults(run=failures)
command = commands.add_parser("times", help=times.__doc__)
command.add_argument("--count", type=int, default=40)
command.set_defaults(run=times)
command = commands.add_parser("line", help=line.__doc__)
command.add_argument("number", help="a label for the run")
command.set_defaults(run=line)
arguments = parser.parse_args()
arguments.run(arguments)
