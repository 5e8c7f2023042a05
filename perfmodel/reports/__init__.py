"""Results as JSON dictionaries, and plans as engine configuration files."""

from perfmodel.reports.engine_config import (
    ENGINES,
    engine_label,
    export_notes,
    export_plan,
    exportability,
    is_run_by,
    refusal,
)
from perfmodel.reports.export import ExportPlan
from perfmodel.reports.prediction import (
    check_fits,
    infeasible_reason,
    prediction_dict,
)
from perfmodel.reports.recommendation import recommendation_dict
from perfmodel.reports.simulation import (
    batch_dict,
    choice_dict,
    serving_dict,
    simulation_dict,
    skipped_notes,
    timeline_rows,
    workload_dict,
)

__all__ = [
    "ENGINES",
    "ExportPlan",
    "batch_dict",
    "check_fits",
    "choice_dict",
    "engine_label",
    "export_notes",
    "export_plan",
    "exportability",
    "infeasible_reason",
    "is_run_by",
    "prediction_dict",
    "recommendation_dict",
    "refusal",
    "serving_dict",
    "simulation_dict",
    "skipped_notes",
    "timeline_rows",
    "workload_dict",
]
