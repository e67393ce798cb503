"""Calls everything that ``stepfuse._core`` has, with arguments that are wrong in every way: ``hostile_calls.py CALLS``.

``hostile_calls.py CALLS PATH`` loads the core from another build.
"""

import faulthandler
import importlib.util
import inspect
import random
import re
import sys
import types

import numpy as np

faulthandler.enable()

#: Not called: they wait for other threads, end the process, or take an address on trust.
LEFT_OUT = {"serve", "wait_ended", "end_by_interrupt", "borrow"}
INTEGERS = [-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 16, 2**62, 2**63 - 1, 2**64 - 1, 2**64, True]
FLOATS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 1e-300, 1e300]


def load(path):
    spec = importlib.util.spec_from_file_location("_core", path)
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    return core


def arrays():
    plain = np.linspace(-1, 1, 4, dtype=np.float32)
    read_only = plain.copy()
    read_only.flags.writeable = False
    return [
        plain,
        plain.reshape(2, 2),
        plain.astype(np.float64),
        plain.astype(np.float16),
        plain.astype(">f4"),
        np.zeros(0, np.float32),
        np.zeros((0, 16), np.float32),
        np.zeros((2, 16), np.float32),
        np.full((2, 16), np.nan, np.float32),
        np.zeros(16, np.float32),
        np.full(4, np.inf, np.float32),
        np.zeros(8, np.float32)[::2],
        np.zeros(8, np.float32)[::-2],
        np.broadcast_to(np.float32(1), (4,)),
        np.zeros(17, np.uint8)[1:].view(np.float32),
        np.array(3),
        np.array(["a", "b"]),
        np.array([None, 1], object),
        np.zeros(4, [("a", np.float32)]),
        read_only,
    ]


class Calls:
    """Everything that can be called, and values of every kind to call it with."""

    def __init__(self, core, seed):
        self.core, self.random = core, random.Random(seed)
        self.values = [None, "", "avx2", b"", "nan", (), [], {}, [None], [1, 2], {1: None}, object(), len, type]
        self.values += [*INTEGERS, *FLOATS, *arrays(), lambda *_: None, lambda *_: 1 / 0]
        self.kinds = [value for name, value in vars(core).items() if isinstance(value, type)]
        self.kinds += [value for value in vars(core.cuda).values() if isinstance(value, type)]
        self.functions = [
            value for value in [*vars(core).values(), *vars(core.cuda).values()] if self.is_function(value)
        ]
        self.made = []
        self.renew()

    @staticmethod
    def is_function(value):
        return isinstance(value, types.BuiltinFunctionType) and value.__name__ not in LEFT_OUT

    def renew(self):
        """Fresh objects of those classes that a machine without a GPU can make."""
        core = self.core
        rows = np.zeros((2, 16), np.float32)
        self.stepper = core.HostStepper(4, False, [8], 2)
        options = core.LoopOptions(max_running=self.random.choice([1, 3]), policy=core.Policy.ShortestFirst)
        self.server = core.Server(self.stepper, options, 2)
        table, gate = core.Table(rows, 1.0), core.Gate()
        image = np.zeros(4, np.float32)
        known = core.KnownRegion(image, None, np.zeros((3, 2), np.float32))
        requests = [
            self.server.request(i, table, i, False, np.zeros(4, np.float32), None, [], [np.array(0)], gate=gate)
            for i in range(2)
        ]
        order = core.order_of(core.Policy.FirstCome)
        self.made = [self.stepper, core.HostStepper(1 << 12, True, [], 3), self.server, options, table, gate, known]
        self.made += [*requests, order, core.Candidate(order, core.Passes.Both), core.CostCurve(), core.Adaptive()]
        self.made += [*self.kinds, [table], [*requests], self.stepper.buffers()["sample"]]

    def value(self):
        return self.random.choice(self.made if self.random.random() < 0.5 else self.values)

    def target(self):
        """Something to call: a function, a class, a method or property of an object, the same unbound."""
        which = self.random.random()
        if which < 0.3:
            return self.random.choice(self.functions)
        if which < 0.5:
            return self.random.choice(self.kinds)
        owner = self.random.choice(self.made + self.kinds)
        names = [name for name in dir(owner) if not name.startswith("__") and name not in LEFT_OUT]
        names += ["__init__", "__new__"] if isinstance(owner, type) and owner in self.kinds else []
        return getattr(owner, self.random.choice(names), None) if names else None

    def arguments(self, target):
        """By name where the signature is known, each right now and then."""
        found = re.findall(r"[(,] (\w+): ", (target.__doc__ or "").split("\n\n")[0].replace("(", "( "))
        if found and self.random.random() < 0.7:
            return [], {name: self.likely(name) for name in found if name != "self" and self.random.random() < 0.9}
        return [self.value() for _ in range(self.random.randrange(6))], {}

    def likely(self, name):
        """A value that an argument of this name might well be, or any."""
        if self.random.random() < 0.4:
            return self.value()
        plain = np.zeros(4, np.float32)
        right = {
            "id": 5, "seed": 1, "step": 0, "stream": 1, "n": 6, "first": 0, "max_rows": 2, "max_running": 2,
            "wait": 0.0, "x": plain, "eps": plain.copy(), "row": np.zeros(16, np.float32),
            "rows": np.zeros((2, 16), np.float32),
            "x0": None, "cond": [], "null_cond": [np.array(0)], "has_noise": False, "init_scale": 1.0, "at": [0.0],
            "conditioned": [True], "priorities": [0], "stepper": self.stepper, "elements": 4, "max_waiting": 2,
            "integer_timestep": False, "cond_bytes": [8], "levels": np.zeros((3, 2), np.float32), "slots": 2,
            "image": plain.copy(), "mask": None, "on_events": lambda events: None, "forward": lambda rows: None,
        }  # fmt: skip
        if name in right:
            return right[name]
        kind = name.replace("_", "")
        fits = [one for one in self.made if kind in (type(one).__name__.lower(), type(one).__name__.lower() + "s")]
        return self.random.choice(fits) if fits else self.value()

    def call(self, number):
        target = self.target()
        if not callable(target) or getattr(target, "__name__", "") in LEFT_OUT:
            return
        positional, named = self.arguments(target)
        if getattr(target, "__name__", "") == "submit":
            positional = positional[:1]  # the second is how long to wait
        wait = named.get("wait", 0.0)
        named["wait"] = wait if isinstance(wait, float) and not wait > 1 else 0.0
        if "wait" not in (target.__doc__ or ""):
            del named["wait"]
        self.last = (number, target, positional, named)
        try:
            found = target(*positional, **named)
        except Exception:
            return
        if type(found) in self.kinds and inspect.isclass(type(found)):
            self.made.append(found)

    def run(self, calls):
        for number in range(calls):
            if number % 25 == 0:
                self.renew()
            self.call(number)
            if number % 10 == 9:
                try:
                    self.server.cancel_all()
                    self.server.run(lambda rows: None, lambda events: None)
                except Exception:
                    pass


if __name__ == "__main__":
    path = sys.argv[2] if len(sys.argv) > 2 else None
    if path is None:
        from stepfuse import _core as core
    else:
        core = load(path)
    for seed in range(4):
        Calls(core, seed).run(int(sys.argv[1]) // 4)
    print("survived")
