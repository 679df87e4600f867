"""XLA's compilers for GPU and TPU, which need neither: what they make of a program, and count.

`set_up` before JAX is imported, then `Program(name, Chip(name).lower(...))`. README.md tells what
to install.
"""

import contextlib
import importlib.util
import math
import os
import pathlib
import re
import time

# The names of the TPU topologies are libtpu's; more chips are "v5e:4x4", and so on.
TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
TARGETS = ("h100", *TPUS)
# XLA's description of the GPU that it compiles for, a GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_ASSIGNMENT = r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)"
_ITEM_BITS = {"pred": 8, "bf16": 16, "f16": 16}
# What moves nothing, or is a view of what is there.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"}


def missing(target):
    """Why a target cannot be compiled for here, or None."""
    needed = ("libtpu",) if target.split(":")[0] in TPUS else ("jax_plugins.xla_cuda12",)
    needed += () if needed == ("libtpu",) else ("nvidia.cuda_nvcc",)
    for package in needed:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(package):
                continue
        return f"the compiler for {target} is not installed ({package})"
    return None


def set_up(target):
    """Sets the environment in which a target can be compiled for. Before JAX is imported."""
    if target.split(":")[0] in TPUS:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"
        return
    folder = pathlib.Path(
        importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations[0]
    )
    os.environ["JAX_PLATFORMS"] = "cuda,cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={folder}"
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


class Chip:
    """A chip to compile for, by the name of a target such as "h100", "v5e" or "v5e:4x4"."""

    def __init__(self, target):
        import jax
        from jax.experimental import topologies

        self.target = target
        if target == "h100":
            # The plugin answers for a GPU; arrays live on the CPU.
            self.topology = topologies.get_topology_desc(
                "", "cuda", topology="1x1x1", target_config=H100
            )
            jax.config.update("jax_platforms", "cpu")
        else:
            name = TPUS.get(target, target)
            self.topology = topologies.get_topology_desc(name, platform="tpu")
        self.devices = self.topology.devices

    def on_one(self, tree):
        """Arrays, or what has their shape and dtype, as abstract ones on one such chip."""
        import jax

        where = jax.sharding.SingleDeviceSharding(self.devices[0])
        return jax.tree.map(
            lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=where), tree
        )

    def lower(self, function, *arguments, donate=()):
        """A function as a program for this chip, of abstract arguments, not yet compiled."""
        import jax

        return jax.jit(function, donate_argnums=donate).lower(*arguments)


class Program:
    """What a compiler made: its text, and what can be counted in it.

    Attributes:
        kernels: Integer, what a step launches: the fusions, copies and the like of the entry
            computation. On a TPU, scalars and what moves an array onto the chip do not count.
        bytes: Integer, what these read and write in the memory of the device, as it lies there.
            Of a condition, the cheaper branch.
        counted_bytes: Float, the compiler's own count, which has the traffic on the chip in it,
            and of a condition the dearer branch. None on a GPU.
        flops: Float, by the compiler's count. None on a GPU.
        temporaries: Integer, the bytes of memory needed besides arguments and results.
        arguments: Integer, the bytes of the arguments on one chip.
        aliased: Integer, the bytes of those that the results take the place of.
        seconds: Float, what compiling took.
    """

    def __init__(self, target, lowered):
        began = time.perf_counter()
        compiled = lowered.compile()
        self.seconds = time.perf_counter() - began
        self.text = compiled.as_text()
        memory = compiled.memory_analysis()
        self.temporaries = memory.temp_size_in_bytes
        self.arguments = memory.argument_size_in_bytes
        self.aliased = memory.alias_size_in_bytes
        cost = {} if target == "h100" else compiled.cost_analysis()
        self.counted_bytes = cost.get("bytes accessed")
        self.flops = cost.get("flops")
        moved = moves(self.text)
        # A TPU computes scalars beside; a GPU launches a kernel for them as for anything.
        self.kernels = sum(target == "h100" or not one["scalar"] for one in moved if one["kernel"])
        self.bytes = sum(one["bytes"] for one in moved)


def moves(text):
    """The instructions of a compiled program that move something, with the bytes of each.

    Args:
        text: String, an HLO module as it was compiled.

    Returns:
        List of dicts with `name`, `opcode`, `bytes`, `kernel`, whether it is launched, and
        `scalar`, whether nothing but scalars is in it.
    """
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.M).group(1)
    return _moves(entry, computations)


def _moves(computation, computations):
    types, moved = {}, []
    for line in computations[computation].split("\n"):
        match = re.match(_ASSIGNMENT, line)
        if not match:
            continue
        name, rest = match.groups()
        types[name], rest = _split_type(rest)
        opcode, rest = re.match(r"\s*([\w-]+)\((.*)", rest).groups()
        if opcode in _FREE or opcode.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
        if opcode == "conditional":
            branches = [_moves(one, computations) for one in _branches(rest)]
            moved += min(branches, key=lambda one: sum(move["bytes"] for move in one))
            continue
        if opcode.endswith("-start"):  # to the chip or back: what is written was read before
            written = arrays(types[name])
            sizes = [_in_memory(one) for one in (written[1], written[0])]
            size = sum(sizes) if opcode == "copy-start" else 0
            if opcode == "slice-start":
                size = _bytes(written[1])
            moved.append(_move(name, opcode, size, kernel=False))
            continue
        if opcode == "slice":
            operands = [name]  # it reads as much as it writes
        touched = [*(types[one] for one in operands), types[name]]
        size = sum(_in_memory(one) for kind in touched for one in arrays(kind))
        if opcode == "fusion":
            called = re.search(r"calls=%?([\w.-]+)", rest).group(1)
            shares = _shares_read(computations[called])
            size -= sum(
                int((1 - share) * _in_memory(arrays(types[one])[0]))
                for one, share in zip(operands, shares)
            )
        scalar = all("[]" in kind for kind in touched)
        moved.append(_move(name, opcode, size, scalar=scalar))
    return moved


def _move(name, opcode, size, kernel=True, scalar=False):
    # What only tells where a buffer is launches nothing.
    kernel = kernel and opcode != "custom-call"
    return {"name": name, "opcode": opcode, "bytes": size, "kernel": kernel, "scalar": scalar}


def _shares_read(fused):
    """The share of each parameter of a fused computation that it reads: all, unless it is cut."""
    lines = [(name, *_split_type(rest)) for name, rest in re.findall(_ASSIGNMENT, fused, re.M)]
    sizes = {name: sum(map(_elements, arrays(kind))) for name, kind, _ in lines}
    needed, shares = dict.fromkeys(sizes, 0), {}
    needed[lines[-1][0]] = sizes[lines[-1][0]]
    for name, _, rest in reversed(lines):
        opcode, rest = re.match(r"\s*([\w-]+)\((.*)", rest).groups()
        if opcode == "parameter":
            shares[int(rest.split(")")[0])] = needed[name] / max(1, sizes[name])
        for operand in re.findall(r"%([\w.-]+)", rest.split(")")[0]):
            # Element by element, or a part of it, or everything.
            same = sizes[operand] == sizes[name] or opcode == "slice"
            need = needed[name] if same else sizes[operand]
            needed[operand] = max(needed[operand], min(need, sizes[operand]))
    return [shares[number] for number in sorted(shares)]


def _elements(array):
    return math.prod(int(size) for size in array[1].split(",") if size)


def _branches(rest):
    """The names of the computations of a conditional."""
    two = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", rest)
    return two or re.findall(r"[\w.-]+", re.search(r"branch_computations=\{(.*?)\}", rest).group(1))


def _split_type(rest):
    """The type that a line begins with, and what follows it."""
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            return rest[:place], rest[place:]
    raise ValueError(f"no type: {rest}")


def arrays(kind):
    """The array types in a type of HLO: (dtype, shape, layout) each."""
    return re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", kind)


def _in_memory(array):
    """The bytes of an array in the memory of the device: none where it lies on the chip."""
    return 0 if re.search(r"S\([1-9]\d*\)", array[2]) else _bytes(array)


def unpadded_bytes(array):
    """The bytes of an array's elements."""
    return _bytes((*array[:2], ""))


def _bytes(array):
    """The bytes of an array as it lies, its last axes filled up to whole tiles."""
    dtype, shape, layout = array
    sizes = [int(size) for size in shape.split(",") if size]
    tile = re.search(r":T\(([\d,]+)\)", layout)
    if tile and sizes:
        order = [int(axis) for axis in re.match(r"\{([\d,]*)", layout).group(1).split(",")]
        for axis, size in zip(order, reversed(tile.group(1).split(","))):
            sizes[axis] = -(-sizes[axis] // int(size)) * int(size)
    bits = _ITEM_BITS.get(dtype) or int(re.search(r"\d+", dtype).group())
    return math.prod(sizes) * bits // 8
