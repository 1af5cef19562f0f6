"""The aggregation rules by name; a new one is a `register` line, or a user's own `package.module:object`."""

from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule, Median, PlainFunction, TrimmedMean
from fedgpt2.aggregation.pipeline import Pipeline, Rule, TokenMean
from fedgpt2.aggregation.rules import CenteredClipping, GeometricMedian, Krum, Mean, MultiKrum, SpanRule
from fedgpt2.aggregation.stages import ARC, NNM, Bucketing, NormClip
from fedgpt2.errors import UsageError
from fedgpt2.registry import Registry

__all__ = ["FLAG", "RULES", "pipeline"]

FLAG = "--aggregation.rule"


def _adapt(name: str, loaded: object) -> Rule:
    """A pipeline of an imported object: a `Pipeline`, a rule (or its class), or a function (rows [n, d], f) -> [d]."""
    rule = loaded() if isinstance(loaded, type) else loaded
    if isinstance(rule, Pipeline):
        return rule
    if isinstance(rule, SpanRule | CoordinatewiseRule):
        return Pipeline((), rule)
    if callable(rule):
        return Pipeline((), PlainFunction(rule))
    raise TypeError("expected a Pipeline, a rule, or a function (rows, f) -> aggregate")


RULES: Registry[Rule] = Registry("rule", _adapt)
RULES.register("mean", TokenMean())
RULES.register("default", Pipeline((NormClip(), NNM()), GeometricMedian()))
RULES.register("clipped_mean", Pipeline((NormClip(),), Mean()))
RULES.register("median", Pipeline((), Median()))
RULES.register("trimmed_mean", Pipeline((), TrimmedMean()))
RULES.register("krum", Pipeline((), Krum()))
RULES.register("multi_krum", Pipeline((), MultiKrum()))
RULES.register("geometric_median", Pipeline((), GeometricMedian()))
RULES.register("centered_clipping", Pipeline((), CenteredClipping()))
RULES.register("nnm_trimmed_mean", Pipeline((NNM(),), TrimmedMean()))
RULES.register("nnm_median", Pipeline((NNM(),), Median()))
RULES.register("arc_nnm_trimmed_mean", Pipeline((ARC(), NNM()), TrimmedMean()))
RULES.register("bucketing_geometric_median", Pipeline((Bucketing(),), GeometricMedian()))


def pipeline(name: str) -> Pipeline:
    """The pipeline called `name`. Raises UsageError for an unknown rule and for one that is no pipeline."""
    rule = RULES.get(name, FLAG)
    if not isinstance(rule, Pipeline):
        raise UsageError(f"{FLAG} {name}: not a pipeline")
    return rule
