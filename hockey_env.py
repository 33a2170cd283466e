"""The hockey game: two rackets, one puck, a Box2D table, as `gymnasium` environments.

A drop-in for the lab's `hockey.hockey_env` (`import hockey_env as h_env`) that plays the same games
several times faster and keeps gymnasium's rules: float32 observations, a timeout is a truncation,
one seed reproduces a whole run, and any game can be saved and continued exactly.
It leaves to others: what a single player sees, rewards made for learning, many games side by side.

Lengths are metres (one is 60 pixels), angles radians, velocities metres per second. Observation:
    0-1 own position, from the centre | 2 own angle | 3-4 own velocity | 5 own angular velocity
    6-11 the same of the other player | 12-13 puck position, from the centre | 14-15 puck velocity
    16 steps for which the own racket still holds the puck | 17 the same of the other player
Without keep mode (no racket can hold the puck) the last two are missing. Player two sees the table
turned by half a turn, so both players play from left to right. Action of one player: x force,
y force, torque, shoot (missing without keep mode), each in [-1, 1].
"""

import enum
import math

import Box2D
import gymnasium
import numpy as np

FPS = 50
SCALE = 60.0  # pixels per metre
VIEWPORT_W = 600
VIEWPORT_H = 480
W = VIEWPORT_W / SCALE
H = VIEWPORT_H / SCALE
CENTER_X = W / 2
CENTER_Y = H / 2
ZONE = W / 20  # width of the strip before the centre line in which rackets are slowed down
GOAL_SIZE = 75  # pixels from the middle of a goal to its post
MAX_ANGLE = math.pi / 3
MAX_TIME_KEEP_PUCK = 15  # steps
MAX_PUCK_SPEED = 25.0
MAX_TIMESTEPS = {0: 250, 1: 80, 2: 80}  # by the value of the mode

TIME_STEP = 1 / FPS
FORCE = 6000.0
TORQUE = 400.0
SHOT_SPEED = 60.0
REACH_X = 210 / SCALE  # how far a racket may go from the centre on its own side
REACH_Y = CENTER_Y - 1.2

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
GREY = (128, 128, 128)
LIGHT_GREY = (204, 204, 204)
ORANGE = (239, 203, 138)
RED = (235, 98, 53)
BLUE = (93, 158, 199)

RACKET = ((-10, 20), (5, 20), (5, -20), (-10, -20), (-18, -10), (-21, 0), (-18, 10))  # pixels
RACKET_FACTOR = 1.2
PUCK_RADIUS = 13 / SCALE
ZOOM = 2  # pictures are drawn this much larger, then smoothed


class Mode(enum.Enum):
    """What an episode trains: the whole game, shooting at a still puck, or stopping a shot."""

    NORMAL = 0
    TRAIN_SHOOTING = 1
    TRAIN_DEFENSE = 2


def as_mode(mode):
    """Returns the `Mode` of a member, a name or a value; ValueError if there is none."""
    if isinstance(mode, str) and mode in Mode.__members__:
        return Mode[mode]
    try:
        return Mode(mode)
    except ValueError:
        names = ", ".join(Mode.__members__)
        raise ValueError(f"mode is {mode!r}, but must be one of {names} or 0, 1, 2.") from None


def rectangle(half_width, half_height):
    """Returns the four corners, in pixels, of a rectangle around the origin."""
    x, y = half_width, half_height
    return [(-x, -y), (x, -y), (x, y), (-x, y)]


def mirrored(corners, sign_x, sign_y):
    """Returns the corners with their x and y multiplied by a sign each."""
    return [(sign_x * x, sign_y * y) for x, y in corners]


def table_parts():
    """Yields kind, centre in metres, corners in pixels of walls and goals, in order of creation."""
    for y in (H - 0.5, 0.5):
        yield "wall", (CENTER_X, y), rectangle(250, 10)
    corner = ((-10, 2 * GOAL_SIZE - 15), (10, 2 * GOAL_SIZE - 22), (10, -5), (-10, -5))
    for sign_x in (1, -1):
        for sign_y in (-1, 1):
            centre = (CENTER_X - sign_x * 245 / SCALE, CENTER_Y - sign_y * (CENTER_Y - 0.5))
            yield "wall", centre, mirrored(corner, sign_x, sign_y)
    for sign_x in (-1, 1):
        yield "goal", (CENTER_X + sign_x * 255 / SCALE, CENTER_Y), rectangle(10, GOAL_SIZE)


def polygon(corners):
    """Returns the Box2D shape with these corners in pixels."""
    return Box2D.b2PolygonShape(vertices=[(x / SCALE, y / SCALE) for x, y in corners])


# Made once: Box2D's binding never frees the shape of a fixture's definition.
RACKET_FIXTURES = {
    side: Box2D.b2FixtureDef(
        shape=polygon(mirrored(RACKET, side * RACKET_FACTOR, RACKET_FACTOR)),
        density=200.0 / RACKET_FACTOR,
        friction=1.0,
        restitution=0.0,
        categoryBits=0x0010,
        maskBits=0x0011,
    )
    for side in (1, -1)
}
PUCK_FIXTURE = Box2D.b2FixtureDef(
    shape=Box2D.b2CircleShape(radius=PUCK_RADIUS),
    density=7.0,
    friction=0.1,
    restitution=0.95,
    categoryBits=0x0001,
    maskBits=0x0010,
)


class Racket:
    """One player's body with what a step needs of it; `side` is 1 left, -1 right.

    `position` and `velocity` are Box2D's own vectors: they follow the body and need no second look.
    """

    __slots__ = ("body", "side", "position", "velocity", "mass")

    def __init__(self, world, side, position):
        self.body = world.CreateDynamicBody(position=position, fixtures=RACKET_FIXTURES[side])
        self.side = side
        self.position = self.body.position
        self.velocity = self.body.linearVelocity
        self.mass = self.body.mass

    def push(self, action_x, action_y):
        """Applies the force of an action (both seen from his own side), within the limits."""
        body, side, velocity, mass = self.body, self.side, self.velocity, self.mass
        x = side * (self.position.x - CENTER_X)  # negative on the own side
        y = side * (self.position.y - CENTER_Y)
        velocity_x, velocity_y = side * velocity.x, side * velocity.y
        force_x, force_y = FORCE * action_x, FORCE * action_y
        damping = 20.0
        if x > -ZONE:
            if velocity_x > 0.0:  # a force of its own: the sum is rounded as in the lab's game
                body.ApplyForceToCenter((-2.0 * side * velocity_x * mass / TIME_STEP, 0.0), True)
            force_x = -x * velocity_x * mass / TIME_STEP
        else:
            speed_squared = velocity_x * velocity_x + velocity_y * velocity_y
            if speed_squared < 100.0:
                damping = 5.0
            else:  # too fast: only what slows down is allowed
                next_x = velocity_x + force_x / mass * TIME_STEP
                next_y = velocity_y + force_y / mass * TIME_STEP
                if next_x * next_x + next_y * next_y >= speed_squared:
                    body.linearDamping = damping
                    return
        body.linearDamping = damping
        if (x > 0.0 and force_x > 0.0) or (x < -REACH_X and force_x < 0.0):
            velocity.x = force_x = 0.0
        if (y > REACH_Y and force_y > 0.0) or (y < -REACH_Y and force_y < 0.0):
            velocity.y = force_y = 0.0
        body.ApplyForceToCenter((side * force_x, side * force_y), True)

    def turn(self, action):
        """Applies the torque of an action, or what brings the racket back within its angles."""
        body = self.body
        angle = body.angle
        torque = TORQUE * action
        damping = 2.0
        if angle > MAX_ANGLE or angle < -MAX_ANGLE:
            spin = body.angularVelocity
            torque = -0.1 * spin * self.mass / TIME_STEP if angle * spin > 0.0 else 0.0
            torque -= 0.1 * angle * self.mass / TIME_STEP
            damping = 10.0
        body.angularDamping = damping
        body.ApplyTorque(torque, True)

    def seen_from(self, side):
        """Returns position from the centre, angle, velocity, spin, as the player on a side sees."""
        position, velocity, body = self.position, self.velocity, self.body
        return (
            side * (position.x - CENTER_X),
            side * (position.y - CENTER_Y),
            body.angle,
            side * velocity.x,
            side * velocity.y,
            body.angularVelocity,
        )


class PuckContacts(Box2D.b2ContactListener):
    """Tells the game when the puck begins to touch something."""

    def __init__(self, env):
        super().__init__()
        self.env = env

    def BeginContact(self, contact):
        """Called by Box2D: notes a goal, or a racket catching the puck."""
        body_a, body_b = contact.fixtureA.body, contact.fixtureB.body
        puck = self.env.puck
        if body_a == puck:
            self.env.puck_touches(body_b)
        elif body_b == puck:
            self.env.puck_touches(body_a)


class HockeyEnv(gymnasium.Env):
    """Both players' game; the action holds player one's numbers, then player two's.

    Args: keep_mode: whether rackets can hold the puck; mode: a `Mode`, its name or its value;
    verbose: whether goals are printed; render_mode: None, "human" or "rgb_array".
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": FPS}

    def __init__(self, keep_mode=True, mode=Mode.NORMAL, verbose=False, render_mode=None):
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode is {render_mode!r}, but must be None, human or rgb_array."
            )
        self.keep_mode = bool(keep_mode)
        self.mode = as_mode(mode)
        self.verbose = verbose
        self.num_actions = 4 if self.keep_mode else 3  # of one player
        self._num_observations = 18 if self.keep_mode else 16
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2 * self.num_actions,), np.float32)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (self._num_observations,), np.float32
        )
        self.player1 = self.player2 = self.puck = None
        self._table = self._window = self._clock = None
        self._build_world()
        HockeyEnv.reset(self, one_starting=True)
        self.render_mode = render_mode  # from here on: no window before the first own reset

    def _build_world(self):
        """Makes the static table; the moving bodies follow on each reset."""
        self.world = Box2D.b2World(gravity=(0, 0), doSleep=True)
        self._contacts = PuckContacts(self)
        self.world.contactListener = self._contacts
        self._static, goals = [], []
        for kind, centre, corners in table_parts():
            body = self.world.CreateStaticBody(position=centre)
            self._static.append((body, centre))
            parts = [(False, 0x0011, 0x0011)]
            if kind == "goal":  # the sensor sees the puck, the solid part keeps rackets out
                parts = [(True, 0x0010, 0x0001), (False, 0x0010, 0x0010)]
                goals.append(body)
            for is_sensor, category, mask in parts:
                fixture = body.CreateFixture(
                    shape=polygon(corners), friction=0.1, isSensor=is_sensor
                )
                fixture.filterData = Box2D.b2Filter(categoryBits=category, maskBits=mask)
        self.goal_one, self.goal_two = goals

    def _build_bodies(self, position_two, position_puck):
        """Replaces rackets and puck by fresh ones, at rest, without contacts, as in a new world.

        Destroyed in reverse order of creation, their numbers in Box2D's tree of boxes come back,
        by which it sorts contacts. Walls and goals are put back: Box2D moves even static bodies by
        rounding errors when it interpolates a fast puck's way.
        """
        if self.puck is not None:
            for body in (self.puck, self.player2, self.player1):
                self.world.DestroyBody(body)
        for body, centre in self._static:
            body.transform = (centre, 0.0)
        self._one = Racket(self.world, 1, (W / 5, CENTER_Y))
        self._two = Racket(self.world, -1, position_two)
        self.player1, self.player2 = self._one.body, self._two.body
        self.puck = self.world.CreateDynamicBody(
            position=position_puck, fixtures=PUCK_FIXTURE, linearDamping=0.05
        )
        self._puck_position = self.puck.position
        self._puck_velocity = self.puck.linearVelocity

    def reset(self, one_starting=None, mode=None, seed=None, options=None):
        """Starts an episode; returns player one's observation, float32 (18,) or (16,), and info.

        Args: one_starting: whether the puck lies in player one's half (default: the players take
        turns, player two first after construction or a seed); mode: for this and later episodes;
        seed: of this and all later episodes; options: the first two as a dict, for wrapped games.
        """
        super().reset(seed=seed)
        options = options or {}
        one_starting = options.get("one_starting") if one_starting is None else one_starting
        mode = options.get("mode") if mode is None else mode
        if mode is not None:
            self.mode = as_mode(mode)
        if one_starting is None:
            one_starting = seed is None and not self.one_starts
        self.one_starts = bool(one_starting)
        self._start_episode()
        if self.render_mode == "human":
            self.render()
        return self._observation(self._one, self._two), self._info(self._one, self._two)

    def _start_episode(self):
        """Draws the start of an episode and puts everything in place."""
        self._generator_at_start = self.np_random.bit_generator.state
        self._history = []
        self.time = self.winner = 0
        self.done = False
        self.max_timesteps = MAX_TIMESTEPS[self.mode.value]
        self.player1_has_puck = self.player2_has_puck = 0
        uniform = self.np_random.uniform
        position_two = (4 * W / 5, CENTER_Y)
        if self.mode is not Mode.NORMAL:
            position_two = (4 * W / 5 + uniform(-W / 3, W / 6), CENTER_Y + uniform(-H / 4, H / 4))
        if self.mode is Mode.TRAIN_DEFENSE:
            x = CENTER_X + uniform(0, W / 3)
            y = CENTER_Y + 0.8 * uniform(-H / 2, H / 2)
            target_y = CENTER_Y + 0.6 * uniform(-GOAL_SIZE / SCALE, GOAL_SIZE / SCALE)
            self._build_bodies(position_two, (x, y))
            way = Box2D.b2Vec2(0, target_y) - self.puck.position
            force = way / way.length * SHOT_SPEED * self.puck.mass / TIME_STEP
            self.puck.ApplyForceToCenter(force, True)
        else:
            is_left = self.one_starts or self.mode is Mode.TRAIN_SHOOTING
            x = CENTER_X + (-1 if is_left else 1) * uniform(H / 8, H / 4)
            y = CENTER_Y + uniform(-H / 8, H / 8)
            self._build_bodies(position_two, (x, y))

    def step(self, action):
        """Plays 1/50 second of the action, (8,) or (6,), clipped to [-1, 1].

        Returns player one's observation, float32 (18,) or (16,), reward, terminated (only by a
        goal), truncated (time is up), info. Raises ValueError on a wrong shape or a NaN.
        """
        return self._play(read_action(action, 2 * self.num_actions))

    def _play(self, action):
        """As `step`, for a list of floats within [-1, 1]."""
        self._history.append(action)
        self._advance(action)
        info = self._info(self._one, self._two)
        if self.render_mode == "human":
            self.render()
        is_goal = self.winner != 0
        observation = self._observation(self._one, self._two)
        return observation, self.get_reward(info), is_goal, self.done and not is_goal, info

    def _advance(self, action):
        """Moves the world by one step."""
        one, two, num_actions = self._one, self._two, self.num_actions
        one.push(action[0], action[1])
        one.turn(action[2])
        two.push(action[num_actions], action[num_actions + 1])
        two.turn(action[num_actions + 2])
        velocity = self._puck_velocity
        is_fast = velocity.x**2 + velocity.y**2 > MAX_PUCK_SPEED**2
        self.puck.linearDamping = 10.0 if is_fast else 0.05
        if self.player1_has_puck > 1:
            self.player1_has_puck = self._hold(one, self.player1_has_puck - 1, action[3])
        if self.player2_has_puck > 1:
            self.player2_has_puck = self._hold(two, self.player2_has_puck - 1, action[7])
        self.world.Step(TIME_STEP, 180, 60)
        self.done = self.done or self.time >= self.max_timesteps
        self.time += 1

    def _hold(self, racket, steps_left, shoot):
        """Keeps the puck at the racket, or shoots it; returns the steps left to hold it."""
        self.puck.position = racket.position
        self.puck.linearVelocity = racket.velocity
        if steps_left > 1 and shoot <= 0.5:
            return steps_left
        angle, side = racket.body.angle, racket.side
        direction = Box2D.b2Vec2(side * math.cos(angle), side * math.sin(angle))
        self.puck.ApplyForceToCenter(direction * self.puck.mass / TIME_STEP * SHOT_SPEED, True)
        return 0

    def puck_touches(self, body):
        """Called when the puck begins to touch the body: a goal counts, a racket may catch it."""
        if body == self.player1:
            if self.keep_mode and self.player1_has_puck == 0 and self._puck_velocity.x < 0.1:
                self.player1_has_puck = MAX_TIME_KEEP_PUCK
        elif body == self.player2:
            if self.keep_mode and self.player2_has_puck == 0 and self._puck_velocity.x > -0.1:
                self.player2_has_puck = MAX_TIME_KEEP_PUCK
        elif body == self.goal_one or body == self.goal_two:
            self.winner = 1 if body == self.goal_two else -1
            self.done = True
            if self.verbose:
                print(f"Goal for player {1 if self.winner == 1 else 2}.")

    def _observation(self, own, other):
        """Returns what the own racket's player sees, float32 (18,) or (16,)."""
        side, position, velocity = own.side, self._puck_position, self._puck_velocity
        values = [
            *own.seen_from(side),
            *other.seen_from(side),
            side * (position.x - CENTER_X),
            side * (position.y - CENTER_Y),
            side * velocity.x,
            side * velocity.y,
        ]
        if self.keep_mode:  # the own counter first
            values += (self.player1_has_puck, self.player2_has_puck)[::side]
        return np.array(values, np.float32)

    def obs_agent_two(self):
        """Returns player two's observation, already his own view, float32 (18,) or (16,)."""
        return self._observation(self._two, self._one)

    def _info(self, own, other):
        """Returns the info of the own racket's player."""
        side, limit = own.side, self.max_timesteps
        puck_x, speed = self._puck_position.x, side * self._puck_velocity.x
        closeness = 0.0
        if side * (puck_x - CENTER_X) < 0.0 and speed <= 0.0:
            offset_y = self._puck_position.y - own.position.y
            distance = math.hypot(puck_x - own.position.x, offset_y)
            closeness = -30.0 / (250 / SCALE * limit / 2) * distance
        counter = self.player1_has_puck if side == 1 else self.player2_has_puck
        return {
            "winner": side * self.winner,
            "reward_closeness_to_puck": closeness,
            "reward_touch_puck": 1.0 if counter == MAX_TIME_KEEP_PUCK else 0.0,
            "reward_puck_direction": speed / (limit * MAX_PUCK_SPEED),
        }

    def get_info_agent_two(self):
        """Returns player two's info, with the keys of player one's."""
        return self._info(self._two, self._one)

    def get_reward(self, info):
        """Returns the reward of an info: 10 for a win, -10 for a loss, and the closeness."""
        return 10.0 * info["winner"] + info["reward_closeness_to_puck"]

    def get_reward_agent_two(self, info_two):
        """Returns player two's reward from player two's info."""
        return self.get_reward(info_two)

    def discrete_to_continous_action(self, discrete_action):
        """Returns one player's action, float32 (4,) or (3,), for a number.

        0 nothing, 1/2 x -/+, 3/4 y -/+, 5/6 torque -/+, 7 shoot; ValueError for another number.
        """
        last = 7 if self.keep_mode else 6
        if discrete_action not in range(last + 1):
            raise ValueError(f"Discrete action is {discrete_action!r}, but must be 0 to {last}.")
        action = np.zeros(self.num_actions, np.float32)
        if discrete_action > 0:
            action[(discrete_action - 1) // 2] = 1.0 if discrete_action in (2, 4, 6, 7) else -1.0
        return action

    def set_state(self, observation):
        """Puts everything where player one's observation, (18,) or (16,), says; time goes on.

        Raises ValueError on a wrong shape or a NaN.
        """
        values = np.asarray(observation, np.float64)
        if values.shape != (self._num_observations,) or not np.isfinite(values).all():
            shape = (self._num_observations,)
            raise ValueError(f"State has shape {values.shape}, but must be {shape} finite numbers.")
        self._history.append(values.tolist())
        self._place(self._history[-1])

    def _place(self, state):
        """Moves the bodies to a list of 18 or 16 floats."""
        for body, (x, y, angle, *velocity, spin) in (
            (self.player1, state[0:6]),
            (self.player2, state[6:12]),
            (self.puck, (*state[12:14], 0.0, *state[14:16], 0.0)),
        ):
            body.transform = ((CENTER_X + x, CENTER_Y + y), angle)
            body.linearVelocity, body.angularVelocity, body.awake = velocity, spin, True
        if self.keep_mode:
            self.player1_has_puck, self.player2_has_puck = int(state[16]), int(state[17])

    def get_snapshot(self):
        """Returns the game in progress as a dict of plain numbers and lists (JSON can hold it).

        It holds how the episode began and all that was played since: Box2D does not show its
        memory of contacts, so only playing again continues a game bit for bit. What was changed
        directly on the Box2D bodies is not in it.
        """
        return {
            "keep_mode": self.keep_mode,
            "mode": self.mode.value,
            "one_starts": self.one_starts,
            "generator_at_start": self._generator_at_start,
            "generator": self.np_random.bit_generator.state,
            "history": [list(row) for row in self._history],
        }

    def restore_snapshot(self, snapshot):
        """Continues a game as it was when `get_snapshot` was called, here or in another object.

        Raises ValueError if the keep modes differ.
        """
        if snapshot["keep_mode"] != self.keep_mode:
            keep_mode = snapshot["keep_mode"]
            raise ValueError(f"Snapshot has keep_mode={keep_mode}, but must have {self.keep_mode}.")
        self.mode = as_mode(snapshot["mode"])
        self.one_starts = snapshot["one_starts"]
        self.np_random.bit_generator.state = snapshot["generator_at_start"]
        self._start_episode()
        for row in snapshot["history"]:
            self._history.append(list(row))
            if len(row) == self._num_observations:
                self._place(row)
            else:
                self._advance(row)
        self.np_random.bit_generator.state = snapshot["generator"]

    def render(self, mode=None):
        """Shows the game in a window ("human"), or returns a picture, uint8 (480, 600, 3).

        Without `mode` the environment's `render_mode` counts. "rgb_array" needs no screen.
        """
        mode = self.render_mode if mode is None else mode
        if mode is None:
            gymnasium.logger.warn("render() without render_mode draws nothing: give one of both.")
            return None
        if mode not in self.metadata["render_modes"]:
            raise ValueError(f"Render mode is {mode!r}, but must be human or rgb_array.")
        import pygame  # here, so that training needs no pygame

        picture = self._draw(pygame)
        if mode == "rgb_array":
            return pygame.surfarray.array3d(picture).swapaxes(0, 1).copy()
        if self._window is None:
            pygame.display.init()
            self._window = pygame.display.set_mode((VIEWPORT_W, VIEWPORT_H))
            self._clock = pygame.time.Clock()
            pygame.display.set_caption("Hockey")
        self._window.blit(picture, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(FPS)
        return None

    def _draw(self, pygame):
        """Returns a surface with the table and the bodies, drawn large and then smoothed."""
        if self._table is None:
            self._table = draw_table(pygame)
        surface = self._table.copy()
        for body, colour in ((self.player1, RED), (self.player2, BLUE)):
            corners = [body.GetWorldVector(v) * SCALE for v in body.fixtures[0].shape.vertices]
            draw_polygon(pygame, surface, colour, body.position, corners)
        draw_circle(pygame, surface, BLACK, self.puck.position, PUCK_RADIUS)
        return pygame.transform.smoothscale(surface, (VIEWPORT_W, VIEWPORT_H))

    def close(self):
        """Closes the window, if there is one."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None


def read_action(action, size):
    """Returns the numbers of an action, float32 within [-1, 1], as a list of `size` floats.

    Raises ValueError on a wrong shape or a NaN.
    """
    action = np.asarray(action, np.float32)
    if action.shape != (size,):
        raise ValueError(f"The action has shape {action.shape}, but must have shape ({size},).")
    return [value if -1.0 <= value <= 1.0 else clipped(value) for value in action.tolist()]


def clipped(value):
    """Returns the value within [-1, 1]; ValueError if it is not a number."""
    if value != value:
        raise ValueError("The action holds a NaN, but must be numbers in [-1, 1].")
    return 1.0 if value > 1.0 else -1.0 if value < -1.0 else value


def draw_circle(pygame, surface, colour, centre, radius):
    """Fills a circle, in metres; y grows upwards on the table."""
    point = (centre[0] * SCALE * ZOOM, (H - centre[1]) * SCALE * ZOOM)
    pygame.draw.circle(surface, colour, point, radius * SCALE * ZOOM)


def draw_polygon(pygame, surface, colour, centre, corners):
    """Fills the polygon with these corners, in pixels from a centre in metres."""
    centre_x, centre_y = centre[0] * SCALE, (H - centre[1]) * SCALE
    points = [((centre_x + x) * ZOOM, (centre_y - y) * ZOOM) for x, y in corners]
    pygame.draw.polygon(surface, colour, points)


def draw_table(pygame):
    """Returns a surface, `ZOOM` times as large as the picture, with all that never moves."""
    surface = pygame.Surface((VIEWPORT_W * ZOOM, VIEWPORT_H * ZOOM), depth=32)
    surface.fill(WHITE)
    centre = (CENTER_X, CENTER_Y)
    draw_circle(pygame, surface, LIGHT_GREY, centre, 100 / SCALE)
    draw_circle(pygame, surface, WHITE, centre, 96 / SCALE)
    draw_polygon(pygame, surface, LIGHT_GREY, centre, rectangle(2, 200))
    draw_circle(pygame, surface, LIGHT_GREY, centre, 8 / SCALE)
    for sign in (-1, 1):  # the orange space behind each goal line
        draw_circle(
            pygame, surface, ORANGE, (CENTER_X + sign * 250 / SCALE, CENTER_Y), GOAL_SIZE / SCALE
        )
        covered = (CENTER_X + sign * 195 / SCALE, CENTER_Y)
        draw_polygon(pygame, surface, WHITE, covered, rectangle(55, 100))
    for kind, centre, corners in table_parts():
        draw_polygon(pygame, surface, BLACK if kind == "wall" else GREY, centre, corners)
    return surface


class BasicOpponent:
    """The scripted player: goes behind the puck, hits it, and swings its racket meanwhile.

    Args: weak: whether it moves slowly; keep_mode: whether its actions end with a shoot number;
    seed: of its swinging, None for a random one.
    """

    def __init__(self, weak=True, keep_mode=True, seed=None):
        self.weak = weak
        self.keep_mode = keep_mode
        self.seed(seed)

    def seed(self, seed=None):
        """Starts the swinging again from a seed."""
        self.generator = np.random.default_rng(seed)
        self.phase = math.pi * self.generator.random()

    def state(self):
        """Everything that changes while it plays."""
        return {"phase": self.phase, "generator": self.generator.bit_generator.state}

    def restore_state(self, state):
        """Takes over what `state` returned."""
        self.phase = state["phase"]
        self.generator.bit_generator.state = state["generator"]

    def act(self, obs, verbose=False):
        """Returns the action, float32 (4,) or (3,), for its own view, (18,) or (16,)."""
        obs = np.asarray(obs).tolist()
        x, y, angle, velocity_x, velocity_y, spin = obs[:6]
        puck_x, puck_y, puck_velocity_x, puck_velocity_y = obs[12:16]
        self.phase += 0.2 * self.generator.random()
        target_x, target_y = -REACH_X, 0.0
        if puck_velocity_x < 0.5:
            target_y = puck_y
            if x < puck_x and abs(y - puck_y) < 0.5:
                target_x = puck_x + 0.2
                target_y += puck_velocity_y * math.hypot(puck_x - x, puck_y - y) * 0.1
        gain = 0.5 if self.weak else 10.0
        action = [
            pd_control(target_x - x, velocity_x, gain, 0.1),
            pd_control(target_y - y, velocity_y, gain / 5, 0.1),
            pd_control(MAX_ANGLE * math.sin(self.phase) - angle, spin, gain / 2, 1.0),
        ]
        if self.keep_mode:
            action.append(1.0 if 0 < obs[16] < 7 else 0.0)
        return np.array(action, np.float32)


def pd_control(error, speed, gain, braking_time):
    """Returns the clipped action of a PD controller that brakes when the target is near in time."""
    action = error * gain
    if abs(error) < braking_time * abs(speed + 0.01):
        action -= 0.5 * speed
    return 1.0 if action > 1.0 else -1.0 if action < -1.0 else action


class HumanOpponent:
    """A person at the keyboard: arrows move, w and s turn, space shoots; opens the window."""

    def __init__(self, env, player=1):
        self.env = env
        self.player = player
        env.render(mode="human")

    def act(self, obs):
        """Returns the action, float32 (4,) or (3,), of the keys held down; `obs` is not used."""
        import pygame

        keys = pygame.key.get_pressed()
        side = 1 if self.player == 1 else -1  # player two's axes are turned
        action = [
            side * (keys[pygame.K_RIGHT] - keys[pygame.K_LEFT]),
            side * (keys[pygame.K_UP] - keys[pygame.K_DOWN]),
            keys[pygame.K_w] - keys[pygame.K_s],
            keys[pygame.K_SPACE],
        ]
        return np.array(action[: self.env.num_actions], np.float32)


class HockeyEnv_BasicOpponent(HockeyEnv):
    """Player one's game against the scripted player; the action is player one's, (4,) or (3,).

    Args: weak_opponent: whether it moves slowly; the others as in `HockeyEnv`.
    """

    def __init__(
        self, mode=Mode.NORMAL, weak_opponent=False, keep_mode=True, verbose=False, render_mode=None
    ):
        self.opponent = BasicOpponent(weak=weak_opponent, keep_mode=keep_mode)
        super().__init__(keep_mode, mode, verbose, render_mode)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)

    def reset(self, one_starting=None, mode=None, seed=None, options=None):
        """As in `HockeyEnv`; a seed also seeds the scripted player."""
        if seed is not None:
            self.opponent.seed(seed)
        return super().reset(one_starting, mode, seed, options)

    def step(self, action):
        """As in `HockeyEnv`, for player one's action, (4,) or (3,)."""
        action = read_action(action, self.num_actions)
        return self._play(action + self.opponent.act(self.obs_agent_two()).tolist())

    def get_snapshot(self):
        """As in `HockeyEnv`, with the scripted player's swinging."""
        return {**super().get_snapshot(), "opponent": self.opponent.state()}

    def restore_snapshot(self, snapshot):
        """As in `HockeyEnv`."""
        super().restore_snapshot(snapshot)
        self.opponent.restore_state(snapshot["opponent"])


for env_id, env_class in (("Hockey-v0", HockeyEnv), ("Hockey-One-v0", HockeyEnv_BasicOpponent)):
    gymnasium.registry.pop(env_id, None)  # the lab's package registers these names, too
    gymnasium.register(env_id, entry_point=f"{__name__}:{env_class.__name__}")
