"""The hockey game: two rackets, one puck, a Box2D table, as `gymnasium` environments.

A drop-in for the lab's `hockey.hockey_env` (`import hockey_env as h_env`) that plays the same games
several times faster and keeps gymnasium's rules: float32 observations, a timeout is a truncation,
one seed reproduces a whole run.

Lengths are metres (one is 60 pixels), angles radians, velocities metres per second. Observation:
    0-1 own position, from the centre | 2 own angle | 3-4 own velocity | 5 own angular velocity
    6-11 the same of the other player | 12-13 puck position, from the centre | 14-15 puck velocity
    16 steps for which the own racket still holds the puck | 17 the same of the other player
Without keep mode (no racket can hold the puck) the last two are missing. Player two sees the table
turned by half a turn, so both players play from left to right. Action of one player: x force,
y force, torque, shoot (missing without keep mode), each in [-1, 1].
"""

import enum
import itertools
import math
import os

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting

import Box2D
import gymnasium
import numpy as np
import pygame

FPS = 50
SCALE = 60.0  # pixels per metre
VIEWPORT_W, VIEWPORT_H = 600, 480  # pixels
W, H = VIEWPORT_W / SCALE, VIEWPORT_H / SCALE
CENTER_X, CENTER_Y = W / 2, H / 2
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

# Corners in pixels from the middle of each part
RACKET = ((-10, 20), (5, 20), (5, -20), (-10, -20), (-18, -10), (-21, 0), (-18, 10))
WALL = ((-250, -10), (250, -10), (250, 10), (-250, 10))
CORNER = ((-10, 135), (10, 128), (10, -5), (-10, -5))
GOAL = ((-10, -GOAL_SIZE), (10, -GOAL_SIZE), (10, GOAL_SIZE), (-10, GOAL_SIZE))
RACKET_FACTOR = 1.2
ZOOM = 2  # pictures are drawn this much larger, then smoothed


class Mode(enum.Enum):
    """What an episode trains: the whole game, shooting at a still puck, or stopping a shot."""

    NORMAL = 0
    TRAIN_SHOOTING = 1
    TRAIN_DEFENSE = 2

    @classmethod
    def _missing_(cls, value):
        if isinstance(value, str) and value in cls.__members__:
            return cls[value]
        names = ", ".join(cls.__members__)
        raise ValueError(f"mode is {value!r}, but must be one of {names} or 0, 1, 2.")


def polygon(corners, x=1, y=1):
    """Returns the Box2D shape with these corners in pixels, multiplied by x and y."""
    return Box2D.b2PolygonShape(vertices=[(x * a / SCALE, y * b / SCALE) for a, b in corners])


# Made once: Box2D's binding never frees the shape of a fixture's definition.
RACKET_FIXTURES = {
    side: Box2D.b2FixtureDef(
        shape=polygon(RACKET, side * RACKET_FACTOR, RACKET_FACTOR),
        density=200.0 / RACKET_FACTOR,
        friction=1.0,
        categoryBits=0x0010,
        maskBits=0x0011,
    )
    for side in (1, -1)
}
PUCK_FIXTURE = Box2D.b2FixtureDef(
    shape=Box2D.b2CircleShape(radius=13 / SCALE),
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

    def __init__(self, world, side, position):
        self.body = world.CreateDynamicBody(position=position, fixtures=RACKET_FIXTURES[side])
        self.body.userData = RED if side == 1 else BLUE
        self.side, self.mass = side, self.body.mass
        self.position, self.velocity = self.body.position, self.body.linearVelocity

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
        body, angle = self.body, self.body.angle
        torque, damping = TORQUE * action, 2.0
        if angle > MAX_ANGLE or angle < -MAX_ANGLE:
            spin = body.angularVelocity
            torque = -0.1 * spin * self.mass / TIME_STEP if angle * spin > 0.0 else 0.0
            torque -= 0.1 * angle * self.mass / TIME_STEP
            damping = 10.0
        body.angularDamping = damping
        body.ApplyTorque(torque, True)


class PuckContacts(Box2D.b2ContactListener):
    """Notes in the game what the puck begins to touch."""

    def __init__(self, env):
        super().__init__()
        self.env = env

    def BeginContact(self, contact):
        """Called by Box2D: a goal counts, a racket may catch the puck."""
        env, bodies = self.env, (contact.fixtureA.body, contact.fixtureB.body)
        if env.puck not in bodies:
            return
        body = bodies[0] if bodies[1] == env.puck else bodies[1]
        if body in env.goals:
            env.winner = 1 if body == env.goals[1] else -1
            env.done = True
            if env.verbose:
                print(f"Goal for player {1 if env.winner == 1 else 2}.")
        elif env.keep_mode and body == env.player1:
            if env.player1_has_puck == 0 and env.puck.linearVelocity.x < 0.1:
                env.player1_has_puck = MAX_TIME_KEEP_PUCK
        elif env.keep_mode and body == env.player2:
            if env.player2_has_puck == 0 and env.puck.linearVelocity.x > -0.1:
                env.player2_has_puck = MAX_TIME_KEEP_PUCK


class HockeyEnv(gymnasium.Env):
    """Both players' game; the action holds player one's numbers, then player two's.

    Args: keep_mode: whether rackets can hold the puck; mode: a `Mode`, its name or its value;
    verbose: whether goals are printed; render_mode: None, "human" or "rgb_array".
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": FPS}

    def __init__(self, keep_mode=True, mode=Mode.NORMAL, verbose=False, render_mode=None):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, but must be None, human, rgb_array.")
        self.keep_mode = bool(keep_mode)
        self.mode = Mode(mode)
        self.verbose = verbose
        self.num_actions = 4 if self.keep_mode else 3  # of one player
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2 * self.num_actions,), np.float32)
        size = 18 if self.keep_mode else 16
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.player1 = self.player2 = self.puck = None
        self._window = self._clock = None
        self.world = Box2D.b2World(gravity=(0, 0), doSleep=True)
        self.world.contactListener = self._contacts = PuckContacts(self)
        parts = [((CENTER_X, y), polygon(WALL)) for y in (H - 0.5, 0.5)]
        for x, y in itertools.product((1, -1), (-1, 1)):
            centre = (CENTER_X - x * 245 / SCALE, CENTER_Y - y * (CENTER_Y - 0.5))
            parts.append((centre, polygon(CORNER, x, y)))
        goals = [((CENTER_X + x * 255 / SCALE, CENTER_Y), polygon(GOAL)) for x in (-1, 1)]
        self._static = []
        for centre, shape in parts + goals:
            body = self.world.CreateStaticBody(position=centre, userData=BLACK)
            self._static.append((body, centre))
            fixtures = [(False, 0x0011, 0x0011)]
            if len(self._static) > len(parts):  # a sensor sees the puck, the rest stops rackets
                body.userData = GREY
                fixtures = [(True, 0x0010, 0x0001), (False, 0x0010, 0x0010)]
            for is_sensor, category, mask in fixtures:
                fixture = body.CreateFixture(shape=shape, friction=0.1, isSensor=is_sensor)
                fixture.filterData = Box2D.b2Filter(categoryBits=category, maskBits=mask)
        self.goals = [body for body, _ in self._static[-2:]]
        HockeyEnv.reset(self, one_starting=True)
        self.render_mode = render_mode  # from here on: no window before the first own reset

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
            position=position_puck, fixtures=PUCK_FIXTURE, linearDamping=0.05, userData=BLACK
        )
        # Box2D's own vectors, as in `Racket`: not to look them up again takes 12% off a step
        self._puck_position, self._puck_velocity = self.puck.position, self.puck.linearVelocity

    def reset(self, one_starting=None, mode=None, seed=None, options=None):
        """Starts an episode; returns player one's observation, float32 (18,) or (16,), and info.

        Args: one_starting: whether the puck lies in player one's half (default: the players take
        turns, player two first after construction or a seed); mode: for this and later episodes;
        seed: of this and all later episodes; options: the first two as a dict, for wrapped games.
        """
        super().reset(seed=seed)
        chosen = {"one_starting": one_starting, "mode": mode} | (options or {})
        one_starting, mode = chosen["one_starting"], chosen["mode"]
        if mode is not None:
            self.mode = Mode(mode)
        if one_starting is None:
            one_starting = seed is None and not self.one_starts
        self.one_starts = bool(one_starting)
        self.time = self.winner = 0
        self.done = False
        self.max_timesteps = MAX_TIMESTEPS[self.mode.value]
        self.player1_has_puck = self.player2_has_puck = 0
        uniform = self.np_random.uniform
        position_two = (4 * W / 5, CENTER_Y)
        if self.mode is not Mode.NORMAL:
            position_two = (4 * W / 5 + uniform(-W / 3, W / 6), CENTER_Y + uniform(-H / 4, H / 4))
        if self.mode is Mode.TRAIN_DEFENSE:
            x, y = CENTER_X + uniform(0, W / 3), CENTER_Y + 0.8 * uniform(-H / 2, H / 2)
            target_y = CENTER_Y + 0.6 * uniform(-GOAL_SIZE / SCALE, GOAL_SIZE / SCALE)
            self._build_bodies(position_two, (x, y))
            way = Box2D.b2Vec2(0, target_y) - self.puck.position
            force = way / way.length * SHOT_SPEED * self.puck.mass / TIME_STEP
            self.puck.ApplyForceToCenter(force, True)
        else:
            is_left = self.one_starts or self.mode is Mode.TRAIN_SHOOTING
            x = CENTER_X + (-1 if is_left else 1) * uniform(H / 8, H / 4)
            self._build_bodies(position_two, (x, CENTER_Y + uniform(-H / 8, H / 8)))
        if self.render_mode == "human":
            self.render()
        return self._observation(self._one, self._two), self._info(self._one)

    def step(self, action):
        """Plays 1/50 second of the action, (8,) or (6,), clipped to [-1, 1].

        Returns player one's observation, float32 (18,) or (16,), reward, terminated (only by a
        goal), truncated (time is up), info. Raises ValueError on a wrong shape or a NaN.
        """
        action = read_action(action, 2 * self.num_actions)
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
        if self.render_mode == "human":
            self.render()
        observation, info, is_goal = self._observation(one, two), self._info(one), self.winner != 0
        return observation, self.get_reward(info), is_goal, self.done and not is_goal, info

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

    def _observation(self, own, other):
        """Returns what the own racket's player sees, float32 (18,) or (16,)."""
        side, values = own.side, []
        for racket in (own, other):
            position, velocity, body = racket.position, racket.velocity, racket.body
            values += side * (position.x - CENTER_X), side * (position.y - CENTER_Y), body.angle
            values += side * velocity.x, side * velocity.y, body.angularVelocity
        position, velocity = self._puck_position, self._puck_velocity
        values += side * (position.x - CENTER_X), side * (position.y - CENTER_Y)
        values += side * velocity.x, side * velocity.y
        if self.keep_mode:  # the own counter first
            values += (self.player1_has_puck, self.player2_has_puck)[::side]
        return np.array(values, np.float32)

    def obs_agent_two(self):
        """Returns player two's observation, already his own view, float32 (18,) or (16,)."""
        return self._observation(self._two, self._one)

    def _info(self, own):
        side, limit = own.side, self.max_timesteps
        puck, speed = self._puck_position, side * self._puck_velocity.x
        closeness = 0.0
        if side * (puck.x - CENTER_X) < 0.0 and speed <= 0.0:
            distance = math.hypot(puck.x - own.position.x, puck.y - own.position.y)
            closeness = -30.0 / (250 / SCALE * limit / 2) * distance
        counter = self.player1_has_puck if side == 1 else self.player2_has_puck
        return {
            "winner": side * self.winner,
            "reward_closeness_to_puck": closeness,
            "reward_touch_puck": 1.0 if counter == MAX_TIME_KEEP_PUCK else 0.0,
            "reward_puck_direction": speed / (limit * MAX_PUCK_SPEED),
        }

    def get_info_agent_two(self):
        return self._info(self._two)

    def get_reward(self, info):
        """Returns the reward of an info: 10 for a win, -10 for a loss, and the closeness."""
        return 10.0 * info["winner"] + info["reward_closeness_to_puck"]

    get_reward_agent_two = get_reward  # from player two's info

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
        """Puts all where player one's observation, (18,) or (16,), says; or ValueError."""
        state, shape = np.asarray(observation, np.float64), self.observation_space.shape
        if state.shape != shape or not np.isfinite(state).all():
            raise ValueError(f"State has shape {state.shape}, but must be {shape} finite numbers.")
        state = state.tolist()
        for body, (x, y, angle, *velocity, spin) in (
            (self.player1, state[0:6]),
            (self.player2, state[6:12]),
            (self.puck, (*state[12:14], 0.0, *state[14:16], 0.0)),
        ):
            body.transform = ((CENTER_X + x, CENTER_Y + y), angle)
            body.linearVelocity, body.angularVelocity, body.awake = velocity, spin, True
        if self.keep_mode:
            self.player1_has_puck, self.player2_has_puck = int(state[16]), int(state[17])

    def render(self, mode=None):
        """Shows the game ("human"), or returns a picture ("rgb_array"), uint8 (480, 600, 3)."""
        mode = self.render_mode if mode is None else mode
        if mode is None:
            gymnasium.logger.warn("render() without render_mode draws nothing: give one of both.")
            return None
        if mode not in self.metadata["render_modes"]:
            raise ValueError(f"Render mode is {mode!r}, but must be human or rgb_array.")
        surface = draw_background()
        for body in (*(body for body, _ in self._static), self.player1, self.player2, self.puck):
            draw_body(surface, body)
        picture = pygame.transform.smoothscale(surface, (VIEWPORT_W, VIEWPORT_H))
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

    def close(self):
        if self._window is not None:
            pygame.display.quit()
            self._window = None


def read_action(action, size):
    """Returns an action as `size` float32 within [-1, 1]; ValueError on a wrong shape or a NaN."""
    action = np.asarray(action, np.float32)
    if action.shape != (size,):
        raise ValueError(f"The action has shape {action.shape}, but must have shape ({size},).")
    action = action.tolist()
    if not -1.0 <= min(action) <= max(action) <= 1.0:
        action = [min(max(value, -1.0), 1.0) for value in action]  # a NaN stays one
    if math.isnan(sum(action)):
        raise ValueError("The action holds a NaN, but must be numbers in [-1, 1].")
    return action


def draw_background():
    """Returns a surface, `ZOOM` times a picture's size, with what is painted on the floor."""
    surface = pygame.Surface((VIEWPORT_W * ZOOM, VIEWPORT_H * ZOOM), depth=32)
    surface.fill(WHITE)
    x, y = surface.get_rect().center
    for side in (-1, 1):  # the space behind each goal line
        pygame.draw.circle(surface, ORANGE, (x + side * 250 * ZOOM, y), GOAL_SIZE * ZOOM)
    surface.fill(WHITE, (x - 250 * ZOOM, 0, 500 * ZOOM, 2 * y))
    for radius, colour in ((100, LIGHT_GREY), (96, WHITE), (8, LIGHT_GREY)):
        pygame.draw.circle(surface, colour, (x, y), radius * ZOOM)
    surface.fill(LIGHT_GREY, (x - 2 * ZOOM, y - 200 * ZOOM, 4 * ZOOM, 400 * ZOOM))
    return surface


def draw_body(surface, body):
    """Fills the shape of a body with the colour in its user data."""
    shape, zoom = body.fixtures[0].shape, SCALE * ZOOM
    is_round = isinstance(shape, Box2D.b2CircleShape)
    places = [body.transform * place for place in ([shape.pos] if is_round else shape.vertices)]
    pixels = [(round(x * zoom), round((H - y) * zoom)) for x, y in places]  # y grows upwards
    if is_round:
        pygame.draw.circle(surface, body.userData, pixels[0], shape.radius * zoom)
    else:
        pygame.draw.polygon(surface, body.userData, pixels)


class BasicOpponent:
    """The scripted player: goes behind the puck, hits it, and swings its racket meanwhile.

    Args: weak: whether it moves slowly; keep_mode: whether its actions end with a shoot number;
    seed: of its swinging, None for a random one.
    """

    def __init__(self, weak=True, keep_mode=True, seed=None):
        self.weak, self.keep_mode = weak, keep_mode
        self.seed(seed)

    def seed(self, seed=None):
        self.generator = np.random.default_rng(seed)
        self.phase = math.pi * self.generator.random()

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
    return min(max(action, -1.0), 1.0)


class HockeyEnv_BasicOpponent(HockeyEnv):
    """Player one's game against the scripted player, weak or not; its action is (4,) or (3,)."""

    def __init__(self, mode=Mode.NORMAL, weak_opponent=False, keep_mode=True, **settings):
        self.opponent = BasicOpponent(weak=weak_opponent, keep_mode=keep_mode)
        super().__init__(keep_mode, mode, **settings)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.num_actions,), np.float32)

    def reset(self, one_starting=None, mode=None, seed=None, options=None):
        """As in `HockeyEnv`; a seed also seeds the scripted player."""
        if seed is not None:
            self.opponent.seed(seed)
        return super().reset(one_starting, mode, seed, options)

    def step(self, action):
        """As in `HockeyEnv`, for player one's action, (4,) or (3,)."""
        action = read_action(action, self.num_actions)
        return super().step(action + self.opponent.act(self.obs_agent_two()).tolist())


for env_id, env_class in (("Hockey-v0", HockeyEnv), ("Hockey-One-v0", HockeyEnv_BasicOpponent)):
    gymnasium.registry.pop(env_id, None)  # the lab's package registers these names, too
    gymnasium.register(env_id, entry_point=f"{__name__}:{env_class.__name__}")
