"""The explorer's views and how many charts each shows for a preset."""

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
