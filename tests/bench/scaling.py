#!/usr/bin/env python3
"""Simulates how workers come and go, says what 1,000 pictures cost and how long they are waited for, and chooses.

What was measured and what is assumed is in scaling_model.py, and is printed. Each assumption is an option.
"""

import argparse
import itertools
import json
from dataclasses import asdict, replace

from scaling_model import FINISH, PAINT, START_TO_PICTURE, SWAP, Settings, World, measure, traces, ways


def keda():
    """The settings of KEDA that are tried."""
    return [Settings(*each) for each in itertools.product((5, 10, 30), (5, 20, 80), (2, 4, 8), (60, 300, 900))]


def serverless(weights="image"):
    """Those of Lambda: environments at most, and tasks in one at a time. The weights come in the one way."""
    return [Settings(1, tasks, most, 0, tasks, weights) for tasks, most in itertools.product((1, 2, 4), (1, 2, 4, 8))]


def choose(candidates, world, on_lambda=False):
    """The cheapest over all traces whose 95th percentile is within the target in each; ties go to the shorter wait.

    If none is within the target, the one that misses it least.
    """
    given = traces(world)
    tried = {
        each: {name: measure(trace, each, world, on_lambda) for name, trace in given.items()} for each in candidates
    }

    def rank(settings):
        results = tried[settings].values()
        missed = max(0.0, max(result.p95 for result in results) - world.target)
        # Differences below a cent are none.
        return (
            missed,
            round(sum(result.dollars_per_1000 for result in results), 2),
            sum(result.p95 for result in results),
        )

    best = min(candidates, key=rank)
    return best, tried


def row(label, results):
    """One row of a table."""
    cells = [
        f"{each.dollars_per_1000:.2f} | {each.p50:.0f} / {each.p95:.0f} / {each.p99:.0f}" for each in results.values()
    ]
    return f"| {label} | " + " | ".join(cells) + " |"


def show(world):
    """Prints what is assumed, the choice, and what each neighbour of it costs."""
    print("assumed:", ", ".join(f"{name} {value:g}" for name, value in asdict(world).items()))
    print(f"measured: paint {PAINT}, swap {SWAP}, finish {FINISH}, start to picture {START_TO_PICTURE}\n")
    for title, candidates, on_lambda, fields in (
        ("KEDA", keda(), False, ("polling", "queue_length", "most", "idle_exit")),
        ("Lambda", serverless(), True, ("most", "concurrency")),
    ):
        best, tried = choose(candidates, world, on_lambda)
        names = list(traces(world))
        print(f"| {title} | " + " | ".join(f"{name}: $ for 1,000 | p50 / p95 / p99, s" for name in names) + " |")
        print("| --- |" + " --- | --- |" * len(names))
        print(row("**chosen: " + ", ".join(f"{field} {getattr(best, field)}" for field in fields) + "**", tried[best]))
        for field in fields:
            for other in tried:
                same = all(getattr(other, each) == getattr(best, each) for each in fields if each != field)
                if same and other != best:
                    print(row(f"{field} {getattr(other, field)}", tried[other]))
        print()
    show_ways(world)


def show_ways(world):
    """Prints what each way of the weights costs at a start, and what the settings that are chosen for it come to."""
    names = list(traces(world))
    print("| weights | a start | " + " | ".join(f"{name}: $ for 1,000 | p50 / p95 / p99, s" for name in names) + " |")
    print("| --- | --- |" + " --- | --- |" * len(names))
    for name, way in ways(world).items():
        best, tried = choose(serverless(name), world, True)
        cost = f"{way.seconds:.1f} s, ${way.dollars:.4f}"
        print(row(f"`{name}`: most {best.most}, concurrency {best.concurrency} | {cost}", tried[best]))


def main():
    """The command line: each assumption is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    world = World()
    for name, value in asdict(world).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="print the choices alone")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    world = replace(world, **arguments)
    if as_json:
        chosen = {"keda": choose(keda(), world)[0], "lambda": choose(serverless(), world, True)[0]}
        print(json.dumps({name: asdict(each) for name, each in chosen.items()}))
    else:
        show(world)


if __name__ == "__main__":
    main()
