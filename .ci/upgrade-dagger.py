"""Sets the pinned Dagger version everywhere, and prints what is left to do by hand.

Called by `just upgrade-dagger VERSION`. Needs Go and access to the Go module proxy and to crates.io. It can be repeated.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PINS = ROOT / "ci/common/src/pins.rs"
MODULE = ROOT / "ci/src/engine/embedded/gomod"
# Files in which every occurrence of the version is the pinned one.
FILES = [PINS, ROOT / "ci/Cargo.toml", ROOT / "README.md", ROOT / "ci/docs/engines.md"]
DAGGER = "github.com/dagger/dagger"

LEFT = """
Left to do by hand:
  1. Read the release notes: changes of the API, of the engine's spans and of its settings.
  2. Review `git diff {module}`: replace directives, and the comment about modules that the checksum database does not know.
  3. cargo run -p ci -- engine up      builds the new engine. A constant that is missing in distconsts/consts.go fails here.
  4. just test                         `runs::reports_the_time_the_cache_state_and_the_log_of_each_step` checks the engine's reports.
  5. just check
  6. Try the workarounds again, and update the versions in these comments:
{mentions}
  7. Remove the engine of the old version from this machine with `ci engine prune`."""


def run(*command, check=True, **options):
    print("+", *command)
    return subprocess.run(command, check=check, text=True, **options)


def go(*arguments, check=True):
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GOWORK": "off", "GOTOOLCHAIN": "local"}
    return run("go", *arguments, check=check, cwd=MODULE, env=environment, stdout=subprocess.PIPE)


def pinned():
    return re.search(r'pub const DAGGER: &str = "([^"]+)"', PINS.read_text())[1]


def set_version(old, new):
    for file in FILES:
        text = file.read_text()
        file.write_text(text.replace(old, new))
    run("cargo", "update", "--package", "dagger-sdk", "--precise", new, cwd=ROOT)


def update_module(new):
    """Requires the new version, takes over the replace directives of its go.mod, and completes go.mod and go.sum."""
    version = f"v{new}"
    downloaded = json.loads(go("mod", "download", "-json", f"{DAGGER}@{version}").stdout)
    source = pathlib.Path(downloaded["Dir"])
    theirs = json.loads(
        run("go", "mod", "edit", "-json", str(source / "go.mod"), stdout=subprocess.PIPE).stdout
    )
    edits = [f"-require={DAGGER}@{version}", f"-require=dagger.io/dagger@{version}"]
    edits += [f"-replace=dagger.io/dagger=dagger.io/dagger@{version}"]
    for replace in theirs.get("Replace") or []:
        old, target = replace["Old"], replace["New"]
        # Without a version, it is a directory of dagger's repository.
        if "Version" in target:
            edits.append(f"-replace={old['Path']}={target['Path']}@{target['Version']}")
    go("mod", "edit", *edits)
    # The checksum database does not know every module; dagger's own go.sum does.
    own = MODULE / "go.sum"
    lines = set(own.read_text().splitlines()) | set((source / "go.sum").read_text().splitlines())
    own.write_text("".join(f"{line}\n" for line in sorted(lines)))
    listed = go("list", "-deps", "tool", check=False)
    if listed.returncode != 0:
        print(
            "\nSome modules cannot be resolved; see above. For a version that the proxy does not serve, choose the next one from\n"
            "`go list -m -versions MODULE`, add a replace directive to go.mod, and run this again."
        )
        return False
    go("mod", "tidy", check=False)
    return True


def mentions(new):
    """Lines with a version of Dagger outside of the files that follow the pin."""
    found = run(
        *["git", "grep", "-nE", r"(Dagger|SDK|engine|dagger-sdk).{0,40}[ (=v]0\.[0-9]+\.[0-9]+"],
        *["--", "ci/src", "deny.toml"],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ).stdout
    lines = [line for line in found.splitlines() if "gomod/" not in line and new not in line]
    return "\n".join(f"       {line[:140]}" for line in lines) or "       none"


def main():
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+\.\d+\.\d+", sys.argv[1]):
        sys.exit("usage: just upgrade-dagger VERSION, such as 0.21.8")
    new, old = sys.argv[1], pinned()
    if old != new:
        set_version(old, new)
    resolved = update_module(new)
    print(LEFT.format(module=MODULE.relative_to(ROOT), mentions=mentions(new)))
    sys.exit(0 if resolved else 1)


if __name__ == "__main__":
    main()
