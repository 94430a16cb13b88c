"""Writes what is in the programs of a package: sbom.cdx.json (CycloneDX), and THIRD-PARTY, the licences. For infra/local/package.

cargo-cyclonedx and cargo-about would take minutes to compile, and list crates that are in no program: see crates.py.
"""

import argparse
import hashlib
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import crates
import licences
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def component(kind, name, version, licence, package, checksum=None):
    """A component whose reference is its address, so that it is the same each time."""
    return Component(
        type=kind,
        name=name,
        version=version,
        purl=package,
        bom_ref=str(package) if package else name,
        licenses=[LicenseExpression(licence)],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=checksum)] if checksum else [],
    )


def of_crate(crate):
    """A crate; our own are on no registry."""
    package = PackageURL("generic" if crate.ours else "cargo", None, crate.name, crate.version)
    kind = ComponentType.APPLICATION if crate.name in crates.PROGRAMS else ComponentType.LIBRARY
    return component(kind, crate.name, crate.version, crate.licence, package, crate.checksum)


def document(linked, target, features, commit):
    """The whole list, as text."""
    version = next(each.version for each in linked.values() if each.name == "handler")
    licence = next(each.licence for each in linked.values() if each.name == "handler")
    easel = component(ComponentType.APPLICATION, "easel", version, licence, PackageURL("generic", None, "easel", version))
    said = {"target": target, "features": features, "commit": commit}
    easel.properties.update(Property(name=f"easel:{name}", value=value) for name, value in said.items())
    compiler = subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]
    library = component(
        ComponentType.LIBRARY, "rust-std", compiler, "MIT OR Apache-2.0", PackageURL("generic", None, "rust-std", compiler)
    )
    of = {key: of_crate(crate) for key, crate in linked.items()}
    fonts = [
        component(ComponentType.FILE, font.name, None, name, None, hashlib.sha256(font.read_bytes()).hexdigest())
        for font, (name, _, _) in licences.fonts().items()
    ]
    written = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom = Bom(metadata=BomMetaData(component=easel, timestamp=written), components=[*of.values(), *fonts, library])
    programs = [of[key] for key in of if key[0] in crates.PROGRAMS]
    bom.register_dependency(easel, programs)
    for key, crate in linked.items():
        extra = [library] if of[key] in programs else []
        bom.register_dependency(of[key], [*(of[each] for each in crate.uses), *extra])
        if crate.name == "handler":
            bom.register_dependency(of[key], fonts)
    # By default it is random.
    bom.serial_number = None
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem:
        raise SystemExit(f"sbom: {problem}")
    return text + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "features", "commit", "to"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    linked = crates.linked(options.target, options.features)
    to = Path(options.to)
    (to / "sbom.cdx.json").write_text(document(linked, options.target, options.features, options.commit))
    (to / "THIRD-PARTY").write_text(licences.book(linked))


if __name__ == "__main__":
    main()
