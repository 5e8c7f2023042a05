"""Decide: the answer with its evidence, the rivals to use instead, and the plan to take away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.explorer.cached import point_of, recommendation, scenario_of
from app.explorer.figures import (
    DECODE_TPOT,
    DECODING,
    GAIN,
    HELP,
    MEMORY,
    RATE,
    SERVICE,
    SPEEDUP,
    TPOT,
    TTFT,
    of_candidate,
    ratio,
    seconds,
)
from app.explorer.inputs.prompt_mix import prompt_mix
from app.explorer.scenario_text import search_flags
from app.explorer.show import (
    plain,
    show_chart,
    show_error,
    show_metrics,
    show_table,
    text_rows,
    verdict,
)
from app.explorer.state import Values
from app.explorer.tray import adopt
from app.explorer.views import export, pinned
from perfmodel import (
    ACCEPTANCE_KEYS,
    ConfigError,
    NoFeasiblePlan,
    Recommendation,
    recommendation_dict,
    scenario_dict,
)
from perfmodel.passes import largest_batch
from perfmodel.planning import Candidate, Verdict, gain_interval, plan_label
from perfmodel.reports import (
    ENGINES,
    ExportPlan,
    engine_label,
    exportability,
    infeasible_reason,
    is_run_by,
)
from perfmodel.specs import Origin, parse_slo
from perfmodel.units import format_chance, format_seconds

ENGINE_SHARE = 0.9  # of the memory, which serving engines use by default


def show() -> None:
    """Draw the view."""
    state, values = st.session_state, st.session_state["values"]
    try:
        with st.spinner("Searching drafts, γ and budgets"):
            answer = recommended(state, values)
    except NoFeasiblePlan as error:
        _nothing(str(error))
        pinned.show()
        return
    except ConfigError as error:
        show_error(error)
        return
    kind = "gain" if answer.speculates else "plain"
    verdict(_title(answer), *answer.sentences, kind=kind)
    _evidence(answer)
    st.markdown(
        "Next: [take the plan to your engine](#run-it), see in **Map** where it pays, or compare "
        "it in **Check** with what your engine reports."
    )
    _numbers(answer)
    _plans(values, answer)
    _lengths()
    pinned.show()
    _facts(answer)
    export.show(answer)


def recommended(state: Mapping[Any, Any], values: Values) -> Recommendation:
    """The recommendation for the state of a page; errors as in `find_plan`."""
    flags = tuple(_flags(state, values).items())
    return recommendation(flags, state["objective"], state["price"] or None, state["runs_on"])


def _flags(state: Mapping[Any, Any], values: Values) -> dict[str, str]:
    return search_flags(values, state["drafts"], all_tps=state["search_tp"])


# ---- the answer -------------------------------------------------------------------------------


def _title(answer: Recommendation) -> str:
    """Whether speculation pays, in a few words."""
    if answer.speculates:
        return "Speculation pays" if answer.is_clear else "Only speculation meets the limits"
    if answer.verdict is Verdict.NO_CLEAR_GAIN:
        return "Speculation does not clearly pay: decode plainly"
    return "Speculation does not pay: decode plainly" if answer.studied else "Decode plainly"


def _evidence(answer: Recommendation) -> None:
    """Chips: the origin of α and of the engine's times, the limits, and who can run the plan."""
    shown = answer.studied or answer.best
    scenario = shown.scenario
    with st.container(horizontal=True, gap="small", key="evidence"):
        if scenario.plan.speculates:
            origin = _acceptance_origin(shown)
            sure = origin in (Origin.FITTED, Origin.MEASURED, Origin.GIVEN)
            outside = "acceptance" in answer.evidence.extrapolated
            note = ", outside the measured range" if outside else ""
            _chip(f"α {origin}{note}", answer.evidence.acceptance, sure=sure and not outside)
        engine, gpu = scenario.engine, scenario.machine.gpu.name
        measured = engine.measured_on == gpu
        text = f"engine {engine.name} {'measured' if measured else 'not measured'} on {gpu}"
        timed = answer.evidence.is_timed
        text += ", at another TP" if measured and not timed else ""
        _chip(text, answer.evidence.engine, sure=timed)
        _limits(answer)
        what = "this draft" if scenario.plan.speculates else "it"
        for name, (runs, why) in _engines(shown).items():
            label = f"{name} {'runs' if runs else 'cannot run'} {what}"
            st.badge(plain(label), color="green" if runs else "gray", help=why and plain(why))


def _chip(label: str, text: str, *, sure: bool) -> None:
    st.badge(plain(label), color="green" if sure else "orange", help=plain(text))


def _acceptance_origin(candidate: Candidate) -> str:
    scenario = candidate.scenario
    if scenario.acceptance is not None:
        return str(scenario.acceptance.origin)
    return "unknown" if scenario.curve is None else str(scenario.curve.origin)


def _limits(answer: Recommendation) -> None:
    """A chip for each limit of the SLO; that of TPOT is green only if its interval meets it."""
    best, slo = answer.best, parse_slo(st.session_state["slo"])
    ticks = [
        ("TPOT", best.tpot_s, slo.tpot_s, format_seconds),
        ("TTFT", best.ttft_s, slo.ttft_s, format_seconds),
        ("memory", best.memory_fraction, slo.memory_fraction, "{:.0%}".format),
    ]
    for name, value, limit, text in ticks:
        if limit is not None:
            label = f"{name} {text(value)} {'≤' if value <= limit else '>'} {text(limit)}"
            if value > limit:
                st.badge(plain(label), color="red")
            elif name == "TPOT" and answer.tpot.high > limit:
                _chip(f"{label}, within the error", answer.tpot_limit, sure=False)
            else:
                _chip(label, "", sure=True)


def _engines(candidate: Candidate) -> dict[str, tuple[bool, str | None]]:
    """For each engine, by its name and version, whether it runs a plan, and why not or how far."""
    trained = candidate.scenario.plan.method is not None  # a head of your own or of the hub
    stated = ExportPlan(
        scenario=candidate.scenario, draft_checkpoint="a checkpoint" if trained else ""
    )
    plan = export.with_checkpoint(stated)
    reasons = exportability(plan)
    return {engine_label(one, plan): (is_run_by(one, plan), reasons[one]) for one in ENGINES}


def _numbers(answer: Recommendation) -> None:
    """Show the gain of the best draft, and the figures of the recommended plan."""
    best, shown = answer.best, answer.studied or answer.best
    interval, chance = answer.interval, answer.gain_probability
    gain = of_candidate(shown)[GAIN]
    span = ""
    if interval is not None:
        span = f"; 90 % interval {interval.low:.2f}x to {interval.high:.2f}x"
    over = f"of {shown.label} {HELP[GAIN]}{span}"
    of_shown = "" if shown is best else f", of {plain(shown.label)}"  # not of the recommended plan
    figures: list[tuple[str, str, str | None]] = [(f"{GAIN}{of_shown}", gain, over)]
    if chance is not None:
        text = f"probability that {shown.label} is faster than plain decoding"
        figures.append((f"P(gain > 1){of_shown}", format_chance(chance), text))
    of_best = of_candidate(best)
    figures += [(name, of_best[name], HELP[name]) for name in (TPOT, TTFT, RATE, MEMORY)]
    cost = answer.cost_per_million_tokens(best)
    if cost is not None:
        figures.append(("Cost per M tokens", f"{cost:.3g}", "output tokens, at your price"))
    show_metrics(figures)
    if shown is not best:
        st.caption(
            plain(f"Figures without a name are those of the recommended plan, {best.label}.")
        )


# ---- the plans --------------------------------------------------------------------------------


def _plans(values: Values, answer: Recommendation) -> None:
    """The recommended plan, a better one in principle, the rivals and plain decoding."""
    flags = _flags(st.session_state, values)
    given = [key for key in ACCEPTANCE_KEYS if key in flags]
    if given and "draft" in flags:
        st.caption(plain(f"Only {flags['draft']} was searched: {given[0]} is given for it."))
    if "tp" in flags:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"Only TP {flags['tp']} was searched.", width="content")
            st.button("Search all TP degrees", on_click=_search_all, type="tertiary")
    st.markdown("### Plans, best first")
    from app.explorer.views.drawing import charts  # after the verdict

    here = _identity(values)
    plans = [("Recommended: ", answer.best)]
    if answer.engine_gap:
        plans.append(("In principle: ", answer.engine_gap.ideal))
    plans += [("", candidate) for candidate in (*answer.runners_up, answer.plain)]
    kinds: dict[Candidate, str] = {}
    for kind, candidate in plans:
        kinds.setdefault(candidate, kind)
    colours = [charts.plan_colour(candidate.scenario) for candidate in kinds]
    styles = (f".st-key-plan_{i} {{ border-left: 6px solid {c} }}" for i, c in enumerate(colours))
    st.html(f"<style>{' '.join(styles)}</style>")
    for number, (candidate, kind) in enumerate(kinds.items()):
        _plan(number, kind, candidate, here)


def _search_all() -> None:
    st.session_state["search_tp"] = True


def _plan(number: int, kind: str, candidate: Candidate, here: str) -> None:
    """One plan in words and figures, with a button to use it on the whole page."""
    engine = dict(st.session_state["values"])["engine"]
    stated = scenario_dict(candidate.scenario) | {"engine": engine}
    key = f"plan_{number}"
    with st.container(horizontal=True, vertical_alignment="center", border=True, key=key):
        label = f"**{plain(kind + candidate.label)}, TP {_tps(candidate)}**"
        st.markdown("  \n".join([label, *map(plain, _figures(candidate))]), width="stretch")
        used = _identity(tuple(stated.items())) == here
        st.button(
            "in use" if used else "use",
            on_click=adopt,
            args=(stated,),
            key=f"use_{number}",
            disabled=used,
            help="Show this plan in every view",
        )


def _figures(candidate: Candidate) -> list[str]:
    """Lines of figures: of the whole service, and of decoding alone."""
    of, speculates = of_candidate(candidate), candidate.scenario.plan.speculates
    gain = of[GAIN]
    if speculates:
        interval = gain_interval(candidate, st.session_state["objective"])
        gain += f" ({interval.low:.2f}-{interval.high:.2f})"
    alpha = f" · α {_acceptance_origin(candidate)}" if speculates else ""
    return [
        f"{SERVICE}: gain {gain}, {of[TPOT]} per token, {of[RATE]} tokens/s/GPU",
        f"{DECODING}: speedup {of[SPEEDUP]}, {of[DECODE_TPOT]} per token{alpha} · "
        f"memory {of[MEMORY]}",
    ]


def _tps(candidate: Candidate) -> str:
    scenario = candidate.scenario
    own = scenario.plan.speculates and scenario.draft_tp != scenario.tp
    return f"{scenario.tp}, draft TP {scenario.draft_tp}" if own else f"{scenario.tp}"


def _identity(values: Values) -> str:
    """The plan of scenario values in words."""
    scenario = scenario_of(values)
    draft_tp = scenario.draft_tp if scenario.plan.speculates else scenario.tp
    return f"{plan_label(scenario)}, TP {scenario.tp}, draft TP {draft_tp}"


def _facts(answer: Recommendation) -> None:
    """Show the limits, the break-even points, and the drafts that were not measured."""
    from app.render.recommendation_tables import UNMEASURED_HEADER, facts, unmeasured_rows

    result = recommendation_dict(answer)
    st.markdown("### Limits and break-even points")
    st.markdown("\n".join(f"- {plain(line)}" for line in facts(result)))
    if result["unmeasured"]:
        st.markdown("### Drafts without a measured acceptance, and the α that each needs")
        show_table(text_rows(UNMEASURED_HEADER, unmeasured_rows(result["unmeasured"])))
    for note in result["notes"]:
        st.caption(plain(note))


# ---- what does not fit, and mixed prompts -----------------------------------------------------


def _nothing(message: str) -> None:
    """Show that no plan meets the limits: the nearest miss, and the memory if it is too small."""
    title = "No plan meets the limits"
    detail = message.removeprefix(f"{title.lower()} ")
    where, nearest, *changes = detail.split("; ")
    lines = (line[:1].upper() + line[1:] for line in (f"{where}; {nearest}", *changes))
    verdict(title, *lines, kind="nothing")
    point = point_of(st.session_state["values"])
    reason = infeasible_reason(point)
    if reason:
        from app.explorer.views.drawing import charts

        most = largest_batch(point.scenario, share=ENGINE_SHARE)
        if most > 0:
            label = f"Use batch {most:,}: this plan in {ENGINE_SHARE:.0%} of the memory"
            st.button(
                label, on_click=st.session_state.update, args=({"batch": most},), key="use_batch"
            )
        st.markdown(f"The plan of this page: {plain(reason)}.")
        show_chart(charts.memory_bars(point), "memory")


def _lengths() -> None:
    """Show the prediction for each prompt length of the distribution."""
    text = st.session_state["prompt_mix"]
    if not text.strip():
        return
    rows = []
    for tokens, share in prompt_mix(text):
        values = dict(st.session_state["values"]) | {"prompt_tokens": tokens}
        if isinstance(values.get("kv_budget"), int):
            values["kv_budget"] = min(values["kv_budget"], tokens)
        point = point_of(tuple(values.items()))
        most, output = point.scenario.target.max_context_tokens, values["output_tokens"]
        fits = "yes" if point.feasible else "no"
        rows.append(
            {
                "prompt (tokens)": tokens,
                "share": f"{share:.0%}",
                SPEEDUP: ratio(float(point.speedup)),
                DECODE_TPOT: seconds(float(point.tpot_s)),
                "fits": fits if tokens + output <= most else f"beyond the model's {most:,} tokens",
            }
        )
    st.markdown("### The plan of this page at each prompt length of the distribution")
    show_table(rows)
