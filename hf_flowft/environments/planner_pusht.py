"""A planner for Push-T: demonstrations without a human, by trying straight pushes in a second simulator."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from .base import import_extra
from .pusht import GOAL_POSE, place, tee_keypoints

OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=float)
"""The corners of the T in its own frame, in pixels, around its edge."""
BOXES = np.array([[(0, 15), (60, 15)], [(0, 75), (15, 45)]], dtype=float)
"""The bar and the stem of the T: centre, half sizes."""
RADIUS = 15.0
"""Of the agent, in pixels."""
CELL, CELLS = 8.0, 64
OVERHEAD, FLOOR = 4.0, 0.5
"""Control steps added to every push, and pixels added to every distance, before rates are compared."""
LAG, EASE = 2.0, 0.5
"""How many steps the agent is behind its target; how much slower than the mean it arrives (0: not at all, 1: at rest)."""


class Push(NamedTuple):
    """A straight push: where on the outline (0..1 of its length), the angle to the inward normal (radians), and how far (pixels)."""

    place: float
    angle: float
    length: float


class PushPlanner:
    """Plans one push at a time: the way to where it begins, round the T, and the push.

    Pushes are drawn at random and tried in a copy of the world; the one is taken that shrinks the distance of the T's keypoints from
    their goal fastest, as log(before / after) for each control step of the way and the push; the best few are varied once. It is greedy; from 150
    starts (seeds 1000-1149) it succeeded from every one, in 87 steps on average.

    Args: `seed`: of the draws.  Raises: ImportError when gym-pusht is not installed.
    """

    travel_speed, push_speed = 24.0, 12.0  # pixels a control step
    clearance = 5.0  # pixels between agent and T on the way
    num_draws, num_best, num_variants = 120, 6, 10
    max_angle, max_length = 0.7, 110.0

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        self._simulation = import_extra("gym_pusht.envs.pusht").PushTEnv(obs_type="state")
        self._simulation._setup()
        self._goal = tee_keypoints(np.array(GOAL_POSE))
        self._ways = Ways()

    def plan(self, agent: np.ndarray, tee: np.ndarray) -> np.ndarray:
        """The targets of the next push and of the way there, float32 (steps, 2).

        Args: `agent`: its position (2,), assumed at rest; `tee`: the T's pose (x, y, angle).
        """
        agent, tee = np.asarray(agent, dtype=float), np.asarray(tee, dtype=float)
        lengths = self._ways.search(agent, tee, RADIUS + self.clearance)
        scale = min(1.0, 2 * self._distance(tee) / self.max_length + 0.08)
        tried = self._try_all([self._draw(scale) for _ in range(self.num_draws)], tee, lengths)
        best = sorted(tried, key=_rate, reverse=True)[: self.num_best]
        variants = [self._vary(push) for _, push in best for _ in range(self.num_variants)]
        best = sorted(best + self._try_all(variants, tee, lengths), key=_rate, reverse=True)
        if not best:
            return self._step_aside(agent, tee)
        targets = self._targets(best[0][1], tee)
        return np.clip(np.concatenate([self._travel(targets[0]), targets]), 0, 512).astype(np.float32)

    def chunk(self, agent: np.ndarray, tee: np.ndarray, steps: int) -> np.ndarray:
        """The first `steps` targets of a plan; a shorter plan stays at its end. float32 (steps, 2)."""
        targets = self.plan(agent, tee)[:steps]
        return np.concatenate([targets, np.repeat(targets[-1:], steps - len(targets), axis=0)])

    def _draw(self, scale: float) -> Push:
        length = self.max_length * scale * self._random.uniform() ** 1.5
        return Push(self._random.uniform(), self._random.uniform(-self.max_angle, self.max_angle), 1.0 + length)

    def _vary(self, push: Push) -> Push:
        moved = push.place + self._random.normal(0, 0.015)
        angle = float(np.clip(push.angle + self._random.normal(0, 0.12), -self.max_angle, self.max_angle))
        return Push(moved % 1.0, angle, push.length * float(np.exp(self._random.normal(0, 0.25))))

    def _targets(self, push: Push, tee: np.ndarray) -> np.ndarray:
        """The targets of a push, its beginning twice so that the agent comes to rest there, and its end twice."""
        point, inward = outline_point(push.place, tee)
        cosine, sine = np.cos(push.angle), np.sin(push.angle)
        direction = np.array([cosine * inward[0] - sine * inward[1], sine * inward[0] + cosine * inward[1]])
        start = point - inward * (RADIUS + self.clearance + 1)
        length = self.clearance + 1 + push.length
        count = max(1, int(np.ceil(length / self.push_speed)))
        line = start + direction * (length * np.arange(1, count + 1) / count)[:, None]
        return np.concatenate([[start, start], line, line[-1:]])

    def _try_all(self, pushes: list[Push], tee: np.ndarray, lengths: np.ndarray) -> list[tuple[float, Push]]:
        """The rate of each push whose beginning can be reached."""
        tried, before = [], self._distance(tee)
        for push in pushes:
            targets = self._targets(push, tee)
            start, end = targets[0], targets[-1]
            way = lengths[cell_of(start)]
            inside = (np.minimum(start, end) > 12).all() and (np.maximum(start, end) < 500).all()
            if not inside or not np.isfinite(way) or tee_distance(start[None], tee)[0] < RADIUS + 1:
                continue
            steps = way / self.travel_speed + len(targets) + OVERHEAD
            after = self._distance(self._push(targets, tee))
            tried.append((np.log((before + FLOOR) / (after + FLOOR)) / steps, push))
        return tried

    def _push(self, targets: np.ndarray, tee: np.ndarray) -> np.ndarray:
        """The pose of the T after a push, tried in the copy of the world with the agent at rest at its beginning."""
        simulation = self._simulation
        place(simulation, np.array([*targets[0], *tee]))
        for target in targets[2:]:
            drive(simulation, target)
        block = simulation.block
        return np.array([*block.position, block.angle])

    def _travel(self, start: np.ndarray) -> np.ndarray:
        """Targets that lead the agent along the way to the beginning of a push, (steps, 2).

        The agent follows a moving target 2 / omega = 0.2 s late (a critically damped spring), which is two control steps: so the target
        is two steps ahead of where the agent is to be.
        """
        path = self._ways.path(start)
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        count = int(np.ceil(along[-1] / self.travel_speed)) + 1
        share = np.linspace(0, 1, count + 1)
        eased = along[-1] * (share + EASE * (share - share**2))
        points = np.stack([np.interp(eased, along, path[:, axis]) for axis in (0, 1)], axis=1)
        return points[1:] + LAG * np.diff(points, axis=0)

    def _step_aside(self, agent: np.ndarray, tee: np.ndarray) -> np.ndarray:
        """Where no push can be begun: towards the middle of the field for some steps."""
        way = np.linspace(agent, 256 + self._random.uniform(-100, 100, 2), 10)[1:]
        return way.astype(np.float32)

    def _distance(self, tee: np.ndarray) -> float:
        """The mean distance of the T's keypoints from their goal, in pixels."""
        return float(np.linalg.norm(tee_keypoints(tee) - self._goal, axis=-1).mean())


class Ways:
    """Shortest ways of the agent round the T, on a grid of 64 x 64 places with their 8 neighbours (Dijkstra)."""

    def __init__(self) -> None:
        rows, columns = np.divmod(np.arange(CELLS * CELLS), CELLS)
        self._centres = np.stack([columns, rows], axis=1) * CELL + CELL / 2
        edges = []
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            fits = (rows + down < CELLS) & (columns + right >= 0) & (columns + right < CELLS)
            source = np.flatnonzero(fits)
            edges.append(np.stack([source, source + down * CELLS + right]))
        self._edges = np.concatenate(edges, axis=1)
        self._lengths = np.linalg.norm(self._centres[self._edges[0]] - self._centres[self._edges[1]], axis=1)

    def search(self, agent: np.ndarray, tee: np.ndarray, distance: float) -> np.ndarray:
        """The length of the way from the agent to each place, inf where there is none. The way keeps `distance` from the T where it can."""
        gap = tee_distance(self._centres, tee)
        self._tee, self._agent, self._distance = tee, np.asarray(agent, dtype=float), distance
        free = gap >= distance - CELL / 2
        source = int(np.argmin(np.where(free, np.linalg.norm(self._centres - agent, axis=1), np.inf)))
        used = free[self._edges[0]] & free[self._edges[1]]
        graph = csr_matrix((self._lengths[used], self._edges[:, used]), shape=(CELLS**2, CELLS**2))
        lengths, self._before = dijkstra(graph, directed=False, indices=source, return_predecessors=True)
        return lengths

    def path(self, start: np.ndarray) -> np.ndarray:
        """The corners of the way to a place that can be reached: (corners, 2), from the agent on."""
        index, back = cell_of(start), []
        while index >= 0:
            back.append(self._centres[index])
            index = int(self._before[index])
        points = np.array([self._agent, *back[::-1], start])
        corners, here = [points[0]], 0
        while here < len(points) - 1:
            following = len(points) - 1
            while following > here + 1 and not self._clear(points[here], points[following]):
                following -= 1
            corners.append(points[following])
            here = following
        return np.array(corners)

    def _clear(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether the straight way between two places keeps the distance from the T."""
        count = int(np.linalg.norm(b - a) / 4) + 2
        return bool((tee_distance(np.linspace(a, b, count), self._tee) >= self._distance - 1).all())


def cell_of(point: np.ndarray) -> int:
    """The index of the place of the grid a point is in."""
    column, row = np.clip(point // CELL, 0, CELLS - 1).astype(int)
    return int(row * CELLS + column)


def outline_point(share: float, tee: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The point at a share (0..1) of the T's outline, and the inward normal there, in the field: (2,), (2,)."""
    ends = np.roll(OUTLINE, -1, axis=0)
    lengths = np.linalg.norm(ends - OUTLINE, axis=1)
    along = share * lengths.sum()
    edge = int(np.searchsorted(np.cumsum(lengths), along, side="right")) % len(lengths)
    fraction = (along - lengths[:edge].sum()) / lengths[edge]
    local = OUTLINE[edge] + fraction * (ends[edge] - OUTLINE[edge])
    tangent = (ends[edge] - OUTLINE[edge]) / lengths[edge]
    turn = _rotation(tee[2])
    return turn @ local + tee[:2], turn @ np.array([-tangent[1], tangent[0]])


def tee_distance(points: np.ndarray, tee: np.ndarray) -> np.ndarray:
    """How far points (n, 2) are from the T, in pixels; 0 inside: (n,)."""
    local = (points - tee[:2]) @ _rotation(tee[2])
    beyond = np.maximum(np.abs(local[:, None] - BOXES[:, 0]) - BOXES[:, 1], 0)
    return np.linalg.norm(beyond, axis=-1).min(axis=1)


def drive(simulation: Any, target: np.ndarray) -> None:
    """One control step of a `PushTEnv` without looking at the coverage, which takes most of the time: ten of the physics."""
    agent, space, dt = simulation.agent, simulation.space, simulation.dt
    x, y = float(target[0]), float(target[1])
    for _ in range(round(1 / (dt * simulation.control_hz))):
        (place_x, place_y), (speed_x, speed_y) = agent.position, agent.velocity
        pull_x = simulation.k_p * (x - place_x) - simulation.k_v * speed_x
        pull_y = simulation.k_p * (y - place_y) - simulation.k_v * speed_y
        agent.velocity = (speed_x + pull_x * dt, speed_y + pull_y * dt)
        space.step(dt)


def _rate(pair: tuple[float, Push]) -> float:
    return pair[0]


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
