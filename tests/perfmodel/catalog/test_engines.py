"""Engine profiles: the catalog's values, their units, and the effect of each coefficient."""

from dataclasses import replace

import pytest
from strategies import ENGINES, a_scenario

from perfmodel import ConfigError, EngineProfile, catalog, estimate
from perfmodel.catalog.engines import engine_names, engine_profile, profile_from_table

PLAIN = {"name": "mine", "origin": "assumed", "source": "a test"}


def test_the_engines_in_the_catalog_have_origin_and_source() -> None:
    assert set(engine_names()) >= set(ENGINES)
    for name in engine_names():
        profile = engine_profile(name, catalog.gpu("h200"))
        assert profile.name == name and profile.source
        assert profile.origin in ("datasheet", "assumed", "fitted", "measured", "extrapolated")


def test_ideal_adds_nothing_to_the_kernels() -> None:
    profile = engine_profile("kernels", catalog.gpu("a100-sxm-80gb"))
    times = {f: getattr(profile, f) for f in EngineProfile.__dataclass_fields__ if f.endswith("_s")}
    assert set(times.values()) == {0.0}
    factors = [f for f in EngineProfile.__dataclass_fields__ if f.endswith("_factor")]
    assert {getattr(profile, f) for f in factors} == {1.0}
    assert profile.reserved_bytes == profile.workspace_bytes == 0.0


def test_specroof_is_marked_as_assumed_where_it_was_not_measured() -> None:
    assert engine_profile("specroof", catalog.gpu("h200")).origin == "fitted"
    assert engine_profile("specroof", catalog.gpu("a100-sxm-80gb")).origin == "assumed"
    notes = {gpu: a_scenario(engine="specroof", gpu=gpu).notes for gpu in ("h200", "a100-sxm-80gb")}
    assert any("assumed, not measured" in note for note in notes["a100-sxm-80gb"])
    assert not any("assumed, not measured" in note for note in notes["h200"])


def test_magicdec_has_values_per_architecture_and_a_default() -> None:
    ampere, hopper, other = (
        engine_profile("magicdec", catalog.gpu(name)) for name in ("a100-sxm-80gb", "h200", "b200")
    )
    assert ampere != hopper
    assert other == hopper


def test_keys_state_their_units() -> None:
    profile = profile_from_table(
        PLAIN | {"kernel_gap_us": 2.5, "reserved_GB": 3, "attention_factor": 1.1}, file="x.toml"
    )
    assert profile.kernel_gap_s == pytest.approx(2.5e-6, rel=1e-12)
    assert profile.reserved_bytes == 3e9
    assert profile.attention_factor == 1.1


@pytest.mark.parametrize("key", ["kernel_gap_s", "reserved_bytes", "kernel_gap_ms", "colour"])
def test_an_unknown_key_or_unit_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"x.toml: unknown key '{key}'"):
        profile_from_table(PLAIN | {key: 1.0}, file="x.toml")


@pytest.mark.parametrize("ranks", [[], [0], [1.5], ["a"]])
def test_an_engine_that_was_measured_states_the_ranks_of_its_timings(ranks: list[object]) -> None:
    entries = PLAIN | {"measured_on": "h200", "timed_tp": [1, 2]}
    assert profile_from_table(entries, file="x.toml").timed_tp == (1, 2)
    with pytest.raises(ConfigError, match=r"x\.toml: timed_tp"):
        profile_from_table(entries | {"timed_tp": ranks}, file="x.toml")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"host": [{"method": "plain"}, {"method": "plain"}]}, "method 'plain' appears twice"),
        ({"host": [{"method": "plane"}]}, "unknown method 'plane'; did you mean plain"),
        (
            {"host": [{"method": "plain"}, {"method": "draft", "speedup_error": 0.1}]},
            "x.toml: host[1]: key 'speedup_error' is now host_error of the whole profile; delete",
        ),
        ({"name": "a\x00b"}, "name='a?b' is not valid"),
        ({"name": "\x1b[2J"}, "is not valid; use at most 100 printable"),
        ({"name": "x" * 101}, "is not valid; use at most 100 printable"),
    ],
)
def test_what_a_profile_cannot_state_is_refused(entries: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        profile_from_table(PLAIN | entries, file="x.toml")
    assert says in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "profile"),
    [("vllm-0.7.2", "vllm-0.7"), ("vllm-0.7.2.post1", "vllm-0.7"), ("vllm-0.26.0", "vllm-0.26")],
)
def test_a_patch_has_the_profile_of_its_version(name: str, profile: str) -> None:
    assert engine_profile(name) == engine_profile(profile)
    assert engine_profile("vllm").name == "vllm-0.26"  # the newest, although older ones are listed


@pytest.mark.parametrize("name", ["vllm-0.8.1", "vllm-0.7.2.3", "vllm-0.7.x", "vllm-0.7.", "vllm-"])
def test_a_version_without_a_profile_does_not_take_another(name: str) -> None:
    with pytest.raises(ConfigError, match="has no profile of"):
        engine_profile(name)


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown engine 'magic'; did you mean magicdec"):
        engine_profile("magic", catalog.gpu("h200"))


@pytest.mark.parametrize(
    "field, value, part",
    [
        ("linear_factor", 1.5, "down_proj"),
        ("attention_factor", 1.5, "attention"),
        ("comm_factor", 1.5, "all_reduce"),
        ("activation_factor", 1.5, "norm"),
        ("kernel_latency_s", 1e-5, "rotary"),
        ("kernel_gap_s", 1e-5, "launch"),
        ("layer_overhead_s", 1e-4, "launch"),
        ("layer_overhead_per_sequence_s", 1e-6, "launch"),
        ("step_overhead_s", 1e-3, "host"),
    ],
)
def test_each_coefficient_changes_its_part(field: str, value: float, part: str) -> None:
    scenario = a_scenario(engine="kernels", tp=8)
    slower = replace(scenario, engine=replace(scenario.engine, **{field: value}))
    before, after = (estimate(s).target_step for s in (scenario, slower))
    assert after.part(part).seconds > before.part(part).seconds
    if field.endswith("_factor"):
        moved = after.part(part).seconds / before.part(part).seconds
        assert float(moved) == pytest.approx(1.5, rel=1e-12)
    assert after.total_s > before.total_s


def test_round_overheads_count_once_per_round_sequence_and_draft() -> None:
    scenario = a_scenario(engine="kernels", draft="self", batch=10, gamma=4)
    engine = replace(
        scenario.engine,
        round_overhead_s=1e-3,
        round_overhead_per_sequence_s=1e-5,
        round_overhead_per_draft_s=1e-4,
    )
    before, after = estimate(scenario), estimate(replace(scenario, engine=engine))
    by_model = a_scenario(engine="kernels", draft="llama-68m", batch=10, gamma=4)
    more = replace(
        engine,
        model_draft_overhead_s=5e-4,
        model_draft_overhead_per_sequence_s=2e-5,
        model_draft_overhead_per_draft_s=2e-4,
    )
    for drafted, overhead_s in ((scenario, 1.5e-3), (by_model, 3.0e-3)):
        estimated = estimate(replace(drafted, engine=more)).overhead_s
        assert float(estimated) == pytest.approx(overhead_s, rel=1e-12)
    assert float(after.round_s - before.round_s) == pytest.approx(1.5e-3, rel=1e-9)
    assert after.target_step.total_s == before.target_step.total_s


@pytest.mark.parametrize("host_s", [1e-6, 1.0])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_plain_step_hides_the_host_behind_the_gpu(host_s: float, ahead: bool) -> None:
    scenario = a_scenario(engine="kernels", draft="self", gamma=4, acceptance=0.8)
    engine = replace(scenario.engine, plain_host_s=host_s, plain_runs_ahead=ahead)
    scenario = replace(scenario, engine=engine)
    plain, speculative = estimate(scenario, gamma=0), estimate(scenario)
    step = float(plain.target_step.total_s)
    assert 1e-6 < step < 1.0
    assert float(plain.tpot_s) == float(speculative.plain_tpot_s)
    assert float(plain.tpot_s) == pytest.approx(max(step, host_s) if ahead else step, rel=1e-12)
    assert float(speculative.overhead_s) == 0.0


def test_a_draft_step_has_the_host_time_of_the_draft() -> None:
    scenario = a_scenario(engine="kernels", draft="self", gamma=4)
    engine = replace(scenario.engine, draft_step_overhead_s=1e-3, step_overhead_s=5e-3)
    point = estimate(replace(scenario, engine=engine))
    assert point.draft_step is not None
    assert float(point.draft_step.part("host").seconds) == 1e-3
    assert float(point.verify.part("host").seconds) == 5e-3


def test_an_unmeasured_gpu_takes_values_from_its_architecture() -> None:
    own = engine_profile("specroof", catalog.gpu("h200"))
    carried = engine_profile("specroof", catalog.gpu("h100-nvl"))
    assert own.measured_on == "h200"
    assert own.kernel_origin(catalog.gpu("h200")) == "fitted"
    assert carried.measured_on in ("h200", "h100-sxm") and carried.origin == "extrapolated"
    assert carried.kernel_origin(catalog.gpu("h100-nvl")) == "extrapolated"
    chosen = engine_profile("specroof", catalog.gpu("h100-sxm"), curves_of="h200")
    assert chosen == replace(own, origin="extrapolated")


@pytest.mark.parametrize(
    "engine, of, known", [("specroof", "l40s", "h200"), ("ideal", "h200", "none")]
)
def test_curves_of_a_gpu_that_was_not_measured_are_refused(
    engine: str, of: str, known: str
) -> None:
    with pytest.raises(
        ConfigError, match=f"{engine} was not measured on '{of}'; use one of {known}"
    ):
        engine_profile(engine, catalog.gpu("h200"), curves_of=of)
