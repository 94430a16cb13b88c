"""The compose files: as they are written, and what each service is given."""

import functools

import yaml
from manifests import ROOT

FOLDER = ROOT / "infra/compose"
FILES = sorted(FOLDER.glob("compose*.yaml"))
# The binary of each service that is ours.
OURS = {"relay": "relay", "worker": "handler"}


@functools.cache
def services(*names):
    """The services of these files, later ones over earlier ones in `environment`. Variables without a value come from
    the shell and are in `passed_on`."""
    found = {}
    for name in names or ("compose.yaml",):
        for service, each in yaml.safe_load((FOLDER / name).read_text())["services"].items():
            before = found.get(service, {})
            environment = {**before.get("environment", {}), **each.get("environment", {})}
            set_here = {variable: value for variable, value in environment.items() if value is not None}
            passed_on = {*before.get("passed_on", ()), *(environment.keys() - set_here.keys())}
            found[service] = {**before, **each, "environment": set_here, "passed_on": passed_on}
    return found
