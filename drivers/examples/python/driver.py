"""Memory with a ceiling: `docker volume create -d wasmvol -o driver=example-python -o size=64m data`.

The operator sets the ceiling, and what a volume gets whose user asked for no size. Every call is answered by an instance of its own:
what must be remembered are the volume's options, and the bytes that `create` returned as its state. Import at the top: that is done
when the component is built, and a component has no files.
"""

import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.volumes import Created
from wit_world.imports import settings, types
from wit_world.imports.types import ErrorCode, OptionSpec, ValueType

CEILING = 1 << 30
"""Most bytes of a volume, unless the operator has set another."""

DEFAULT = 64 << 20
"""What a volume gets without `size`, unless the operator has set another."""

UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
"""Powers of two that stand behind a size."""

SIZE = re.compile("([0-9]+)(?:b|([kmgt])(?:i?b)?)?", re.ASCII | re.IGNORECASE)
"""A size as in an option: `64m`, `64MB` and `64MiB` are the same."""


class Volumes(exports.Volumes):
    def describe(self):
        return types.Description(
            name="example-python",
            version="0.1.0",
            help="memory, up to the operator's ceiling",
            options=[
                option("size", ValueType.SIZE, "most bytes; without it what the operator has set"),
                option("inodes", ValueType.NUMBER, "most files and directories"),
                option("exec", ValueType.BOOLEAN, "programs may run from it", default="false"),
                option("mode", ValueType.TEXT, "permission bits, octal", default="1777"),
            ],
            grants=[],
        )

    def create(self, id, name, options):
        ceiling = setting("ceiling", CEILING)
        size = values(options).get("size")
        if size is None:
            size = min(setting("default", DEFAULT), ceiling)
        if size == 0:
            # The kernel would take it for "no limit".
            raise refused("option `size`: must be at least 1 byte")
        if size > ceiling:
            raise refused(f"option `size`: the operator's ceiling is {ceiling} bytes")
        # The operator may set another default later: this volume keeps what it was made with.
        state = str(size).encode()
        # What could not be mounted later is refused now.
        self.path(types.Volume(id, name, options, state))
        return Created(types.Storage_None_(), state)

    def remove(self, volume):
        return types.Reclaim.DELETE

    def path(self, volume):
        given = values(volume.options)
        inodes = given.get("inodes")
        if inodes is not None and inodes < 1:
            raise refused(f"option `inodes` must be at least 1: `{inodes}`")
        owner = types.Owner(uid=0, gid=0, mode=mode(given["mode"]))
        return types.Plan(
            source=types.Source_Tmpfs(types.Tmpfs(size_of(volume.state), inodes, owner)),
            read_only=False,
            no_exec=not given["exec"],
            subpath=None,
            id_map=None,
        )

    def list(self):
        # Its volumes live in the host's records alone.
        return []


def option(key, value_type, help, default=None):
    return OptionSpec(key, value_type, required=False, default=default, help=help)


def values(options):
    """The values of a volume's options by key, as the host has parsed them; one without value and default is left out."""
    return {option.key: option.value.value for option in options}


def setting(key, default):
    """A size that the operator wrote with `driver load --setting KEY=SIZE` or `driver set`."""
    text = settings.get(key)
    if text is None:
        return default
    if written := SIZE.fullmatch(text):
        size = int(written[1]) << UNITS[(written[2] or "").lower()]
        if 0 < size < 1 << 64:
            return size
    why = "must be a size of at least 1 byte, such as `64m`"
    message = f"setting `{key}` {why}: the operator can mend it with `wasmvol driver set NAME {key}=SIZE`"
    raise Err(types.Error(ErrorCode.INTERNAL, message))


def size_of(state):
    if state.isdigit():
        return int(state)
    raise Err(types.Error(ErrorCode.INTERNAL, "the volume's state was not written by this driver"))


def mode(text):
    # `int` would take a sign, a prefix and underscores.
    if 0 < len(text) and all(digit in "01234567" for digit in text) and int(text, 8) <= 0o7777:
        return int(text, 8)
    raise refused(f"option `mode` must be octal and at most 7777, as in `0755`: `{text}`")


def refused(message):
    return Err(types.Error(ErrorCode.INVALID_OPTION, message))
