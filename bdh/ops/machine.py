"""What loops ask of a processor that Python has no words for: counters that threads share, memory ahead of time.

Loops that use these are kept compiled until their own file changes: change `step_kernels` too when changing this.
"""

# mypy: ignore-errors

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_INT64, _INT32, _BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
_ALIGNMENT = 8
_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def _address(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def take(typing, counters, index):
    """Add 1 to one of the counters, an int64 array, as if no other thread were there; what it was before."""

    def generate(context, builder, signature, arguments):
        place = _address(context, builder, signature.args[0], *arguments)
        return builder.atomic_rmw("add", place, ir.Constant(_INT64, 1), "acq_rel")

    return types.int64(counters, types.intp), generate


@intrinsic
def look(typing, counters, index):
    """One of the counters; whatever was written before it was shown is seen after it was looked at."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_address(context, builder, signature.args[0], *arguments), "acquire", _ALIGNMENT)

    return types.int64(counters, types.intp), generate


@intrinsic
def show(typing, counters, index, value):
    """Set one of the counters, for `look`."""

    def generate(context, builder, signature, arguments):
        array, place, shown = arguments
        place = _address(context, builder, signature.args[0], array, place)
        builder.store_atomic(shown, place, "release", _ALIGNMENT)
        return context.get_dummy_value()

    return types.void(counters, types.intp, types.int64), generate


@intrinsic
def pause(typing):
    """Let the other thread of this core have it for some cycles."""

    def generate(context, builder, signature, arguments):
        if _X86:
            builder.call(
                builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), ())), ()
            )
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def fetch(typing, row, index):
    """Ask for the cache line of one of the numbers of an array, to be read and written soon."""

    def generate(context, builder, signature, arguments):
        place = builder.bitcast(_address(context, builder, signature.args[0], *arguments), _BYTES)
        form = ir.FunctionType(ir.VoidType(), (_BYTES, _INT32, _INT32, _INT32))
        how = (ir.Constant(_INT32, number) for number in (1, 3, 1))  # to be written, to stay near, data
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", (_BYTES,), form), (place, *how))
        return context.get_dummy_value()

    return types.void(row, types.intp), generate
