"""Decide: the recommendation in a sentence, the runners-up, and the binding limit."""

from __future__ import annotations

import streamlit as st

from app import charts
from app.explorer.cached import point_of, recommendation, scenario_of
from app.explorer.inputs.prompt_mix import prompt_mix
from app.explorer.link import uploaded_path
from app.explorer.show import (
    plain,
    show_chart,
    show_error,
    show_metrics,
    show_table,
    text_rows,
    verdict,
)
from app.explorer.state import Values, search_flags, widget_state
from app.render.recommendation_tables import (
    PLAN_HEADER,
    UNMEASURED_HEADER,
    facts,
    plan_rows,
    unmeasured_rows,
)
from perfmodel import (
    ACCEPTANCE_KEYS,
    ConfigError,
    NoFeasiblePlan,
    Recommendation,
    recommendation_dict,
    scenario_dict,
)
from perfmodel.planning import plan_label
from perfmodel.reports import infeasible_reason
from perfmodel.units import format_chance, format_seconds


def show() -> None:
    """Draw the view."""
    state, values = st.session_state, st.session_state["values"]
    flags = search_flags(values, state.get("drafts", []), all_tps=state.get("search_tp", False))
    try:
        answer = recommendation(tuple(flags.items()), state.get("objective", "throughput"))
    except NoFeasiblePlan as error:
        _nothing(str(error))
        return
    except ConfigError as error:
        show_error(error)
        return
    result = recommendation_dict(answer)
    verdict(
        str(answer.verdict).capitalize(),
        answer.sentence,
        kind="gain" if answer.speculates else "plain",
    )
    _numbers(answer)
    rows = plan_rows(result)
    st.markdown("**Plans, best first**")
    show_table(text_rows(PLAN_HEADER, rows))
    st.button(
        "Show this plan in all views",
        on_click=_take,
        args=(scenario_dict(answer.best.scenario),),
        icon=":material/check:",
    )
    _searched(values, flags, answer)
    st.markdown("\n".join(f"- {plain(line)}" for line in facts(result)))
    best = [answer.best, *answer.runners_up]
    names = [f"{c.label}, TP {c.scenario.tp}" for c in best]
    show_chart(
        charts.plan_bars(names, [c.throughput_per_gpu for c in best], "tokens/s per GPU"), "plans"
    )
    if result["unmeasured"]:
        st.markdown("**Drafts without a measured acceptance, and the α that each needs**")
        show_table(text_rows(UNMEASURED_HEADER, unmeasured_rows(result["unmeasured"])))
    _lengths()
    for note in result["notes"]:
        st.caption(plain(note))


def _searched(values: Values, flags: dict[str, str], answer: Recommendation) -> None:
    """Say which drafts were searched, if not all, and which plan the other views show."""
    given = [key for key in ACCEPTANCE_KEYS if key in flags]
    if given and "draft" in flags:
        st.caption(plain(f"Only {flags['draft']} was searched: {given[0]} is given for it."))
    shown, best = scenario_of(values), answer.best.scenario
    labels = [f"{plan_label(s.plan)}, TP {s.tp}, draft TP {s.draft_tp}" for s in (shown, best)]
    if labels[0] != labels[1]:
        st.caption(plain(f"Until you press this button, the other views show {labels[0]}."))


def _numbers(answer: Recommendation) -> None:
    """Show the figures of the best plan."""
    best, interval, chance = answer.best, answer.interval, answer.gain_probability
    figures: list[tuple[str, str, str | None]] = [
        ("Gain", f"{best.gain:.2f}x", None),
        ("Time per token", format_seconds(best.tpot_s), None),
        ("Tokens/s per GPU", f"{best.throughput_per_gpu:,.0f}", None),
    ]
    if interval is not None and chance is not None and answer.studied is not None:
        span = f"90 % interval of {answer.studied.label}: {interval.low:.2f}x to "
        figures.append(("P(gain > 1)", format_chance(chance), span + f"{interval.high:.2f}x"))
    show_metrics(figures)


def _nothing(message: str) -> None:
    """Show that no plan meets the limits: the nearest miss, and the memory by term."""
    verdict("Nothing fits", message, kind="nothing")
    point = point_of(st.session_state["values"])
    reason = infeasible_reason(point)
    if reason:
        st.markdown(f"The sidebar's plan: {plain(reason)}.")
    show_chart(charts.memory_bars(point), "memory")
    st.markdown(
        "What could help: more GPUs, a smaller batch, a shorter prompt, fp8 weights or KV cache, "
        "or looser limits."
    )


def _lengths() -> None:
    """Show the prediction for each prompt length of the distribution."""
    text = st.session_state.get("prompt_mix", "")
    if not text.strip():
        return
    rows = []
    for tokens, share in prompt_mix(text):
        values = dict(st.session_state["values"]) | {"prompt_tokens": tokens}
        if isinstance(values.get("kv_budget"), int):
            values["kv_budget"] = min(values["kv_budget"], tokens)
        point = point_of(tuple(values.items()))
        rows.append(
            {
                "prompt (tokens)": tokens,
                "share": f"{share:.0%}",
                "speedup": f"{float(point.speedup):.2f}x",
                "time/token": format_seconds(float(point.tpot_s)),
                "fits": bool(point.feasible),
            }
        )
    st.markdown("**The sidebar's plan at each prompt length of the distribution**")
    show_table(rows)


def _take(scenario: dict[str, object]) -> None:
    """Set the plan's inputs only, so that the workload, its limits and its curves are kept."""
    path = uploaded_path(st.session_state)
    taken = widget_state(scenario, uploaded_target=path)
    keys = ["tp", "draft", "gamma", "kv_budget", "draft_tp"]
    if st.session_state["acceptance_form"] != "published":  # converted, as γ may have changed
        keys += ["acceptance_form", "acceptance", "acceptance_per_position"]
    st.session_state.update({key: taken[key] for key in keys})
