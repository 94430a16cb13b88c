"""One trace of tasks under one policy of scaling: who works when, how long each task waits, which nodes are paid for.

Seeded and without a clock: the same on every run. The measured and the assumed values are here, also how fast a node
comes and what it costs.
"""

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass

# Measured, in docs/PERFORMANCE.md: on one H100 512x512 in 50 steps, a LoRA's swap; sign and encode; the start.
PAINT, SWAP, FINISH = 0.266, 0.0146, 0.0148
START_TO_PICTURE = 1.29


@dataclass(frozen=True)
class World:
    """What is assumed. Each is an option of the command line."""

    # Seconds on the rented GPU for one on an H100: an L4 has an eighth of its dense f16 operations on paper.
    gpu_factor: float = 8.0
    # Fetching a LoRA that is on the volume, storing, five webhooks: beside the painting where two tasks are in work.
    network: float = 0.5
    # From a pod without a node to a node that takes it, half of it paid; the image on it, without a model; the model from
    # a network's volume.
    node: float = 90.0
    image: float = 40.0
    model: float = 10.0
    # The weights in GB (SD1.5 in f16), and what EFS takes for a GB read by elastic throughput in us-east-1, US dollars,
    # as public pages had it in 2026.
    weights: float = 2.134
    volume_read: float = 0.03
    # GB a second that a g6.xlarge or g5.xlarge always gets from the network: 2.5 Gbit/s, of up to 10 for a while.
    baseline: float = 0.3125
    # A layer with the weights: its size by gzip, and GB a second that one core unpacks; both measured, with normally
    # distributed numbers in f16.
    packed: float = 0.92
    unpack: float = 0.27
    # MiB in one ranged GET of S3, and US dollars for a million of them in us-east-1, as public pages had it in 2026.
    range_mib: float = 8.0
    million_gets: float = 0.40
    # A pod on a node that is still there, and has the image.
    pod: float = 3.0
    # How long an empty node stays (Kubernetes), and an idle environment (Lambda).
    node_idle: float = 60.0
    environment_idle: float = 300.0
    # g6.xlarge on demand in us-east-1, US dollars, as public pages had it in 2025; Lambda's fee on it; a million
    # requests.
    node_hour: float = 0.8048
    lambda_fee: float = 1.15
    million_requests: float = 0.20
    # The wait that 95 of 100 tasks should not exceed, from the queue to the picture, in each trace.
    target: float = 300.0
    seed: int = 1


@dataclass(frozen=True)
class Settings:
    """What the manifests say. Lambda is the same with a poll each second and no idle exit of ours."""

    polling: int
    queue_length: int
    most: int
    idle_exit: int
    concurrency: int = 2
    # How a machine that has nothing gets the weights: a name of `ways`.
    weights: str = "efs"


@dataclass(frozen=True)
class Way:
    """What a start costs on a machine that has no weights yet, beside node and image."""

    seconds: float
    dollars: float


def ways(world):
    """The ways of the weights, by the names that ModelVolume has."""
    requests = math.ceil(world.weights * 1e9 / (world.range_mib * 2**20))
    return {
        # A larger image: fetched and then unpacked. Data from the registry costs nothing within the region.
        "image": Way(world.weights * (world.packed / world.baseline + 1 / world.unpack), 0.0),
        # Four connections fill the baseline; the hash is reckoned meanwhile.
        "s3": Way(world.weights / world.baseline, requests * world.million_gets / 1e6),
        "efs": Way(world.model, world.weights * world.volume_read),
    }


def traces(world):
    """Times at which tasks come, by name."""
    draw = random.Random(world.seed)
    hours = 3600.0

    def poisson(until, rate, peak):
        time, found = 0.0, []
        while (time := time + draw.expovariate(peak)) < until:
            if draw.random() * peak < rate(time):
                found.append(time)
        return found

    burst = sorted(start * hours / 2 + draw.uniform(0, 30) for start in range(12) for _ in range(300))
    day = poisson(24 * hours, lambda time: 0.05 * (1 - math.cos(2 * math.pi * time / (24 * hours))), 0.1)
    return {"steady": poisson(2 * hours, lambda _: 0.4, 0.4), "bursty": burst, "day": day}


class Worker:
    """One worker on its node, and since when it has nothing to do."""

    def __init__(self, node_since):
        self.node_since, self.idle_since = node_since, None


class Run:
    """One trace under one policy."""

    def __init__(self, arrivals, settings, world, serverless):
        self.settings, self.world = settings, world
        self.way = ways(world)[settings.weights]
        self.on_gpu = (PAINT + SWAP) * world.gpu_factor
        self.beside = FINISH + world.network
        self.stays = 0.0 if serverless else world.node_idle
        self.idle_exit = world.environment_idle if serverless else settings.idle_exit
        self.coming, self.waiting, self.waits = deque(arrivals), deque(), []
        # `spare` holds nodes without a worker: until when each stays, and since when it is paid for.
        self.idle, self.spare, self.unfinished, self.in_work, self.paid = [], [], 0, 0, 0.0
        self.events, self.order = [], itertools.count()
        # Starts on a node that has nothing yet.
        self.cold_starts = 0
        self.draw = random.Random(world.seed)

    def at(self, time, what, subject=None):
        heapq.heappush(self.events, (time, next(self.order), what, subject))

    def run(self):
        """Gives the wait of each task, the seconds of nodes that are paid for, and how often one started with nothing."""
        self.at(self.coming[0], self.come)
        self.at(self.next_poll(self.coming[0]), self.poll)
        while self.events:
            now, _, what, subject = heapq.heappop(self.events)
            what(now, subject)
        self.paid += sum(until - since for until, since in self.spare)
        return self.waits, self.paid, self.cold_starts

    def next_poll(self, time):
        return math.ceil(time / self.settings.polling) * self.settings.polling

    def come(self, now, _):
        self.waiting.append(self.coming.popleft())
        if self.coming:
            self.at(self.coming[0], self.come)
        self.hand_out(now)

    def poll(self, now, _):
        """What KEDA does: waiting and in-flight messages by queueLength, less the jobs that have not ended."""
        length = len(self.waiting) + self.in_work
        wanted = min(self.settings.most, math.ceil(length / self.settings.queue_length))
        for _ in range(wanted - self.unfinished):
            self.start(now)
        # Nothing waits, and nobody works: no poll before the next task changes anything.
        if length:
            self.at(now + self.settings.polling, self.poll)
        elif self.coming:
            self.at(max(self.next_poll(self.coming[0]), now + self.settings.polling), self.poll)

    def start(self, now):
        world = self.world
        self.unfinished += 1
        while self.spare and self.spare[0][0] <= now:
            until, since = heapq.heappop(self.spare)
            self.paid += until - since
        if self.spare:
            _, since = heapq.heappop(self.spare)
            # The node has the image, and its page cache the model.
            self.at(now + world.pod + START_TO_PICTURE, self.ready, Worker(since))
        else:
            self.cold_starts += 1
            cold = world.node + world.image + self.way.seconds + START_TO_PICTURE
            self.at(now + cold, self.ready, Worker(now + world.node / 2))

    def ready(self, now, worker):
        worker.idle_since = now
        self.idle.append(worker)
        self.at(now + self.idle_exit, self.leave, (worker, now))
        self.hand_out(now)

    def hand_out(self, now):
        while self.waiting and self.idle:
            # SQS gives a message to any of those that poll: a little load keeps all of them from leaving.
            worker = self.idle.pop(self.draw.randrange(len(self.idle)))
            worker.idle_since = None
            self.in_work += 1
            self.waits.append(now + self.on_gpu + self.beside - self.waiting.popleft())
            # With two in work, the GPU paints one while the other is fetched, stored and reported.
            self.at(now + self.on_gpu + (self.beside if self.settings.concurrency == 1 else 0), self.done, worker)

    def done(self, now, worker):
        self.in_work -= 1
        self.ready(now, worker)

    def leave(self, now, subject):
        worker, since = subject
        if worker.idle_since == since:
            self.idle.remove(worker)
            self.unfinished -= 1
            heapq.heappush(self.spare, (now + self.stays, worker.node_since))


@dataclass(frozen=True)
class Result:
    """What one trace came to."""

    dollars_per_1000: float
    p50: float
    p95: float
    p99: float


def measure(arrivals, settings, world, serverless=False):
    """Runs and sums up."""
    waits, paid, cold_starts = Run(arrivals, settings, world, serverless).run()
    assert len(waits) == len(arrivals), "a task was left behind"
    waits.sort()
    hours = paid / 3600
    dollars = hours * world.node_hour * (world.lambda_fee if serverless else 1)
    # A node that stays has the weights in its page cache.
    dollars += cold_starts * ways(world)[settings.weights].dollars
    dollars += len(waits) * world.million_requests / 1e6 if serverless else 0
    return Result(1000 * dollars / len(waits), *(waits[int(len(waits) * part)] for part in (0.5, 0.95, 0.99)))
