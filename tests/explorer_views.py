"""The explorer's views and the number of charts of each, for a plan of known acceptance."""

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
# Where nobody has measured the draft's acceptance, there is less to draw.
CHARTS_WITHOUT_ACCEPTANCE = CHARTS | {"γ × budget": 1, "Sensitivity": 0}
UNMEASURED_PRESETS = ("llama-3.1-70b-8xh100",)
