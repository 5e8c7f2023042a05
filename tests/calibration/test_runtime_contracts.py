"""perfmodel and runtime agree on shapes, bytes and plans."""

import pytest
import torch
from tiny_models import SHAPE, MetaWeights

from perfmodel import DraftPlan, ModelSpec, catalog
from runtime import (
    ALONE,
    BatchShape,
    EngineSetup,
    Group,
    Model,
    Ranks,
    build_engine,
    config_of_shape,
)
from runtime.model.weights import load_weights

RUN = [name for name in catalog.model_names() if not catalog.model(name).family]
TINY = ModelSpec(name="tiny", **SHAPE)


@pytest.mark.parametrize("name", RUN)
def test_sharded_weights_have_the_bytes_that_were_predicted(name: str) -> None:
    spec = catalog.model(name)
    config = config_of_shape(spec)
    for tp in (1, 2, 4, 8, 16):
        if spec.splits_over(tp):
            for rank in {0, tp - 1}:
                weights = load_weights(config, MetaWeights(torch.bfloat16), Group(rank, tp))
                assert weights.bytes == spec.weight_bytes_per_rank(tp)


def test_the_plan_that_was_predicted_is_the_one_that_runs() -> None:
    plan = DraftPlan(draft="self", policy="streamingllm", gamma=3, kv_budget_tokens=32)
    model = Model(config=config_of_shape(TINY), seed=1)
    setup = EngineSetup(target=model, draft=None, plan=plan)
    engine = build_engine(setup, Ranks(ALONE, ALONE), BatchShape([50], [20]))
    result = engine.generate([list(range(50))], [20])
    assert result.generated_tokens == 20
    assert {record.gamma for record in result.rounds} == {3}
    token_bytes = TINY.kv_bytes_per_token_per_rank(1) * 2  # float32 here, bf16 in the spec
    pages = engine.cache.pages + 1  # one for idle rows
    assert engine.cache.bytes == pages * engine.cache.page_tokens * token_bytes
