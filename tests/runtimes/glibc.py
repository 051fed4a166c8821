"""Make libraries loadable that were linked on a newer Linux: the wheel of llama-cpp-py-sync asks for glibc 2.38.

All that it takes from there are four functions that read numbers: `__isoc23_strtol` and its like, which a compiler puts
in place of `strtol` since C23. The plain ones differ for numbers that begin with `0b` alone. This module renames the
imports in the files, which must be ELF of 64 bits, and marks the version as one that may be missing.
"""

import platform
import struct
from pathlib import Path

WEAK = 2
"""The flag of a version that may be missing."""

OLDEST, LIBRARY = "GLIBC_2.2.5", "libc.so.6"
"""The version of the plain functions on x86-64."""

PREFIX = "__isoc23_"
DYNSYM, VERSYM, VERNEED = 11, 0x6FFFFFFF, 0x6FFFFFFE
"""Types of sections."""


def glibc():
    """Return the version of the C library that is there, as two numbers."""
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0, 0)


def numbers(version):
    """Return the numbers of a version of glibc's functions; of others nothing."""
    parts = version.removeprefix("GLIBC_").split(".")
    return tuple(int(part) for part in parts[:2]) if version.startswith("GLIBC_2") else ()


class Library:
    """A shared library whose imports are renamed in place."""

    def __init__(self, path):
        self.path, self.bytes = path, bytearray(path.read_bytes())
        if self.bytes[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is no ELF file of 64 bits")
        (start,), (count,) = struct.unpack_from("<Q", self.bytes, 40), struct.unpack_from("<H", self.bytes, 60)
        # name, type, flags, address, offset, size, link, …
        sections = [struct.unpack_from("<IIQQQQIIQQ", self.bytes, start + 64 * at) for at in range(count)]
        self.sections = {section[1]: section for section in sections if section[1] in (DYNSYM, VERSYM, VERNEED)}
        self.names = sections[self.sections[DYNSYM][6]][4] if DYNSYM in self.sections else 0

    def text(self, offset):
        """Return a name from the table of names."""
        begin = self.names + offset
        return self.bytes[begin : self.bytes.index(0, begin)].decode()

    def versions(self):
        """Return the versions that are needed: library, version, number, and where the entry is."""
        at, more = self.sections[VERNEED][4], True
        while more:
            _, count, file, first, following = struct.unpack_from("<HHIII", self.bytes, at)
            entry = at + first
            for _ in range(count):
                _, _, number, name, step = struct.unpack_from("<IHHII", self.bytes, entry)
                yield self.text(file), self.text(name), number, entry
                entry += step
            more, at = following, at + following

    def lower(self, there):
        """Take what needs a newer glibc from the oldest; return the names of the functions."""
        if VERNEED not in self.sections:
            return []
        needed = list(self.versions())
        newer = {number: entry for _, version, number, entry in needed if numbers(version) > there}
        oldest = next((number for file, version, number, _ in needed if (file, version) == (LIBRARY, OLDEST)), None)
        renamed = []
        for at in range(self.sections[DYNSYM][5] // 24):
            place = self.sections[VERSYM][4] + 2 * at
            if struct.unpack_from("<H", self.bytes, place)[0] & 0x7FFF not in newer:
                continue
            symbol = self.sections[DYNSYM][4] + 24 * at
            (offset,) = struct.unpack_from("<I", self.bytes, symbol)
            name = self.text(offset)
            if not name.startswith(PREFIX) or oldest is None:
                raise ValueError(f"{self.path} needs {name} of a newer glibc")
            struct.pack_into("<I", self.bytes, symbol, offset + len(PREFIX))
            struct.pack_into("<H", self.bytes, place, oldest)
            renamed.append(name)
        for entry in newer.values():
            flags = struct.unpack_from("<H", self.bytes, entry + 4)[0]
            struct.pack_into("<H", self.bytes, entry + 4, flags | WEAK)
        if newer:
            self.path.write_bytes(self.bytes)
        return renamed


def lower_glibc(site_packages):
    """Make the libraries of llama-cpp-py-sync loadable here; return the functions renamed."""
    found, there = set(), glibc()
    for path in sorted((Path(site_packages) / "llama_cpp_py_sync").glob("*.so*")):
        found |= set(Library(path).lower(there))
    return sorted(found)
