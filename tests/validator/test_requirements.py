"""What a run needs: counted in bodies, refused in one line that names the way out."""

from dataclasses import replace

import pytest

from fedgpt2.errors import SetupError
from fedgpt2.validator.requirements import Machine, check, look_at, needs, statement

BODY = 1_000_000_000
ADAMW = {"optimizer_states": 2, "aggregates": 2, "miners": 4, "checkpoints": 2}
NEEDED = needs(BODY, state=0, gradient=0, **ADAMW)
ENOUGH = Machine(
    memory=NEEDED.memory,
    run_disk=NEEDED.checkpoints + NEEDED.contributions,
    scratch_disk=NEEDED.contributions,
    same_disk=True,
    scratch_in_memory=False,
)


def bodies(needed):
    return (needed.memory - needs(0, state=0, gradient=0, **ADAMW).memory) / BODY


def test_fp32_on_a_cpu_is_counted_in_bodies():
    assert bodies(NEEDED) == 8  # weights, two moments, aggregate and two recent ones, trial weights, scoring gradient
    assert NEEDED.checkpoints == 3 * 5 * BODY
    assert NEEDED.contributions == 4 * BODY


def test_another_codec_adds_what_miners_hold_and_the_rows_decoded():
    needed = needs(BODY, state=BODY // 2, gradient=BODY // 2, **ADAMW)
    assert bodies(needed) == 9.5
    assert needed.contributions == 4 * (BODY + BODY // 2)


def test_on_a_device_weights_and_moments_take_no_memory_here():
    assert bodies(needs(BODY, state=0, gradient=0, on_cpu=False, **ADAMW)) == 5


def test_memory_does_not_grow_with_miners():
    many = needs(BODY, state=0, gradient=0, **{**ADAMW, "miners": 400})
    assert (many.memory, many.checkpoints) == (NEEDED.memory, NEEDED.checkpoints)


def test_what_just_fits_is_accepted():
    check(NEEDED, ENOUGH)
    check(NEEDED, replace(ENOUGH, same_disk=False, run_disk=NEEDED.checkpoints))
    check(NEEDED, replace(ENOUGH, scratch_in_memory=True, memory=NEEDED.memory + NEEDED.contributions))


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"memory": NEEDED.memory - 1}, "of memory, this machine has .*: choose a smaller --model.preset"),
        (
            {"scratch_in_memory": True},
            "of memory with contributions, .* tmpfs, .* a folder on a disk with --run.scratch",
        ),
        ({"run_disk": ENOUGH.run_disk - 1}, "for checkpoints and contributions, .* --run.dir or --run.scratch"),
        ({"same_disk": False, "run_disk": NEEDED.checkpoints - 1}, r"for checkpoints, .* larger disk with --run.dir$"),
        ({"same_disk": False, "scratch_disk": NEEDED.contributions - 1}, "contributions of 4 miners .* --run.scratch"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_way_out(changes, way_out):
    with pytest.raises(SetupError, match=way_out) as refused:
        check(NEEDED, replace(ENOUGH, **changes))
    assert "\n" not in str(refused.value)


def test_it_is_stated():
    told = statement(NEEDED, ENOUGH)
    assert told == (
        "needs up to 8.7 GB of memory, 15.0 GB of disk for checkpoints and 4.0 GB for contributions of 4 miners (disk)"
    )
    assert statement(NEEDED, replace(ENOUGH, scratch_in_memory=True)).endswith("(memory: their folder is on tmpfs)")


def test_this_machine_is_looked_at(tmp_path):
    machine = look_at(tmp_path / "runs" / "new", tmp_path / "runs" / "new" / "contributions")
    assert machine.same_disk
    assert machine.memory > 1 << 28
    assert machine.run_disk == machine.scratch_disk > 0
    checkpoint = tmp_path / "checkpoints" / "round-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(1 << 22))
    assert look_at(tmp_path, tmp_path).run_disk - look_at(tmp_path, tmp_path).scratch_disk == 1 << 22
