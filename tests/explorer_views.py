"""The explorer's views and how many charts each shows for a plan with a known acceptance."""

CHARTS = {
    "Decide": 1,
    "Map": 1,
    "Why": 3,
    "γ × budget": 2,
    "Latency": 1,
    "Sensitivity": 3,
    "Validation": 3,
    "Compare": 3,
    "Deploy": 1,
}
# Without a measured acceptance of the draft, some charts cannot be drawn.
CHARTS_WITHOUT_ACCEPTANCE = CHARTS | {"γ × budget": 1, "Sensitivity": 0}
UNMEASURED_PRESETS = ("llama-3.1-70b-8xh100",)
