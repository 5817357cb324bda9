"""Reading XLA's text: loops multiplied, operations in pieces counted once, groups of every spelling."""

import pytest

from jinstr.train import collectives

TEXT = """\
HloModule step

%pieces_a (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %ag.1 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%pieces_b (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %ag.2 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (s: (s32[], f32[128])) -> (s32[], f32[128]) {
  %s = (s32[], f32[128]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[128] get-tuple-element(%s), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %sum = f32[128]{0} all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, \
metadata={op_name="jit(step)/grad"}, backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], f32[128]) tuple(%next, %sum)
}

%condition (s: (s32[], f32[128])) -> pred[] {
  %s.1 = (s32[], f32[128]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %bound = s32[] constant(BOUND)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: bf16[4,8], x: f32[128]) -> f32[128] {
  %a = bf16[4,8] parameter(0)
  %x.2 = f32[128] parameter(1)
  %f.1 = bf16[16,8] fusion(%a), kind=kCustom, calls=%pieces_a, backend_config={"estimated_cycles":"7"}
  %f.2 = bf16[16,8] fusion(%a), kind=kCustom, calls=%pieces_b
  %zero = s32[] constant(0)
  %start = (s32[], f32[128]) tuple(%zero, %x.2)
  %loop = (s32[], f32[128]) while(%start), condition=%condition, body=%body
  %sent = f32[128]{0} collective-permute(%x.2), source_target_pairs={{0,1},{1,0}}
  ROOT %done = f32[128] get-tuple-element(%loop), index=1
}
"""


def test_a_program():
    found = collectives.read(TEXT.replace("BOUND", "8"))
    assert found.unknown == 0
    assert found.kinds == {
        # In two pieces with one channel: once, beside computation. 3/4 of 256 bytes come over the wires.
        "all-gather": collectives.Moved(1, 256, 192, 192),
        # By twos up to 8: four times; a ring of four sends each of 512 bytes 2 · 3/4 times.
        "all-reduce": collectives.Moved(4, 4 * 512, 4 * 768, 0),
        "collective-permute": collectives.Moved(1, 512, 512, 0),
    }
    assert found.largest == 256 and found.wire == 192 + 4 * 768 + 512
    assert found.cycles == 7 + 4 * 100
    (summed,) = (one for one in found.each if one.kind == "all-reduce")
    assert (summed.devices, summed.times, summed.source) == (4, 4, "jit(step)/grad")


@pytest.mark.parametrize("bound, times", [("9", 5), ("2", 1), ("0", 0)])
def test_passes_of_a_loop(bound, times):
    assert collectives.read(TEXT.replace("BOUND", bound)).kinds["all-reduce"].count == times


def test_a_loop_without_a_known_bound_is_told():
    text = TEXT.replace(
        "%bound = s32[] constant(BOUND)", "%bound = s32[] get-tuple-element(%s.1), index=0"
    )
    found = collectives.read(text)
    assert found.unknown == 1 and found.kinds["all-reduce"].count == 1


def test_two_operations_with_channels_of_their_own_are_two():
    """Negative control of counting pieces once."""
    text = TEXT.replace("BOUND", "8").replace("channel_id=7", "channel_id=8", 1)
    moved = collectives.read(text).kinds["all-gather"]
    assert moved == collectives.Moved(2, 512, 384, 0)


def test_what_goes_between_slices():
    """As the TPU compiler writes it: each chip hands its part to its host; what is received is not sent once more."""
    sent = """
  %ready = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.1_0"}
  %send = (bf16[512,8,128]{2,1,0}, u32[], token[]) send(%a, %ready), channel_id=7, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:7}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[512,8,128]{2,1,0}, u32[], token[]) recv(%ready), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:7}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
"""
    text = TEXT.replace("BOUND", "8").replace("  %zero =", sent + "  %zero =")
    found = collectives.read(text)
    size = 512 * 8 * 128 * 2
    assert found.kinds[collectives.BETWEEN] == collectives.Moved(1, size, size, 0)  # 2 · 1/2
    assert found.kinds["all-gather"].count == 1  # whose channel has the same number
    four = collectives.read(text.replace("{1,2}x", "{1:3,5}x")).kinds[collectives.BETWEEN]
    assert four == collectives.Moved(1, size, 1.5 * size, 0)  # 2 · 3/4
    # Negative control: what a program sends its host for other ends.
    other = collectives.read(text.replace("megascale", "something"))
    assert collectives.BETWEEN not in other.kinds


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives.read("HloModule x\n")
