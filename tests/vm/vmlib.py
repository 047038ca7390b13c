"""What the scripts of the test VM share: the cache, and packages unpacked into it.

Nothing here needs root, and nothing outside the cache is written. Packages are downloaded by apt, which checks their
signatures, and unpacked, never installed.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CACHE = (
    Path(
        os.environ.get("FAKEBINDER_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fakebinder")
    ).resolve()
    / "vm"
)
TOOLS = CACHE / "tools"
SKIPPED = 77
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Hooks that a machine runs after its own updates, and indexes that no one here reads.
APT_CONF = """
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::CNF;
#clear Acquire::IndexTargets::deb::Contents-deb;
Acquire::Languages "none";
Acquire::Retries "3";
APT::Sandbox::User "root";
Dir::State::Lists "{base}/lists";
Dir::Cache "{base}/cache";
"""


class Failed(Exception):
    """The VM, or a part of it, cannot be had; the message is one line that says why."""


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def main(body):
    """Runs a script's body; turns a failure into one line and the exit status for "skipped"."""
    try:
        sys.exit(body())
    except Failed as failure:
        print(f"SKIPPED: {failure}", flush=True)
        sys.exit(SKIPPED)
    except KeyboardInterrupt:
        sys.exit(130)


def machines(name):
    """The path of a program that this machine has, or None."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def tool(name):
    """The path of a program in our cache, or else on this machine, or None."""
    unpacked = TOOLS / "bin" / name
    return str(unpacked) if unpacked.exists() else machines(name)


@contextmanager
def locked():
    """One process at a time changes the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command, what, **options):
    """Runs a program and gives its output; a failure says what could not be done, and the program's own reason."""
    done = subprocess.run(
        [str(word) for word in command], text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False, **options
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith(("E:", "ERROR", "error", "dpkg"))), "".join(lines[-1:]))
        raise Failed(f"{what}: {reason or f'exit status {done.returncode}'}")
    return done.stdout


class Apt:
    """A view of package sources, with lists of its own: the machine's sources, or one suite of the same mirror."""

    def __init__(self, suite=None):
        if not shutil.which("apt-get") or not shutil.which("dpkg"):
            raise Failed("the packages for the VM come from apt, and this machine has none")
        if run(["dpkg", "--print-architecture"], "dpkg").strip() != "amd64":
            raise Failed("the VM is made for amd64, and this machine is another")
        base = CACHE / "apt" / (suite or "own")
        (base / "lists/partial").mkdir(parents=True, exist_ok=True)
        (base / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        config = APT_CONF.format(base=base)
        if suite:
            signed_by = f"signed-by={KEYRING} " if KEYRING.exists() else ""
            (base / "sources.list").write_text(f"deb [{signed_by}target=Packages] {mirror()} {suite} main\n")
            config += f'Dir::Etc::SourceList "{base}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
        self.config = base / "apt.conf"
        self.config.write_text(config)
        self.name = suite or "this machine's own suite"
        self.trouble = None

    def call(self, program, *words, what, **options):
        try:
            return run([program, "-c", self.config, "-q", *words], what, **options)
        except Failed as failure:
            raise self.trouble or failure from None

    def get(self, *words, what, **options):
        return self.call("apt-get", *words, what=what, **options)

    def update(self):
        """Reads the package lists. A source that fails matters only when something is missed later."""
        try:
            self.get("update", "--error-on=any", what=f"reading the package lists of {self.name} failed")
        except Failed as failure:
            self.trouble = failure

    def fields(self, package):
        """The newest version's fields, by name."""
        text = self.call("apt-cache", "show", package, what=f"no package {package} in {self.name}")
        return dict(line.split(": ", 1) for line in text.split("\n\n")[0].splitlines() if ": " in line)

    def unpack(self, packages, root):
        """Downloads packages ("name" or "name=version") and unpacks them below root; gives the bytes downloaded."""
        archives = root.with_name(root.name + ".debs")
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir(parents=True)
        try:
            # apt checks sizes and hashes, and names what it could not get.
            self.get("download", *packages, what=f"downloading from {self.name} failed", cwd=archives)
            for archive in archives.iterdir():
                run(["dpkg", "-x", archive, root], f"unpacking {archive.name} failed")
            if not any(archives.iterdir()):
                raise Failed(f"apt brought nothing for {' '.join(packages)}")
            return sum(archive.stat().st_size for archive in archives.iterdir())
        finally:
            shutil.rmtree(archives, ignore_errors=True)


def release():
    """The name of the Debian release that this machine runs."""
    codename = run(["sh", "-c", '. /etc/os-release; echo "$ID $VERSION_CODENAME"'], "/etc/os-release").split()
    if codename[:1] != ["debian"] or len(codename) < 2:
        raise Failed("what is needed comes from the machine's Debian mirror, and this machine is not Debian")
    return codename[1]


def mirrors():
    """The Debian mirrors that this machine already uses, by suite."""
    query = ["indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages"]
    sites = run(["apt-get", *query], "apt-get indextargets")
    if not sites.strip():  # apt tells only of lists that it has
        own = Apt()
        own.update()
        sites = own.get(*query, what="apt-get indextargets")
    found = {}
    for line in sites.splitlines():
        suite, _, site = line.partition(" ")
        found.setdefault(suite, site.strip())
    return found


def mirror():
    """The mirror of the release that this machine runs."""
    site = mirrors().get(release())
    if not site:
        raise Failed(f"no package source of this machine offers {release()}")
    return site


def seal(root, facts):
    """Writes down what a finished folder holds, so that intact() can tell."""
    files = {str(path.relative_to(root)): digest(path) for path in sorted(root.rglob("*")) if path.is_file()}
    (root / "manifest.json").write_text(json.dumps({"facts": facts, "files": files}, indent=1))


def intact(root):
    """The facts about a folder that seal() finished, or None when it is missing, cut short or changed."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
        if all(digest(root / name) == known for name, known in manifest["files"].items()):
            return manifest["facts"]
    except (OSError, ValueError, KeyError):
        pass
    return None


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def rebuilt(root):
    """A fresh folder to fill, which takes root's place only when all went well."""
    fresh = root.with_name(f"{root.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        shutil.rmtree(root, ignore_errors=True)
        fresh.rename(root)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
