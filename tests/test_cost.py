"""Costs read from the text of programs that XLA compiled for TPUs, shortened to what is read."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.cost import Collective, collectives_of, cycles_of, needed_memory, traffic_of

# Five accumulated gradients of a product whose kernel is split over 4 of 2 x 4 v5e; the sum over both follows the loop.
TPU_LOOP = """
%all-reduce-scatter.clone.1 (input.4: bf16[128,1024]) -> bf16[128,256] {
  %all-reduce.20 = bf16[128,1024]{1,0:T(8,128)(2,1)} all-reduce(%input.4), channel_id=5, replica_groups={{0,1,2,3},\
{4,5,6,7}}, use_global_device_ids=true, to_apply=%add.1.clone
  ROOT %dynamic-slice.46 = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.20, %constant.1, %multiply.8)
}
%wide.region_0.1_spmd.clone.sunk (wide.param.0: (s32[], f32[1024,256])) -> (s32[], f32[1024,256]) {
  %all-gather.28 = bf16[1,128,1024]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%fusion.2), channel_id=14, \
replica_groups=[2,4]<=[8], dimensions={1}, use_global_device_ids=true
  %fusion.66 = bf16[128,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%fusion.65, %get-tuple-element.230), kind=kOutput, \
calls=%fused_computation.25.clone.1, backend_config={"window_config":{"estimated_cycles":"3634"}}
  %fusion.67 = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} fusion(%fusion.66), kind=kCustom, calls=%all-reduce-scatter.clone.1
}
%wide.region_1.2_spmd.clone (wide.param.6: (s32[], f32[1024,256])) -> pred[] {
  %constant.24.clone.2 = s32[]{:T(128)} constant(5)
  %get-tuple-element.162 = s32[]{:T(128)} get-tuple-element(%wide.param.6), index=0
  ROOT %lt.6 = pred[]{:T(512)} compare(%get-tuple-element.162, %constant.24.clone.2), direction=LT
}
ENTRY %main.3_spmd (param.2: f32[1024,256]) -> f32[1024,256] {
  %while.17 = (s32[]{:T(128)}, f32[1024,256]{1,0:T(8,128)S(1)}) while(%tuple.28), \
condition=%wide.region_1.2_spmd.clone, body=%wide.region_0.1_spmd.clone.sunk
  %all-reduce.17 = (f32[1024,256]{1,0:T(8,128)S(1)}, f32[16]{0:T(128)S(1)}) all-reduce(%get-tuple-element.100, \
%get-tuple-element.101), channel_id=9, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%make_reduction_computation
  %multiply_subtract_fusion = f32[1024,256]{1,0:T(8,128)} fusion(%param.2, %get-tuple-element.153), kind=kLoop, \
calls=%fused_computation.22, backend_config={"window_config":{"estimated_cycles":"8532"}}
}
"""


def test_collectives_in_loops_and_in_fusions() -> None:
    """A fused sum and slice is a reduce-scatter; a loop's length stands in its condition."""
    whole = 128 * 1024 * 2
    assert collectives_of(TPU_LOOP) == [
        Collective("all-gather", (0, 1, 2, 3), 5, 5 * 3 / 4 * whole),
        Collective("all-reduce", (0, 4), 1, 2 * 1 / 2 * (1024 * 256 + 16) * 4),
        Collective("reduce-scatter", (0, 1, 2, 3), 5, 5 * 3 / 4 * whole),
    ]


def test_cycles_once_and_as_often_as_they_run() -> None:
    assert cycles_of(TPU_LOOP) == (3634 + 8532, 5 * 3634 + 8532)


def test_a_loop_of_unknown_length_in_a_program() -> None:
    with pytest.raises(ValueError, match="the length of a loop cannot be read in the compiled program: %while.17"):
        collectives_of(TPU_LOOP.replace("direction=LT", "direction=NE"))


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", (0, 4)),
        ("replica_groups=mesh['fsdp'=8] {'fsdp':(2)4}", (0, 1, 2, 3)),
        ("replica_groups=mesh['fsdp'=8] {'fsdp':(1)2}", (0, 4)),
        ("replica_groups=mesh['data'=2,'fsdp'=2], device_ids=([2,2]T(1,0)) {'fsdp'}", (0, 2)),
        ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", (2, 0)),
    ],
)
def test_groups_in_every_form(groups: str, members: tuple[int, ...]) -> None:
    kind = "collective-permute" if "pairs" in groups else "all-gather"
    line = (
        f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} {kind}(%p), channel_id=1, {groups}, dimensions={{0}}"
    )
    [found] = collectives_of(line, 8)
    assert found.members == members and found.group == len(members)


def test_groups_in_no_known_form() -> None:
    with pytest.raises(ValueError, match="a form that is not known here"):
        collectives_of("ENTRY %main (p: f32[8]) -> f32[8] {\n  %x = f32[8]{0} all-gather(%p), replica_groups=<all>")


@pytest.mark.parametrize(
    ("result", "size"),
    [
        ("pred[6]{0}", 6),
        ("bf16[3,2]{1,0:T(8,128)(2,1)S(1)}", 12),
        ("f64[]", 8),
        ("s64[2]", 16),
        ("c64[2,3]{1,0}", 48),
        ("c128[2]", 32),
        ("f8e4m3fn[5]{0}", 5),
        ("f8e8m0fnu[5]", 5),
        ("u4[7]{0}", 7),
        ("s4[7,2]{1,0:T(8,128)E(4)}", 7),
        ("f4e2m1fn[5]{0:E(4)}", 3),
        ("f32[<=5,3]{1,0}", 60),
        ("(f32[2]{0}, /*index=1*/u16[3]{0}, token[])", 14),
    ],
)
def test_bytes_of_every_type(result: str, size: int) -> None:
    """A kernel's result, which is written once, of an operand of one byte."""
    text = f"ENTRY %main (p: s8[1]) -> {result} {{\n  %p = s8[1]{{0}} parameter(0)\n  %x = {result} fusion(%p)"
    assert traffic_of(text) == size + 1


def test_every_type_of_jax_has_the_bytes_of_an_array() -> None:
    names = [name for name in dir(jnp) if re.fullmatch(r"bool_|bfloat16|(u?int|float|complex)\d+\w*", name)]
    types = [np.dtype(getattr(jnp, name)) for name in names]
    # Of 64 bits they are narrowed on the way.
    types = [dtype for dtype in types if dtype not in ("int64", "uint64", "float64", "complex128")]
    assert len(types) > 20
    for dtype in types:
        text = jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((4,), dtype)).as_text("hlo")
        [shape] = re.findall(r"= (\S+) parameter", text)
        moved = traffic_of(f"ENTRY %main (x: {shape}) -> {shape} {{\n  %x = {shape} negate(%y)")
        assert moved == 4 * dtype.itemsize, (dtype, shape)


def test_a_type_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="XLA writes an array of 'q7': expected pred, token, opaque or a type that"):
        traffic_of("ENTRY %main (p: q7[4]) -> q7[4] {\n  %x = q7[4]{0} negate(%p)")


def test_traffic_counts_kernels_alone() -> None:
    """Neither products nor what moves nothing; what a loop's body moves as often as it runs."""
    text = """
%fused (p0: f32[4,4], p1: f32[4,4]) -> f32[4,4] {
  %dot.1 = f32[4,4]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%region (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.9 = f32[] add(%x, %y)
}
%body (c: f32[4,4]) -> f32[4,4] {
  %c = f32[4,4]{1,0} parameter(0)
  %tanh.1 = f32[4,4]{1,0} tanh(%c)
}
ENTRY %main (a: f32[4,4]) -> f32[4] {
  %a = f32[4,4]{1,0} parameter(0)
  %loop = f32[4,4]{1,0} while(%a), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %gemm = f32[4,4]{1,0} custom-call(%loop, %a), custom_call_target="__cublas$gemm"
  %fusion = f32[4,4]{1,0} fusion(%gemm, %a), kind=kOutput, calls=%fused
  ROOT %reduce = f32[4]{0} reduce(%fusion), dimensions={0}, to_apply=%region
}
"""
    assert traffic_of(text) == 3 * (64 + 64) + 16 + 64


def test_memory_in_a_refusal() -> None:
    """XLA's words for a v5e, and for any other failure."""
    refusal = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (260.00G) exceeds available HBM (15.75G). HLO module: jit_step."
    )
    assert needed_memory(refusal) == 260 * 2**30
    assert needed_memory("INTERNAL: something took 5.0G") is None
    # A kernel's own fault, not the program's.
    vmem = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom: Ran out of memory in memory space vmem. 20.59M of 16.00M"
    )
    assert needed_memory(vmem) is None
