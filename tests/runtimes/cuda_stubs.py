"""Make the torch of PyPI importable without the CUDA libraries that it is linked with.

PyPI has no torch for x86-64 Linux without CUDA. Its wheel needs some 15 shared libraries of CUDA, which are 2.5 GB of
packages. On a CPU none of their functions does any work, but the dynamic linker must find the files, the functions and
the versions of these. This module reads what torch's libraries need and compiles libraries of that shape. Each function
returns 100 (``cudaErrorNoDevice``), so ``torch.cuda.is_available()`` is false.

It needs ``gcc`` and ``readelf``, and writes to ``torch/lib``, where torch looks first.
"""

import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux-x86-64|libgomp|libz|libutil)\.so")
"""Libraries that the system has."""

SYSTEM_VERSIONS = ("GLIBC", "GCC", "CXXABI", "GOMP", "OMP", "GOACC", "LIBSTDC")
"""How the versions of the system's functions begin."""

DRIVER = "libcuda.so"
"""The driver's library, which torch opens itself where there is one."""

OWNERS = {
    "cudnn": "libcudnn",
    "nccl": "libnccl",
    "pnccl": "libnccl",
    "cufile": "libcufile",
    "cuFile": "libcufile",
    "nvshmem": "libnvshmem",
    "cupti": "libcupti",
    "cusparseLt": "libcusparseLt",
    "cublasLt": "libcublasLt",
    "cublas": "libcublas.",
    "cuda": "libcudart",
    "__cuda": "libcudart",
}
"""Which library has the functions of a prefix, for functions without a version. The first prefix counts."""

RETURN_TEXT = ("GetErrorString", "GetErrorName", "GetStatusString", "ncclGetLastError")
"""How the names of functions end that return a text."""

NO_DEVICE = 100


@dataclass
class Needs:
    """What the libraries of torch need from others."""

    libraries: set[str] = field(default_factory=set)
    functions: dict[str, str] = field(default_factory=dict)
    """Versions by function; the version is empty if a function has none."""


def readelf(*arguments):
    """Return the lines that readelf prints."""
    return subprocess.run(["readelf", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


def needs_of(files):
    """Read which libraries and functions the files need and do not have among themselves."""
    own, needs, defined = {path.name for path in files}, Needs(), set()
    for path in files:
        for line in readelf("-dW", path):
            needed = re.search(r"NEEDED.*\[(.*)\]", line)
            if needed and needed[1] not in own and not SYSTEM.match(needed[1]) and not needed[1].startswith(DRIVER):
                needs.libraries.add(needed[1])
        for line in readelf("--dyn-syms", "-W", path):
            # number: value size type binding visibility section name@version
            columns = line.split()
            if len(columns) < 8 or not columns[0].rstrip(":").isdigit():
                continue
            binding, section = columns[4], columns[6]
            name, _, version = columns[7].partition("@")
            version = version.lstrip("@")
            if section != "UND":
                defined.add(name)
            elif (binding != "WEAK" or version) and not version.startswith(SYSTEM_VERSIONS):
                needs.functions.setdefault(name, version)
    for name in defined:
        needs.functions.pop(name, None)
    return needs


def owner(name, version, libraries):
    """Return the library that has a function, or None if none of them does."""
    if version in libraries:
        return version
    stem = version.partition(".so")[0]
    named = next((library for library in libraries if version and library.partition(".so")[0] == stem), None)
    prefix = next((OWNERS[prefix] for prefix in OWNERS if name.startswith(prefix)), None)
    return named or (prefix and next((library for library in libraries if library.startswith(prefix)), None))


def definition(name):
    """Return a function in C. Texts and handles must be valid addresses: torch reads them while it is imported."""
    if name == "__cudaRegisterFatBinary":
        return f"static void *handle;\nvoid **{name}(void) {{ return &handle; }}"
    if name.endswith(RETURN_TEXT):
        return f'const char *{name}(void) {{ return "no CUDA: a stub"; }}'
    return f"long {name}(void) {{ return {NO_DEVICE}; }}"


def compile_stub(library, versions, folder):
    """Compile a library with the functions of each version."""
    source, script = folder / f"{library}.c", folder / f"{library}.map"
    functions = sorted(set().union(*versions.values()))
    marker = "stub_" + re.sub(r"\W", "_", library)
    definitions = [f"int {marker}(void) {{ return {NO_DEVICE}; }}", *map(definition, functions)]
    source.write_text("\n".join(definitions) + "\n")
    nodes = [f"{version} {{ global: {'; '.join(sorted(names))}; }};" for version, names in versions.items() if version]
    command = ["gcc", "-w", "-O1", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{library}"]
    if nodes:
        script.write_text("\n".join(nodes) + "\n")
        command.append(f"-Wl,--version-script={script}")
    subprocess.run([*command, "-o", folder.parent / library, source], check=True)


def write_stubs(site_packages):
    """Compile stubs for all libraries that the torch in ``site_packages`` needs; return their names."""
    folder = Path(site_packages) / "torch" / "lib" / "stubs"
    folder.mkdir(exist_ok=True)
    earlier = {source.stem for source in folder.glob("*.c")}
    files = [path for path in sorted(folder.parent.glob("*.so*")) if not path.is_symlink() and path.name not in earlier]
    needs, libraries = needs_of(files), defaultdict(lambda: defaultdict(set))
    order = sorted(needs.libraries)
    for name, version in needs.functions.items():
        library = owner(name, version, order)
        if library:
            libraries[library][version].add(name)
    for library in order:
        compile_stub(library, libraries[library], folder)
    return order
