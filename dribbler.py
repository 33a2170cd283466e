"""A bot that runs to the puck, carries it past the other player, and shoots at the open goal.

Agents that have only met the course's bots and each other run to the centre line at once, where
they can be passed (docs/tried.md, "Opponents of other kinds"). Every game it plays in another way.
"""

import math

import numpy as np

from hockey_env import MAX_TIME_KEEP_PUCK

GOAL_LINE = 4.3  # metres from the centre: the x of the other one's goal
BANK = 7.1  # twice the y from which a shot comes back: a target in the mirror of a wall


class Dribbler:
    """A player for one side of one game; `reset` draws how it plays."""

    def __init__(self, seed=None):
        """`seed`: of how it plays, None for a random one."""
        self.generator = np.random.default_rng(seed)
        self.reset()

    def reset(self):
        """A game begins."""
        uniform = self.generator.uniform
        self.carry = max(0, int(uniform(-6, 14)))  # steps to carry the puck before a shot
        self.side = math.copysign(1, uniform(-1, 1))  # to where, if nothing speaks for a side
        self.speed, self.lead = uniform(0.7, 1.0), uniform(0.0, 0.3)
        self.home, self.follow = uniform(-3.6, -1.5), uniform(0.2, 0.8)  # as a goalkeeper
        self.targets = [uniform(-1, 1), -1.0, 1.0]  # y at the goal line
        if uniform() < 0.5:
            self.targets += [BANK - 0.8, BANK, 0.8 - BANK, -BANK]

    def act(self, observation):
        """Returns the action (4,) for its own view (18,), as the top of hockey_env.py lists it."""
        x, y, angle, speed_x, speed_y, spin, other_x, other_y = observation[:8].tolist()
        puck_x, puck_y, puck_speed_x, puck_speed_y, held, _ = observation[12:].tolist()

        def worth(target):
            turn = abs(math.atan2(target - y, GOAL_LINE - x) - angle)
            return min(clearance(x, y, target, other_x, other_y), 1.0) - 0.05 * turn

        target = max(self.targets, key=worth)
        aim = min(max(math.atan2(target - y, GOAL_LINE - x), -1.0), 1.0)
        shoot = False
        if held > 0:  # away from the other one, until its racket points to where it shoots
            away = self.side if abs(other_y - y) < 0.2 else math.copysign(1, y - other_y)
            force_x, force_y = 0.5, away if abs(y) < 2 else -y
            is_time = held <= MAX_TIME_KEEP_PUCK - self.carry
            shoot = is_time and abs(aim - angle) < 0.12 or held < 3
        elif puck_x < 0.3 and (puck_speed_x < 3 or puck_x < x):  # to the puck, from behind it
            to_x, to_y = puck_x + 0.15 * puck_speed_x + self.lead, puck_y + 0.15 * puck_speed_y
            if x > puck_x - 0.15:
                aside = 0.0 if abs(y - puck_y) > 0.5 else math.copysign(0.6, y - puck_y)
                to_x, to_y = puck_x - 0.5, puck_y + aside
            force_x, force_y = 6 * (to_x - x) - 0.1 * speed_x, 6 * (to_y - y) - 0.3 * speed_y
            shoot = self.carry == 0 and abs(aim - angle) < 0.3
        else:  # before the goal
            aim, to_y = 0.0, min(max(self.follow * puck_y, -1.2), 1.2)
            force_x, force_y = 3 * (self.home - x) - 0.5 * speed_x, 4 * (to_y - y) - 0.4 * speed_y
        forces = self.speed * force_x, self.speed * force_y, 6 * (aim - angle) - 0.6 * spin
        return np.clip([*forces, shoot], -1, 1).astype(np.float32)


def clearance(x, y, target, other_x, other_y):
    """Returns how far (m) the other one is from the way of a shot from (x, y) to the target."""
    step_x, step_y = GOAL_LINE - x, target - y
    length = math.hypot(step_x, step_y)
    places = [other_y]
    if abs(target) > 2:  # by the wall: it is also in the way in the mirror
        places.append(math.copysign(BANK, target) - other_y)
    distances = []
    for place in places:
        along = max(0.0, ((other_x - x) * step_x + (place - y) * step_y) / length)
        miss_x, miss_y = other_x - x - along * step_x / length, place - y - along * step_y / length
        distances.append(math.hypot(miss_x, miss_y))
    return min(distances)
