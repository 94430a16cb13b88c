"""Which module of a crate uses which, by what its files import, tests left out."""

import pathlib
import re

USE = re.compile(r"^\s*(?:pub(?:\([^)]*\))? )?use ([^;]+);", re.M)
PATH = re.compile(r"\b(?:crate|super)(?:::\w+)+")


def expanded(tree):
    """The paths of a `use`: `a::{b, c::{d}}` is `a::b` and `a::c::d`."""
    tree = " ".join(tree.split())
    brace = tree.find("{")
    if brace < 0:
        return [tree.split(" as ")[0].strip()]
    head, inner, depth, parts, part = tree[:brace], tree[brace + 1 : tree.rindex("}")], 0, [], ""
    for character in inner:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    return [path for each in [*parts, part] if each.strip() for path in expanded(head + each.strip())]


def module(path):
    """The module that a file is, from the crate's root on: `src/a/b.rs` and `src/a/b/mod.rs` are `a`, `b`."""
    names = [*path.parent.parts, path.stem]
    return names[:-1] if names[-1] in ("mod", "lib", "main") else names


def uses(source):
    """For each module at the top of a crate: those that it uses."""
    found = {}
    for file in sorted(source.rglob("*.rs")):
        own = module(file.relative_to(source))
        if not own or own[0] in ("tests", "bin") or "tests" in own:
            continue
        text = re.sub(r"//[^\n]*", "", file.read_text()).split("#[cfg(test)]\nmod tests {")[0]
        paths = [path for tree in USE.findall(text) for path in expanded(tree)] + PATH.findall(USE.sub("", text))
        for path in paths:
            names, at = path.split("::"), list(own)
            if names[0] == "crate":
                at, names = [], names[1:]
            elif names[0] == "super":
                while names and names[0] == "super":
                    at, names = at[:-1], names[1:]
            else:
                continue
            target = [*at, *names]
            if target and target[0] != own[0]:
                found.setdefault(own[0], set()).add(target[0])
    return {name: {other for other in others if other in modules(source)} for name, others in found.items()}


def modules(source):
    """The modules at the top of a crate."""
    names = {path.stem for path in source.glob("*.rs")} | {path.name for path in source.iterdir() if path.is_dir()}
    return names - {"lib", "main", "tests", "bin"}


def cycle(graph):
    """Modules that use each other around a circle, in order; none if there is no circle."""
    done = set()

    def walk(name, trail):
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*trail, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := walk(name, []))), None)


def crates(root):
    """The source folders of the workspace's crates."""
    ours = (path.parent for path in root.glob("*/**/Cargo.toml") if "target" not in path.parts and "fuzz" not in path.parts)
    return sorted(pathlib.Path(path) / "src" for path in ours)
