"""What is known of classes and functions that a pickle may name: which do harm, and which none.

A pattern is a qualified name, or a module and ``.*`` for everything in it and below it. Names are
those of Python 3; what Python 2 called otherwise is translated before they are looked up.
"""

from __future__ import annotations

from typing import Final

DANGEROUS: Final = """\
runs a command or starts a program
    os.* posix.* nt.* subprocess.* _posixsubprocess.* _winapi.* pty.* popen2.* commands.*
    pexpect.* mailcap.* multiprocessing.* concurrent.futures.* asyncio.* _asyncio.* imaplib.* uuid.*
    _osx_support.* _aix_support.* _pyrepl.* sysconfig.* platform.* distutils.* setuptools.*
    torch.utils.collect_env.* torch.utils.cpp_extension.* torch._inductor.*
    torch.distributed.run.* torch.distributed.launch.* torch.distributed.launcher.*
    torch.distributed.elastic.* torch.multiprocessing.* numpy.distutils.* numpy.f2py.*
runs Python code that it is given as text, bytes or code objects
    builtins.eval builtins.exec builtins.execfile builtins.compile builtins.input code.* codeop.*
    runpy.* timeit.* cProfile.* profile.* pdb.* bdb.* trace.* doctest.* idlelib.* lib2to3.* test.*
    unittest.* types.* cloudpickle.* numpy.testing.* torch.jit.* torch.compile torch._dynamo.*
    torch.utils.bottleneck.* torch.fx.* pandas.eval pandas.core.computation.*
imports a module that a text names, and runs whatever that does
    builtins.__import__ importlib.* _frozen_importlib.* _frozen_importlib_external.* imp.* _imp.*
    pkgutil.* zipimport.* modulefinder.* pydoc.* site.* torch._utils._import_dotted_name
reaches functions that the file does not name: attributes, frames, interpreter state
    builtins.getattr builtins.setattr builtins.delattr builtins.vars builtins.globals
    builtins.locals builtins.apply builtins.breakpoint builtins.__build_class__ inspect.*
    operator.attrgetter operator.methodcaller operator.itemgetter _operator.attrgetter
    _operator.methodcaller _operator.itemgetter gc.* sys.* functools.reduce
unpickles what it is given, out of sight of this check
    pickle.* _pickle.* cPickle.* shelve.* marshal.* dill.* joblib.* numpy.load
    numpy.lib.npyio.load numpy.lib._npyio_impl.load pandas.read_pickle pandas.io.pickle.*
    torch.load torch.serialization.load torch.hub.* torch.package.* torch.distributed.rpc.*
    torch.storage._load_from_bytes torch.utils._config_module.*
    torch.utils.data.datapipes.utils.decoder.*
opens a connection or fetches something from the network
    socket.* _socket.* ssl.* _ssl.* http.* httplib.* urllib.* urllib2.* urllib3.* requests.*
    httpx.* aiohttp.* ftplib.* smtplib.* poplib.* nntplib.* telnetlib.* xmlrpc.* socketserver.*
    webbrowser.* antigravity.* websocket.* websockets.* boto3.* botocore.* huggingface_hub.*
    torch.distributed.distributed_c10d.* logging.handlers.*
reads, writes or removes files
    builtins.open builtins.file io.open io.open_code io.FileIO _io.open _io.open_code _io.FileIO
    shutil.* tempfile.* fileinput.* filecmp.* tarfile.* zipfile.* sqlite3.* dbm.* mmap.*
    codecs.open linecache.* logging.FileHandler logging.config.* mailbox.* torch.save
    torch.serialization.save torch.from_file numpy.save numpy.savez numpy.memmap
    numpy.core.memmap.* numpy._core.memmap.* numpy.fromfile fsspec.*
calls machine code, which reads and writes any memory
    ctypes.* _ctypes.* cffi.* _cffi_backend.* numpy.ctypeslib.* torch.ops.* torch._ops.*
    torch.classes.* torch._classes.*
installs software
    pip.* ensurepip.* venv.* virtualenv.* pkg_resources.* conda.*
ends or disturbs the process
    builtins.exit builtins.quit signal.* _signal.* atexit.* faulthandler.* threading.* _thread.*
"""
"""What they do, each with its patterns, indented, below."""

DOUBTFUL: Final = """\
keeps a function and its arguments for whoever calls it
    functools.partial functools.partialmethod
"""
"""What does no harm by itself, but takes part in some."""

HARMLESS: Final = """\
builtins.set builtins.frozenset builtins.bytearray builtins.complex builtins.dict builtins.list
builtins.tuple builtins.int builtins.float builtins.bool builtins.str builtins.bytes
builtins.slice builtins.range builtins.object builtins.long builtins.unicode _codecs.encode
copyreg._reconstructor copyreg.__newobj__ collections.OrderedDict collections.Counter
collections.defaultdict collections.deque argparse.Namespace types.SimpleNamespace datetime.date
datetime.datetime datetime.time datetime.timedelta datetime.timezone decimal.Decimal
fractions.Fraction uuid.UUID pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePath
pathlib.PurePosixPath pathlib.PureWindowsPath numpy.dtype numpy.ndarray numpy.bool_ numpy.float16
numpy.float32 numpy.float64 numpy.int8 numpy.int16 numpy.int32 numpy.int64 numpy.uint8
numpy.uint16 numpy.uint32 numpy.uint64 numpy.str_ numpy.core.multiarray._reconstruct
numpy.core.multiarray.scalar numpy.core.numeric._frombuffer numpy._core.multiarray._reconstruct
numpy._core.multiarray.scalar numpy._core.numeric._frombuffer
numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor
numpy.random._pickle.__bit_generator_ctor torch.storage.TypedStorage torch.storage.UntypedStorage
torch.storage._TypedStorage torch.storage._UntypedStorage torch.tensor._rebuild_from_type_v2
torch.nested._internal.nested_tensor._rebuild_njt
torch.nn.backends.thnn._get_thnn_function_backend
torch.distributed.checkpoint.filesystem._StorageInfo
torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING torch.jit._pickle.restore_type_tag
torch.jit._pickle.build_intlist torch.jit._pickle.build_tensorlist
torch.jit._pickle.build_doublelist torch.jit._pickle.build_boollist
torch.jit._pickle.build_tensor_from_id
"""
"""What only makes an object that holds what it is given; beside it what torch itself allows."""

HARMLESS_CLASSES: Final = """\
torch.nn.modules torch.nn.parameter torch.nn.parallel torch.nn.utils torch.optim
torch.autograd.variable torch.amp.grad_scaler torch.cuda.amp.grad_scaler torch.nn.quantized
torch.nn.intrinsic torch.ao.nn torch.ao.quantization torch.quantization torch.distributed.tensor
torch.distributed._tensor torch.distributed.device_mesh torch.distributed._shard
torch.distributed.checkpoint.metadata numpy.dtypes numpy.random torchvision.models torchvision.ops
torchvision.transforms timm.models timm.layers pytorch_lightning.utilities.parsing
lightning.pytorch.utilities.parsing lightning.fabric.utilities.data
lightning_fabric.utilities.data omegaconf
"""
"""Modules whose classes (names like ``Conv2d``, at the module's top) are so, too."""
