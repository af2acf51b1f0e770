"""Tests of driver.py, run by this machine's Python on the bindings that componentize-py makes of the contract: `make test`."""

import unittest
from unittest import mock

import driver
from componentize_py_types import Err
from wit_world.imports import settings, types
from wit_world.imports.types import ErrorCode, OptionValue

ID = "0123456789abcdef0123456789abcdef"


def volume(**given):
    """Options as the host gives them: by type, and defaults filled in."""
    options = {
        "exec": types.Value_Boolean(given.pop("exec", False)),
        "mode": types.Value_Text(given.pop("mode", "1777")),
    }
    if "size" in given:
        options["size"] = types.Value_Size(given.pop("size"))
    if "inodes" in given:
        options["inodes"] = types.Value_Number(given.pop("inodes"))
    return [OptionValue(key, value) for key, value in sorted(options.items())]


def operator(**written):
    """Stands in for the host's settings."""
    return mock.patch.object(settings, "get", written.get)


class Driver(unittest.TestCase):
    volumes = driver.Volumes()

    def made(self, options, **written):
        """A volume as it comes back to `path`."""
        with operator(**written):
            created = self.volumes.create(ID, "data", options)
            self.assertEqual(created, self.volumes.create(ID, "data", options))
        self.assertEqual(created.storage, types.Storage_None_())
        return types.Volume(ID, "data", options, created.state)

    def refused(self, options, **written):
        with self.assertRaises(Err) as caught, operator(**written):
            self.volumes.create(ID, "data", options)
        return caught.exception.value

    def test_a_volume_has_the_size_and_the_limits_that_were_asked_for(self):
        options = volume(size=1 << 20, inodes=100, exec=True, mode="0750")
        plan = self.volumes.path(self.made(options))
        tmpfs = types.Tmpfs(size=1 << 20, inodes=100, owner=types.Owner(0, 0, 0o750))
        self.assertEqual(plan, types.Plan(types.Source_Tmpfs(tmpfs), False, False, None, None))

    def test_a_volume_without_size_gets_what_the_operator_has_set(self):
        for written, size in [
            ({}, 64 << 20),
            ({"default": "4096"}, 4096),
            ({"ceiling": "8k"}, 8192),
            ({"ceiling": "8192", "default": "16384"}, 8192),
        ]:
            plan = self.volumes.path(self.made(volume(), **written))
            self.assertEqual(plan.source.value.size, size)
            self.assertTrue(plan.no_exec)

    def test_a_setting_is_written_as_an_option_is(self):
        for text, size in [
            ("512b", 512),
            ("64k", 64 << 10),
            ("64K", 64 << 10),
            ("64kb", 64 << 10),
            ("64KiB", 64 << 10),
            ("10MB", 10 << 20),
            ("1G", 1 << 30),
            ("2TiB", 2 << 40),
            ("18446744073709551615", (1 << 64) - 1),
        ]:
            made = self.made(volume(), ceiling="18446744073709551615", default=text)
            self.assertEqual(self.volumes.path(made).source.value.size, size)

    def test_a_volume_keeps_the_size_that_it_was_made_with(self):
        old = self.made(volume(), default="4096")
        with operator(default="8192"):
            self.assertEqual(self.volumes.path(old).source.value.size, 4096)

    def test_an_error_says_what_to_do(self):
        for options, message in [
            (volume(size=0), "option `size`: must be at least 1 byte"),
            (volume(size=4097), "option `size`: the operator's ceiling is 4096 bytes"),
            (volume(inodes=0), "option `inodes` must be at least 1: `0`"),
            (volume(mode="9"), "option `mode` must be octal and at most 7777, as in `0755`: `9`"),
            (volume(mode="+7"), "option `mode` must be octal and at most 7777, as in `0755`: `+7`"),
        ]:
            error = self.refused(options, ceiling="4096")
            self.assertEqual(error, types.Error(ErrorCode.INVALID_OPTION, message))

    def test_a_setting_that_cannot_be_read_is_the_operators_to_mend(self):
        units = ["1x", "m", "1.5g", "1 g", "1ib", "kib", "1\N{KELVIN SIGN}", "1\n", "16777216t"]
        for text in ["", "0", "-1", *units, "18446744073709551616"]:
            error = self.refused(volume(), ceiling=text)
            self.assertEqual(error.code, ErrorCode.INTERNAL)
            self.assertIn("setting `ceiling` must be a size", error.message)

    def test_a_state_of_another_drivers_is_refused(self):
        for state in [b"", b"elsewhere"]:
            with self.assertRaises(Err) as caught:
                self.volumes.path(types.Volume(ID, "data", volume(), state))
            self.assertEqual(caught.exception.value.code, ErrorCode.INTERNAL)


if __name__ == "__main__":
    unittest.main()
