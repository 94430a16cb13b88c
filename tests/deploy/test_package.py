"""The archive of infra/local/package: two times the same bytes, and in it what its README promises.

It holds the development build here. That two release builds make one archive is shown by hand: see docs/OPERATIONS.md.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import unittest
from pathlib import Path

import binaries
import manifests

PROGRAMS = ("handler", "relay")
LIMIT = 300


def start(to, **environment):
    """The script, packing the programs that the tests have."""
    command = [manifests.ROOT / "infra/local/package", "--built", binaries.FOLDER, "--to", to]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **options)


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        work = tempfile.TemporaryDirectory()
        cls.addClassCleanup(work.cleanup)
        cls.folders = [Path(work.name) / name for name in ("one", "the other")]
        # At the same time, and where another machine may differ: place, mask, time zone, language.
        mask = os.umask(0o077)
        first = start(cls.folders[0], TZ="Asia/Kathmandu", LC_ALL="C")
        os.umask(mask)
        running = [first, start(cls.folders[1], TZ="UTC", LANG="C.UTF-8")]
        for each in running:
            said = each.communicate(timeout=LIMIT)[0]
            assert each.returncode == 0, said
        cls.archives = [next(each.glob("easel-*.tar.gz")) for each in cls.folders]
        with tarfile.open(cls.archives[0]) as archive:
            cls.members = archive.getmembers()
            archive.extractall(work.name, filter="tar")
        cls.root = Path(work.name) / cls.members[0].name
        cls.doc = cls.root / "share/doc/easel"
        cls.sbom = json.loads((cls.doc / "sbom.cdx.json").read_text())
        cls.crates = [each for each in cls.sbom["components"] if each.get("purl", "").startswith("pkg:cargo/")]

    def test_two_archives_are_the_same_and_have_the_hash_beside_them(self):
        hashes = [hashlib.sha256(each.read_bytes()).hexdigest() for each in self.archives]
        self.assertEqual(hashes[0], hashes[1])
        said = self.archives[0].with_name(self.archives[0].name + ".sha256").read_text()
        self.assertEqual(said, f"{hashes[0]}  {self.archives[0].name}\n")
        for folder in self.folders:
            self.assertEqual(len([*folder.iterdir()]), 2, "something is left behind")

    def test_nobody_in_particular_owns_it_and_everybody_can_read_it(self):
        for each in self.members:
            program = each.isdir() or "/bin/" in each.name
            with self.subTest(name=each.name):
                self.assertEqual((each.uid, each.gid, each.uname, each.gname), (0, 0, "", ""))
                self.assertEqual(oct(each.mode), oct(0o755 if program else 0o644))

    def test_both_programs_run_and_are_stripped(self):
        for name in PROGRAMS:
            program = self.root / "bin" / name
            said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
            self.assertRegex(said, rf"^{name} \d+\.\d+\.\d+\n$")
            self.assertIn(said.split()[1], self.root.name)
            sections = subprocess.run(["readelf", "--sections", program], capture_output=True, text=True, check=True).stdout
            self.assertNotRegex(sections, r"\.(symtab|debug_(info|line))")

    def test_every_command_has_a_page_that_groff_can_read(self):
        pages = {each.name for each in (self.root / "share/man/man1").iterdir()}
        self.assertLessEqual({"handler.1", "handler-worker.1", "handler-weights-pull.1", "relay.1"}, pages)
        for name in sorted(pages):
            page = self.root / "share/man/man1" / name
            with self.subTest(page=name):
                self.assertRegex(page.read_text(), rf"(?m)^\.TH {name.removesuffix('.1')} 1 ")
                if shutil.which("groff"):
                    command = ["groff", "-Kutf8", "-man", "-ww", "-z", page]
                    read = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
                    self.assertEqual(read.stderr, "")

    def test_bash_can_read_the_completions_and_those_of_other_shells_are_there(self):
        for name in PROGRAMS:
            script = self.root / "share/bash-completion/completions" / name
            subprocess.run(["bash", "-n", script], check=True, timeout=10)
            zsh, fish = (self.root / "share" / each for each in ("zsh/site-functions", "fish/vendor_completions.d"))
            self.assertTrue((zsh / f"_{name}").read_text().startswith(f"#compdef {name}\n"))
            self.assertIn(f"complete -c {name}", (fish / f"{name}.fish").read_text())

    def test_the_sbom_has_what_is_compiled_in_as_cargo_locked_it_and_nothing_else(self):
        locked = tomllib.loads((manifests.ROOT / "Cargo.lock").read_text())["package"]
        checksums = {(each["name"], each["version"]): each.get("checksum") for each in locked}
        found = {(each["name"], each["version"]): each for each in self.crates}
        for key, each in found.items():
            self.assertEqual(each["hashes"], [{"alg": "SHA-256", "content": checksums[key]}], key)
        names = {name for name, _ in found}
        self.assertLessEqual({"candle-core", "lapin", "c2pa", "libwebp-sys", "ring", "clap"}, names)
        # Of tests, build scripts, macros, other machines and features that are off.
        self.assertEqual(set(), {"proptest", "cc", "serde_derive", "windows-sys", "candle-kernels", "rcgen"} & names)
        ours = {each["name"] for each in self.sbom["components"]}
        self.assertLessEqual({"handler", "relay", "diffusion", "rust-std", "DroidSansFallback.ttf"}, ours)
        uses = {each["ref"]: each.get("dependsOn", []) for each in self.sbom["dependencies"]}
        self.assertTrue(any("cargo/lapin@" in each for each in uses[self.reference("relay")]))
        self.assertIn("DroidSansFallback.ttf", uses[self.reference("handler")])
        self.assertNotIn("serialNumber", self.sbom)

    def reference(self, name):
        """How the SBOM refers to a component."""
        return next(each["bom-ref"] for each in self.sbom["components"] if each["name"] == name)

    def test_every_crate_and_font_has_the_text_of_its_licence(self):
        text = (self.doc / "THIRD-PARTY").read_text()
        blocks = re.findall(r"^={100}\n((?:.+\n)+)-{100}\n\n((?:.*\n)+?)(?=\n?={100}\n|\Z)", text, re.MULTILINE)
        has = {}
        for of, licence in blocks:
            for line in of.splitlines():
                has.setdefault(line.split(": ")[0], []).append(licence)
        fonts = [each["name"] for each in self.sbom["components"] if each["type"] == "file"]
        self.assertGreater(len(fonts), 5)
        wanted = {*fonts, *(f"{each['name']} {each['version']}" for each in self.crates)}
        self.assertEqual(wanted, {*has})
        # A file of a line only names the licence.
        self.assertEqual([], [name for name, licences in has.items() if max(map(len, licences)) < 300])
        libwebp = next(licences for name, licences in has.items() if name.startswith("libwebp-sys "))
        self.assertTrue(any("Google Inc" in each for each in libwebp), "that of the C library within")
        self.assertIn("The Rust Project", (self.doc / "COPYRIGHT-rust.html").read_text())

    def test_a_wrong_option_and_a_missing_program_are_named(self):
        script = manifests.ROOT / "infra/local/package"
        with tempfile.TemporaryDirectory() as name:
            cases = {("--nonsense",): "--nonsense is not an option", ("--to",): "--to needs a value"}
            cases["--built", name, "--to", name] = f"there is no program {name}/handler"
            for arguments, problem in cases.items():
                ran = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)
                with self.subTest(arguments=arguments):
                    self.assertEqual((1, f"package: {problem}"), (ran.returncode, ran.stderr.split(";")[0].strip()))
            self.assertEqual([], [*Path(name).iterdir()])


if __name__ == "__main__":
    unittest.main()
